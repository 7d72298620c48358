//! `nothing-leaked`: once sessions are finished and objects closed, their memory is free again, and later handover
//! blobs do not preserve it.

use crate::evidence::{MemoryPoint, MemoryRecord, PAGE};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};

const RULE: RuleName = RuleName::NothingLeaked;

/// Pages that kernel and agent may allocate for themselves between the two measurements of free memory.
const SLACK_PAGES: u64 = 256;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (mut findings, mut pages) = (Findings::default(), 0);
    let records = &context.evidence.memory;
    for before in records
        .iter()
        .filter(|record| record.at == MemoryPoint::BeforeRetrieval)
    {
        let same = |record: &&MemoryRecord| {
            record.generation == before.generation && record.at == MemoryPoint::AfterClose
        };
        let Some(after) = records.iter().find(same) else {
            continue;
        };
        let due = before.held_pages.saturating_sub(after.held_pages);
        pages += due;
        let back = after.free_pages.saturating_sub(before.free_pages);
        if due > 0 && back + SLACK_PAGES < due {
            findings.add(|| leak(before.generation, due, back));
        }
    }
    pages += closed_but_in_map(context, &mut findings);
    let note = "pages that were due to be given back".into();
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: pages,
            unit: "pages",
            note,
        },
        findings,
        blind: Vec::new(),
    }
}

fn leak(generation: u32, due: u64, back: u64) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner: format!("the kernel of generation {generation}"),
        expected: format!("{due} pages more of free memory (less {SLACK_PAGES} for other needs)"),
        actual: format!("{back} pages more"),
        last_writer: Writer::Nobody,
        text: format!(
            "generation {generation} has {back} pages more of free memory after closing what was preserved, \
             {due} were due: {} pages leaked",
            due - back
        ),
        question: None,
    }
}

/// Pages of closed objects must not be in the map of a later jump, unless the handover's own structures use them now.
fn closed_but_in_map(context: &Context<'_>, findings: &mut Findings) -> u64 {
    let mut looked = 0;
    for blob in &context.evidence.blobs {
        let Ok(handed) = crate::blob::decode(blob) else {
            continue;
        };
        for object in &context.evidence.objects {
            if object.preserved_by.contains(&blob.generation)
                || object.closed.is_none_or(|closed| closed.time_ns >= blob.time_ns)
            {
                continue;
            }
            for (index, frame) in (0u64..).zip(object.frames(blob.generation)) {
                looked += 1;
                if handed.preserved.contains(&frame) && !handed.own.contains_key(&frame) {
                    findings.add(|| Finding {
                        rule: RULE,
                        page: Some(frame),
                        address: Some(frame * PAGE),
                        owner: object.owner(),
                        expected: "not in the map".into(),
                        actual: format!("in the map of the jump out of generation {}", blob.generation),
                        last_writer: Writer::Nobody,
                        text: format!(
                            "page {index} of {} was closed, but generation {} preserves it again",
                            object.owner(),
                            blob.generation
                        ),
                        question: None,
                    });
                }
            }
        }
    }
    looked
}
