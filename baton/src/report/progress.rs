//! Progress on standard error: one live line on a terminal, otherwise a line per finished phase.

use harness::conductor::Observer;
use harness::evidence::{Phase, PhaseRecord};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Prints the phases of one run on standard error.
#[derive(Debug)]
pub struct Progress {
    name: String,
    bar: Option<ProgressBar>,
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
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        });
        Self {
            name: name.into(),
            bar,
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
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{phase} of generation {generation} - {}", story(phase)));
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
