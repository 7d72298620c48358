//! Each kind of injection: a rule catches it, or its effect is nil and every rule holds.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use tests::{Finished, baton, ready, scenarios};

/// The scenarios of injections, but the one that never fires.
fn files() -> Vec<PathBuf> {
    let folder = scenarios().join("inject");
    let entries = std::fs::read_dir(&folder).expect("the folder is there");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "toml"))
        .filter(|file| !file.ends_with("never-fires.toml"))
        .collect();
    files.sort();
    files
}

#[test]
fn the_document_names_every_scenario_and_no_other() {
    let text = std::fs::read_to_string(scenarios().join("../../docs/injections.md")).expect("the document");
    let (_, section) = text.split_once("\n## Scenarios\n").expect("the section");
    let section = section.split("\n## ").next().expect("the first part");
    // What is between backquotes, and looks like the name of a scenario.
    let quoted = section.split('`').skip(1).step_by(2);
    let kinds = "blob- bus- dma- engine- interrupt- machine- memory- never- symbol- time- trigger within-";
    let named: BTreeSet<&str> = quoted
        .filter(|word| kinds.split(' ').any(|kind| word.starts_with(kind)))
        .collect();
    let files = files();
    let mut there: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.file_stem()?.to_str())
        .collect();
    there.insert("never-fires");
    assert_eq!(named, there);
}

fn run(files: &[PathBuf]) -> Finished {
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(files.iter().map(|file| file.display().to_string()));
    baton(arguments)
}

#[test]
fn each_injection_is_caught_or_has_no_effect() {
    if !ready("injections") {
        return;
    }
    let files = files();
    let finished = run(&files);
    assert_eq!(finished.status, 0, "{}", finished.text);
    let told = finished.report["scenarios"].as_array().expect("a list");
    assert_eq!(told.len(), files.len());
    for scenario in told {
        let name = &scenario["name"];
        assert_eq!(scenario["verdict"], "pass", "{name}");
        let injections = scenario["injections"].as_array().expect("a list");
        assert!(!injections.is_empty(), "{name}");
        for injection in injections {
            assert!(injection["fired"].as_u64() > Some(0), "{name}: {injection}");
            assert!(injection["armed"].is_object(), "{name}: {injection}");
        }
        // No finding of an injected run blames a kernel.
        for finding in scenario["findings"].as_array().expect("a list") {
            let explained = finding["explained_by"]
                .as_array()
                .is_some_and(|by| !by.is_empty());
            let open = finding["rule"] == "kernel-quiet";
            assert!(explained || open, "{name}: {finding}");
        }
    }
}

#[test]
fn what_kvm_cannot_do_is_refused_before_anything_runs() {
    for (name, what) in [
        ("interrupt-pending", "makes an interrupt pending"),
        ("machine-unstoppable", "keeps interrupts between processors back"),
        ("time-tsc-back", "shifts time stamp counters"),
        ("time-late-timer", "delays timers"),
        ("time-slow-device", "lets time pass"),
    ] {
        let file = scenarios().join(format!("inject/{name}.toml"));
        let arguments = ["run", "--backend", "kvm"].map(str::to_owned).into_iter();
        let finished = baton(arguments.chain([file.display().to_string()]));
        assert_eq!(finished.status, 2, "{name}: {}", finished.text);
        let said = finished.text.contains(what) && finished.text.contains("use --backend soft");
        assert!(said, "{name}: {}", finished.text);
    }
}

#[test]
fn an_injection_that_never_fires_is_an_error() {
    if !ready("an injection that never fires") {
        return;
    }
    let finished = run(&[scenarios().join("inject/never-fires.toml")]);
    let scenario = finished.scenario();
    assert_eq!(scenario["verdict"], "error", "{}", finished.text);
    let reasons: Vec<&Value> = scenario["reasons"].as_array().expect("a list").iter().collect();
    assert!(
        reasons[0]
            .as_str()
            .expect("text")
            .starts_with("injection 0 never fired"),
        "{reasons:?}"
    );
    assert_eq!(scenario["injections"][0]["fired"], 0);
}
