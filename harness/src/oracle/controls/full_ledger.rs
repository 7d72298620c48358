//! Runs that ended because the ledger was full.

use super::only;
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, change_page};

#[test]
fn a_run_with_a_full_ledger_is_not_judged_by_what_was_not_seen() {
    for writes in 0..2 * testing::BLOCKS.0 {
        for result in judge(&testing::cut(writes), &[]) {
            let rule = result.rule;
            assert_eq!(
                result.findings.total, 0,
                "{rule} after {writes} writes: {:#?}",
                result.findings.kept
            );
            assert!(!result.held(), "{rule} after {writes} writes");
            let why = result.unjudged().unwrap();
            assert!(why.contains("the ledger was full in "), "{rule}: {why}");
        }
    }
}

#[test]
fn what_was_seen_before_the_ledger_was_full_can_still_violate() {
    let mut evidence = testing::cut(30);
    change_page(&mut evidence, 0, 15, |page| page[100] ^= 0xff);
    only(&evidence, &[RuleName::PreservedContent]);
    // The device had been silent before.
    let mut evidence = testing::cut(30);
    evidence.ledger.entries.drain(2..6);
    only(&evidence, &[RuleName::DeviceNeverSilent]);
    // The agent had tried and failed.
    let mut evidence = testing::cut(36);
    evidence.failures.push(AgentFailure {
        generation: 1,
        phase: Phase::Restore,
        request: "retrieve memfd \"m\"".into(),
        call: "ioctl".into(),
        errno: 2,
        detail: String::new(),
    });
    evidence.retrievals[1].failure = Some(0);
    only(&evidence, &[RuleName::SessionRetrieved]);
}
