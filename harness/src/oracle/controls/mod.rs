//! Negative controls: good evidence passes, and the right rule finds each kind of damage.

mod content;
mod device;
mod disturbed;
mod free_memory;
mod full_ledger;
mod handover;
mod injected;
mod interrupts;
mod kernel_quiet;
mod payload;
mod steps;

use super::*;
use crate::evidence::*;
use crate::testing::{PAGES, good};

fn result(evidence: &Evidence, rule: RuleName) -> RuleResult {
    judge(evidence, &[])
        .into_iter()
        .find(|result| result.rule == rule)
        .unwrap()
}

/// Asserts that only `rules` have findings, and returns those of the first.
fn only(evidence: &Evidence, rules: &[RuleName]) -> Vec<Finding> {
    for result in judge(evidence, &[]) {
        let expected = rules.contains(&result.rule);
        assert_eq!(
            result.findings.total > 0,
            expected,
            "{}: {:#?}",
            result.rule,
            result.findings.kept
        );
    }
    result(evidence, rules[0]).findings.kept
}

#[test]
fn everything_holds_in_good_evidence() {
    for result in judge(&good(), &[]) {
        assert!(
            result.held(),
            "{}: {:?} {:#?}",
            result.rule,
            result.looked_at,
            result.findings.kept
        );
    }
    let looked = |rule| result(&good(), rule).looked_at.count;
    assert_eq!(looked(RuleName::PreservedContent), 2 * PAGES);
    // Of 40 writes, the last 8 blocks and the last completion count are visible at each of two checkpoints.
    assert_eq!(looked(RuleName::DeviceWritesLanded), 8 + 4 + 2);
    assert_eq!(looked(RuleName::MapCoversPreserved), PAGES + 1);
    assert_eq!(looked(RuleName::SessionRetrieved), 2);
}

#[test]
fn nothing_to_look_at_is_not_held() {
    let mut evidence = good();
    evidence.objects.clear();
    evidence.ledger.entries.clear();
    evidence.blobs.clear();
    evidence.memory.clear();
    evidence.reused.clear();
    evidence.retrievals.clear();
    evidence.steps.clear();
    evidence.dma = None;
    evidence.payload = None;
    evidence.interrupts.clear();
    evidence.captures = Captures::default();
    evidence.console.clear();
    evidence.kernel_logs.clear();
    for result in judge(&evidence, &[]) {
        assert!(
            !result.held() && !result.judged(),
            "{}: {:?}",
            result.rule,
            result.looked_at
        );
    }
}
