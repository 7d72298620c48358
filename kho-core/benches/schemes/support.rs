//! Clock and units.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How often things are run.
pub struct Clock {
    /// Runs of which the median counts.
    pub runs: usize,
}

impl Clock {
    /// Median time of some runs.
    pub fn median(&self, mut work: impl FnMut()) -> Duration {
        let mut times: Vec<Duration> = (0..self.runs)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    }
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
