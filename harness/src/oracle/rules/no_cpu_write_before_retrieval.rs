//! `no-cpu-write-before-retrieval`: from the jump until the agent retrieves an object, no CPU writes to its pages.

use crate::evidence::{CpuWrite, Evidence, ObjectEvidence, ObjectKind, PAGE};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};

const RULE: RuleName = RuleName::NoCpuWriteBeforeRetrieval;

/// Most objects that the note names.
const MAX_NAMED: usize = 4;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (evidence, mut findings, mut pages) = (context.evidence, Findings::default(), 0);
    let (mut never, mut unseen, mut blind) = (Vec::new(), false, Vec::new());
    for object in &evidence.objects {
        for left in &object.preserved_by {
            let Some(jump) = evidence.jump_time(*left) else {
                continue;
            };
            let mut until = retrieved(evidence, object, left + 1);
            if object.is_found() && !retrievals_seen(evidence) {
                until = evidence.user_entered(jump);
                unseen = true;
            } else if until.is_none() && object.kind != ObjectKind::Device {
                never.push(format!(
                    "\"{}\" was never retrieved in generation {}",
                    object.name,
                    left + 1
                ));
                // The kernel keeps what nobody asks for, and hands it over no further.
                until = evidence.jump_time(left + 1);
            }
            if let Some(missing) = context.cpu_writes_missing_before(until) {
                blind.push(format!("{missing}, before \"{}\" was retrieved", object.name));
            }
            for (index, frame) in (0u64..).zip(object.frames(*left)) {
                pages += 1;
                let early = |write: &&&CpuWrite| {
                    write.time_ns >= jump && until.is_none_or(|until| write.time_ns < until)
                };
                if let Some(write) = context.cpu_writes(frame).iter().find(early) {
                    findings.add(|| finding(object, index, frame, write));
                }
            }
        }
    }
    let more = never.len().saturating_sub(MAX_NAMED);
    never.truncate(MAX_NAMED);
    if more > 0 {
        never.push(format!("and {more} more"));
    }
    if unseen {
        never.push(
            "until the new kernel's first user instruction, because it is not seen when files are retrieved"
                .into(),
        );
    }
    let note = if never.is_empty() {
        "until each was retrieved".into()
    } else {
        never.join("; ")
    };
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: pages,
            unit: "pages",
            note,
        },
        findings,
        blind,
    }
}

/// Whether it was seen when files of a payload are retrieved.
fn retrievals_seen(evidence: &Evidence) -> bool {
    evidence
        .payload
        .as_ref()
        .is_some_and(|payload| payload.retrievals_seen)
}

/// When `generation` had `object` back.
fn retrieved(evidence: &Evidence, object: &ObjectEvidence, generation: u32) -> Option<u64> {
    let done = evidence.retrievals.iter().find(|retrieval| {
        retrieval.generation == generation
            && retrieval.object == Some(object.id)
            && retrieval.failure.is_none()
    });
    done.map(|retrieval| retrieval.time_ns)
}

fn finding(object: &ObjectEvidence, index: u64, frame: u64, write: &CpuWrite) -> Finding {
    Finding {
        rule: RULE,
        page: Some(frame),
        address: Some(write.address),
        owner: object.owner(),
        expected: "no CPU write".into(),
        actual: format!("written at offset {:#x}", write.address % PAGE),
        last_writer: Writer::cpu(write),
        text: format!(
            "page {index} of {} was written by a CPU before it was retrieved",
            object.owner()
        ),
        question: None,
        explained_by: Vec::new(),
    }
}
