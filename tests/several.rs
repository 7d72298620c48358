//! Guests with more than one processor on the software backend.

use serde_json::Value;
use tests::{Finished, baton, ready, run_text, scenarios, small};

/// The number of processors that each generation's kernel reported.
fn processors(run: &Finished) -> Vec<u64> {
    let kernels = run.scenario()["kernels"].as_array().into_iter().flatten();
    kernels
        .filter_map(|kernel| kernel["processors"].as_u64())
        .collect()
}

fn with_vcpus(count: u32) -> String {
    small("").replacen('\n', &format!("\nvcpus = {count}\n"), 1)
}

#[test]
fn the_shipped_scenario_passes_and_repeats() {
    if !ready("smp-memfd-under-dma") {
        return;
    }
    let file = scenarios().join("more/smp-memfd-under-dma.toml");
    let arguments = ["run", "--backend", "soft", file.to_str().unwrap()];
    let run = baton(arguments);
    assert_eq!(run.status, 0, "{}", run.text);
    assert_eq!(run.scenario()["verdict"], "pass");
    assert_eq!(processors(&run), [2, 2]);
    let rules = run.scenario()["rules"].as_array().unwrap().iter();
    for rule in rules.filter(|rule| rule["expected"] != "any") {
        assert_eq!(rule["held"], true, "{rule}");
    }
    let again = baton(arguments);
    assert_ne!(run.scenario()["state_hash"], Value::Null);
    assert_eq!(run.scenario()["state_hash"], again.scenario()["state_hash"]);
    assert_eq!(
        run.scenario()["phases"][0]["instructions"],
        again.scenario()["phases"][0]["instructions"]
    );
}

#[test]
fn a_hang_is_told_with_what_is_not_done_and_the_place_of_every_processor() {
    if !ready("a hang of several processors") {
        return;
    }
    let file = scenarios().join("more/smp-memfd-under-dma.toml");
    // Less than the agent needs for a portion of what it fills.
    let short = ["--backend", "soft", "--progress", "1ms"];
    let run = baton(["run", file.to_str().unwrap()].into_iter().chain(short));
    assert_eq!(run.status, 1, "{}", run.text);
    let outcome = &run.scenario()["outcome"];
    assert_eq!(outcome["kind"], "guest-hang", "{outcome}");
    let told = outcome["text"].as_str().unwrap();
    for part in [
        "; not done: create memfd \"guest-memory\"",
        "; vCPU 0 at ",
        ", vCPU 1 at ",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn every_generation_brings_up_all_of_four() {
    if !ready("four processors") {
        return;
    }
    let text = with_vcpus(4).replacen("\n[[memfd]]", "kexecs = 2\n\n[[memfd]]", 1);
    let run = run_text(&text, &["--backend", "soft"]);
    assert_eq!(run.status, 0, "{}", run.text);
    assert_eq!(processors(&run), [4, 4, 4]);
}

#[test]
fn a_kernel_that_brings_up_fewer_is_an_error() {
    if !ready("fewer processors") {
        return;
    }
    let text = format!("{}\n[kernel]\nappend_new = \"maxcpus=1\"\n", with_vcpus(2));
    let run = run_text(&text, &["--backend", "soft"]);
    assert_eq!(run.status, 1, "{}", run.text);
    assert!(
        run.text
            .contains("the kernel of generation 1 brought up 1 of 2 processors"),
        "{}",
        run.text
    );
}

#[test]
fn counts_that_no_machine_has_are_refused() {
    if !ready("counts of processors") {
        return;
    }
    for count in [0, 9] {
        let run = run_text(&with_vcpus(count), &[]);
        assert_eq!(run.status, 2, "{}", run.text);
        assert!(
            run.text
                .contains(&format!("found {count} vcpus, expected 1 to 8")),
            "{}",
            run.text
        );
    }
}
