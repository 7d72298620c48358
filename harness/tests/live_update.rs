//! Live updates in which something goes wrong: every scenario file in `tests/scenarios/faults`. They need the agent
//! (`make agent`) and the default kernel (`make images`).

use harness::plan::{Overrides, plan};
use harness::verdict::Verdict;
use std::path::{Path, PathBuf};

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/faults")
}

/// Runs a scenario file as `baton run` does, and asserts that it passes.
fn passes(name: &str) {
    let file = scenarios().join(name).with_extension("toml");
    let (scenario, text) = harness::scenario::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let plan = plan(
        &scenario,
        &file.display().to_string(),
        &text,
        &Overrides::default(),
    );
    let plan = plan.unwrap_or_else(|error| panic!("{error}"));
    let agent = harness::agent::load().unwrap_or_else(|error| panic!("{error}"));
    let listeners = harness::run::Listeners {
        observer: &(),
        again: &|_| {},
    };
    let judged = harness::run::run(&plan, &agent, &vmm::soft::Soft::default(), &[], &listeners);
    let judged = judged.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(
        judged.judgement.verdict,
        Verdict::Pass,
        "{}",
        judged.judgement.reasons.join("\n")
    );
}

/// Scenarios of kernels that complain. `quiet` of the crate `tests` runs them.
const COMPLAINTS: [&str; 5] = [
    "kernel-bugs",
    "kernel-oopses",
    "kernel-warning-allowed",
    "kernel-warns",
    "new-kernel-warns",
];

/// A test for each scenario file, so that they run side by side and fail by name.
macro_rules! scenario_tests {
    ($($test:ident: $file:literal,)*) => {
        $(#[test] fn $test() { passes($file); })*

        #[test]
        fn every_scenario_file_has_its_test() {
            let named = [$($file),*];
            for entry in std::fs::read_dir(scenarios()).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap();
                let tested = named.contains(&name) || COMPLAINTS.contains(&name);
                assert!(tested, "{}", path.display());
            }
        }
    };
}

scenario_tests! {
    agent_exits: "agent-exits",
    agent_sleeps: "agent-sleeps",
    guest_spins: "guest-spins",
    kernel_panics: "kernel-panics",
    ledger_full: "ledger-full",
    memfd_kept_open: "memfd-kept-open",
    memory_limit: "memory-limit",
    no_liveupdate: "no-liveupdate",
    small_buffers: "small-buffers",
    waiting_consumer: "waiting-consumer",
    wild_addresses: "wild-addresses",
    wild_kernel_text: "wild-kernel-text",
}
