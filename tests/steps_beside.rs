//! Steps of a scenario's own beside the rest of what it may have: a device that writes, a handover that baton has built,
//! faults of the agent's, injections, and every pair of kernels.

use serde_json::Value;
use tests::{Finished, baton, ready, run_text, scenarios};

fn text_of(name: &str) -> String {
    let file = scenarios().join(format!("steps/{name}.toml"));
    std::fs::read_to_string(file).expect("the scenario")
}

/// Runs the text with this put behind its steps.
fn run_with(text: &str, more: &str, further: &[&str]) -> Finished {
    let head = ["[run]", "[expect]"].into_iter().find(|head| text.contains(head));
    let head = head.expect("something comes after the steps");
    run_text(&text.replacen(head, &format!("{more}\n{head}"), 1), further)
}

/// Names of the rules that are violated against the expectation.
fn violated(finished: &Finished) -> Vec<String> {
    let rules = finished.scenario()["rules"].as_array().expect("rules").iter();
    let unmet = rules.filter(|rule| rule["met"] == false);
    unmet
        .map(|rule| rule["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Device writes in a phase of a generation.
fn written(finished: &Finished, phase: &str, generation: u64) -> u64 {
    let phases = finished.scenario()["phases"].as_array().expect("phases").iter();
    let ours = phases.filter(|one| one["name"] == phase && one["generation"] == generation);
    ours.map(|one| one["device_writes"].as_u64().expect("a number"))
        .sum()
}

#[test]
fn the_device_writes_while_steps_are_done() {
    if !ready("steps beside a device") {
        return;
    }
    let text = text_of("beside-dma");
    let first = run_text(&text, &[]);
    assert_eq!(first.status, 0, "{}", first.text);
    for (phase, generation) in [("prepare", 0), ("boot-new", 1), ("prepare", 1), ("restore", 2)] {
        assert!(
            written(&first, phase, generation) > 20,
            "{phase} {generation}: {}",
            first.text
        );
    }
    let again = run_text(&text, &[]);
    assert_eq!(
        first.scenario()["state_hash"],
        again.scenario()["state_hash"],
        "the same scenario is the same run"
    );
    for vcpus in ["2", "4"] {
        let several = run_text(&text, &["--vcpus", vcpus, "--seed", "2"]);
        assert_eq!(several.status, 0, "{}", several.text);
    }
}

#[test]
fn what_the_device_loses_beside_steps_is_found() {
    if !ready("steps beside a device that errs") {
        return;
    }
    let text = text_of("beside-dma");
    for (fault, rule) in [
        ("what.dma = \"drop\"\ncount = 1000", "device-writes-landed"),
        ("what.engine.silent.for = \"3 ms\"", "device-never-silent"),
        ("what.dma.redirect.to = \"free\"", "dma-only-to-preserved"),
    ] {
        let when = "[[inject]]\nwhen = { phase = \"restore\", generation = 2, write = 30 }\n";
        let finished = run_with(&text, &format!("{when}{fault}\n"), &[]);
        assert_eq!(finished.status, 1, "{fault}: {}", finished.text);
        assert!(
            violated(&finished).iter().any(|one| one == rule),
            "{fault}: {}",
            finished.text
        );
    }
    // Buffers that no step preserves.
    let text = text.replace("ring = 16\n", "ring = 16\nbuffers = \"unpreserved\"\n");
    let finished = run_text(&text, &[]);
    assert_eq!(finished.status, 1, "{}", finished.text);
    let found = violated(&finished);
    assert!(
        found.iter().any(|rule| rule == "dma-only-to-preserved"),
        "{}",
        finished.text
    );
}

#[test]
fn steps_change_what_baton_has_handed_over() {
    if !ready("steps beside a handover") {
        return;
    }
    let text = text_of("handed");
    let finished = run_text(&text, &["--vcpus", "2"]);
    assert_eq!(finished.status, 0, "{}", finished.text);
    // Page 1 has its pattern at first and what the step wrote at last; page 200 has its pattern throughout.
    for page in [1, 200] {
        let at = format!("{{ object = \"vm-ram\", page = {page}, offset = 3000 }}");
        let fault = format!(
            "[[inject]]\nwhen = {{ at = \"entry\", generation = 2 }}\nwhat.memory.flip = {{ at = {at}, bit = 1 }}\n"
        );
        let finished = run_with(&text, &fault, &[]);
        assert_eq!(finished.status, 1, "{}", finished.text);
        assert_eq!(violated(&finished), ["preserved-content"], "{}", finished.text);
        let findings = finished.findings("preserved-content");
        let said = findings[0]["text"].as_str().expect("text");
        assert!(
            said.contains(&format!("page {page} of memfd \"vm-ram\"")),
            "{said}"
        );
    }
}

#[test]
fn faults_come_beside_steps() {
    if !ready("steps beside faults") {
        return;
    }
    let text = text_of("life");
    let warned = run_with(&text, "[fault]\nprovoke = \"WARNING\"\ngeneration = 1\n", &[]);
    assert_eq!(violated(&warned), ["kernel-quiet"], "{}", warned.text);
    let owner = warned.findings("kernel-quiet")[0]["owner"]
        .as_str()
        .expect("an owner");
    assert!(
        owner.starts_with("kernel of generation 1"),
        "{owner}: {}",
        warned.text
    );
    let died = run_with(&text, "[fault]\nmisbehave = \"panic\"\n", &[]);
    let outcome = &died.scenario()["outcome"];
    assert_eq!(
        (&outcome["kind"], &outcome["generation"]),
        (&Value::from("agent-died"), &Value::from(0)),
        "{}",
        died.text
    );
    let kept = run_with(
        &text.replace("\n[expect]", "\n[run]\nworkload = \"all\"\n\n[expect]"),
        "[fault]\nkeep = \"vm-ram\"\n",
        &[],
    );
    assert_eq!(violated(&kept), ["nothing-leaked"], "{}", kept.text);
}

/// What becomes of memfds with 7.3.4 on both sides, and why.
fn fate(text: &str) -> (String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pairs.toml");
    std::fs::write(&file, text).expect("written");
    let run = baton(["matrix", file.to_str().expect("a path"), "--kernels", "7.3.4"]);
    assert_eq!(run.status, 0, "{}", run.text);
    let kinds = run.report["pairs"][0]["kinds"].as_array().expect("kinds");
    assert_eq!(kinds.len(), 1, "{}", run.text);
    let word = |key: &str| kinds[0][key].as_str().expect("a word").to_owned();
    (word("fate"), word("why"))
}

#[test]
fn a_matrix_takes_the_steps_of_a_scenario() {
    if !ready("a matrix with steps") {
        return;
    }
    let text = text_of("sparse");
    assert_eq!(fate(&text).0, "kept");
    // A memfd that no step preserves is not looked at.
    let other = "[[memfd]]\nname = \"other\"\nsize = \"4 KiB\"\nsession = \"o\"\ntoken = 1\n";
    assert_eq!(fate(&format!("{text}\n{other}")).0, "kept");
    let bent = |field: &str, value: &str| {
        let fault =
            format!("[[inject]]\nwhen.at = \"jump\"\nwhat.blob = {{ field = \"{field}\", set = {value} }}\n");
        fate(&format!("{text}\n{fault}"))
    };
    assert_eq!(bent("fdt/compatible", "\"text:kho-v9\"").0, "refused");
    let (fate_of_it, why) = bent("luo/session[vm]/file[0]/token", "7");
    assert_eq!(fate_of_it, "lost-and-said", "{why}");
    // What the first kernel refuses is left out, and said: here the token is taken.
    let steps = "[[step]]\ndo = \"create\"\nobject = \"other\"\n\n[[step]]\ndo = \"preserve\"\nobject = \"other\"\nsession = \"vm\"\n\n";
    let first = "[[step]]\ndo = \"retrieve\"\nsession = \"vm\"\n";
    let (fate_of_it, why) = fate(&format!(
        "{}{other}",
        text.replacen(first, &format!("{steps}{first}"), 1)
    ));
    assert_eq!(fate_of_it, "refused", "{why}");
    assert!(
        why.contains("first kernel") && why.contains("File exists"),
        "{why}"
    );
}
