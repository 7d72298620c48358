//! Damaged captures: whatever memory holds, every operation ends without a panic and in bounded time.

mod support;

use kho_core::diff::{Side, diff};
use kho_core::{Handover, Owners, PageSet, PhysicalMemory, PhysicalMemoryMut, Region, verify};
use proptest::prelude::*;
use support::{Capture, VERSIONS};

/// A word to be put somewhere.
#[derive(Debug, Clone)]
enum Word {
    Random(u64),
    Small(u64),
    /// The address of a page in the capture, to make cycles in lists and trees.
    Page(prop::sample::Index),
}

fn words() -> impl Strategy<Value = Word> {
    prop_oneof![
        any::<u64>().prop_map(Word::Random),
        (0_u64..0x1000).prop_map(Word::Small),
        any::<prop::sample::Index>().prop_map(Word::Page),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_captures_are_read_to_their_end(
        version in prop::sample::select(&VERSIONS[..]),
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..512, words()), 1..12),
    ) {
        let mut capture = Capture::load(version);
        let pages: Vec<u64> = capture.memory.pages().map(|(address, _)| address).collect();
        for (page, word, value) in damages {
            let value = match value {
                Word::Random(value) | Word::Small(value) => value,
                Word::Page(index) => *index.get(&pages),
            };
            capture.memory.write(page.get(&pages) + word * 8, &value.to_le_bytes()).unwrap();
        }
        if let Ok(handover) = Handover::read(&capture.memory, capture.entry.fdt, capture.entry.scratch) {
            let verdict = verify(&handover, &capture.memory);
            prop_assert!(verdict.findings.count() >= handover.findings.count());
            let owners = Owners::of(&handover);
            prop_assert!(owners.iter().zip(owners.iter().skip(1)).all(|(one, other)| one.region.end() <= other.region.start));
            let ram: u64 = capture.memory.ranges().iter().map(|range| range.size).sum();
            prop_assert!(PageSet::of(&handover.map, Region::new(0, ram)).len() <= ram / 4096);
            let side = Side { handover: &handover, memory: None };
            prop_assert!(diff(side, side).differences.is_empty());
            let _ = kho_core::tree::tree(&handover, 8).to_string();
            let _ = handover.blueprint(&capture.memory);
        }
    }
}
