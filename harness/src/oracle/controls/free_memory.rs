//! Pages that are free, and pages that are not.

use super::{only, result};
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, JUMP, MEMFD, OWN, PAGES, cpu_write, good};
use guest_agent::kpageflags::BUDDY;
use guest_agent::protocol::FlagRun;

#[test]
fn a_closed_page_that_stays_in_use_is_found() {
    // The kernel's word and the record of CPU writes suffice.
    let mut evidence = good();
    evidence.pressure.clear();
    evidence.reused[0].pages[0].count -= 1;
    let findings = only(&evidence, &[RuleName::NothingLeaked]);
    assert_eq!((findings.len(), findings[0].page), (1, Some(MEMFD + PAGES - 3)));
    assert!(
        findings[0].text.contains("still has it in use"),
        "{}",
        findings[0].text
    );
    // Whoever writes to a page has it from the allocator.
    evidence.reused[0].pages[0].count += 1;
    assert!(result(&evidence, RuleName::NothingLeaked).held());
}

#[test]
fn a_closed_page_that_never_comes_back_is_found_under_pressure_only() {
    let mut evidence = good();
    evidence.reused[0].pages[0].count -= 2;
    evidence.page_flags[3].flags[0].count -= 2;
    evidence.page_flags[3]
        .flags
        .insert(1, FlagRun { flags: 0, count: 2 });
    let findings = only(&evidence, &[RuleName::NothingLeaked]);
    assert_eq!((findings.len(), findings[0].page), (3, Some(MEMFD + PAGES - 4)));
    assert!(
        findings[0].text.contains("did not come back"),
        "{}",
        findings[0].text
    );
    // Three pages can all lie in per-CPU lists.
    evidence.pressure[2].per_cpu_pages = 3;
    assert!(result(&evidence, RuleName::NothingLeaked).held());
    // Nobody knows where they lie if memory was not taken, or not to the end.
    evidence.pressure[2].per_cpu_pages = 1;
    evidence.pressure[2].end_ns = None;
    let without = result(&evidence, RuleName::NothingLeaked);
    assert!(
        without.held() && without.looked_at.note.contains("3 not seen given back"),
        "{without:?}"
    );
}

#[test]
fn free_memory_as_the_guest_counts_it_decides_nothing() {
    let mut evidence = good();
    evidence
        .memory
        .iter_mut()
        .for_each(|record| record.free_pages = 7);
    assert!(result(&evidence, RuleName::NothingLeaked).held());
}

#[test]
fn without_the_kernel_s_word_its_reserves_count_as_left_over() {
    let mut evidence = good();
    evidence.page_flags.clear();
    evidence.pressure[2].free_pages = 1;
    assert!(result(&evidence, RuleName::NothingLeaked).held());
    evidence.pressure[2].free_pages = 0;
    assert_eq!(result(&evidence, RuleName::NothingLeaked).findings.total, 2);
    evidence.reused[0].complete = false;
    let unseen = result(&evidence, RuleName::NothingLeaked);
    assert!(!unseen.judged() && !unseen.blind.is_empty(), "{unseen:?}");
}

#[test]
fn a_preserved_page_in_the_free_lists_is_found() {
    for at in 0..3 {
        let mut evidence = good();
        evidence.pressure.clear();
        evidence.page_flags[at].flags[0].count -= 3;
        let free = FlagRun {
            flags: BUDDY,
            count: 3,
        };
        evidence.page_flags[at].flags.push(free);
        let findings = only(&evidence, &[RuleName::KeptFromAllocator]);
        assert_eq!((findings.len(), findings[0].page), (3, Some(MEMFD + PAGES - 3)));
        let when = if at == 0 {
            "before it was retrieved"
        } else {
            "while it was held"
        };
        assert!(findings[0].text.contains(when), "{}", findings[0].text);
    }
}

#[test]
fn a_preserved_page_that_is_handed_out_is_found_without_the_kernel_s_word() {
    let write = |at: usize, after_ns: u64| {
        let mut evidence = good();
        evidence.page_flags.truncate(0);
        let time = evidence.pressure[at].begin_ns + after_ns;
        evidence.cpu_writes.push(cpu_write((MEMFD + 12) * PAGE, time));
        evidence
    };
    let held = write(1, 5);
    let findings = only(
        &held,
        &[RuleName::KeptFromAllocator, RuleName::NothingLeaked][..1],
    );
    assert_eq!(findings[0].page, Some(MEMFD + 12));
    assert!(findings[0].text.contains("handed out"), "{}", findings[0].text);
    only(
        &write(0, 5),
        &[RuleName::KeptFromAllocator, RuleName::NoCpuWriteBeforeRetrieval],
    );
    // Before and after memory was taken, the agent writes to what it has retrieved; what is closed may be handed out.
    for sound in [write(1, 20_000), write(2, 5)] {
        assert!(result(&sound, RuleName::KeptFromAllocator).held());
    }
    let mut unrecorded = held;
    unrecorded.cpu_writes.clear();
    unrecorded.cpu_writes_until_ns = Some(JUMP.0);
    let unrecorded = result(&unrecorded, RuleName::KeptFromAllocator);
    assert!(
        !unrecorded.judged() && !unrecorded.blind.is_empty(),
        "{unrecorded:?}"
    );
}

#[test]
fn flags_of_too_few_pages_are_no_flags() {
    let mut evidence = good();
    evidence.pressure.clear();
    for record in &mut evidence.page_flags {
        record.flags.clear();
    }
    let silent = result(&evidence, RuleName::KeptFromAllocator);
    assert!(
        !silent.judged() && silent.blind[0].contains("no /proc/kpageflags"),
        "{silent:?}"
    );
}

#[test]
fn closed_memory_in_a_later_map_is_found() {
    let mut evidence = good();
    evidence.kexecs = 2;
    let mut blob = testing::blob((MEMFD + 3..MEMFD + 5).chain([OWN]));
    (blob.generation, blob.time_ns) = (1, 2_480_000);
    evidence.blobs.push(blob);
    let findings = result(&evidence, RuleName::NothingLeaked).findings;
    assert_eq!((findings.total, findings.kept[0].page), (2, Some(MEMFD + 3)));
}

#[test]
fn before_the_retrieval_the_pages_are_those_that_were_handed_over() {
    let written = |frame: u64| {
        let mut evidence = good();
        // Later a step of the new kernel's agent gives page 12 another frame, as a hole that is filled.
        let run = |first, count| guest_agent::protocol::PageRun { first, count };
        let elsewhere = MEMFD + PAGES + 100;
        let pages = vec![run(MEMFD, 12), run(elsewhere, 1), run(MEMFD + 13, PAGES - 13)];
        evidence.objects[0].pages.insert(1, pages);
        let time = evidence.pressure[0].begin_ns + 5;
        evidence.cpu_writes.push(cpu_write(frame * PAGE, time));
        result(&evidence, RuleName::KeptFromAllocator)
    };
    assert!(written(MEMFD + PAGES + 100).held());
    let findings = written(MEMFD + 12).findings;
    assert_eq!((findings.total, findings.kept[0].page), (1, Some(MEMFD + 12)));
}

#[test]
fn what_nobody_asks_for_is_kept_until_the_next_jump() {
    let written = |after_jump: bool| {
        let mut evidence = good();
        evidence.kexecs = 2;
        evidence.retrievals.retain(|retrieval| retrieval.object.is_none());
        let mut jump = evidence.phases[0].clone();
        (jump.generation, jump.phase, jump.begin_ns) = (1, Phase::Jump, 2_450_000);
        evidence.phases.push(jump);
        let time = if after_jump { 2_450_001 } else { 2_449_999 };
        evidence.cpu_writes = vec![cpu_write((MEMFD + 12) * PAGE, time)];
        result(&evidence, RuleName::NoCpuWriteBeforeRetrieval)
            .findings
            .total
    };
    assert_eq!((written(false), written(true)), (1, 0));
}
