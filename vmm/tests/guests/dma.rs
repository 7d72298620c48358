//! The DMA engine works while the guest runs. Its writes are in the ledger and do not count as the processor's.

use guest_agent::device::{DMA_SLOT, dma};
use iced_x86::code_asm::*;

use super::code::{Asm, Code, DATA, DMA, UPPER};
use super::guest::Guest;
use vmm::content::block_content;
use vmm::ledger::{EngineEventKind, Kind};
use vmm::machine::Event;
use vmm::memory::PAGE_SIZE;
use vmm::phase::Phase;

const RING: u64 = DATA;
const COMPLETION: u64 = DATA + 0x1000;
const LIST: u64 = DATA + 0x2000;
const BUFFERS: u64 = DATA + 0x10_0000;
const ENTRIES: u64 = 8;
const LENGTH: u64 = 0x1800;

/// A ring of [`ENTRIES`] buffers of one and a half pages. Each buffer begins a page, and no two share one.
fn ring() -> Vec<u8> {
    let descriptors = (0..ENTRIES).flat_map(|index| [BUFFERS + index * 2 * PAGE_SIZE, LENGTH]);
    descriptors.flat_map(u64::to_le_bytes).collect()
}

fn buffer_pages() -> impl Iterator<Item = u64> {
    (BUFFERS >> 12)..(BUFFERS >> 12) + 2 * ENTRIES
}

/// Starts the engine.
fn start(c: &mut Code, control: u32) -> Asm {
    c.config(DMA_SLOT, 0x04, 0x6)?;
    c.store64(DMA + dma::RING_PAGES, LIST)?;
    c.store32(DMA + dma::RING_ENTRIES, u32::try_from(ENTRIES).unwrap())?;
    c.store64(DMA + dma::COMPLETION_ADDRESS, COMPLETION)?;
    c.store32(DMA + dma::CONTROL, dma::CONTROL_ENABLE | control)
}

fn stop(c: &mut Code) -> Asm {
    c.store32(DMA + dma::CONTROL, 0)
}

fn guest(write: impl FnOnce(&mut Code) -> Asm) -> Guest {
    let mut guest = Guest::new(write);
    guest.memory.push((LIST, RING.to_le_bytes().to_vec()));
    guest.memory.push((RING, ring()));
    guest.config.dma.rate = 500_000_000;
    guest
}

#[test]
fn the_engine_fills_the_ring_and_waits() {
    let guest = guest(|c| {
        start(c, 0)?;
        c.wait_for(COMPLETION, 8)?;
        c.power_off()
    });
    for run in guest.completed() {
        let ram = run.machine.ram();
        for sequence in 0..ENTRIES {
            let (mut expected, mut found) = (vec![0; 0x1800], vec![0; 0x1800]);
            block_content(guest.config.dma.seed, sequence, &mut expected);
            ram.read(BUFFERS + sequence * 2 * PAGE_SIZE, &mut found).unwrap();
            assert!(found == expected, "{}: block {sequence}", run.backend);
        }
        let blocks = run
            .machine
            .ledger()
            .entries()
            .iter()
            .filter(|entry| matches!(entry.kind, Kind::Block { .. }));
        assert_eq!(blocks.count() as u64, ENTRIES);
        let pages = run.evidence.pages_in(Phase::BootOld);
        assert!(pages.is_empty(), "{}: {pages:x?}", run.backend);
        assert!(buffer_pages().all(|pfn| run.evidence.touched.contains(&pfn)));
    }
}

#[test]
fn pages_that_both_write_are_the_processors_too() {
    let guest = guest(|c| {
        start(c, 0)?;
        c.wait_for(COMPLETION, 8)?;
        // Writes to the second page of buffers 0 and 3, behind the buffer's end.
        c.store32(BUFFERS + 0x1900, 7)?;
        c.store32(BUFFERS + 3 * 2 * PAGE_SIZE + 0x1900, 7)?;
        c.power_off()
    });
    for run in guest.completed() {
        let expected = [(BUFFERS >> 12) + 1, (BUFFERS >> 12) + 7];
        assert!(
            run.evidence.pages_in(Phase::BootOld).into_iter().eq(expected),
            "{}",
            run.backend
        );
    }
}

/// The engine overwrites its ring while the guest computes on another page. Neither disturbs the other.
#[test]
fn the_engine_races_the_guest() {
    let mut guest = guest(|c| {
        start(c, dma::CONTROL_FREE_RUN)?;
        c.wait_for(COMPLETION, 4)?;
        // Adds up numbers in a page of its own while the engine writes.
        c.mov(rbx, UPPER + DATA + 0x4000)?;
        c.mov(ecx, 3000)?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.add(qword_ptr(rbx), rcx)?;
        c.dec(ecx)?;
        c.jnz(again)?;
        c.wait_for(COMPLETION, 40)?;
        stop(c)?;
        c.power_off()
    });
    // Slow enough to leave the guest time on a busy host with one processor.
    guest.config.dma.rate = 50_000_000;
    guest.moving.extend(buffer_pages().chain([COMPLETION >> 12]));
    for run in guest.completed() {
        assert!(
            run.evidence
                .pages_in(Phase::BootOld)
                .into_iter()
                .eq([(DATA >> 12) + 4]),
            "{}",
            run.backend
        );
        let ledger = run.machine.ledger();
        let mut completions = ledger
            .entries()
            .iter()
            .rev()
            .filter_map(|entry| match entry.kind {
                Kind::Completion { count } => Some(count),
                _ => None,
            });
        assert_eq!(
            completions.next(),
            Some(run.machine.ram().read_u64(COMPLETION).unwrap())
        );
        assert!(ledger.made() >= 80, "{}", ledger.made());
        let kinds: Vec<_> = ledger.events().iter().map(|event| event.kind).collect();
        assert!(matches!(
            kinds[..],
            [
                EngineEventKind::BusMaster { on: true, .. },
                EngineEventKind::Start,
                EngineEventKind::Stop
            ]
        ));
        // Each event was caused by kernel code in the upper half.
        let causes = run.machine.causes();
        assert_eq!(causes.len(), 3, "{}", run.backend);
        assert!(
            causes
                .iter()
                .all(|cause| cause.rip > UPPER && cause.privilege == 0)
        );
    }
}

#[test]
fn causes_are_the_same_instructions() {
    // Without bus mastering the engine is enabled and disabled but never runs.
    let guest = Guest::new(|c| {
        c.store32(DMA + dma::CONTROL, dma::CONTROL_ENABLE)?;
        stop(c)?;
        c.store32(DMA + dma::CONTROL, dma::CONTROL_RESET)?;
        c.power_off()
    });
    let runs = guest.completed();
    assert_eq!(runs[0].machine.causes().len(), 3);
    let rips = |index: usize| {
        runs[index]
            .machine
            .causes()
            .iter()
            .map(|cause| cause.rip)
            .collect::<Vec<_>>()
    };
    for index in 1..runs.len() {
        assert_eq!(rips(index), rips(0));
    }
}

/// What is due when a driver stops the engine is written before, even if nobody has served the engine for a while.
#[test]
fn what_is_due_is_written_before_the_engine_is_stopped() {
    let mut guest = guest(|c| {
        start(c, dma::CONTROL_FREE_RUN)?;
        c.wait_for(COMPLETION, i32::try_from(ENTRIES).unwrap())?;
        c.mov(ecx, 10_000)?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.dec(ecx)?;
        c.jnz(again)?;
        stop(c)?;
        c.power_off()
    });
    // A block takes 6.1 us, and the device thread sleeps for 100 us.
    guest.config.dma.rate = 1_000_000_000;
    guest.moving.extend(buffer_pages().chain([COMPLETION >> 12]));
    for run in guest.completed() {
        let ledger = run.machine.ledger();
        let mut entries = ledger.entries().iter().rev();
        let last = entries.find(|entry| matches!(entry.kind, Kind::Block { .. }));
        let last = last.unwrap_or_else(|| panic!("{}: no block", run.backend));
        let stop = ledger.events().last().expect("an event");
        assert_eq!(stop.kind, EngineEventKind::Stop);
        let gap = stop.time - last.time;
        assert!(
            gap < 2 * 6_150,
            "{}: the last block was {gap} ns before",
            run.backend
        );
    }
}

#[test]
fn devices_go_on_while_the_guest_waits_for_an_answer() {
    let mut guest = guest(|c| {
        start(c, 0)?;
        c.ring(0)?;
        c.mov(rax, UPPER + COMPLETION)?;
        c.mov(r12, qword_ptr(rax))?;
        c.power_off()
    });
    // A block takes 6 ms. So a busy host, too, reaches the guest's doorbell before more than one or two are finished.
    guest.config.dma.rate = 1_000_000;
    for run in guest.compare(|machine| {
        let message = machine.run().unwrap();
        machine.enter_phase(Phase::Prepare).unwrap();
        let before = machine.moment().time;
        assert_eq!(machine.pass(60_000_000).unwrap(), None);
        assert!(machine.moment().time >= before + 60_000_000);
        machine.reply(&[]).unwrap();
        vec![message, machine.run().unwrap()]
    }) {
        assert_eq!(run.evidence.registers.gpr[12], ENTRIES, "{}", run.backend);
        assert!(run.evidence.pages_in(Phase::Prepare).is_empty());
        let meanwhile = run
            .machine
            .ledger()
            .entries()
            .iter()
            .filter(|entry| entry.stamp.phase == Phase::Prepare);
        assert!(meanwhile.count() > 10, "{}", run.backend);
    }
}

#[test]
fn a_full_ledger_ends_the_run_on_both() {
    let mut guest = guest(|c| {
        start(c, dma::CONTROL_FREE_RUN)?;
        c.wait_for(COMPLETION, i32::MAX)
    });
    guest.config.ledger_entries = 6;
    guest.adrift = true;
    guest.moving.extend(buffer_pages().chain([COMPLETION >> 12]));
    for run in guest.compare(|machine| vec![machine.run().unwrap()]) {
        assert!(matches!(run.events[..], [Event::LedgerFull { .. }]));
    }
}
