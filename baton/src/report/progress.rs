//! Progress on standard error: one live line on a terminal, otherwise a line per finished phase, and one from time to
//! time while a phase goes on.

use harness::conductor::Observer;
use harness::evidence::{Phase, PhaseRecord};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Host time between two lines about a phase that goes on.
const INTERVAL: Duration = Duration::from_secs(10);

/// Prints the phases of one run on standard error.
#[derive(Debug)]
pub struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    /// Generation and phase, and since when it goes on.
    current: Cell<Option<(u32, Phase, Instant)>>,
    /// When the last line was printed.
    told: Cell<Instant>,
}

impl Progress {
    /// Begins the progress of the scenario `name`.
    pub fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix}: {wide_msg}");
            let bar = ProgressBar::new_spinner().with_prefix(name.to_owned());
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            ..Self::in_lines(name)
        }
    }

    /// The same without a live line, because standard error shows something else too.
    pub fn in_lines(name: &str) -> Self {
        Self {
            name: name.into(),
            bar: None,
            current: Cell::new(None),
            told: Cell::new(Instant::now()),
        }
    }

    /// Shows a message that is not about a phase, such as that a second run begins.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("{}: {text}", self.name),
        }
    }

    /// Ends the run's progress and clears the live line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn phase(&self, generation: u32, phase: Phase) {
        self.current.set(Some((generation, phase, Instant::now())));
        self.told.set(Instant::now());
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{phase} of generation {generation} - {}", story(phase)));
        }
    }

    fn goes_on(&self, guest_ns: u64) {
        let Some((generation, phase, since)) = self.current.get() else {
            return;
        };
        let guest = guest_ns / 1_000_000;
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "{phase} of generation {generation} - {}, {guest} ms of guest time",
                story(phase)
            ));
        } else if self.told.get().elapsed() >= INTERVAL {
            self.told.set(Instant::now());
            let wall = since.elapsed().as_secs();
            eprintln!(
                "{}: {phase} of generation {generation} goes on: {guest} ms of guest time in {wall} s",
                self.name
            );
        }
    }

    fn passed(&self, record: &PhaseRecord) {
        if self.bar.is_none() {
            let (guest, wall) = (record.guest_ns / 1_000_000, record.wall_us / 1000);
            eprintln!(
                "{}: {} of generation {} passed: {guest} ms of guest time in {wall} ms",
                self.name, record.phase, record.generation
            );
        }
    }
}

/// Short description of what happens in a phase.
fn story(phase: Phase) -> &'static str {
    match phase {
        Phase::BootOld => "the first kernel boots",
        Phase::Prepare => "state is made and preserved, DMA starts, the next kernel is loaded",
        Phase::Armed => "everything stands ready",
        Phase::Handover => "the old kernel shuts down",
        Phase::Jump => "between the kernels",
        Phase::BootNew => "the new kernel boots",
        Phase::Restore => "state is taken back",
        Phase::Done => "the session is finished",
    }
}
