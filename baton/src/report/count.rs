//! Progress of many runs on standard error: one live line on a terminal, otherwise a line from time to time.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Host time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Shows how many of a known number of runs are done.
#[derive(Debug)]
pub struct CountProgress {
    name: String,
    bar: Option<ProgressBar>,
    total: u64,
    /// How many were done before.
    before: u64,
    /// What is said of those that are counted apart: `failing`.
    apart: &'static str,
    begin: Instant,
    told: Cell<Instant>,
}

impl CountProgress {
    /// Begins the progress of `total` runs, of which `before` have a result. Some are counted apart, and are called
    /// `apart`.
    pub fn new(name: &str, total: u64, before: u64, apart: &'static str) -> Self {
        if before > 0 {
            eprintln!("{name}: {before} of {total} cells have a result already");
        }
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total)
                .with_prefix(name.to_owned())
                .with_position(before);
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:20} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            name: name.into(),
            bar,
            total,
            before,
            apart,
            begin: Instant::now(),
            told: Cell::new(Instant::now()),
        }
    }

    /// Shows that `done` are done, `apart` of them such that are counted apart.
    pub fn show(&self, done: u64, apart: u64) {
        let line = || self.line(done, apart, self.begin.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(line());
            }
            None if self.told.get().elapsed() >= INTERVAL => {
                self.told.set(Instant::now());
                eprintln!("{}: {}", self.name, line());
            }
            None => {}
        }
    }

    /// Clears the live line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Done, counted apart, per second, remaining time.
    fn line(&self, done: u64, apart: u64, elapsed: Duration) -> String {
        let Self {
            total,
            before,
            apart: word,
            ..
        } = self;
        #[allow(clippy::cast_precision_loss)] // a rate for people
        let rate = (done.saturating_sub(*before)) as f64 / elapsed.as_secs_f64().max(0.001);
        let left = total.saturating_sub(done);
        #[allow(clippy::cast_precision_loss)] // an estimate for people
        let remaining = left as f64 / rate.max(1e-6);
        let remaining = if rate > 0.0 && remaining < 1e7 {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // below 1e7, above 0
            let seconds = remaining as u64;
            format!(
                "{}:{:02}:{:02} left",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            )
        } else {
            String::new()
        };
        format!("{done} of {total} done, {apart} {word}, {rate:.1}/s, {remaining}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_progress() {
        let progress = CountProgress::new("quick", 12, 0, "failing");
        let line = progress.line(2, 2, Duration::from_secs(4));
        assert_eq!(line, "2 of 12 done, 2 failing, 0.5/s, 0:00:20 left");
    }
}
