//! The engine against plain memory.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::content::{block_content, recognise};
use crate::ledger::{FaultReason, Kind, Ledger};
use crate::memory::{GuestRam, MIN_RAM};
use crate::phase::{Phase, Stamp};

const LIST: u64 = 0x3000;
const RING: u64 = 0x1000;
const DONE: u64 = 0x2000;
const BUFFERS: u64 = 0x10_0000;
const MASTER: u32 = 0b110;

pub(super) struct Bench {
    pub(super) ram: Arc<GuestRam>,
    pub(super) view: DmaView,
    pub(super) engine: DmaEngine,
}

impl Bench {
    /// Four buffers of 4096 bytes at one block per 1000 ns.
    pub(super) fn new(bus_master: BusMaster) -> Self {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let view = DmaView::new(Arc::clone(&ram), Ledger::new(1024));
        let setup = DmaConfig {
            rate: 4_096_000_000,
            seed: 9,
            bus_master,
            ..DmaConfig::default()
        };
        let mut bench = Self {
            ram,
            view,
            engine: DmaEngine::new(setup, 0xe000_0000, 0xe000_1000),
        };
        for index in 0..4 {
            bench.descriptor(index, BUFFERS + index * 4096, 4096);
        }
        bench.list(0, RING);
        bench.write(map::RING_PAGES, 8, LIST, 0);
        bench.write(map::RING_ENTRIES, 4, 4, 0);
        bench.write(map::COMPLETION_ADDRESS, 8, DONE, 0);
        bench.command(0, MASTER);
        bench
    }

    fn descriptor(&self, index: u64, address: u64, length: u32) {
        self.ram.write(RING + index * 16, &address.to_le_bytes()).unwrap();
        self.ram
            .write(RING + index * 16 + 8, &u64::from(length).to_le_bytes())
            .unwrap();
    }

    /// Word `index` of the list of the ring's pages.
    fn list(&self, index: u64, page: u64) {
        self.ram.write(LIST + index * 8, &page.to_le_bytes()).unwrap();
    }

    pub(super) fn write(&mut self, register: u64, size: u8, value: u64, now: u64) {
        self.engine.write(now, &mut self.view, 0, register, size, value);
    }

    pub(super) fn read(&self, register: u64, size: u8) -> u64 {
        self.engine.read(0, register, size)
    }

    pub(super) fn command(&mut self, now: u64, value: u32) {
        self.engine.config_write(now, &mut self.view, 4, 2, value);
    }

    pub(super) fn enable(&mut self, now: u64, extra: u32) {
        self.write(map::CONTROL, 4, (map::CONTROL_ENABLE | extra).into(), now);
    }

    /// Calls the engine exactly when it wants, until `end`.
    pub(super) fn run(&mut self, end: u64) {
        while let Some(due) = self.engine.next_event().filter(|&due| due <= end) {
            self.engine.advance(due, &mut self.view);
        }
    }

    pub(super) fn events(&self) -> Vec<EngineEventKind> {
        self.view.ledger.events().iter().map(|event| event.kind).collect()
    }

    pub(super) fn block_at(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 16];
        self.ram.read(address, &mut bytes).unwrap();
        recognise(&bytes)
    }
}

#[test]
fn blocks_come_at_the_rate_and_land_where_they_should() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(500, 0);
    bench.run(2500);
    let blocks: Vec<(u64, u64)> = bench
        .view
        .ledger
        .entries()
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Block { .. }))
        .map(|entry| (entry.time, entry.address))
        .collect();
    assert_eq!(
        blocks,
        [(500, BUFFERS), (1500, BUFFERS + 4096), (2500, BUFFERS + 8192)]
    );
    assert_eq!(bench.ram.read_u64(DONE).unwrap(), 3);
    let (mut expected, mut found) = (vec![0; 4096], vec![0; 4096]);
    block_content(9, 1, &mut expected);
    bench.ram.read(BUFFERS + 4096, &mut found).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn a_full_ring_waits_for_its_consumer() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(0, 0);
    bench.run(100_000);
    assert_eq!((bench.read(map::COMPLETED, 8), bench.read(map::WAITS, 8)), (4, 1));
    assert_eq!(bench.engine.next_event(), None);
    bench.write(map::CONSUMED, 8, 4, 20_000);
    assert_eq!(bench.engine.next_event(), Some(20_000));
    bench.run(20_000);
    assert_eq!(bench.block_at(BUFFERS), Some(4), "the first buffer is used again");
    let counters = *bench.view.ledger.counters(Stamp::START);
    assert_eq!(
        (
            counters.waits,
            counters.longest_wait_ns,
            counters.longest_silence_ns
        ),
        (1, 16_000, 1000)
    );
    assert!(
        bench
            .events()
            .ends_with(&[EngineEventKind::WaitBegin, EngineEventKind::WaitEnd])
    );
}

#[test]
fn a_free_running_ring_overwrites() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(0, map::CONTROL_FREE_RUN);
    bench.run(9_000);
    assert_eq!(
        (bench.read(map::COMPLETED, 8), bench.read(map::OVERWRITES, 8)),
        (10, 6)
    );
    assert_eq!(bench.block_at(BUFFERS + 4096), Some(9));
}

#[test]
fn an_honoured_bus_master_bit_silences_the_engine() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(0, map::CONTROL_FREE_RUN);
    bench.run(3000);
    bench.view.set_stamp(Stamp {
        generation: 0,
        phase: Phase::Handover,
    });
    bench.command(3500, 0b010);
    bench.run(50_000);
    assert_eq!(bench.engine.blocks(), 4);
    assert_eq!(bench.read(map::STATUS, 4), 0);
    let silence = bench.view.ledger.events().last().unwrap();
    assert_eq!((silence.time, silence.stamp.phase), (3500, Phase::Handover));
    assert_eq!(
        silence.kind,
        EngineEventKind::BusMaster {
            on: false,
            obeyed: true
        }
    );
    bench.engine.end_phase(50_000, &mut bench.view);
    let stamp = bench.view.stamp();
    assert_eq!(bench.view.ledger.counters(stamp).longest_silence_ns, 47_000);
    bench.command(60_000, MASTER);
    bench.run(60_000);
    assert_eq!(bench.engine.blocks(), 5);
}

#[test]
fn a_retained_engine_survives_enumeration() {
    let mut bench = Bench::new(BusMaster::Retained);
    bench.enable(0, map::CONTROL_FREE_RUN);
    bench.run(3000);
    bench.command(3100, 0);
    bench
        .engine
        .config_write(3200, &mut bench.view, 0x10, 4, u32::MAX);
    bench
        .engine
        .config_write(3300, &mut bench.view, 0x10, 4, 0xe000_0000);
    bench.command(3400, 0b010);
    bench.run(10_000);
    assert_eq!(
        (bench.engine.blocks(), bench.read(map::STATUS, 4)),
        (11, map::STATUS_RUNNING.into())
    );
    assert!(bench.events().contains(&EngineEventKind::BusMaster {
        on: false,
        obeyed: false
    }));
}

#[test]
fn a_retained_engine_still_needs_to_be_allowed_once() {
    let mut bench = Bench::new(BusMaster::Retained);
    let mut never = DmaEngine::new(bench.engine.setup, 0xe000_0000, 0xe000_1000);
    never.write(0, &mut bench.view, 0, map::CONTROL, 4, map::CONTROL_ENABLE.into());
    assert_eq!(never.next_event(), None);
}

#[test]
fn wild_descriptors_fault_and_write_nothing() {
    let cases = [
        (u64::MAX - 100, 4096, FaultReason::BufferOutsideRam),
        (MIN_RAM - 1, 2, FaultReason::BufferOutsideRam),
        (BUFFERS, 0, FaultReason::EmptyBuffer),
        (BUFFERS, map::MAX_BUFFER_BYTES + 1, FaultReason::BufferTooLong),
    ];
    for (address, length, reason) in cases {
        let mut bench = Bench::new(BusMaster::Honoured);
        bench.descriptor(0, address, length);
        bench.enable(0, 0);
        bench.run(10_000);
        let fault = EngineEventKind::Fault {
            reason,
            address,
            length,
            descriptor: Some(0),
        };
        assert_eq!(bench.events().last(), Some(&fault));
        assert_eq!((bench.view.ledger.made(), bench.read(map::FAULTS, 8)), (0, 1));
        assert_eq!(bench.read(map::STATUS, 4), u64::from(map::STATUS_FAULT));
        bench.descriptor(0, BUFFERS, 4096);
        bench.run(20_000);
        assert_eq!(bench.engine.blocks(), 0, "it stands until reset");
    }
}

#[test]
fn wild_registers_fault() {
    let faults = |register, size, value| {
        let mut bench = Bench::new(BusMaster::Honoured);
        bench.write(register, size, value, 0);
        bench.enable(0, 0);
        bench.run(10_000);
        match bench.events().last() {
            Some(EngineEventKind::Fault { reason, .. }) => Some(*reason),
            _ => None,
        }
    };
    assert_eq!(faults(map::RING_ENTRIES, 4, 0), Some(FaultReason::Ring));
    assert_eq!(faults(map::RING_ENTRIES, 4, 4097), Some(FaultReason::Ring));
    assert_eq!(faults(map::RING_PAGES, 8, LIST + 8), Some(FaultReason::Ring));
    assert_eq!(
        faults(map::RING_PAGES, 8, !0xfff),
        Some(FaultReason::ListOutsideRam)
    );
    assert_eq!(
        faults(map::COMPLETION_ADDRESS, 8, 4),
        Some(FaultReason::Completion)
    );
    assert_eq!(
        faults(map::COMPLETION_ADDRESS, 8, MIN_RAM),
        Some(FaultReason::Completion)
    );
    assert_eq!(faults(map::CONSUMED, 8, 1), Some(FaultReason::Consumed));
    assert_eq!(faults(map::COMPLETION_ADDRESS, 8, 0), None);
}

#[test]
fn an_engine_faults_at_addresses_with_more_bits_than_it_has() {
    const HIGH: u64 = 1 << 32;
    // List, ring, count and buffer are at the same places in a RAM that has them below and above 4 GiB.
    let bench = |bits, high: [u64; 4]| {
        let mut bench = Bench::new(BusMaster::Honoured);
        bench.ram = GuestRam::new(5 << 30).unwrap();
        bench.view = DmaView::new(Arc::clone(&bench.ram), Ledger::new(8));
        bench.engine.setup.address_bits = bits;
        let [list, ring, done, buffer] = high.map(|high| high * HIGH);
        for base in [0, HIGH] {
            bench
                .ram
                .write(base + LIST, &(ring + RING).to_le_bytes())
                .unwrap();
            let descriptor = [buffer + BUFFERS, 4096].map(u64::to_le_bytes);
            bench.ram.write(base + RING, descriptor.as_flattened()).unwrap();
        }
        bench.write(map::RING_PAGES, 8, list + LIST, 0);
        bench.write(map::COMPLETION_ADDRESS, 8, done + DONE, 0);
        bench.enable(0, 0);
        bench.run(0);
        assert_eq!(bench.read(map::ADDRESS_BITS, 4), u64::from(bits));
        bench
    };
    let fault = |address, length, descriptor| EngineEventKind::Fault {
        reason: FaultReason::OutOfReach,
        address,
        length,
        descriptor,
    };
    for (high, expected) in [
        ([1, 0, 0, 0], fault(HIGH + LIST, 8, Some(0))),
        ([0, 1, 0, 0], fault(HIGH + RING, 16, Some(0))),
        ([0, 0, 1, 0], fault(HIGH + DONE, 8, None)),
        ([0, 0, 0, 1], fault(HIGH + BUFFERS, 4096, Some(0))),
    ] {
        let reaching = bench(33, high);
        assert_eq!((reaching.engine.blocks(), reaching.read(map::FAULTS, 8)), (1, 0));
        assert_eq!(reaching.block_at(high[3] * HIGH + BUFFERS), Some(0));
        assert_eq!(reaching.ram.read_u64(high[2] * HIGH + DONE).unwrap(), 1);
        let short = bench(32, high);
        assert_eq!(short.events().last(), Some(&expected));
        // Only the count is written after its block; nothing goes to the same place 4 GiB lower.
        let made = usize::from(high[2] == 1);
        assert_eq!(short.view.ledger.entries().len(), made, "{high:?}");
        for base in [0, HIGH] {
            assert_eq!(short.ram.read_u64(base + DONE).unwrap(), 0, "{high:?}");
            let block = short.block_at(base + BUFFERS);
            assert_eq!(block, (made == 1 && base == 0).then_some(0), "{high:?}");
        }
    }
}

#[test]
fn the_last_byte_of_an_access_decides_whether_it_is_reached() {
    let config = |address_bits| DmaConfig {
        address_bits,
        ..DmaConfig::default()
    };
    assert!(config(32).reaches(0xffff_f000, 4096));
    assert!(!config(32).reaches(0xffff_f001, 4096));
    assert!(!config(32).reaches(1 << 32, 1));
    assert!(config(33).reaches(1 << 32, 1));
    assert!(
        config(64).reaches(u64::MAX, 4096),
        "that it is in RAM is another question"
    );
    assert!(!config(63).reaches(u64::MAX, 4096));
}

#[test]
fn a_ring_lies_on_any_pages() {
    let mut bench = Bench::new(BusMaster::Honoured);
    let entries = u64::from(map::MAX_RING_ENTRIES);
    // Sixteen pages in descending order, with a gap between each two.
    let page = |index: u64| 0x80_0000 - index * 0x2000;
    for index in 0..entries / map::DESCRIPTORS_PER_PAGE {
        bench.list(index, page(index));
    }
    for entry in 0..entries {
        let at = page(entry / map::DESCRIPTORS_PER_PAGE) + entry % map::DESCRIPTORS_PER_PAGE * 16;
        bench
            .ram
            .write(at, &(BUFFERS + entry * 64).to_le_bytes())
            .unwrap();
        bench.ram.write(at + 8, &64_u64.to_le_bytes()).unwrap();
    }
    bench.view.ledger = Ledger::new(2 * map::MAX_RING_ENTRIES as usize + 2);
    bench.write(map::RING_ENTRIES, 4, entries, 0);
    bench.enable(0, 0);
    bench.run(100_000_000);
    assert_eq!((bench.engine.blocks(), bench.read(map::WAITS, 8)), (entries, 1));
    for entry in 0..entries {
        assert_eq!(
            bench.block_at(BUFFERS + entry * 64),
            Some(entry),
            "descriptor {entry}"
        );
    }
}

#[test]
fn the_list_of_pages_is_read_at_each_use() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(0, 0);
    bench.run(1500);
    // Another ring, with other buffers.
    let (other, buffers) = (0x5000, BUFFERS + 0x10_0000);
    for index in 0..4 {
        let descriptor = [buffers + index * 4096, 4096].map(u64::to_le_bytes);
        bench
            .ram
            .write(other + index * 16, descriptor.as_flattened())
            .unwrap();
    }
    bench.list(0, other);
    bench.run(2500);
    assert_eq!(bench.block_at(BUFFERS + 4096), Some(1));
    assert_eq!(bench.block_at(buffers + 8192), Some(2));
}

#[test]
fn wild_words_in_the_list_fault_and_write_nothing() {
    for (word, reason, address, length) in [
        (RING + 16, FaultReason::RingPage, RING + 16, 8),
        (MIN_RAM, FaultReason::DescriptorOutsideRam, MIN_RAM, 16),
        (!0xfff, FaultReason::DescriptorOutsideRam, !0xfff, 16),
    ] {
        let mut bench = Bench::new(BusMaster::Honoured);
        bench.list(0, word);
        bench.enable(0, 0);
        bench.run(10_000);
        let fault = EngineEventKind::Fault {
            reason,
            address,
            length,
            descriptor: Some(0),
        };
        assert_eq!(bench.events().last(), Some(&fault));
        assert_eq!((bench.view.ledger.made(), bench.read(map::FAULTS, 8)), (0, 1));
    }
}

#[test]
fn a_reset_clears_registers_but_repeats_no_block() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(0, 0);
    bench.run(2000);
    bench.write(map::CONTROL, 4, map::CONTROL_RESET.into(), 2500);
    assert_eq!(
        (
            bench.read(map::RING_PAGES, 8),
            bench.read(map::COMPLETED, 8),
            bench.read(map::CONTROL, 4)
        ),
        (0, 0, 0)
    );
    assert_eq!(bench.engine.next_event(), None);
    bench.write(map::RING_PAGES, 8, LIST, 3000);
    bench.write(map::RING_ENTRIES, 4, 4, 3000);
    bench.enable(3000, 0);
    bench.run(3000);
    assert_eq!(
        (bench.block_at(BUFFERS), bench.read(map::COMPLETED, 8)),
        (Some(3), 1)
    );
}

#[test]
fn interrupts_go_through_the_table_into_the_ledger() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.engine.config_write(0, &mut bench.view, 0x42, 2, 0x8000);
    for (offset, value) in [(0, 0xfee0_0000), (8, 0x41), (12, 0)] {
        bench.engine.write(0, &mut bench.view, 2, offset, 4, value);
    }
    bench.enable(0, map::CONTROL_INTERRUPT);
    bench.run(0);
    assert_eq!(
        bench.view.take_messages(),
        [Msi {
            address: 0xfee0_0000,
            data: 0x41
        }]
    );
    assert!(matches!(
        bench.view.ledger.entries().last().unwrap().kind,
        Kind::Msi { data: 0x41 }
    ));
}

#[test]
fn a_full_ledger_stops_the_engine_and_says_so() {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.view.ledger = Ledger::new(3);
    bench.enable(0, 0);
    bench.run(100_000);
    assert!(bench.engine.stopped_by_ledger());
    assert!(bench.view.ledger.made() <= 6);
    assert_eq!(bench.read(map::STATUS, 4), 0);
}

#[test]
fn registers_answer_only_to_their_own_width() {
    let bench = Bench::new(BusMaster::Honoured);
    assert_eq!(bench.read(map::MAGIC, 4), u64::from(map::MAGIC_VALUE));
    assert_eq!(bench.read(map::MAGIC, 8), u64::MAX);
    assert_eq!(bench.read(map::RING_PAGES, 4), u64::MAX);
    assert_eq!(bench.read(0x800, 4), u64::MAX);
}

proptest! {
    #[test]
    fn any_driver_is_survived(
        accesses in prop::collection::vec((0_u64..0x58, prop::sample::select(vec![4_u8, 8]), any::<u64>(), 0_u64..3000), 1..60),
        list in prop::option::of(any::<u64>()),
        ring in prop::collection::vec(any::<u64>(), 8),
    ) {
        let mut bench = Bench::new(BusMaster::Retained);
        for (index, word) in (0_u64..).zip(ring) {
            bench.ram.write(RING + index * 8, &(word >> (word % 64)).to_le_bytes()).unwrap();
        }
        if let Some(word) = list {
            bench.list(0, word >> (word % 64));
        }
        bench.enable(0, 0);
        let mut now = 0;
        for (register, size, value, wait) in accesses {
            now += wait;
            bench.run(now);
            bench.write(register / 4 * 4, size, value >> (value % 64), now);
        }
        for entry in bench.view.ledger.entries() {
            prop_assert!(bench.ram.contains(entry.address, entry.length.into()));
        }
        prop_assert!(bench.engine.next_event().is_none_or(|due| due >= now));
    }
}
