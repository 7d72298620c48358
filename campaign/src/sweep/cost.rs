//! What a case takes.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of one case, and the instructions that its guest executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Instructions after the branch, of all processors.
    pub instructions: u64,
    /// Processor time for them.
    pub running: Duration,
    /// Processor time of the whole case: branch, instructions, evidence, rules, class.
    pub whole: Duration,
}

/// Most that a case may take beside its instructions: this part of their time, and [`MOST_BESIDE`].
const MOST_PART: f64 = 0.2;
/// See [`MOST_PART`].
const MOST_BESIDE: Duration = Duration::from_millis(5);

impl Cost {
    /// Whether the case took its instructions and little else: at most 1.2 times their time and 5 ms.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.whole <= self.running.mul_f64(1.0 + MOST_PART) + MOST_BESIDE
    }
}

/// Measures processor time of this thread.
#[derive(Debug)]
pub struct Meter(Duration);

impl Meter {
    /// Begins to measure.
    #[must_use]
    pub fn start() -> Self {
        Self(now())
    }

    /// Processor time since then.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        now().saturating_sub(self.0)
    }
}

/// Processor time that this thread has used.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_may_take_a_fifth_and_five_milliseconds_more() {
        let ms = Duration::from_millis;
        let cost = |running, whole| Cost {
            instructions: 1,
            running,
            whole,
        };
        assert!(cost(ms(100), ms(125)).is_small());
        assert!(!cost(ms(100), ms(126)).is_small());
        assert!(cost(ms(0), ms(5)).is_small());
    }

    #[test]
    fn waiting_takes_no_processor_time() {
        let meter = Meter::start();
        std::thread::sleep(Duration::from_millis(300));
        assert!(meter.elapsed() < Duration::from_millis(200));
    }
}
