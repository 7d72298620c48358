//! Guest time on KVM: it follows the host's monotonic clock while the machine runs and stands still between runs.

use std::time::{Duration, Instant};

/// Guest time in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestClock {
    /// Guest time when the clock was last started or stopped.
    base: u64,
    /// When it was started; `None` while it stands still.
    since: Option<Instant>,
    /// Host nanoseconds per guest nanosecond: more than 1 only if guest code is slow on this host, see
    /// [`super::workarounds`].
    slowdown: u32,
}

impl GuestClock {
    pub fn new(slowdown: u32) -> Self {
        Self {
            base: 0,
            since: None,
            slowdown: slowdown.max(1),
        }
    }

    /// Host nanoseconds per guest nanosecond.
    pub fn slowdown(&self) -> u32 {
        self.slowdown
    }

    /// Host nanoseconds in this many guest nanoseconds.
    pub fn host_time(&self, guest: u64) -> u64 {
        guest.saturating_mul(self.slowdown.into())
    }

    pub fn now(&self) -> u64 {
        let running = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        let nanoseconds = u64::try_from(running.as_nanos()).unwrap_or(u64::MAX);
        self.base.saturating_add(nanoseconds / u64::from(self.slowdown))
    }

    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Stops the clock at `time`, which must be the last time that anybody read from it.
    pub fn stop_at(&mut self, time: u64) {
        self.base = time;
        self.since = None;
    }

    /// Host time left until guest time `time`; zero if it has passed.
    pub fn until(&self, time: u64) -> Duration {
        let guest = time.saturating_sub(self.now());
        Duration::from_nanos(self.host_time(guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_between_runs() {
        let mut clock = GuestClock::new(4);
        assert_eq!(clock.now(), 0);
        clock.start();
        std::thread::sleep(Duration::from_millis(4));
        clock.stop_at(clock.now());
        let stopped = clock.now();
        assert!(stopped >= 1_000_000, "{stopped}");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), stopped);
        assert_eq!(clock.until(stopped + 10), Duration::from_nanos(40));
        assert_eq!(clock.until(0), Duration::ZERO);
    }
}
