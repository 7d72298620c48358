//! /proc/kpageflags: one 64-bit word of flags per page frame (fs/proc/page.c; the bits are in
//! include/uapi/linux/kernel-page-flags.h and mean the same from 6.17 to 7.3).
//!
//! Free pages that lie in a per-CPU list have no flag at all. So have pages that the kernel uses for itself.

use crate::protocol::FlagRun;
use alloc::vec::Vec;

/// Bytes of one entry of the file.
pub const ENTRY_BYTES: usize = 8;

/// KPF_LRU: on one of the lists of pages that user space uses, or that cache a file. Cleared when the page is freed.
pub const LRU: u64 = 1 << 5;
/// KPF_BUDDY: part of a free block of the page allocator. The kernel reports it for every page of the block, although
/// it marks only the first one (is_free_buddy_page).
pub const BUDDY: u64 = 1 << 10;

/// Appends a page to `runs`: to the last run if that has the same flags, otherwise as a new run.
pub fn push_flags(runs: &mut Vec<FlagRun>, flags: u64) {
    match runs.last_mut() {
        Some(run) if run.flags == flags => run.count += 1,
        _ => runs.push(FlagRun { flags, count: 1 }),
    }
}

/// Number of pages in all runs, at most `u64::MAX`.
pub fn page_count(runs: &[FlagRun]) -> u64 {
    runs.iter().fold(0, |sum, run| sum.saturating_add(run.count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_give_the_flags_back(flags in proptest::collection::vec(0u64..3, 0..200)) {
            let mut runs = Vec::new();
            flags.iter().for_each(|flags| push_flags(&mut runs, *flags));
            let again: Vec<u64> = runs
                .iter()
                .flat_map(|run| (0..run.count).map(|_| run.flags))
                .collect();
            prop_assert_eq!(again, flags);
            prop_assert!(runs.windows(2).all(|pair| pair[0].flags != pair[1].flags));
        }
    }
}
