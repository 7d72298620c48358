//! Guest time in which no processor executes: all are halted, or the host lets time pass while they stand.

use serde::{Deserialize, Serialize};

/// Most stretches that are kept apart: 64 MiB. A guest may sleep as often as it likes. Each sleep that it wakes from is
/// in the trace, which is full long before.
const MOST: usize = 4 << 20;

/// Stretches of time without instructions, merged where they touch. The last of [`MOST`] takes in all that follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// End of each stretch, and all the idle time up to it, in nanoseconds.
    stretches: Vec<(u64, u64)>,
}

impl Idle {
    /// Nothing was executed from `from` to `to`.
    pub fn add(&mut self, from: u64, to: u64) {
        let Some(length) = to.checked_sub(from).filter(|length| *length > 0) else {
            return;
        };
        let total = self.total() + length;
        let full = self.is_full();
        match self.stretches.last_mut() {
            Some(last) if last.0 == from => *last = (to, total),
            Some(last) if full => *last = (to, total),
            _ => self.stretches.push((to, total)),
        }
    }

    /// All the idle time.
    pub fn total(&self) -> u64 {
        self.stretches.last().map_or(0, |(_, total)| *total)
    }

    /// Idle time before `time`, at which an instruction was executed; `None` if there were too many stretches to tell.
    pub fn before(&self, time: u64) -> Option<u64> {
        let after = self.stretches.partition_point(|(end, _)| *end <= time);
        let is_within_the_last = self.is_full() && after + 1 == self.stretches.len();
        let before = after.checked_sub(1).map_or(0, |last| self.stretches[last].1);
        (!is_within_the_last).then_some(before)
    }

    fn is_full(&self) -> bool {
        self.stretches.len() >= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_known_for_any_time() {
        let mut idle = Idle::default();
        idle.add(10, 10);
        idle.add(10, 15);
        idle.add(15, 20);
        idle.add(30, 31);
        assert_eq!(idle.stretches, [(20, 10), (31, 11)]);
        assert_eq!(
            [0, 9, 20, 25, 31, 99].map(|time| idle.before(time)),
            [0, 0, 10, 10, 11, 11].map(Some)
        );
        assert_eq!(idle.total(), 11);
    }

    #[test]
    fn a_guest_that_sleeps_for_ever_fills_no_memory() {
        let mut idle = Idle::default();
        let sleeps = MOST as u64 + 1000;
        for number in 0..sleeps {
            idle.add(10 * number, 10 * number + 1);
        }
        assert_eq!((idle.stretches.len(), idle.total()), (MOST, sleeps));
        let last = MOST as u64 - 2;
        assert_eq!(
            idle.before(10 * last - 5),
            Some(last),
            "the last that is kept apart"
        );
        assert_eq!(idle.before(10 * last + 15), None, "not kept apart");
        assert_eq!(idle.before(10 * sleeps), Some(sleeps), "now");
    }
}
