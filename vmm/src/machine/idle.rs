//! Time that passes without instructions: sleeping in HLT, and standing while the host thinks.

use super::{Event, Machine, MachineError};

/// Stretches of time without instructions, merged where they touch.
#[derive(Debug, Default)]
pub(super) struct Idle {
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

impl Machine {
    /// Lets `ns` nanoseconds of guest time pass while the processor stands, as it does while its message is not answered:
    /// devices go on. An event is one that ends the run.
    pub fn pass(&mut self, ns: u64) -> Result<Option<Event>, MachineError> {
        if let Some(event) = &self.ended {
            return Ok(Some(event.clone()));
        }
        let end = self.vcpu.now().saturating_add(ns);
        loop {
            let now = self.vcpu.now();
            self.bus.advance(now);
            for (address, length) in self.bus.view.take_stale() {
                self.vcpu.memory_written(address, length);
            }
            if self.bus.dma.stopped_by_ledger() {
                let event = Event::LedgerFull { at: self.moment() };
                return Ok(Some(self.report(event)));
            }
            if now >= end {
                self.progress.mark(now);
                return Ok(None);
            }
            let next = self.bus.next_event().unwrap_or(end);
            self.sleep_to(next.clamp(now + 1, end));
        }
    }

    /// Lets time pass up to `time` without executing anything.
    pub(super) fn sleep_to(&mut self, time: u64) {
        let now = self.vcpu.now();
        self.vcpu.skip_to(time);
        self.idle.add(now, self.vcpu.now());
    }

    /// Instructions retired when the one at guest time `time` was executed; `None` on a backend where time is more than
    /// instructions and idling.
    #[must_use]
    pub fn instructions_at(&self, time: u64) -> Option<u64> {
        let exact = self.vcpu.now().checked_sub(self.idle.total()) == Some(self.vcpu.retired());
        time.checked_sub(self.idle.before(time)).filter(|_| exact)
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
