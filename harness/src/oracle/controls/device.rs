//! What the device writes, and when.

use super::{only, result};
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{JUMP, MEMFD, cpu_write, device_write, good};
use vmm::ledger::{EngineEvent, EngineEventKind, Kind};
use vmm::phase::Stamp;

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

/// A sound run of which the ledger has the first five blocks only.
fn after_five_blocks() -> Evidence {
    let mut evidence = good();
    evidence.ledger.entries.truncate(2 * 5);
    evidence.captures = Captures::default();
    evidence
}

/// An event of the engine after those blocks.
fn in_handover(kind: EngineEventKind) -> EngineEvent {
    EngineEvent {
        time: 950_000,
        stamp: Stamp {
            generation: 0,
            phase: Phase::Handover,
        },
        kind,
    }
}

#[test]
fn silence_is_found_with_who_caused_it() {
    let mut evidence = after_five_blocks();
    let kind = EngineEventKind::BusMaster {
        on: false,
        obeyed: true,
    };
    evidence.ledger.events.push(in_handover(kind));
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

/// A driver stops an engine that waits, and its agent says so later.
#[test]
fn the_wait_that_a_stop_ends_is_not_followed_by_writes() {
    let mut evidence = after_five_blocks();
    let events = &mut evidence.ledger.events;
    events.push(in_handover(EngineEventKind::WaitBegin));
    events.push(in_handover(EngineEventKind::Stop));
    events.push(in_handover(EngineEventKind::WaitEnd));
    assert!(result(&evidence, RuleName::DeviceNeverSilent).held());
    // Started again, it has to write.
    evidence.ledger.events.push(in_handover(EngineEventKind::Start));
    assert_eq!(result(&evidence, RuleName::DeviceNeverSilent).findings.total, 1);
    // What resets a device that waits silences it.
    evidence.ledger.events.pop();
    evidence.ledger.events[1].kind = EngineEventKind::Reset;
    assert_eq!(result(&evidence, RuleName::DeviceNeverSilent).findings.total, 1);
}

#[test]
fn one_block_missing_in_the_middle_is_silence_too() {
    let mut evidence = good();
    evidence.ledger.entries.drain(2 * 7..2 * 9);
    evidence.captures = Captures::default();
    assert_eq!(result(&evidence, RuleName::DeviceNeverSilent).findings.total, 1);
}

#[test]
fn a_late_host_excuses_as_much_silence_as_it_was_late() {
    let mut evidence = after_five_blocks();
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
