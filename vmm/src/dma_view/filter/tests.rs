use std::sync::Arc;

use super::*;
use crate::injection::{Deed, Delay, Injection, Injections, Occurrence, Repeat, Trigger, WriteKind};
use crate::ledger::{Entry, Ledger};
use crate::memory::{GuestRam, MIN_RAM};

const SEED: u64 = 7;

fn block(sequence: u64) -> Kind {
    Kind::Block {
        sequence,
        descriptor: 0,
    }
}

/// A view with one injection, which changes the second write of its kind.
fn view(of: WriteKind, change: Change) -> (Arc<GuestRam>, DmaView) {
    let ram = GuestRam::new(MIN_RAM).unwrap();
    let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(32));
    view.injections = Injections::new(&[Injection {
        trigger: Trigger {
            since: None,
            on: Occurrence::Write(of),
            nth: 2,
            delay: Delay::Time(0),
        },
        deed: Deed::Filter(Filter { of, change }),
        repeat: Repeat::ONCE,
    }]);
    (ram, view)
}

fn content(sequence: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    block_content(SEED, sequence, &mut bytes);
    bytes
}

fn address(sequence: u64) -> u64 {
    0x1000 + sequence * 0x1000
}

/// Writes blocks 1, 2 and 3 at times 10, 20 and 30.
fn write(view: &mut DmaView) {
    for sequence in 1..=3 {
        view.advance(sequence * 10);
        view.write(
            sequence * 10,
            block(sequence),
            address(sequence),
            &content(sequence),
        )
        .unwrap();
    }
}

fn memory(ram: &GuestRam, sequence: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    ram.read(address(sequence), &mut bytes).unwrap();
    bytes
}

/// Entries after those of blocks 1 and 3, and of what was meant as block 2.
fn made_of(view: &DmaView) -> Vec<(u64, u64, u32, Injected)> {
    let entries = view.ledger.entries();
    let meant: Vec<&Entry> = entries.iter().filter(|entry| entry.was_meant()).collect();
    assert_eq!(meant.len(), 3);
    assert!(
        entries
            .iter()
            .enumerate()
            .all(|(at, entry)| entry.index == at as u64)
    );
    let injected = view.ledger.to_record().injected;
    let made = entries.iter().filter_map(|entry| match entry.kind {
        Kind::Injected { number } => {
            let injected = injected[usize::try_from(number).unwrap()].clone();
            assert_eq!((injected.injection, injected.of), (0, Some(meant[1].index)));
            Some((entry.time, entry.address, entry.length, injected))
        }
        _ => None,
    });
    made.collect()
}

#[test]
fn a_dropped_write_is_on_record_and_not_in_memory() {
    let (ram, mut view) = view(WriteKind::Block, Change::Drop);
    write(&mut view);
    assert_eq!(
        [1, 2, 3].map(|at| memory(&ram, at)),
        [content(1), [0; 64], content(3)]
    );
    let withheld: Vec<_> = view.ledger.entries().iter().map(|entry| entry.withheld).collect();
    assert_eq!(withheld, [None, Some(0), None]);
    assert!(made_of(&view).is_empty());
    let done = Done::Changed {
        entry: 1,
        change: Change::Drop,
    };
    assert_eq!(view.injections.all()[0].firings[0].done, done);
}

#[test]
fn a_delayed_write_comes_when_it_is_due() {
    let (ram, mut view) = view(WriteKind::Block, Change::Delay(100));
    write(&mut view);
    assert_eq!((memory(&ram, 2), view.next_event()), ([0; 64], Some(120)));
    view.advance(119);
    assert_eq!(memory(&ram, 2), [0; 64]);
    view.advance(120);
    assert_eq!((memory(&ram, 2), view.next_event()), (content(2), None));
    let [(time, at, length, made)] = &made_of(&view)[..] else {
        panic!()
    };
    assert_eq!((*time, *at, *length), (120, address(2), 64));
    assert_eq!(made.content, Content::AsMeant { from: 0 });
}

#[test]
fn a_write_that_is_made_twice_was_made_as_meant_the_first_time() {
    let (ram, mut view) = view(WriteKind::Block, Change::Duplicate(100));
    write(&mut view);
    assert_eq!(memory(&ram, 2), content(2));
    assert!(view.ledger.entries().iter().all(Entry::was_made));
    ram.write(address(2), &[0; 64]).unwrap();
    view.advance(120);
    assert_eq!(memory(&ram, 2), content(2));
    assert_eq!(made_of(&view).len(), 1);
}

#[test]
fn a_reordered_write_comes_after_the_next_one() {
    let (ram, mut view) = view(WriteKind::Block, Change::Reorder);
    write(&mut view);
    assert_eq!(memory(&ram, 2), content(2));
    let order: Vec<_> = view
        .ledger
        .entries()
        .iter()
        .map(|entry| (entry.time, entry.address, entry.was_made()))
        .collect();
    let [one, two, three] = [1, 2, 3].map(address);
    assert_eq!(
        order,
        [
            (10, one, true),
            (20, two, false),
            (30, three, true),
            (30, two, true)
        ]
    );
}

#[test]
fn a_torn_write_comes_in_two_parts() {
    let (ram, mut view) = view(WriteKind::Block, Change::Tear { at: 16, after: 5 });
    write(&mut view);
    let made = made_of(&view);
    let parts: Vec<_> = made
        .iter()
        .map(|(time, at, length, _)| (*time, *at, *length))
        .collect();
    assert_eq!(
        parts,
        [(20, address(2), 16), (30, address(2) + 16, 48)],
        "as of the next call"
    );
    assert_eq!(made[1].3.content, Content::AsMeant { from: 16 });
    assert_eq!(memory(&ram, 2), content(2));
}

#[test]
fn changed_content_is_on_record_with_its_bytes() {
    let mut flipped = content(2);
    flipped[9] ^= 0b100;
    for (change, expected) in [
        (Change::Flip(9 * 8 + 2), flipped),
        (Change::Flip(9 * 8 + 2 + 64 * 8), flipped),
        (
            Change::Content {
                seed: SEED,
                sequence: 9,
            },
            content(9),
        ),
    ] {
        let (ram, mut view) = view(WriteKind::Block, change);
        write(&mut view);
        assert_eq!(memory(&ram, 2), expected, "{change:?}");
        let [(_, at, _, made)] = &made_of(&view)[..] else {
            panic!()
        };
        assert_eq!(
            (*at, &made.content),
            (address(2), &Content::Bytes(expected.to_vec()))
        );
    }
}

#[test]
fn a_redirected_write_goes_elsewhere_or_nowhere() {
    let elsewhere = view(WriteKind::Block, Change::Redirect(0x9000));
    let (ram, mut view) = elsewhere;
    write(&mut view);
    let mut bytes = [0; 64];
    ram.read(0x9000, &mut bytes).unwrap();
    assert_eq!((bytes, memory(&ram, 2)), (content(2), [0; 64]));
    let (ram, mut view) = self::view(WriteKind::Block, Change::Redirect(MIN_RAM + 0x1000));
    write(&mut view);
    assert_eq!(memory(&ram, 2), [0; 64]);
    let [(_, at, ..)] = &made_of(&view)[..] else {
        panic!()
    };
    assert_eq!(*at, MIN_RAM + 0x1000);
    assert_eq!(view.take_written().count(), 2);
}

#[test]
fn a_completion_count_runs_ahead_or_lags() {
    for (by, expected) in [(3, 5u64), (-1, 1), (-3, u64::MAX)] {
        let (ram, mut view) = view(WriteKind::Completion, Change::Add(by));
        for count in 1..=2u64 {
            let kind = Kind::Completion { count };
            view.write(count, kind, 0x2000, &count.to_le_bytes()).unwrap();
        }
        assert_eq!(ram.read_u64(0x2000).unwrap(), expected);
    }
}

#[test]
fn messages_are_lost_late_twice_or_have_another_vector() {
    let (address, data) = (0xfee0_0000, 0x41);
    let sent = |change| {
        let (_, mut view) = view(WriteKind::Message, change);
        (1..=2).for_each(|time| view.message(time, Msi { address, data }).unwrap());
        let at_once = view.take_messages();
        view.advance(1_000);
        let late = view.take_messages();
        let vectors = |messages: Vec<Msi>| messages.iter().map(|msi| msi.data).collect::<Vec<_>>();
        assert_eq!(view.take_written().count(), 0);
        (vectors(at_once), vectors(late))
    };
    assert_eq!(sent(Change::Drop), (vec![0x41], vec![]));
    assert_eq!(sent(Change::Delay(500)), (vec![0x41], vec![0x41]));
    assert_eq!(sent(Change::Duplicate(500)), (vec![0x41, 0x41], vec![0x41]));
    assert_eq!(sent(Change::Vector(0x52)), (vec![0x41, 0x52], vec![]));
}

#[test]
fn what_cannot_be_recorded_is_not_written() {
    let (ram, mut view) = view(WriteKind::Block, Change::Flip(0));
    view.ledger = Ledger::new(3);
    view.write(1, block(1), address(1), &content(1)).unwrap();
    view.write(2, block(2), address(2), &content(2)).unwrap_err();
    assert_eq!((memory(&ram, 2), view.ledger.made()), ([0; 64], 1));
}

#[test]
fn the_devices_own_errors_stay() {
    let (_, mut view) = view(WriteKind::Block, Change::Redirect(0x9000));
    view.write(1, block(1), address(1), &content(1)).unwrap();
    view.write(2, block(2), MIN_RAM, &content(2)).unwrap_err();
    assert_eq!((view.ledger.made(), view.injections.all()[0].seen), (1, 1));
}

#[test]
fn the_injector_writes_all_or_nothing_and_tells_why_not() {
    let (ram, mut view) = view(WriteKind::Block, Change::Drop);
    assert_eq!(view.poke(5, 0, 0x3000, b"abc"), Ok(0));
    assert_eq!((view.peek(0x3002), view.peek(MIN_RAM)), (Some(b'c'), None));
    let outside = view.poke(5, 0, MIN_RAM - 1, b"ab").unwrap_err();
    assert!(outside.contains("are not all RAM"), "{outside}");
    assert!(view.poke(5, 0, 0x3000, b"").unwrap_err().contains("expected 1"));
    assert_eq!(ram.read_u64(MIN_RAM - 8).unwrap(), 0);
    let [entry] = view.ledger.entries() else { panic!() };
    assert!(entry.was_made() && !entry.was_meant() && entry.goes_to_memory());
    assert_eq!(view.take_written().collect::<Vec<_>>(), [(0x3000, 3)]);
}
