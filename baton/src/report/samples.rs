//! Reports for tests.

use super::ScenarioReport;
use harness::evidence::{Evidence, Outcome, OutcomeKind, Phase};
use harness::testing;
use harness::verdict::Judged;

/// The report on a run.
pub(super) fn report(evidence: Evidence) -> ScenarioReport {
    ScenarioReport::new(&Judged::new(evidence).unwrap())
}

/// Reports of runs that end in all kinds of ways, with and without findings.
pub(super) fn variety() -> Vec<ScenarioReport> {
    let mut damaged = testing::good();
    testing::change_page(&mut damaged, 1, 15, |page| page[100] ^= 0xff);
    let mut expected = damaged.clone();
    expected
        .scenario_text
        .push_str("[expect]\npreserved-content = \"violated\"\n");
    let mut blind = testing::good();
    blind.cpu_writes_until_ns = Some(1_500_000);
    let mut failed = testing::good();
    failed.outcome = Outcome {
        kind: OutcomeKind::SetupFailed,
        generation: 0,
        phase: Phase::Prepare,
        text: "create session \"s\" <failed>".into(),
    };
    failed.dma = None;
    failed.ledger.entries.clear();
    let mut unfinished = damaged.clone();
    unfinished.outcome.kind = OutcomeKind::Unfinished;
    let mut reports: Vec<_> = [testing::good(), damaged, expected, blind, failed, unfinished]
        .map(report)
        .into();
    let error = (
        "gone".into(),
        "gone.toml".into(),
        7,
        "no kernel & no \"luck\"".into(),
    );
    reports.push(ScenarioReport::error(error.0, error.1, error.2, error.3));
    reports
}
