//! /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst), and page frames merged into runs.

use crate::protocol::PageRun;
use alloc::vec::Vec;

/// Bytes of one entry of the file.
pub const ENTRY_BYTES: usize = 8;
/// Bit 63: the page is present.
const PRESENT: u64 = 1 << 63;
/// Bit 62: the page is swapped out, and the frame bits mean something else.
const SWAPPED: u64 = 1 << 62;
/// Bits 54 to 0: the page frame number; 0 for readers without the privilege to see it.
const FRAME: u64 = (1 << 55) - 1;

/// The page frame number in an entry, if it has one.
pub fn frame(entry: u64) -> Option<u64> {
    let frame = entry & FRAME;
    (entry & PRESENT != 0 && entry & SWAPPED == 0 && frame != 0).then_some(frame)
}

/// Appends a page to `runs`: to the last run if the page follows it, otherwise as a new run.
pub fn push_frame(runs: &mut Vec<PageRun>, frame: u64) {
    match runs.last_mut() {
        Some(run) if run.first.checked_add(run.count) == Some(frame) => run.count += 1,
        _ => runs.push(PageRun {
            first: frame,
            count: 1,
        }),
    }
}

/// Number of pages in all runs, at most `u64::MAX`.
pub fn page_count(runs: &[PageRun]) -> u64 {
    runs.iter().fold(0, |sum, run| sum.saturating_add(run.count))
}

/// The frame of page `index`, counted through the runs.
pub fn frame_at(runs: &[PageRun], index: u64) -> Option<u64> {
    let mut left = index;
    for run in runs {
        if left < run.count {
            return run.first.checked_add(left);
        }
        left -= run.count;
    }
    None
}

/// The index of page `frame`, counted through the runs.
pub fn index_of(runs: &[PageRun], frame: u64) -> Option<u64> {
    let mut before = 0u64;
    for run in runs {
        if let Some(inside) = frame.checked_sub(run.first).filter(|inside| *inside < run.count) {
            return before.checked_add(inside);
        }
        before = before.checked_add(run.count)?;
    }
    None
}

/// The first page that an engine with `bits` address bits, at least 12, does not reach: its index, counted through the
/// runs, and its frame.
pub fn first_beyond(runs: &[PageRun], bits: u32) -> Option<(u64, u64)> {
    // No frame is beyond if the number of frames does not fit in 64 bits.
    let frames = 1u64.checked_shl(bits.saturating_sub(12))?;
    let mut before = 0u64;
    for run in runs {
        let reached = frames.saturating_sub(run.first);
        if reached < run.count {
            return Some((before.checked_add(reached)?, run.first.checked_add(reached)?));
        }
        before = before.checked_add(run.count)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_present_pages_have_a_frame() {
        assert_eq!(frame(PRESENT | 0x1234), Some(0x1234));
        assert_eq!(frame(PRESENT | 1 << 55 | 1 << 61 | 0x1234), Some(0x1234));
        assert_eq!(frame(0x1234), None);
        assert_eq!(frame(PRESENT | SWAPPED | 0x1234), None);
        assert_eq!(frame(PRESENT), None);
    }

    #[test]
    fn neighbours_merge_only_in_order() {
        let mut runs = Vec::new();
        for frame in [5, 6, 7, 9, 8, 9] {
            push_frame(&mut runs, frame);
        }
        let expected = [(5, 3), (9, 1), (8, 2)].map(|(first, count)| PageRun { first, count });
        assert_eq!(runs, expected);
        assert_eq!(index_of(&runs, 8), Some(4));
        assert_eq!(index_of(&runs, 10), None);
    }

    #[test]
    fn the_first_page_beyond_is_found() {
        let last = (1 << 20) - 1;
        let runs = [(3, 2), (last, 3), (1 << 30, 1)].map(|(first, count)| PageRun { first, count });
        assert_eq!(first_beyond(&runs, 32), Some((3, 1 << 20)));
        assert_eq!(first_beyond(&runs, 33), Some((5, 1 << 30)));
        assert_eq!(first_beyond(&runs, 42), Some((5, 1 << 30)));
        for bits in [43, 63, 64, 75, 76, u32::MAX] {
            assert_eq!(first_beyond(&runs, bits), None, "{bits}");
        }
        assert_eq!(first_beyond(&[], 32), None);
    }

    proptest! {
        #[test]
        fn no_page_before_the_first_beyond_is_beyond(
            runs in proptest::collection::vec((0u64..1 << 22, 1u64..1 << 10), 0..8),
            bits in 32u32..36,
        ) {
            let runs: Vec<PageRun> = runs.into_iter().map(|(first, count)| PageRun { first, count }).collect();
            let frames = (0..page_count(&runs)).map(|index| frame_at(&runs, index).unwrap());
            let expected = (0..).zip(frames).find(|(_, frame)| frame * 4096 >= 1 << bits);
            prop_assert_eq!(first_beyond(&runs, bits), expected);
        }

        #[test]
        fn runs_give_every_frame_back(frames in proptest::collection::vec(1u64..40, 0..200)) {
            let mut runs = Vec::new();
            for frame in &frames {
                push_frame(&mut runs, *frame);
            }
            for (index, frame) in frames.iter().enumerate() {
                prop_assert_eq!(frame_at(&runs, index as u64), Some(*frame));
                prop_assert_eq!(index_of(&runs, *frame), frames.iter().position(|f| f == frame).map(|i| i as u64));
            }
            prop_assert_eq!(frame_at(&runs, frames.len() as u64), None);
            prop_assert_eq!(page_count(&runs), frames.len() as u64);
        }
    }
}
