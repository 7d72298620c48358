//! Controls of what is expected of objects that steps have changed.

use super::*;
use crate::evidence::{Laid, Moment};
use crate::testing::{MEMFD, change_page};
use guest_agent::pattern::Pattern;
use guest_agent::protocol::Part;
use std::collections::BTreeSet;

/// Seed of a later write.
const SECOND: u64 = 12;

/// Good evidence whose memfd was not filled, but written and punched in these parts: all, then page 15 from byte 8 on,
/// then page 16.
fn laid() -> Evidence {
    let mut evidence = good();
    let at = |time_ns| Moment {
        generation: 0,
        time_ns,
        ledger_length: 0,
    };
    let object = &mut evidence.objects[0];
    let part = |offset, bytes| Part { offset, bytes };
    object.laid = Some(vec![
        Laid {
            at: at(420_000),
            part: part(0, object.bytes),
            seed: Some(object.pattern_seed),
        },
        Laid {
            at: at(421_000),
            part: part(15 * PAGE + 8, PAGE - 8),
            seed: Some(SECOND),
        },
        Laid {
            at: at(422_000),
            part: part(16 * PAGE, PAGE),
            seed: None,
        },
    ]);
    evidence.captures.digests.clear();
    for checkpoint in 0..evidence.captures.checkpoints.len() {
        change_page(&mut evidence, checkpoint, 15, |page| {
            page[8..].copy_from_slice(&Pattern::new(SECOND).page(15)[8..]);
        });
        change_page(&mut evidence, checkpoint, 16, |page| page.fill(0));
    }
    evidence
}

#[test]
fn pages_hold_what_steps_have_put_there_last() {
    let results = judge(&laid(), &[]);
    let content = results
        .iter()
        .find(|result| result.rule == RuleName::PreservedContent)
        .unwrap();
    assert!(content.held(), "{:#?}", content.findings.kept);
}

#[test]
fn a_write_that_is_not_there_is_found_and_so_is_one_of_too_much() {
    // The write to page 15 never came, and page 16 was not zeroed.
    let mut evidence = laid();
    evidence.objects[0].laid.as_mut().unwrap().truncate(1);
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    let pages: BTreeSet<Option<u64>> = findings.iter().map(|finding| finding.page).collect();
    assert_eq!(pages, BTreeSet::from([Some(MEMFD + 15), Some(MEMFD + 16)]));
    assert!(
        findings[0]
            .text
            .contains("what the scenario's steps have put there")
    );
    // A step after the checkpoint does not count at it.
    let mut evidence = laid();
    let late = evidence.captures.checkpoints.last().unwrap().at.time_ns + 1;
    evidence.objects[0].laid.as_mut().unwrap()[2].at.time_ns = late;
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    assert!(findings.iter().all(|finding| finding.page == Some(MEMFD + 16)));
}
