use super::*;
use crate::injection::{Change, Poke, Repeat, Trigger};
use crate::phase::Phase;

const ARMED: Stamp = Stamp {
    generation: 0,
    phase: Phase::Armed,
};
const BLOCK: Kind = Kind::Block {
    sequence: 0,
    descriptor: 0,
};

fn drop_block() -> Deed {
    Deed::Filter(Filter {
        of: WriteKind::Block,
        change: Change::Drop,
    })
}

use crate::injection::WriteKind;

fn write() -> Deed {
    let (address, bytes) = (0x1000, vec![1]);
    Deed::Write(vec![Poke { address, bytes }])
}

fn injection(on: Occurrence, nth: u64, delay: Delay, deed: Deed, (count, every): (u64, u64)) -> Injection {
    let since = Some(ARMED);
    Injection {
        trigger: Trigger {
            since,
            on,
            nth,
            delay,
        },
        deed,
        repeat: Repeat { count, every },
    }
}

const DONE: Done = Done::Wrote {
    entry: 0,
    address: 0,
    bytes: 1,
};

/// The times at which it fires, when looked at whenever it says and never later than each of `now`.
fn times(list: &mut Injections, until: u64) -> Vec<u64> {
    let mut times = Vec::new();
    while let Some(now) = list.next_event().filter(|now| *now <= until) {
        let (index, _) = list.take_due(now).unwrap();
        times.push(now);
        list.fired(index, now, ARMED, DONE);
    }
    times
}

#[test]
fn one_that_waits_for_a_phase_fires_after_its_beginning_as_often_as_it_may() {
    let mut list = Injections::new(&[injection(Occurrence::Begin, 1, Delay::Time(50), write(), (3, 10))]);
    assert_eq!((list.next_event(), list.take_due(900)), (None, None), "not armed");
    list.begin(100, Stamp::START);
    assert_eq!(list.next_event(), None, "another phase");
    list.begin(100, ARMED);
    assert_eq!(list.take_due(149), None);
    assert_eq!(times(&mut list, 1_000), [150, 160, 170]);
    let [running] = list.all() else { panic!() };
    assert_eq!((running.armed, running.fired), (Some((100, ARMED)), 3));
    list.begin(2_000, ARMED);
    assert_eq!(list.next_event(), None, "a phase arms once");
}

#[test]
fn instructions_are_waited_for_while_nothing_executes() {
    let late = injection(Occurrence::Begin, 1, Delay::Instructions(40), write(), (2, 5));
    let mut list = Injections::new(&[late]);
    list.count(100, 60);
    list.begin(100, ARMED);
    assert_eq!(list.next_event(), Some(140));
    // 30 ns have passed without instructions.
    list.count(140, 70);
    assert_eq!((list.take_due(140), list.next_event()), (None, Some(170)));
    list.count(170, 100);
    assert!(list.take_due(170).is_some());
    list.fired(0, 170, ARMED, DONE);
    assert_eq!(list.next_event(), Some(175));
}

#[test]
fn the_nth_occurrence_and_then_every_so_many() {
    let mut list = Injections::new(&[injection(Occurrence::Access, 3, Delay::Time(0), write(), (2, 2))]);
    let mut fired = Vec::new();
    list.occurred(1, |on| on == Occurrence::Access);
    list.begin(10, ARMED);
    for time in 11..30 {
        list.occurred(time, |on| on == Occurrence::Read);
        list.occurred(time, |on| on == Occurrence::Access);
        if let Some((index, _)) = list.take_due(time) {
            list.fired(index, time, ARMED, DONE);
            fired.push(time);
        }
    }
    assert_eq!(fired, [13, 15], "what came before it was armed does not count");
}

/// Which of the writes from now on are changed, counted from 1.
fn changed(list: &mut Injections, kinds: impl IntoIterator<Item = Kind>) -> Vec<u64> {
    let mut changed = Vec::new();
    for (number, kind) in (1..).zip(kinds) {
        if let Some((index, _)) = list.on_write(100 + number, kind) {
            list.fired(index, 100 + number, ARMED, DONE);
            changed.push(number);
        }
    }
    changed
}

#[test]
fn a_filter_counts_writes_of_its_kind_alone() {
    let count = Kind::Completion { count: 1 };
    let writes = || (0..20).map(|at| if at % 2 == 0 { BLOCK } else { count });
    let of = |nth, repeat| {
        let on = Occurrence::Write(WriteKind::Block);
        let mut list = Injections::new(&[injection(on, nth, Delay::Time(0), drop_block(), repeat)]);
        list.begin(100, ARMED);
        list
    };
    assert_eq!(changed(&mut of(1, (1, 1)), writes()), [1]);
    assert_eq!(changed(&mut of(3, (2, 1)), writes()), [5, 7]);
    assert_eq!(changed(&mut of(2, (3, 3)), writes()), [3, 9, 15]);
    assert_eq!(changed(&mut of(30, (1, 1)), writes()), [0; 0]);
    // Of two that could, the first acts, and the other on the next write.
    let on = Occurrence::Write(WriteKind::Block);
    let one = injection(on, 1, Delay::Time(0), drop_block(), (1, 1));
    let mut two = Injections::new(&[one.clone(), one]);
    two.begin(100, ARMED);
    assert_eq!(changed(&mut two, writes()), [1, 3]);
    assert!(two.all().iter().all(|running| running.fired == 1));
}

#[test]
fn a_filter_at_a_moment_acts_on_the_first_write_from_then_on() {
    let at = injection(Occurrence::Begin, 1, Delay::Time(5), drop_block(), (2, 2));
    let mut list = Injections::new(&[at]);
    list.begin(100, ARMED);
    assert_eq!(list.next_event(), None, "it needs no clock");
    assert_eq!(changed(&mut list, [BLOCK; 9]), [5, 7]);
}

#[test]
fn what_is_not_known_is_asked_for() {
    let ask = |deed| injection(Occurrence::Begin, 1, Delay::Time(5), deed, (2, 10));
    let mut list = Injections::new(&[ask(Deed::AskWhenArmed), ask(Deed::AskWhenDue)]);
    assert_eq!(list.asks(), None);
    list.begin(100, ARMED);
    assert_eq!(list.asks(), Some(0));
    assert_eq!(list.on_write(200, BLOCK), None, "no answer yet");
    assert!(!list.answer(1, 100, Ok(write())), "that one has not asked");
    assert!(list.answer(0, 100, Ok(drop_block())));
    assert_eq!(changed(&mut list, [BLOCK; 20]), [5, 15]);
    // The other is asked each time, and goes on after a time without an answer.
    assert_eq!((list.asks(), list.take_due(105)), (None, None));
    assert_eq!((list.asks(), list.next_event()), (Some(1), None));
    assert!(list.answer(1, 105, Err("there is none".into())));
    assert_eq!((list.asks(), list.next_event()), (None, Some(115)));
    assert_eq!(list.take_due(115), None);
    assert!(list.answer(1, 115, Ok(write())));
    assert_eq!(list.take_due(115), Some((1, write())));
    list.fired(1, 115, ARMED, DONE);
    let running = &list.all()[1];
    assert_eq!(
        (running.fired, &running.unable[..]),
        (1, &[(105, "there is none".to_owned())][..])
    );
    assert_eq!(
        (list.asks(), list.next_event()),
        (None, None),
        "both times are over"
    );
}

#[test]
fn an_answer_for_another_moment_is_no_answer() {
    let ask = |deed| injection(Occurrence::Begin, 1, Delay::Time(0), deed, (1, 1));
    let mut list = Injections::new(&[ask(Deed::AskWhenArmed), ask(Deed::AskWhenDue)]);
    list.begin(100, ARMED);
    list.take_due(100);
    list.answer(0, 100, Ok(write()));
    list.answer(1, 100, Ok(drop_block()));
    assert!(
        list.all()
            .iter()
            .all(|running| running.unable.len() == 1 && running.fired == 0)
    );
    assert_eq!((list.asks(), list.take_due(200)), (None, None));
    assert_eq!(list.on_write(200, BLOCK), None);
}

#[test]
fn an_instruction_is_awaited_where_its_kernel_lies_and_in_its_generation_alone() {
    const LINKED: u64 = 0xffff_ffff_8123_4560;
    let deed = Deed::Write(Vec::new());
    let mut list = Injections::new(&[injection(
        Occurrence::Execute(LINKED),
        1,
        Delay::Time(0),
        deed,
        (2, 1),
    )]);
    let generation = ARMED.generation;
    assert!(list.awaited_addresses(generation).0.is_empty(), "not armed");
    list.begin(100, ARMED);
    assert_eq!(list.awaited_addresses(generation), (vec![LINKED], (2 << 20) - 1));
    assert!(list.awaited_addresses(generation + 1).0.is_empty());
    list.on_execute(110, generation, LINKED);
    assert_eq!(list.take_due(110), None, "it is not known where the kernel lies");
    let offset = 6 << 20;
    list.kernel_found(generation, offset);
    assert_eq!(
        list.awaited_addresses(generation),
        (vec![LINKED + offset], u64::MAX)
    );
    list.on_execute(120, generation, LINKED);
    assert_eq!(list.take_due(120), None);
    for time in [130, 140] {
        list.on_execute(time, generation, LINKED + offset);
        assert!(list.take_due(time).is_some());
        list.fired(0, time, ARMED, DONE);
    }
    let over = list.awaited_addresses(generation).0.is_empty();
    assert!(over, "it has fired as often as it may");
    assert_eq!(list.kernel_offset_of(generation + 1), None);
}
