//! Clock and units.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How often things are run.
pub struct Clock {
    /// Runs of which the median counts, at least.
    pub runs: usize,
    /// How long to repeat short runs, so that a moment of other load does not decide the median.
    pub at_least: Duration,
}

/// Maximum number of runs.
const MAX_RUNS: usize = 1000;

impl Clock {
    /// Median time of some runs.
    pub fn median(&self, mut work: impl FnMut()) -> Duration {
        let mut times: Vec<Duration> = Vec::new();
        let begin = Instant::now();
        while times.len() < self.runs || (begin.elapsed() < self.at_least && times.len() < MAX_RUNS) {
            let start = Instant::now();
            work();
            times.push(start.elapsed());
        }
        times.sort_unstable();
        times[times.len() / 2]
    }
}

/// Makes the allocator keep freed memory. Otherwise the time the system takes to hand out pages would dominate the
/// shorter runs, and depend on what ran before: glibc returns memory to the system until it has seen large blocks
/// come and go.
pub fn keep_memory() {
    drop(black_box(vec![0_u8; 24 << 20]));
}

/// Bytes per second at which this machine reads memory that is in no cache.
pub fn bandwidth(clock: &Clock) -> f64 {
    let memory = vec![1_u64; 32 << 20];
    let taken = clock.median(|| {
        let sums = memory.chunks_exact(8).fold([0_u64; 8], |mut sums, words| {
            sums.iter_mut()
                .zip(words)
                .for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
            sums
        });
        black_box(sums);
    });
    (memory.len() * 8) as f64 / taken.as_secs_f64()
}

/// A size to three digits.
pub fn bytes(size: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < units.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value.fract() == 0.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// A time to three digits.
pub fn time(time: Duration) -> String {
    let nanoseconds = time.as_nanos() as f64;
    match nanoseconds {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => format!("{:.1} us", n / 1e3),
        n if n < 1e9 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}
