//! Guest time in which no processor executes: all are halted, or the host lets time pass while they stand.

use serde::{Deserialize, Serialize};

/// Stretches of time without instructions, merged where they touch.
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
        match self.stretches.last_mut() {
            Some(last) if last.0 == from => *last = (to, total),
            _ => self.stretches.push((to, total)),
        }
    }

    /// All the idle time.
    pub fn total(&self) -> u64 {
        self.stretches.last().map_or(0, |(_, total)| *total)
    }

    /// Idle time before `time`, at which an instruction was executed.
    pub fn before(&self, time: u64) -> u64 {
        let after = self.stretches.partition_point(|(end, _)| *end <= time);
        after.checked_sub(1).map_or(0, |last| self.stretches[last].1)
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
            [0, 0, 10, 10, 11, 11]
        );
        assert_eq!(idle.total(), 11);
    }
}
