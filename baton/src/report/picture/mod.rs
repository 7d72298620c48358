//! What reports show of a run beside the fields of the JSON report: a timeline, a map of memory, the console.

mod console;
mod memory;
mod timeline;

pub(super) use console::{Excerpt, Line};
pub(super) use memory::{Extent, Lane, LaneKind, MemoryMap};
pub(super) use timeline::{Mark, MarkKind, Span, Timeline, View};

use harness::verdict::Judged;

/// Bounded excerpts of a run's evidence, as plain data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Picture {
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// When things happened.
    pub timeline: Timeline,
    /// Which memory was whose.
    pub memory: MemoryMap,
    /// What the guest printed, phase by phase.
    pub console: Vec<Excerpt>,
    /// The console around each of the report's findings, in their order.
    pub around: Vec<Vec<Line>>,
}

impl Picture {
    /// Of a run that was judged.
    pub fn new(judged: &Judged) -> Self {
        let Judged {
            evidence, results, ..
        } = judged;
        let findings = || results.iter().flat_map(|result| &result.findings.kept);
        let lines = console::lines(evidence);
        Self {
            ram_bytes: evidence.ram_bytes,
            timeline: Timeline::new(evidence, findings()),
            memory: MemoryMap::new(evidence, findings()),
            console: console::excerpts(&lines),
            around: findings()
                .map(|finding| console::around(finding, &lines))
                .collect(),
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
