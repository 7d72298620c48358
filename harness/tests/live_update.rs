//! Whole live updates: every scenario file that is shipped, run as `baton run` runs it. They need the agent (`make agent`) and
//! the default kernel (`make images`).

use harness::evidence::{load, save};
use harness::plan::{Overrides, plan};
use harness::report::Judged;
use harness::verdict::Verdict;
use std::path::{Path, PathBuf};

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios")
}

/// Runs a scenario file and gives what came of it.
fn run(file: &Path, seed: Option<u64>) -> Judged {
    let (scenario, text) = harness::scenario::load(file).unwrap_or_else(|error| panic!("{error}"));
    let overrides = Overrides {
        seed,
        ..Overrides::default()
    };
    let plan =
        plan(&scenario, &file.display().to_string(), &text, &overrides).unwrap_or_else(|e| panic!("{e}"));
    let agent = harness::agent::load().unwrap_or_else(|error| panic!("{error}"));
    harness::run::run(&plan, &agent, &(), &|_| {}).unwrap_or_else(|error| panic!("{}: {error}", plan.name))
}

fn passes(name: &str) -> Judged {
    let judged = run(&scenarios().join(name).with_extension("toml"), None);
    assert_eq!(
        judged.judgement.verdict,
        Verdict::Pass,
        "{}",
        harness::report::text(&judged)
    );
    judged
}

/// A test for each scenario file, so that they run side by side and fail by name.
macro_rules! scenario_tests {
    ($($test:ident: $file:literal,)*) => {
        $(#[test] fn $test() { passes($file); })*

        #[test]
        fn every_scenario_file_has_its_test() {
            let named = [$($file),*, "memfd-under-dma"];
            for directory in ["", "faults"] {
                for entry in std::fs::read_dir(scenarios().join(directory)).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        let path = path.strip_prefix(scenarios()).unwrap().with_extension("");
                        assert!(named.contains(&path.to_str().unwrap()), "{}", path.display());
                    }
                }
            }
        }
    };
}

scenario_tests! {
    unpreserved_target: "unpreserved-target",
    receiver_kho_off: "receiver-kho-off",
    bus_master_honoured: "bus-master-honoured",
    chain_of_three: "chain-of-three",
    agent_exits: "faults/agent-exits",
    agent_sleeps: "faults/agent-sleeps",
    guest_spins: "faults/guest-spins",
    kernel_panics: "faults/kernel-panics",
    ledger_full: "faults/ledger-full",
    no_liveupdate: "faults/no-liveupdate",
    small_buffers: "faults/small-buffers",
    waiting_consumer: "faults/waiting-consumer",
    wild_addresses: "faults/wild-addresses",
    wild_kernel_text: "faults/wild-kernel-text",
}

/// The same seed gives the same run, evidence on disk the same verdict, and another seed another ledger and the same verdict.
#[test]
fn memfd_under_dma_can_be_had_again() {
    let first = passes("memfd-under-dma");
    let file = scenarios().join("memfd-under-dma.toml");
    let again = run(&file, None);
    assert_eq!(first.evidence.state_hash, again.evidence.state_hash);
    assert_eq!(first.evidence.ledger_digest(), again.evidence.ledger_digest());
    assert_eq!(
        (&first.results, &first.judgement),
        (&again.results, &again.judgement)
    );

    let directory = tempfile::tempdir().unwrap();
    save(&first.evidence, directory.path()).unwrap();
    let judged = Judged::new(load(directory.path()).unwrap()).unwrap();
    assert_eq!(
        (&first.results, &first.judgement),
        (&judged.results, &judged.judgement)
    );

    let other = run(&file, Some(2));
    assert_eq!(other.judgement.verdict, Verdict::Pass);
    assert_ne!(first.evidence.ledger_digest(), other.evidence.ledger_digest());
    assert_ne!(first.evidence.state_hash, other.evidence.state_hash);
}

/// The findings about lost bytes name the CPU write that did it, with symbol and instruction count.
#[test]
fn unpreserved_target_names_the_culprits() {
    use harness::oracle::{RuleName, Writer};
    let judged = passes("unpreserved-target");
    let findings = |rule| {
        judged
            .results
            .iter()
            .find(|result| result.rule == rule)
            .map(|result| &result.findings.kept)
    };
    let lost = findings(RuleName::DeviceWritesLanded).unwrap();
    let by_cpu = lost.iter().any(|finding| {
        matches!(&finding.last_writer, Writer::Cpu { symbol, instructions: Some(_), generation: 1, .. } if symbol.contains('+'))
    });
    assert!(by_cpu, "{lost:#?}");
    let stray = findings(RuleName::DmaOnlyToPreserved).unwrap();
    assert!(
        stray
            .iter()
            .all(|finding| matches!(finding.last_writer, Writer::Device { .. })),
        "{stray:#?}"
    );
    assert!(
        stray
            .iter()
            .any(|finding| finding.owner.contains("took it into use")),
        "{stray:#?}"
    );
}
