//! Guest time on KVM: the host's monotonic clock while the machine runs, standing while it stands.

use std::time::{Duration, Instant};

/// Guest time in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    base: u64,
    since: Option<Instant>,
    /// Host nanoseconds to one guest nanosecond: more than 1 only on a host that emulates guest kernels, see
    /// [`super::emulating`].
    slowdown: u32,
}

impl Clock {
    pub fn new(slowdown: u32) -> Self {
        Self {
            base: 0,
            since: None,
            slowdown: slowdown.max(1),
        }
    }

    pub fn now(&self) -> u64 {
        let running = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        let nanoseconds = u64::try_from(running.as_nanos()).unwrap_or(u64::MAX);
        self.base.saturating_add(nanoseconds / u64::from(self.slowdown))
    }

    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Stands from now on, at `time`: nobody looked at the clock later than that.
    pub fn stop_at(&mut self, time: u64) {
        self.base = time;
        self.since = None;
    }

    /// How long the host has to wait for guest time `time`.
    pub fn until(&self, time: u64) -> Duration {
        let guest = time.saturating_sub(self.now());
        Duration::from_nanos(guest.saturating_mul(self.slowdown.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_while_the_machine_stands() {
        let mut clock = Clock::new(4);
        assert_eq!(clock.now(), 0);
        clock.start();
        std::thread::sleep(Duration::from_millis(4));
        clock.stop_at(clock.now());
        let stood = clock.now();
        assert!(stood >= 1_000_000, "{stood}");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), stood);
        assert_eq!(clock.until(stood + 10), Duration::from_nanos(40));
        assert_eq!(clock.until(0), Duration::ZERO);
    }
}
