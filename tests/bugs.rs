//! The catalogue of known bugs: each is found in the kernels that have it, and not in those that do not.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use tests::{Finished, baton, built_for, ready, run_text, scenarios, skipped};

/// The table of bugs.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    bug: Vec<Bug>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bug {
    /// Name of the scenario.
    scenario: String,
    /// What must be said of which kernel.
    #[serde(default)]
    found: BTreeMap<String, BTreeSet<String>>,
    /// Kernels on which the scenario passes.
    #[serde(default)]
    sound: BTreeSet<String>,
    /// The handover as a kernel with the bug would have left it.
    control: Option<Control>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    /// Field of the handover, at the jump.
    field: String,
    /// Its value.
    set: u64,
    /// What must be said then.
    found: BTreeSet<String>,
}

fn table() -> Vec<Bug> {
    let text = include_str!("bugs.toml");
    let table: Table = toml::from_str(text).unwrap_or_else(|error| panic!("bugs.toml: {error}"));
    table.bug
}

fn text_of(bug: &Bug) -> String {
    let file = scenarios().join(format!("bugs/{}.toml", bug.scenario));
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// What a run says against its scenario's expectation, in the words of the table.
fn said(finished: &Finished) -> BTreeSet<String> {
    let scenario = finished.scenario();
    let rules = scenario["rules"].as_array().expect("rules").iter();
    let unmet = rules.filter(|rule| rule["met"] == false && rule["findings"].as_u64() > Some(0));
    let mut said: BTreeSet<String> = unmet.map(|rule| word(&rule["name"])).collect();
    let outcome = word(&scenario["outcome"]["kind"]);
    if outcome != "completed" {
        said.insert(format!("ended as {outcome}"));
    }
    said
}

fn word(value: &Value) -> String {
    value.as_str().expect("a word").to_owned()
}

#[test]
fn each_scenario_is_in_the_table_and_in_the_document() {
    let entries = std::fs::read_dir(scenarios().join("bugs")).expect("the folder is there");
    let there: BTreeSet<String> = entries
        .filter_map(|entry| {
            let path = entry.expect("an entry").path();
            Some(path.file_stem()?.to_str()?.to_owned())
        })
        .collect();
    let listed: BTreeSet<String> = table().into_iter().map(|bug| bug.scenario).collect();
    assert_eq!(there, listed);
    let document = std::fs::read_to_string(scenarios().join("../../docs/bugs.md")).expect("the document");
    for name in listed {
        assert!(
            document.contains(&format!("`{name}`")),
            "docs/bugs.md says nothing of {name}"
        );
    }
}

#[test]
fn each_bug_is_found_where_it_is_and_nowhere_else() {
    let what = "the catalogue of bugs";
    if !ready(what) {
        return;
    }
    let table = table();
    let named: BTreeSet<&String> = table
        .iter()
        .flat_map(|bug| bug.found.keys().chain(&bug.sound))
        .collect();
    let is_built = |kernel: &&String| built_for(what, kernel, &[]).is_some();
    let there: BTreeSet<&String> = named.into_iter().filter(is_built).collect();
    for bug in &table {
        let text = text_of(bug);
        let nothing = BTreeSet::new();
        let found = bug.found.iter();
        let sound = bug.sound.iter().map(|kernel| (kernel, &nothing));
        for (kernel, expected) in found.chain(sound) {
            if !there.contains(kernel) {
                continue;
            }
            let finished = run_text(&text, &["--kernel", kernel]);
            let said = said(&finished);
            let name = &bug.scenario;
            if expected.is_empty() {
                assert_eq!(finished.status, 0, "{name} on {kernel}: {}", finished.text);
            }
            assert!(
                expected.is_subset(&said) && expected.is_empty() == said.is_empty(),
                "{name} on {kernel}: expected {expected:?}, found {said:?}: {}",
                finished.text
            );
        }
    }
}

#[test]
fn a_handover_as_a_kernel_with_the_bug_leaves_it_is_found() {
    if !ready("controls of bugs") {
        return;
    }
    for bug in table() {
        let Some(control) = &bug.control else { continue };
        let fault = format!(
            "[[inject]]\nwhen.at = \"jump\"\nwhat.blob = {{ field = \"{}\", set = {} }}\n\n",
            control.field, control.set
        );
        let text = text_of(&bug).replacen("[expect]", &format!("{fault}[expect]"), 1);
        let finished = run_text(&text, &[]);
        assert_eq!(
            said(&finished),
            control.found,
            "{}: {}",
            bug.scenario,
            finished.text
        );
    }
}

#[test]
fn a_finalization_that_nobody_takes_back_loses_nothing() {
    let what = "a finalization that is not aborted";
    if !ready(what) {
        return;
    }
    let file = scenarios().join("bugs/finalisation-aborted.toml");
    let text = std::fs::read_to_string(&file).expect("the scenario");
    let kept = text.replacen("[[step]]\ndo = \"abort-finalize\"\n", "", 1);
    assert_ne!(kept, text);
    for kernel in ["6.17.8+testkho", "6.18.15+testkho"] {
        if built_for(what, kernel, &[]).is_none() {
            continue;
        }
        let finished = run_text(&kept, &["--kernel", kernel]);
        assert_eq!(finished.status, 0, "{kernel}: {}", finished.text);
    }
}

#[test]
fn the_catalogue_is_a_list_of_plans() {
    if !tests::program().exists() {
        skipped("plans of bugs: needs the program (run `make build`)");
        return;
    }
    for bug in table() {
        let file = scenarios().join(format!("bugs/{}.toml", bug.scenario));
        let shown = baton(["plan", file.to_str().expect("a plain path")]);
        assert_eq!(shown.status, 0, "{}", shown.text);
    }
}
