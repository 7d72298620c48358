//! Where two runs part, seen from outside.

use std::path::{Path, PathBuf};

use tests::{baton, ready, run_text, small};

fn kept(folder: &Path, name: &str, further: &[&str]) -> PathBuf {
    let out = folder.join(name);
    let mut arguments = vec!["--out", out.to_str().unwrap()];
    arguments.extend(further);
    let run = run_text(&small(""), &arguments);
    assert_eq!(run.status, 0, "{}", run.text);
    out
}

#[test]
fn equal_runs_are_equal_and_another_seed_parts_at_a_record_that_is_named() {
    if !ready("comparison of two runs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, further: &[&str]| kept(folder.path(), name, further);
    let [first, again, other] = [at("first", &[]), at("again", &[]), at("other", &["--seed", "2"])];
    let compare = |second: &Path| baton(["compare".as_ref(), first.as_os_str(), second.as_os_str()]);

    let equal = compare(&again);
    assert_eq!(equal.status, 0, "{}", equal.text);
    assert!(equal.text.starts_with("equal: "), "{}", equal.text);
    let comparison = &equal.report["comparison"];
    assert_eq!(comparison["result"], "equal");
    for kind in [
        "trace_records",
        "messages",
        "ledger_entries",
        "captured_pages",
        "blob_pages",
    ] {
        assert!(comparison[kind].as_u64() > Some(0), "{kind}: {comparison}");
    }
    assert_eq!(
        comparison["trace_dropped"], 0,
        "every record of a small run is kept"
    );

    let different = compare(&other);
    assert_eq!(different.status, 1, "{}", different.text);
    assert!(
        different.text.starts_with(
            "different inputs: seed was 1 in the first and 2 in the second\nfirst difference: at "
        ),
        "{}",
        different.text
    );
    let record = &different.report["comparison"]["record"];
    assert_eq!(record["part"], "trace", "{record}");
    assert!(record["at"]["instructions"].as_u64() > Some(0), "{record}");
    assert_ne!(record["first"], record["second"]);

    let nothing = compare(folder.path());
    assert_eq!(nothing.status, 3, "{}", nothing.text);
    let alone = baton(["compare".as_ref(), first.as_os_str()]);
    assert_eq!(alone.status, 2, "{}", alone.text);
}
