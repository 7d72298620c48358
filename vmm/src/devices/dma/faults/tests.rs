use guest_agent::device::dma as map;

use crate::devices::dma::BusMaster;
use crate::devices::dma::tests::Bench;
use crate::injection::Act;
use crate::ledger::{EngineEventKind, Kind};

const INJECTED: EngineEventKind = EngineEventKind::Injected { injection: 5 };

impl Bench {
    fn act(&mut self, now: u64, act: Act) -> Result<(), String> {
        self.engine.act(now, &mut self.view, 5, act)
    }

    /// Times of the blocks.
    fn times(&self) -> Vec<u64> {
        let entries = self.view.ledger.entries().iter();
        let blocks = entries.filter(|entry| matches!(entry.kind, Kind::Block { .. }));
        blocks.map(|entry| entry.time).collect()
    }
}

/// An engine that writes a block at 0, 1000, 2000 and so on.
fn running() -> Bench {
    let mut bench = Bench::new(BusMaster::Honoured);
    bench.enable(0, map::CONTROL_FREE_RUN);
    bench
}

#[test]
fn a_deaf_engine_goes_on_until_it_hears_again() {
    let mut bench = running();
    bench.act(0, Act::IgnoreStop { ns: Some(3_500) }).unwrap();
    bench.run(1_500);
    bench.write(map::CONTROL, 4, map::CONTROL_FREE_RUN.into(), 1_500);
    assert_eq!(bench.read(map::CONTROL, 4) & u64::from(map::CONTROL_ENABLE), 0);
    bench.run(9_000);
    assert_eq!(bench.times(), [0, 1_000, 2_000, 3_000]);
    assert_eq!((bench.engine.next_event(), bench.read(map::STATUS, 4)), (None, 0));
    assert_eq!(
        bench.events()[1..],
        [EngineEventKind::Start, INJECTED, EngineEventKind::Stop]
    );
    let mut for_good = running();
    for_good.act(0, Act::IgnoreStop { ns: None }).unwrap();
    for_good.write(map::CONTROL, 4, map::CONTROL_FREE_RUN.into(), 500);
    for_good.run(3_000);
    assert_eq!(for_good.times().len(), 4);
    for_good.write(map::CONTROL, 4, map::CONTROL_RESET.into(), 3_500);
    for_good.run(9_000);
    assert_eq!(for_good.times().len(), 4, "a reset takes its ring");
}

#[test]
fn a_silent_engine_goes_on_where_it_was_and_makes_up_for_nothing() {
    let mut bench = running();
    bench.run(1_000);
    bench.act(1_200, Act::Silence { ns: 4_300 }).unwrap();
    assert_eq!(bench.engine.next_event(), Some(5_500));
    bench.run(7_500);
    assert_eq!(bench.times(), [0, 1_000, 5_500, 6_500, 7_500]);
}

#[test]
fn a_burst_comes_beside_what_is_due() {
    let mut bench = running();
    bench.run(1_000);
    bench.act(1_200, Act::Burst { blocks: 3 }).unwrap();
    bench.run(3_000);
    assert_eq!(bench.times(), [0, 1_000, 1_200, 1_200, 1_200, 2_000, 3_000]);
    let mut waits = Bench::new(BusMaster::Honoured);
    assert!(
        waits
            .act(0, Act::Burst { blocks: 3 })
            .unwrap_err()
            .contains("not run")
    );
    waits.enable(0, 0);
    waits.run(0);
    waits.act(100, Act::Burst { blocks: 9 }).unwrap();
    assert_eq!(waits.times().len(), 4, "the ring is full");
    let again = waits.act(200, Act::Burst { blocks: 9 });
    assert!(again.unwrap_err().contains("waits for a descriptor"));
}

#[test]
fn the_bus_master_bit_has_its_usual_effect() {
    let mut bench = running();
    bench.run(1_000);
    bench.act(1_500, Act::BusMaster { on: false }).unwrap();
    assert!(
        bench
            .act(1_600, Act::BusMaster { on: false })
            .unwrap_err()
            .contains("clear already")
    );
    bench.run(4_000);
    assert_eq!(bench.times().len(), 2);
    bench.act(4_000, Act::BusMaster { on: true }).unwrap();
    bench.run(4_000);
    assert_eq!(bench.times().len(), 3);
    let off = EngineEventKind::BusMaster {
        on: false,
        obeyed: true,
    };
    assert_eq!(
        bench.events()[2..4],
        [INJECTED, off],
        "the injection is told first"
    );
}

#[test]
fn a_reset_function_is_as_after_power_on_but_without_its_place() {
    let mut bench = running();
    bench.run(1_000);
    bench.act(1_500, Act::ResetFunction).unwrap();
    bench.run(9_000);
    assert_eq!(
        (bench.times().len(), bench.engine.config.decode(0xe000_0000)),
        (2, None)
    );
    assert_eq!(bench.read(map::RING_ENTRIES, 4), 0);
    assert_eq!((bench.engine.config.command(), bench.engine.message()), (0, None));
    assert!(
        !bench.events().contains(&EngineEventKind::Reset),
        "no driver did it"
    );
}

#[test]
fn a_device_that_is_gone_answers_nothing_and_takes_nothing() {
    let mut bench = running();
    bench.run(1_000);
    bench.act(1_500, Act::Remove).unwrap();
    bench.run(9_000);
    assert_eq!(bench.times().len(), 2);
    assert_eq!(bench.read(map::MAGIC, 4), u64::MAX);
    assert_eq!(bench.engine.config_read(0, 4), u32::MAX);
    bench.command(2_000, 0);
    bench.write(map::RING_ENTRIES, 4, 1, 2_000);
    assert_ne!(bench.engine.config.command(), 0);
    assert!(
        bench
            .act(3_000, Act::ResetFunction)
            .unwrap_err()
            .contains("gone already")
    );
}

#[test]
fn a_bar_moves_and_slow_accesses_add_up() {
    let mut bench = running();
    let to = 0xe800_0000;
    bench.act(0, Act::MoveBar { bar: 0, to }).unwrap();
    assert_eq!(bench.engine.config.decode(0xe000_0000), None);
    assert_eq!(bench.engine.config.decode(to.into()), Some((0, 0)));
    for (bar, to) in [(1, to), (0, to + 0x10)] {
        assert!(
            bench
                .act(0, Act::MoveBar { bar, to })
                .unwrap_err()
                .contains("cannot be at")
        );
    }
    bench.act(100, Act::SlowAccesses { by: 50, ns: 1_000 }).unwrap();
    bench.engine.accessed(200);
    bench.engine.accessed(210);
    assert_eq!(bench.engine.stand_until(), 301);
    bench.engine.accessed(1_100);
    assert_eq!(bench.engine.stand_until(), 301, "it is over");
}
