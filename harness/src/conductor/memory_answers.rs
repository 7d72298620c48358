//! Handles the agent's answers about the kernel's memory.

use super::answers::died;
use super::cursor::{Cursor, Ending, Point};
use crate::evidence::{
    Evidence, MemoryPoint, MemoryRecord, ObjectEvidence, PAGE, PageFlagsRecord, PressureRecord,
};
use crate::plan::{Plan, Step};
use guest_agent::protocol::{FlagRun, PageRun, Reply};
use guest_agent::{kpageflags, pagemap};

/// Free memory.
pub(super) fn free(plan: &Plan, cursor: &Cursor, evidence: &mut Evidence, total_pages: u64, free_pages: u64) {
    let Some(Step::Memory(at)) = cursor.step_of(plan) else {
        return;
    };
    let generation = cursor.generation;
    let held = |object: &&ObjectEvidence| match at {
        MemoryPoint::BeforeRetrieval => object
            .preserved_by
            .iter()
            .any(|left| left.checked_add(1) == Some(generation)),
        MemoryPoint::Retrieved | MemoryPoint::Held | MemoryPoint::AfterClose => {
            cursor.held.contains(&object.id)
        }
    };
    let pages = evidence
        .objects
        .iter()
        .filter(held)
        .map(|object| object.bytes / PAGE);
    let held_pages = pages.fold(0u64, u64::saturating_add);
    evidence.memory.push(MemoryRecord {
        generation,
        at,
        total_pages,
        free_pages,
        held_pages,
    });
}

/// Flags of a portion of an object's pages. There must be as many as were asked for, or none at all.
pub(super) fn flags(
    plan: &Plan,
    cursor: &Cursor,
    evidence: &mut Evidence,
    (runs, flags): (&[PageRun], Vec<FlagRun>),
    at: Point,
) -> Result<(), Ending> {
    let Some(Step::PageFlags(point, object)) = cursor.step_of(plan) else {
        return Ok(());
    };
    let (asked, said) = (pagemap::page_count(runs), kpageflags::page_count(&flags));
    if said != asked && said != 0 {
        return Err(died(format!(
            "the agent gave the flags of {said} pages, expected {asked}"
        )));
    }
    let (generation, time_ns) = (cursor.generation, at.moment.time_ns);
    let records = &mut evidence.page_flags;
    let same = |last: &&mut PageFlagsRecord| {
        (last.generation, last.at, last.object) == (generation, point, object) && cursor.part > 0
    };
    match records.last_mut().filter(same) {
        Some(last) => {
            last.flags.extend(flags);
            last.time_ns = time_ns;
        }
        None => records.push(PageFlagsRecord {
            generation,
            at: point,
            object,
            time_ns,
            flags,
        }),
    }
    Ok(())
}

/// Memory was taken.
pub(super) fn taken(
    plan: &Plan,
    cursor: &Cursor,
    evidence: &mut Evidence,
    reply: &Reply,
    (asked, at): (Point, Point),
) {
    let (
        Some(Step::TakeMemory(point)),
        Reply::Taken {
            now_pages,
            all_pages,
            free_pages,
            per_cpu_pages,
        },
    ) = (cursor.step_of(plan), reply)
    else {
        return;
    };
    let generation = cursor.generation;
    let same =
        |last: &&PressureRecord| (last.generation, last.at) == (generation, point) && last.end_ns.is_none();
    let begun = evidence.pressure.pop_if(|last| same(&&*last));
    evidence.pressure.push(PressureRecord {
        generation,
        at: point,
        begin_ns: begun.map_or(asked.moment.time_ns, |begun| begun.begin_ns),
        end_ns: (*now_pages == 0).then_some(at.moment.time_ns),
        taken_pages: *all_pages,
        free_pages: *free_pages,
        per_cpu_pages: *per_cpu_pages,
    });
}
