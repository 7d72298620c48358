//! Scenarios that give their own steps: each answer is checked, and what the steps have put into memory is what the new
//! kernel gives back.

use std::path::PathBuf;

use serde_json::Value;
use tests::{Finished, NIGHTLY, baton, built_for, program, ready, run_text, scenarios, skipped};

fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(scenarios().join("steps")).expect("the folder is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn text_of(name: &str) -> String {
    let file = scenarios().join(format!("steps/{name}.toml"));
    std::fs::read_to_string(file).expect("the scenario")
}

/// The only finding of a rule.
fn only<'a>(finished: &'a Finished, rule: &str) -> &'a Value {
    let findings = finished.findings(rule);
    assert_eq!(findings.len(), 1, "{}", finished.text);
    findings[0]
}

#[test]
fn objects_hold_what_steps_have_put_into_them() {
    if !ready("scenarios with steps") {
        return;
    }
    let files = files();
    let arguments = files.iter().map(|file| file.display().to_string());
    let finished = baton(["run".to_owned()].into_iter().chain(arguments));
    assert_eq!(finished.status, 0, "{}", finished.text);
    let told = finished.report["scenarios"].as_array().expect("a list");
    assert_eq!(told.len(), files.len());
    for scenario in told {
        let rules = scenario["rules"].as_array().expect("rules").iter();
        let mut steps = rules.filter(|rule| rule["name"] == "steps-answered");
        let looked_at = steps.next().map(|rule| rule["looked_at"].as_u64());
        assert!(looked_at > Some(Some(4)), "{}: {looked_at:?}", scenario["name"]);
    }
}

#[test]
fn a_memfd_of_several_gib_is_kept_page_by_page() {
    if !ready("a memfd of several GiB") {
        return;
    }
    if std::env::var_os(NIGHTLY).is_none() {
        skipped("a memfd of several GiB: takes a minute and 6 GiB of memory (run `make nightly`)");
        return;
    }
    let file = scenarios().join("large/several-gib.toml");
    let finished = baton(["run", file.to_str().expect("a plain path")]);
    assert_eq!(finished.status, 0, "{}", finished.text);
    let looked_at = finished.rule("preserved-content")["looked_at"].as_u64();
    assert_eq!(looked_at, Some(2 << 20), "{}", finished.text);
}

#[test]
fn hugetlb_is_refused_by_name() {
    if !ready("hugetlb") {
        return;
    }
    if built_for("hugetlb", "7.3.4+hugetlb", &[NIGHTLY]).is_none() {
        return;
    }
    let file = scenarios().join("hugetlb/refused.toml");
    let finished = baton([
        "run",
        file.to_str().expect("a plain path"),
        "--kernel",
        "7.3.4+hugetlb",
    ]);
    assert_eq!(finished.status, 0, "{}", finished.text);
    // The negative control: a kernel without hugetlb cannot make such a memfd at all.
    let finished = baton(["run", file.to_str().expect("a plain path")]);
    assert_eq!(finished.status, 3, "{}", finished.text);
    assert_eq!(finished.scenario()["outcome"]["kind"], "setup-failed");
}

#[test]
fn an_answer_other_than_the_expected_one_is_a_finding() {
    if !ready("steps with other answers") {
        return;
    }
    let life = text_of("life");
    for (from, to, expected, actual) in [
        // Another error, an error instead of success, and success instead of an error.
        ("errno = \"EBUSY\"", "errno = \"EEXIST\"", "EEXIST", "EBUSY"),
        ("errno = \"EPERM\"\n", "", "success", "EPERM"),
        (
            "do = \"retrieve-again\"\nobject = \"vm-ram\"",
            "do = \"retrieve-again\"\nobject = \"vm-ram\"\nerrno = \"EINVAL\"",
            "EINVAL",
            "success",
        ),
    ] {
        let finished = run_text(&life.replacen(from, to, 1), &[]);
        assert_eq!(finished.status, 1, "{to}: {}", finished.text);
        let finding = only(&finished, "steps-answered");
        assert_eq!(finding["expected"], expected, "{finding}");
        assert_eq!(finding["actual"], actual, "{finding}");
        let all = finished.scenario()["findings"].as_array().map(Vec::len);
        assert_eq!(all, Some(1), "{}", finished.text);
    }
}

#[test]
fn a_hole_that_is_not_zero_and_a_write_that_is_lost_are_found() {
    if !ready("damage to what steps have written") {
        return;
    }
    // Page 0 was never written, page 256 was, and of page 768 the second half was not.
    for (page, offset) in [(0, 8), (256, 16), (768, 3000)] {
        let at = format!("{{ object = \"m\", page = {page}, offset = {offset} }}");
        let fault = format!("[[inject]]\nwhen.at = \"entry\"\nwhat.memory.flip = {{ at = {at}, bit = 1 }}\n");
        let finished = run_text(
            &text_of("sparse").replace("[expect]", &format!("{fault}\n[expect]")),
            &[],
        );
        assert_eq!(finished.status, 1, "{}", finished.text);
        let findings = finished.findings("preserved-content");
        assert!(!findings.is_empty(), "{}", finished.text);
        for finding in findings {
            let text = finding["text"].as_str().expect("text");
            assert!(text.contains(&format!("page {page} of memfd \"m\"")), "{text}");
        }
    }
}

#[test]
fn a_plan_is_shown_and_a_list_that_cannot_be_done_is_refused() {
    if !program().exists() {
        skipped("plans: needs the program (run `make build`)");
        return;
    }
    let life = scenarios().join("steps/life.toml");
    let shown = baton(["plan", life.to_str().expect("a plain path")]);
    assert_eq!(shown.status, 0, "{}", shown.text);
    let line = "     5  preserve memfd \"vm-ram\" in session \"vm\" under token 2: must fail with EBUSY\n";
    assert!(shown.text.contains(line), "{}", shown.text);
    let generations = shown.report["generations"].as_array().expect("generations");
    let given: Vec<u64> = generations
        .iter()
        .flat_map(|generation| generation["steps"].as_array().expect("steps"))
        .filter_map(|step| step["given"].as_u64())
        .collect();
    assert_eq!(given, (1..=20).collect::<Vec<u64>>());
    // The usual life cycle is a list, too, and needs no kernel either.
    let usual = baton(["plan", "memfd-under-dma", "--kernel", "9.9.9"]);
    assert_eq!(usual.status, 0, "{}", usual.text);
    assert!(usual.text.contains("start the DMA engine"), "{}", usual.text);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(
        &file,
        text_of("life").replacen("do = \"create\"", "do = \"write\"", 1),
    )
    .expect("written");
    for command in ["plan", "run"] {
        let refused = baton([command, file.to_str().expect("a plain path")]);
        assert_eq!(refused.status, 2, "{}", refused.text);
        let said =
            refused.text.contains("does not hold memfd \"vm-ram\"") && refused.text.contains("bad.toml:1");
        assert!(said, "{}", refused.text);
    }
}
