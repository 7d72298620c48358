//! `kept-from-allocator`: a page that was preserved is not free in the new kernel before it is retrieved, nor while it
//! is held. A free page that nobody takes keeps its content, so that content alone does not show this.
//!
//! Two witnesses. The kernel says which pages are in its free lists (/proc/kpageflags). And when the agent takes all
//! free memory, the kernel clears each page that it hands out, and these CPU writes are on record.

use crate::evidence::{CpuWrite, MemoryPoint, ObjectEvidence, PAGE, PageFlagsRecord, PressureRecord};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use guest_agent::kpageflags::BUDDY;
use std::collections::BTreeSet;

const RULE: RuleName = RuleName::KeptFromAllocator;

/// What was looked at, and what for.
#[derive(Default)]
struct Looks {
    pages: u64,
    /// Records of flags that cover their object, and times at which all memory was taken.
    said: u64,
    taken: u64,
    /// What could not be seen.
    unseen: BTreeSet<String>,
}

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (evidence, mut findings, mut looks) = (context.evidence, Findings::default(), Looks::default());
    for generation in 1..=evidence.kexecs {
        for object in context.preserved_into(generation) {
            let mut found = BTreeSet::new();
            // Steps may give it other pages later. Until then it has those that it was handed over with.
            let (handed, held) = (object.frames(generation - 1), object.frames(generation));
            let frames_at = |at: MemoryPoint| match at {
                MemoryPoint::BeforeRetrieval => &handed,
                MemoryPoint::Retrieved | MemoryPoint::Held | MemoryPoint::AfterClose => &held,
            };
            let flags = evidence.page_flags.iter().filter(|record| {
                (record.generation, record.object) == (generation, object.id)
                    && record.at != MemoryPoint::AfterClose
            });
            let mut looked = false;
            for record in flags {
                let frames = frames_at(record.at);
                looked |= free_by_word(object, frames, record, (&mut findings, &mut found, &mut looks));
            }
            let pressure = evidence
                .pressure
                .iter()
                .filter(|record| record.generation == generation && is_due(object, record));
            for record in pressure {
                looked |= handed_out(
                    context,
                    object,
                    frames_at(record.at),
                    record,
                    (&mut findings, &mut found, &mut looks),
                );
            }
            looks.pages += if looked { held.len() as u64 } else { 0 };
        }
    }
    let note = format!(
        "the kernel's word, {} times; all memory taken, {} times",
        looks.said, looks.taken
    );
    // Either witness is enough.
    let blind = if looks.pages == 0 {
        looks.unseen
    } else {
        BTreeSet::new()
    };
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: looks.pages,
            unit: "pages",
            note,
        },
        findings,
        blind: blind.into_iter().collect(),
    }
}

/// Whether the object had to be kept while memory was taken.
fn is_due(object: &ObjectEvidence, record: &PressureRecord) -> bool {
    let open = object
        .closed
        .is_none_or(|closed| closed.time_ns > record.begin_ns);
    open && record.at != MemoryPoint::AfterClose
}

/// Pages that the kernel says are free. Returns whether it says anything.
fn free_by_word(
    object: &ObjectEvidence,
    frames: &[u64],
    record: &PageFlagsRecord,
    (findings, found, looks): (&mut Findings, &mut BTreeSet<u64>, &mut Looks),
) -> bool {
    if !record.covers(frames.len()) {
        let unseen = format!(
            "the kernel of generation {} has no /proc/kpageflags",
            record.generation
        );
        looks.unseen.insert(unseen);
        return false;
    }
    looks.said += 1;
    for ((index, frame), flags) in (0u64..).zip(frames).zip(record.each()) {
        if flags & BUDDY != 0 && found.insert(*frame) {
            let (generation, when) = (record.generation, when(record.at));
            findings.add(|| Finding {
                rule: RULE,
                page: Some(*frame),
                address: Some(frame.saturating_mul(PAGE)),
                owner: object.owner(),
                expected: "not free".into(),
                actual: format!("free (flags {flags:#x} in /proc/kpageflags)"),
                last_writer: Writer::Nobody,
                text: format!(
                    "page {index} of {} is in the free lists of the kernel of generation {generation} {when}, \
                     as it says itself",
                    object.owner()
                ),
                question: None,
                explained_by: Vec::new(),
            });
        }
    }
    true
}

/// Pages that were written to while all free memory was taken. Returns whether this could be seen.
fn handed_out(
    context: &Context<'_>,
    object: &ObjectEvidence,
    frames: &[u64],
    record: &PressureRecord,
    (findings, found, looks): (&mut Findings, &mut BTreeSet<u64>, &mut Looks),
) -> bool {
    let missing = context.cpu_writes_missing_before(record.end_ns);
    looks.taken += u64::from(missing.is_none());
    let seen = missing.is_none();
    looks.unseen.extend(missing);
    let end = record.end_ns.unwrap_or(u64::MAX);
    for (index, frame) in (0u64..).zip(frames) {
        let meanwhile = |write: &&&CpuWrite| (record.begin_ns..end).contains(&write.time_ns);
        let Some(write) = context.cpu_writes(*frame).iter().find(meanwhile) else {
            continue;
        };
        if found.insert(*frame) {
            let (generation, when) = (record.generation, when(record.at));
            findings.add(|| Finding {
                rule: RULE,
                page: Some(*frame),
                address: Some(write.address),
                owner: object.owner(),
                expected: "not handed out".into(),
                actual: format!(
                    "written at offset {:#x} while all free memory was taken",
                    write.address % PAGE
                ),
                last_writer: Writer::cpu(write),
                text: format!(
                    "page {index} of {} was handed out by the kernel of generation {generation} {when}: \
                     a CPU wrote to it while all free memory was taken",
                    object.owner()
                ),
                question: None,
                explained_by: Vec::new(),
            });
        }
    }
    seen
}

fn when(at: MemoryPoint) -> &'static str {
    match at {
        MemoryPoint::BeforeRetrieval => "before it was retrieved",
        MemoryPoint::Retrieved | MemoryPoint::Held | MemoryPoint::AfterClose => "while it was held",
    }
}
