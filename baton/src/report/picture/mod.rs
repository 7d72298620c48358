//! What reports show of a run beside the fields of the JSON report: the console by phase.

mod console;

pub(super) use console::Excerpt;

use harness::evidence::Evidence;

/// Bounded excerpts of a run's evidence, as plain data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Picture {
    /// What the guest printed, phase by phase.
    pub console: Vec<Excerpt>,
}

impl Picture {
    /// Of a run's evidence.
    pub fn new(evidence: &Evidence) -> Self {
        let lines = console::lines(evidence);
        Self {
            console: console::excerpts(&lines),
        }
    }

    /// The console's last lines that are not empty, at most `most`.
    pub fn last_lines(&self, most: usize) -> Vec<&str> {
        let lines = self
            .console
            .iter()
            .rev()
            .flat_map(|part| part.tail.iter().rev().chain(part.head.iter().rev()));
        let lines = lines
            .map(|line| line.text.as_str())
            .filter(|line| !line.trim().is_empty());
        let mut lines: Vec<&str> = lines.take(most).collect();
        lines.reverse();
        lines
    }
}
