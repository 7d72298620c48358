//! `nothing-leaked`: once objects are closed, their pages are given back, and later handover blobs do not preserve
//! them.
//!
//! A page of a closed object was given back if a CPU has written to it since, or if the kernel says that it is free. It
//! was not if nobody has written to it and it is still on the kernel's lists of pages in use. Of any other page nobody
//! knows: it may lie in a per-CPU list. If all free memory was taken after the close, it was not given back either,
//! unless it is one of the few that then remained in those lists.

use crate::evidence::{MemoryPoint, ObjectEvidence, PAGE, PageFlagsRecord, PressureRecord, Reused};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use guest_agent::kpageflags::{BUDDY, LRU};
use std::collections::BTreeMap;

const RULE: RuleName = RuleName::NothingLeaked;

/// What has become of the pages of objects that a generation closed.
#[derive(Default)]
struct Fate<'a> {
    reused: u64,
    free: u64,
    /// Flags of each page that nobody has written to and that is in use.
    in_use: Vec<Lost<'a>>,
    /// Pages of which nobody knows.
    unseen: Vec<Lost<'a>>,
    /// The kernel says nothing of some pages.
    unsaid: bool,
}

/// A page that may not have been given back.
struct Lost<'a> {
    object: &'a ObjectEvidence,
    index: u64,
    frame: u64,
    /// What the kernel says of it, if it does.
    flags: Option<u64>,
}

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (evidence, mut findings, mut notes, mut pages) =
        (context.evidence, Findings::default(), Vec::new(), 0);
    for (generation, fate) in fates(context) {
        pages += judge(context, generation, &fate, &mut findings, &mut notes);
    }
    let incomplete = evidence.reused.iter().any(|reused| !reused.complete);
    let blind =
        incomplete.then(|| "which closed pages are in use again: not every CPU write is on record".into());
    let looked = closed_but_in_map(context, &mut findings);
    if looked > 0 {
        notes.push(format!("{looked} pages looked up in later maps"));
    }
    if notes.is_empty() {
        notes.push("no object was closed".into());
    }
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: pages + looked,
            unit: "pages",
            note: notes.join("; "),
        },
        findings,
        blind: blind.into_iter().collect(),
    }
}

/// The fate of closed pages, by the generation that closed them.
fn fates<'a>(context: &Context<'a>) -> BTreeMap<u32, Fate<'a>> {
    let (evidence, mut fates) = (context.evidence, BTreeMap::<u32, Fate<'a>>::new());
    for reused in evidence.reused.iter().filter(|reused| reused.complete) {
        let Some(object) = evidence.object(reused.object) else {
            continue;
        };
        let frames = object.frames(reused.generation);
        let said = evidence.page_flags.iter().find(|record| {
            (record.generation, record.object) == (reused.generation, reused.object)
                && record.at == MemoryPoint::AfterClose
                && record.covers(frames.len())
        });
        let fate = fates.entry(reused.generation).or_default();
        fate.add(object, &frames, reused, said);
    }
    fates
}

impl<'a> Fate<'a> {
    fn add(
        &mut self,
        object: &'a ObjectEvidence,
        frames: &[u64],
        reused: &Reused,
        said: Option<&PageFlagsRecord>,
    ) {
        self.unsaid |= said.is_none();
        let mut flags = said.into_iter().flat_map(PageFlagsRecord::each);
        for (index, frame) in (0u64..).zip(frames) {
            let flags = flags.next();
            let lost = Lost {
                object,
                index,
                frame: *frame,
                flags,
            };
            match flags {
                _ if reused.contains(*frame) => self.reused += 1,
                Some(flags) if flags & BUDDY != 0 => self.free += 1,
                Some(flags) if flags & LRU != 0 => self.in_use.push(lost),
                _ => self.unseen.push(lost),
            }
        }
    }
}

/// Judges what one generation closed. Returns how many pages were looked at.
fn judge(
    context: &Context<'_>,
    generation: u32,
    fate: &Fate<'_>,
    findings: &mut Findings,
    notes: &mut Vec<String>,
) -> u64 {
    let (reused, free, unseen) = (fate.reused, fate.free, fate.unseen.len() as u64);
    for lost in &fate.in_use {
        findings.add(|| lost.finding(generation, "the kernel still has it in use".into()));
    }
    let mut note =
        format!("generation {generation}: {reused} pages in use again, {free} free by the kernel's word");
    let pressure = context.evidence.pressure.iter().find(|record| {
        (record.generation, record.at) == (generation, MemoryPoint::AfterClose) && record.end_ns.is_some()
    });
    if let Some(pressure) = pressure {
        let left = left_over(pressure, fate);
        if unseen > left {
            let why = format!(
                "{unseen} pages did not come back when all free memory, {} pages, was taken, and only {left} were left over",
                pressure.taken_pages
            );
            for lost in &fate.unseen {
                findings.add(|| lost.finding(generation, why.clone()));
            }
        } else if unseen > 0 {
            note = format!("{note}, {unseen} among the {left} left over when all memory was taken");
        }
    } else if unseen > 0 {
        note = format!("{note}, {unseen} not seen given back: workload = \"all\" would tell");
    }
    notes.push(note);
    // Of the pages that were not seen given back, the kernel's word is that none is on its list of pages in use.
    let looked = if fate.unsaid && pressure.is_none() {
        0
    } else {
        unseen
    };
    reused + free + fate.in_use.len() as u64 + looked
}

/// Free pages that were not taken, as far as they are not known one by one.
fn left_over(pressure: &PressureRecord, fate: &Fate<'_>) -> u64 {
    let unknown = if fate.unsaid { pressure.free_pages } else { 0 };
    pressure.per_cpu_pages.saturating_add(unknown)
}

impl Lost<'_> {
    fn finding(&self, generation: u32, why: String) -> Finding {
        let (index, owner) = (self.index, self.object.owner());
        let said = self.flags.map_or("nothing known of it".into(), |flags| {
            format!("flags {flags:#x} in /proc/kpageflags")
        });
        Finding {
            rule: RULE,
            page: Some(self.frame),
            address: Some(self.frame.saturating_mul(PAGE)),
            owner: owner.clone(),
            expected: "given back after the close".into(),
            actual: format!("no CPU write since, {said}"),
            last_writer: Writer::Nobody,
            text: format!("page {index} of {owner} was closed in generation {generation} and leaked: {why}"),
            question: None,
            explained_by: Vec::new(),
        }
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
                        explained_by: Vec::new(),
                    });
                }
            }
        }
    }
    looked
}
