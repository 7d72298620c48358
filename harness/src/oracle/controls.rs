//! Negative controls: good evidence passes, and the right rule finds each kind of damage.

use super::*;
use crate::evidence::*;
use crate::testing::{self, JUMP, MEMFD, OWN, PAGES, change_page, cpu_write, device_write, good};
use guest_agent::kpageflags::BUDDY;
use guest_agent::protocol::FlagRun;
use guest_agent::protocol::LogRecord;
use vmm::ledger::{EngineEvent, EngineEventKind, Kind};
use vmm::phase::Stamp;

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
fn a_changed_pattern_byte_is_found() {
    let mut evidence = good();
    change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    assert_eq!(findings[0].page, Some(MEMFD + 15));
    assert_eq!(findings[0].address, Some((MEMFD + 15) * PAGE + 100));
    assert_eq!(findings[0].expected.len(), 2);
    assert_eq!(
        findings[0].question,
        Some(Question {
            checkpoint: 1,
            address: (MEMFD + 15) * PAGE + 100
        })
    );
}

#[test]
fn a_changed_descriptor_is_found() {
    let mut evidence = good();
    change_page(&mut evidence, 0, 0, |page| page[16] ^= 1);
    only(&evidence, &[RuleName::PreservedContent]);
}

#[test]
fn a_changed_list_of_the_ring_s_pages_is_found() {
    let list = usize::try_from(testing::LIST).unwrap();
    let mut evidence = good();
    change_page(&mut evidence, 0, list, |page| page[1] ^= 0x10);
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    assert_eq!(findings[0].address, Some((MEMFD + testing::LIST) * PAGE + 1));
    // Its other words are the pattern's.
    let mut evidence = good();
    change_page(&mut evidence, 0, list, |page| page[8] ^= 1);
    only(&evidence, &[RuleName::PreservedContent]);
}

#[test]
fn a_lost_device_write_is_found_with_its_author_once_known() {
    let mut evidence = good();
    change_page(&mut evidence, 1, 4, |page| page[8..24].fill(0));
    let findings = only(
        &evidence,
        &[RuleName::DeviceWritesLanded, RuleName::PreservedContent],
    );
    assert!(findings[0].text.starts_with("block 18 "), "{}", findings[0].text);
    assert!(matches!(findings[0].last_writer, Writer::Unknown { .. }));
    let address = (MEMFD + 4) * PAGE + 8;
    let write = Some(cpu_write(address, 2_300_000));
    evidence.authors.push(Author {
        checkpoint: 1,
        address,
        write,
    });
    let findings = only(
        &evidence,
        &[RuleName::DeviceWritesLanded, RuleName::PreservedContent],
    );
    let Writer::Cpu {
        symbol, instructions, ..
    } = &findings[0].last_writer
    else {
        panic!("{findings:#?}")
    };
    assert_eq!(
        (symbol.as_str(), *instructions),
        ("clear_page+0x7", Some(1_150_000))
    );
    assert_eq!(findings[0].question, None);
}

#[test]
fn a_stale_block_is_no_substitute_for_the_last_one() {
    let mut evidence = good();
    let stale = written_bytes(&evidence.ledger.entries[2 * 10], testing::dma().setup.engine.seed);
    change_page(&mut evidence, 1, 4, |page| page.copy_from_slice(&stale));
    only(
        &evidence,
        &[RuleName::DeviceWritesLanded, RuleName::PreservedContent],
    );
}

#[test]
fn a_ledger_that_lies_about_its_bytes_cannot_be_judged() {
    let mut evidence = good();
    evidence.ledger.entries[39].checksum ^= 1;
    let result = result(&evidence, RuleName::DeviceWritesLanded);
    assert_eq!((result.findings.total, result.judged()), (0, false));
    assert!(
        result.blind[0].starts_with("the ledger is damaged: 1 of its"),
        "{:?}",
        result.blind
    );
}

#[test]
fn what_was_not_captured_cannot_be_judged() {
    let blind = |evidence: &Evidence| -> Vec<RuleName> {
        let results = judge(evidence, &[]).into_iter().filter(|result| !result.judged());
        results.map(|result| result.rule).collect()
    };
    let mut evidence = good();
    evidence.captures.checkpoints[1].strays_left_out = 3;
    assert_eq!(blind(&evidence), [RuleName::DeviceWritesLanded]);
    let mut evidence = good();
    evidence.blobs[0].complete = false;
    assert_eq!(
        blind(&evidence),
        [RuleName::BlobWellFormed, RuleName::MapCoversPreserved]
    );
}

#[test]
fn a_digest_that_differs_is_found() {
    let mut evidence = good();
    evidence.captures.digests[0].values[16] ^= 1;
    only(&evidence, &[RuleName::PreservedContent]);
    // A page that the device writes to while the agent reads it has no single digest.
    let mut evidence = good();
    evidence.captures.digests[0].values[2] ^= 1;
    evidence.captures.digests[0].ledger_before -= 32;
    assert!(result(&evidence, RuleName::PreservedContent).held());
}

#[test]
fn a_cpu_write_before_the_retrieval_is_found() {
    let mut evidence = good();
    evidence
        .cpu_writes
        .push(cpu_write((MEMFD + 12) * PAGE + 64, JUMP.0 + 10));
    let findings = only(&evidence, &[RuleName::NoCpuWriteBeforeRetrieval]);
    assert!(matches!(&findings[0].last_writer, Writer::Cpu { symbol, .. } if symbol == "clear_page+0x7"));
    for (frame, time) in [
        (MEMFD + 12, testing::RETRIEVED + 1),
        (MEMFD + 12, JUMP.0 - 1),
        (MEMFD + PAGES, JUMP.1),
    ] {
        let mut evidence = good();
        evidence.cpu_writes.push(cpu_write(frame * PAGE, time));
        assert!(
            result(&evidence, RuleName::NoCpuWriteBeforeRetrieval).held(),
            "{frame:#x} at {time}"
        );
    }
    // A record that ends before the retrieval shows nothing of what came then; one that ends later is enough.
    for (until, judged) in [(testing::RETRIEVED - 1, false), (testing::RETRIEVED, true)] {
        let mut evidence = good();
        evidence.cpu_writes_until_ns = Some(until);
        let result = result(&evidence, RuleName::NoCpuWriteBeforeRetrieval);
        assert_eq!((result.held(), result.judged()), (judged, judged), "{result:#?}");
    }
}

#[test]
fn a_device_write_elsewhere_after_the_jump_is_found() {
    let block = |time| {
        device_write(
            40,
            time,
            0x3000 * PAGE,
            4096,
            Kind::Block {
                sequence: 20,
                descriptor: 0,
            },
        )
    };
    let mut evidence = good();
    evidence.ledger.entries.push(block(2_390_000));
    evidence.cpu_writes.push(cpu_write(0x3000 * PAGE + 8, JUMP.1 + 5));
    let findings = only(&evidence, &[RuleName::DmaOnlyToPreserved]);
    assert_eq!(findings[0].page, Some(0x3000));
    assert!(
        findings[0].owner.contains("clear_page+0x7"),
        "{}",
        findings[0].owner
    );
    let mut evidence = good();
    evidence.ledger.entries.insert(0, block(JUMP.0 - 1));
    assert!(result(&evidence, RuleName::DmaOnlyToPreserved).held());
}

#[test]
fn an_interrupt_message_to_memory_is_a_device_write() {
    let message = |address| device_write(40, 2_390_000, address, 4, Kind::Msi { data: 0x31 });
    let mut evidence = good();
    evidence.ledger.entries.push(message(0x3000 * PAGE));
    let findings = only(&evidence, &[RuleName::DmaOnlyToPreserved]);
    assert_eq!(findings[0].page, Some(0x3000));
    assert!(
        findings[0].actual.contains("interrupt message 0x31 to memory"),
        "{}",
        findings[0].actual
    );
    // In a preserved page it is one more write that has to be there.
    let mut evidence = good();
    evidence.ledger.entries.push(message((MEMFD + 12) * PAGE + 64));
    evidence.captures.checkpoints[1].at.ledger_length = 41;
    assert!(!result(&evidence, RuleName::DeviceWritesLanded).held());
    let mut evidence = good();
    evidence.ledger.entries.push(message(0xfee0_0000));
    assert!(result(&evidence, RuleName::DmaOnlyToPreserved).held());
}

#[test]
fn pages_above_the_hole_below_4_gib_are_guest_memory() {
    // 4 GiB: 3 GiB from 0 on, 1 GiB from 4 GiB on.
    let mut evidence = good();
    evidence.ram_bytes = 4 << 30;
    let (block, outside) = (
        Kind::Block {
            sequence: 20,
            descriptor: 0,
        },
        "nobody: it is outside guest memory",
    );
    for (address, is_ram) in [
        ((3 << 30) - PAGE, true),
        (3 << 30, false),
        ((4 << 30) - PAGE, false),
        (4 << 30, true),
        ((5 << 30) - PAGE, true),
        (5 << 30, false),
    ] {
        let mut evidence = evidence.clone();
        evidence
            .ledger
            .entries
            .push(device_write(40, 2_390_000, address, 4096, block));
        let findings = only(&evidence, &[RuleName::DmaOnlyToPreserved]);
        assert_eq!(
            findings[0].owner != outside,
            is_ram,
            "{address:#x}: {}",
            findings[0].owner
        );
    }
}

#[test]
fn a_device_write_to_closed_memory_is_found() {
    let mut evidence = good();
    evidence.objects[0].closed = Some(Moment {
        generation: 1,
        time_ns: 2_000_100,
        ledger_length: 2 * 16,
    });
    only(&evidence, &[RuleName::DmaOnlyToPreserved]);
}

#[test]
fn a_hole_in_the_map_and_a_page_too_many_are_found() {
    let mut evidence = good();
    evidence.blobs = vec![testing::blob((MEMFD..MEMFD + PAGES - 1).chain([OWN]))];
    let findings = only(&evidence, &[RuleName::MapCoversPreserved]);
    assert_eq!((findings[0].page, findings.len()), (Some(MEMFD + PAGES - 1), 1));
    evidence.blobs = vec![testing::blob((MEMFD..=MEMFD + PAGES).chain([OWN]))];
    let findings = only(&evidence, &[RuleName::MapCoversPreserved]);
    assert_eq!(
        (findings[0].page, findings[0].owner.as_str()),
        (Some(MEMFD + PAGES), "nobody")
    );
    evidence.blobs[0].kho = None;
    only(
        &evidence,
        &[RuleName::MapCoversPreserved, RuleName::BlobWellFormed],
    );
}

#[test]
fn a_damaged_blob_is_found() {
    let mut evidence = good();
    // The entry of the map's root table that leads to all pages points outside RAM.
    let root = evidence.blobs[0].pages.get_mut(&(OWN + 1)).unwrap();
    let used = root
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .find(|entry| **entry != [0; 8])
        .unwrap();
    *used = (testing::RAM * 2).to_le_bytes();
    let findings = only(
        &evidence,
        &[RuleName::BlobWellFormed, RuleName::MapCoversPreserved],
    );
    assert!(findings[0].text.contains("unsound"), "{}", findings[0].text);
}

#[test]
fn silence_is_found_with_who_caused_it() {
    let mut evidence = good();
    evidence.ledger.entries.truncate(2 * 5);
    evidence.captures = Captures::default();
    let stamp = Stamp {
        generation: 0,
        phase: Phase::Handover,
    };
    let kind = EngineEventKind::BusMaster {
        on: false,
        obeyed: true,
    };
    evidence.ledger.events.push(EngineEvent {
        time: 950_000,
        stamp,
        kind,
    });
    let symbol = Some("pci_clear_master+0x10".into());
    evidence.event_causes.push(EventCause {
        event: 0,
        rip: 0x1234,
        symbol,
        instructions: Some(475_000),
        cpl: 0,
    });
    let findings = result(&evidence, RuleName::DeviceNeverSilent).findings.kept;
    assert_eq!(findings.len(), 1);
    assert!(
        findings[0].text.contains("bus-master") && findings[0].text.contains("handover"),
        "{}",
        findings[0].text
    );
    assert!(
        matches!(&findings[0].last_writer, Writer::Cpu { symbol, .. } if symbol.starts_with("pci_clear_master"))
    );
    // An engine that waits for its consumer is not silent.
    evidence.ledger.events[0].kind = EngineEventKind::WaitBegin;
    assert!(result(&evidence, RuleName::DeviceNeverSilent).held());
}

#[test]
fn one_block_missing_in_the_middle_is_silence_too() {
    let mut evidence = good();
    evidence.ledger.entries.drain(2 * 7..2 * 9);
    evidence.captures = Captures::default();
    assert_eq!(result(&evidence, RuleName::DeviceNeverSilent).findings.total, 1);
}

#[test]
fn a_lost_session_is_found_with_what_was_kept() {
    let mut evidence = good();
    evidence.failures.push(AgentFailure {
        generation: 1,
        phase: Phase::Restore,
        request: "retrieve session \"s\"".into(),
        call: "open(/dev/liveupdate)".into(),
        errno: 2,
        detail: String::new(),
    });
    evidence.retrievals.truncate(1);
    evidence.retrievals[0].failure = Some(0);
    let findings = only(&evidence, &[RuleName::SessionRetrieved]);
    assert!(
        findings[0]
            .text
            .contains("open(/dev/liveupdate) failed with No such file"),
        "{}",
        findings[0].text
    );
    assert!(
        findings[1].text.contains("18 of 18 pages intact"),
        "{}",
        findings[1].text
    );
    change_page(&mut evidence, 1, 3, |page| page[0] ^= 1);
    let findings = result(&evidence, RuleName::SessionRetrieved).findings.kept;
    assert!(
        findings[1].text.contains("17 of 18 pages intact"),
        "{}",
        findings[1].text
    );
}

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
fn nothing_to_look_at_is_not_held() {
    let mut evidence = good();
    evidence.objects.clear();
    evidence.ledger.entries.clear();
    evidence.blobs.clear();
    evidence.memory.clear();
    evidence.reused.clear();
    evidence.retrievals.clear();
    evidence.dma = None;
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

/// The first CPU write to a page, as recorded by a backend that knows pages only.
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

#[test]
fn engine_events_that_are_not_on_record_make_the_rule_blind() {
    let mut evidence = good();
    evidence.ledger.counters.push((
        Stamp::START,
        vmm::ledger::Counters {
            events_dropped: 3,
            ..Default::default()
        },
    ));
    let rule = result(&evidence, RuleName::DeviceNeverSilent);
    assert_eq!(rule.blind, ["3 engine events are not on record"]);
    assert!(!rule.held());
}

fn page_write(address: u64, since_ns: u64) -> CpuWrite {
    CpuWrite {
        length: None,
        rip: None,
        symbol: None,
        instructions: None,
        ..cpu_write(address, since_ns)
    }
}

#[test]
fn a_page_written_before_retrieval_is_found_without_an_instruction() {
    let mut evidence = good();
    evidence
        .cpu_writes
        .push(page_write((MEMFD + 15) * PAGE, JUMP.0 + 1000));
    let findings = only(&evidence, &[RuleName::NoCpuWriteBeforeRetrieval]);
    let text = findings[0].last_writer.to_string();
    assert!(
        matches!(findings[0].last_writer, Writer::CpuPage { .. }),
        "{text}"
    );
    assert!(text.contains("dirty log"), "{text}");
}

#[test]
fn a_changed_byte_names_the_phase_in_which_its_page_was_written() {
    let mut evidence = good();
    change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
    let taken_at = evidence.captures.checkpoints[1].at.time_ns;
    evidence
        .cpu_writes
        .push(page_write((MEMFD + 15) * PAGE, taken_at - 1));
    // A write after the checkpoint cannot be the last writer.
    evidence
        .cpu_writes
        .push(page_write((MEMFD + 15) * PAGE, taken_at + 1));
    let findings = result(&evidence, RuleName::PreservedContent).findings.kept;
    let Writer::CpuPage { since_ns, .. } = findings[0].last_writer else {
        panic!("{findings:#?}")
    };
    assert_eq!((since_ns, &findings[0].question), (taken_at - 1, &None));
}

#[test]
fn a_late_host_excuses_as_much_silence_as_it_was_late() {
    let mut evidence = good();
    evidence.ledger.entries.truncate(2 * 5);
    evidence.captures = Captures::default();
    let silence = |evidence: &Evidence| result(evidence, RuleName::DeviceNeverSilent).findings.total;
    assert!(silence(&evidence) > 0);
    evidence.device_lateness_ns = 1000;
    assert!(
        silence(&evidence) > 0,
        "more silence than that is none of the host's"
    );
    evidence.device_lateness_ns = 10_000_000_000;
    assert_eq!(silence(&evidence), 0);
}

#[test]
fn lost_invented_and_miscounted_interrupts_are_told_apart() {
    const RULE: RuleName = RuleName::InterruptsNeitherLostNorInvented;
    let texts = |evidence: &Evidence| -> Vec<String> {
        only(evidence, &[RULE])
            .into_iter()
            .map(|finding| finding.text)
            .collect()
    };
    assert_eq!(result(&good(), RULE).looked_at.count, testing::MESSAGES.2);

    let mut evidence = good();
    evidence.trace.records.pop();
    let found = texts(&evidence);
    assert!(
        found[0].starts_with("no processor took an interrupt for the message"),
        "{found:?}"
    );
    assert!(
        found[1].ends_with("counted 2 interrupts of the device, 1 were due"),
        "{found:?}"
    );

    // Two interrupts in a row, and no message between them.
    let mut evidence = good();
    let mut again = *evidence.trace.records.last().unwrap();
    again.time += 5;
    evidence.trace.records.push(again);
    let found = texts(&evidence);
    assert!(
        found[0].ends_with("for which the device sent no message"),
        "{found:?}"
    );

    for count in [1, 3] {
        let mut evidence = good();
        evidence.interrupts[0].disarmed.as_mut().unwrap().count = count;
        assert!(texts(&evidence)[0].contains(&format!("counted {count} interrupts")));
    }
    // A message that is sent while the agent disarms may be counted or not.
    for count in [1, 2] {
        let mut evidence = good();
        let disarmed = evidence.interrupts[0].disarmed.as_mut().unwrap();
        disarmed.count = count;
        disarmed.asked.time_ns = testing::MESSAGES.0 + 15_000;
        assert!(result(&evidence, RULE).held(), "{count}");
    }
}

#[test]
fn interrupts_that_are_not_on_record_cannot_be_judged() {
    const RULE: RuleName = RuleName::InterruptsNeitherLostNorInvented;
    let mut evidence = good();
    evidence.trace.dropped = 1;
    assert!(!result(&evidence, RULE).judged());
    let mut evidence = good();
    evidence.interrupts[0].disarmed = None;
    assert!(!result(&evidence, RULE).judged());
    // A backend without a trace bounds the number by the messages.
    for (count, held) in [(0, false), (1, true), (3, true), (4, false)] {
        let mut evidence = good();
        evidence.trace = Default::default();
        evidence.interrupts[0].disarmed.as_mut().unwrap().count = count;
        assert_eq!(result(&evidence, RULE).held(), held, "{count}");
    }
}

const WARNING: &str = "WARNING: kernel/liveupdate/luo_session.c:1 at 0xffffffff81000107, CPU#0: init/1";

fn quiet(evidence: &Evidence, allowed: &[&str]) -> RuleResult {
    let allowed: Vec<String> = allowed.iter().map(|text| (*text).to_owned()).collect();
    let results = judge(evidence, &allowed).into_iter();
    let mut results = results.filter(|result| result.rule == RuleName::KernelQuiet);
    results.next().unwrap()
}

/// Evidence in which the second kernel warns on its console.
fn warned() -> Evidence {
    let mut evidence = good();
    evidence.console += &format!("[    0.250000] {WARNING}\n");
    evidence.log_symbols.push(LogSymbol {
        generation: 1,
        address: 0xffff_ffff_8100_0107,
        symbol: "luo_open+0x7".into(),
    });
    evidence
}

#[test]
fn a_complaint_of_a_kernel_is_found_once() {
    let mut evidence = warned();
    let record = LogRecord {
        time_us: 250_000,
        level: 4,
        text: WARNING.into(),
    };
    evidence.kernel_logs[1].records.push(record.clone());
    let findings = only(&evidence, &[RuleName::KernelQuiet]);
    assert_eq!(findings.len(), 1);
    let finding = &findings[0];
    assert_eq!(finding.owner, "kernel of generation 1, luo_open+0x7");
    assert!(finding.actual.contains("at luo_open+0x7, CPU#0"), "{finding:#?}");
    for part in [
        "warning at luo_open+0x7",
        "generation 1 in boot-new",
        "at 0.250000 s",
    ] {
        assert!(finding.text.contains(part), "{part}: {}", finding.text);
    }
    // Only in the log, and of the first kernel.
    let mut evidence = good();
    evidence.kernel_logs[0].records.push(record);
    let findings = only(&evidence, &[RuleName::KernelQuiet]);
    assert_eq!(findings[0].owner, "kernel of generation 0, 0xffffffff81000107");
}

#[test]
fn an_allowed_complaint_is_no_deviation() {
    for (allowed, held) in [
        ("luo_open", true),
        ("luo_session.c:1 ", true),
        ("luo_close", false),
    ] {
        let result = quiet(&warned(), &[allowed]);
        assert_eq!(result.held(), held, "{allowed}: {result:#?}");
        assert_eq!(result.looked_at.note.contains("1 complaints allowed"), held);
        assert_eq!(result.looked_at.note.contains("never seen: \"luo_close\""), !held);
    }
}

#[test]
fn what_was_not_seen_of_a_kernel_is_not_judged() {
    // Each change, and whether the rule can be judged after it.
    type Change = fn(&mut Evidence);
    let cases: [(Change, bool); 8] = [
        (|e| e.kernel_logs.clear(), true),
        (|e| e.console.clear(), true),
        (|e| e.console_parts[1].lost = 1, true),
        (|e| e.kernel_logs[1].lost = 1, true),
        (
            |e| (e.console_parts[1].lost, e.kernel_logs[1].lost) = (1, 1),
            false,
        ),
        (
            |e| {
                e.kernel_logs.pop();
                e.console
                    .truncate(usize::try_from(e.console_parts[1].begin).unwrap());
            },
            false,
        ),
        (
            |e| {
                e.kernel_logs.clear();
                e.console += "[    0.300000] ** 7 printk messages dropped **\n";
            },
            false,
        ),
        (
            |e| {
                e.kernel_logs.clear();
                e.console.clear();
            },
            false,
        ),
    ];
    for (index, (change, judged)) in cases.into_iter().enumerate() {
        let mut evidence = good();
        change(&mut evidence);
        let result = quiet(&evidence, &[]);
        assert_eq!(result.held(), judged, "{index}: {result:#?}");
        assert_eq!(result.unjudged().is_some(), !judged, "{index}: {result:#?}");
    }
}
