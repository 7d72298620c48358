//! Guests that say anything at any time.

use super::*;
use crate::evidence::Moment;
use crate::plan::Step;
use proptest::prelude::*;

/// More than all moves but [`Move::Run`] that a plan can lead to.
fn most_moves(plan: &Plan) -> usize {
    let steps = plan.steps.iter().flatten().chain(&[Step::PowerOff]).count();
    (steps + plan.wind_down().len()) * 20
}

fn any_what() -> impl Strategy<Value = What> {
    let replies = prop_oneof![
        Just(Reply::Done),
        (0..4u32, 0..3u32).prop_map(|(protocol, processors)| hello(protocol, processors)),
        prop::collection::vec((any::<u64>(), any::<u64>()), 0..3).prop_map(|runs| {
            Reply::Pages(
                runs.into_iter()
                    .map(|(first, count)| PageRun { first, count })
                    .collect(),
            )
        }),
        prop::collection::vec(any::<u64>(), 0..3).prop_map(Reply::Digests),
        (any::<u64>(), any::<u64>()).prop_map(|(total_pages, free_pages)| Reply::Memory {
            total_pages,
            free_pages
        }),
    ];
    let events = prop_oneof![
        any::<u64>().prop_map(|time| Event::Jump { time }),
        (any::<u64>(), any::<u16>()).prop_map(|(time, generation)| Event::KernelEntry {
            time,
            boot_params: time,
            generation
        }),
        Just(Event::PowerOff { at: here(), by: None }),
        Just(Event::LedgerFull { at: here() }),
        Just(Event::Message(vec![1])),
    ];
    prop_oneof![
        3 => Just(What::Done),
        3 => replies.prop_map(|reply| What::Message(Ok(reply))),
        1 => any::<i32>().prop_map(failed),
        1 => Just(What::Message(Err("nonsense".into()))),
        2 => (events, prop::option::of(".{0,20}")).prop_map(|(event, panic)| What::Event { event, panic }),
        1 => ".{0,10}".prop_map(What::Failed),
    ]
}

proptest! {
    /// A good guest up to some move, then anything. Whatever is said, each call returns, and only the guest itself can
    /// be asked to run again and again.
    #[test]
    fn whatever_is_said_is_taken_and_ends(
        good in 0..260usize,
        rest in prop::collection::vec((any_what(), any::<u64>(), any::<u32>()), 1..40),
    ) {
        let plan = testing::plan(SCENARIO);
        let (mut cursor, mut evidence) = (Cursor::start(0), blank(&plan, "none"));
        let mut guest = Guest::new(&|_, _| None);
        let mut moves = 0;
        for at in 0..good + rest.len() {
            let (what, point) = match at.checked_sub(good) {
                None => (guest.make(&cursor.due), guest.at),
                Some(at) => {
                    let (what, time_ns, generation) = rest[at].clone();
                    let moment = Moment { generation, time_ns, ledger_length: time_ns };
                    (what, Point { moment, engine_event_ns: Some(time_ns / 2), ..guest.at })
                }
            };
            let ended = matches!(cursor.due, Move::End(_)).then(|| cursor.clone());
            let due = next(&plan, &mut cursor, &mut evidence, Said { at: point, what });
            prop_assert_eq!(&due, &cursor.due);
            if let Some(ended) = ended {
                prop_assert_eq!(&ended, &cursor);
            }
            moves += usize::from(!matches!(due, Move::Run | Move::End(_)));
            prop_assert!(moves <= most_moves(&plan));
        }
        hold(&mut cursor, &mut evidence);
    }
}
