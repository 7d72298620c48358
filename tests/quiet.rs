//! A kernel that complains of itself fails a run, and what it says is told.

use serde_json::Value;
use tests::{Finished, baton, ready, run_text, scenarios, small};

/// Runs a scenario of `faults/` as it is.
fn fault(name: &str) -> Option<Finished> {
    if !ready(name) {
        return None;
    }
    let file = scenarios().join(format!("faults/{name}.toml"));
    let run = baton(["run".as_ref(), file.as_os_str()]);
    assert_eq!(run.status, 0, "{}", run.text);
    assert_eq!(run.scenario()["outcome"]["kind"], "completed", "{}", run.text);
    Some(run)
}

/// The run's only complaint, of the kernel of `generation`.
fn complaint(run: &Finished, generation: u32) -> (String, String) {
    let findings = run.findings("kernel-quiet");
    assert_eq!(findings.len(), 1, "{}", run.text);
    let text = |key: &str| findings[0][key].as_str().unwrap_or_default().to_owned();
    let owner = text("owner");
    assert!(
        owner.starts_with(&format!("kernel of generation {generation}, ")),
        "{owner}"
    );
    (text("text"), text("actual"))
}

#[test]
fn a_warning_is_told_with_its_code() {
    let Some(run) = fault("kernel-warns") else { return };
    let (text, lines) = complaint(&run, 0);
    assert!(text.starts_with("warning at lkdtm_WARNING+0x"), "{text}");
    assert!(text.contains("of generation 0 in prepare, at "), "{text}");
    assert!(lines.contains("WARNING: "), "{lines}");
    assert!(lines.contains("lkdtm_do_action"), "a caller: {lines}");
}

#[test]
fn a_warning_of_a_kernel_in_the_middle_of_a_chain_is_told() {
    let Some(run) = fault("new-kernel-warns") else {
        return;
    };
    let (text, lines) = complaint(&run, 1);
    assert!(text.starts_with("warning at lkdtm_WARNING_MESSAGE+0x"), "{text}");
    assert!(text.contains("of generation 1 in restore, at "), "{text}");
    assert!(lines.contains("Warning message trigger count"), "{lines}");
}

#[test]
fn a_bug_and_an_oops_are_told_once_each_and_the_update_goes_on() {
    for (name, begin) in [
        ("kernel-bugs", "BUG at lkdtm_BUG+0x"),
        ("kernel-oopses", "oops at lkdtm_EXCEPTION+0x"),
    ] {
        let Some(run) = fault(name) else { return };
        let (text, lines) = complaint(&run, 1);
        assert!(text.starts_with(begin), "{text}");
        assert!(lines.contains("Oops: "), "{lines}");
    }
}

#[test]
fn an_allowed_warning_fails_nothing() {
    let Some(run) = fault("kernel-warning-allowed") else {
        return;
    };
    let rule = run.rule("kernel-quiet");
    assert_eq!(rule["held"], true, "{rule}");
    assert!(
        rule["note"]
            .as_str()
            .is_some_and(|note| note.contains("1 complaints allowed")),
        "{rule}"
    );
}

#[test]
fn a_complaint_that_nobody_expects_fails_the_run() {
    if !ready("negative control") {
        return;
    }
    let quiet = run_text(&small(""), &[]);
    assert_eq!(quiet.status, 0, "{}", quiet.text);
    let rule = quiet.rule("kernel-quiet");
    assert_eq!(
        (&rule["held"], &rule["findings"]),
        (&true.into(), &0.into()),
        "{rule}"
    );
    // Console and log of two kernels.
    assert!(
        rule["looked_at"].as_u64().is_some_and(|lines| lines > 100),
        "{rule}"
    );
    let warned = run_text(&small("[fault]\nprovoke = \"WARNING\"\n"), &[]);
    assert_eq!(
        (warned.status, &warned.scenario()["verdict"]),
        (1, &Value::from("fail"))
    );
    // A console that shows errors only: the log has the warning.
    let silent = small("[fault]\nprovoke = \"WARNING\"\n[kernel]\nappend = \"loglevel=1\"\n");
    let silent = run_text(&silent, &[]);
    let (text, _) = complaint(&silent, 0);
    assert!(text.contains("of generation 0, at "), "no phase is known: {text}");
}
