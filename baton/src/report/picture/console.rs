//! The console line by line, with the guest time of each line where the trace tells it.

use super::timeline::written_at;
use crate::report::printable;
use harness::evidence::{Evidence, Phase};
use harness::oracle::{Finding, RuleName};
use vmm::trace::Kind;

/// Most lines of the console in a report, over all phases.
const MOST: usize = 1600;
/// Least lines that a phase is allowed, even if there are many.
const LEAST: usize = 8;

/// Ports of the first serial port: transmit register, and line control register with the bit that makes the first one
/// the divisor (8250).
const TRANSMIT: u64 = 0x3f8;
const LINE_CONTROL: u64 = 0x3fb;
const DIVISOR_ACCESS: u64 = 0x80;

/// A line of the console, without characters that a terminal would obey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Line {
    /// Kernel generation that printed it.
    pub generation: u32,
    /// Phase in which it began.
    pub phase: Phase,
    /// Guest time of its first byte, where that is on record.
    pub time_ns: Option<u64>,
    /// Its text.
    pub text: String,
}

/// The lines of one phase: the first and the last ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Excerpt {
    /// Kernel generation.
    pub generation: u32,
    /// Phase.
    pub phase: Phase,
    /// The first lines.
    pub head: Vec<Line>,
    /// How many lines are left out between them.
    pub left_out: usize,
    /// The last lines; empty if none are left out.
    pub tail: Vec<Line>,
}

/// All lines of the console.
pub(super) fn lines(evidence: &Evidence) -> Vec<Line> {
    let times = byte_times(evidence);
    let mut at = 0;
    let mut lines = Vec::new();
    for line in evidence.console.split_inclusive('\n') {
        let before = evidence
            .console_parts
            .iter()
            .rfind(|part| part.begin <= at as u64);
        let (generation, phase) = before.map_or((0, Phase::BootOld), |part| (part.generation, part.phase));
        lines.push(Line {
            generation,
            phase,
            time_ns: times.get(at).copied(),
            text: printable(line.trim_end()),
        });
        at += line.len();
    }
    lines
}

/// Guest time of each byte of the console, as far as the trace has the writes to the serial port that made them.
fn byte_times(evidence: &Evidence) -> Vec<u64> {
    let bytes = evidence.console.as_bytes();
    let mut times = Vec::new();
    let mut divisor = false;
    for record in &evidence.trace.records {
        match (record.kind, record.address) {
            (Kind::PortWrite, LINE_CONTROL) => divisor = record.value & DIVISOR_ACCESS != 0,
            (Kind::PortWrite, TRANSMIT) if !divisor => {
                // A byte that is another one is a sign that some were lost: later ones would have wrong times.
                if bytes.get(times.len()).map(|byte| u64::from(*byte)) != Some(record.value & 0xff) {
                    break;
                }
                times.push(record.time);
            }
            _ => {}
        }
    }
    times
}

/// The first and last lines of each phase.
pub(super) fn excerpts(lines: &[Line]) -> Vec<Excerpt> {
    let parts: Vec<&[Line]> = lines
        .chunk_by(|a, b| (a.generation, a.phase) == (b.generation, b.phase))
        .collect();
    let most = (MOST / parts.len().max(1)).max(LEAST);
    let excerpt = |part: &&[Line]| {
        let first = part.first()?;
        let (head, tail) = if part.len() <= most {
            (part.len(), 0)
        } else {
            (most / 4, most - most / 4)
        };
        Some(Excerpt {
            generation: first.generation,
            phase: first.phase,
            head: part[..head].to_vec(),
            left_out: part.len() - head - tail,
            tail: part[part.len() - tail..].to_vec(),
        })
    };
    parts.iter().filter_map(excerpt).collect()
}

/// Lines before and after the place of a finding.
const AROUND: (usize, usize) = (5, 3);

/// The console around a finding: where the kernel's words are that the finding quotes, or else at the time at which
/// its writer wrote. Empty if neither is known.
pub(super) fn around(finding: &Finding, lines: &[Line]) -> Vec<Line> {
    let quoted = finding
        .actual
        .lines()
        .next()
        .filter(|_| finding.rule == RuleName::KernelQuiet);
    let quoted = quoted.filter(|text| !text.is_empty());
    let at = match (quoted, written_at(&finding.last_writer)) {
        (Some(text), _) => lines.iter().position(|line| line.text.contains(text)),
        (None, Some(time)) => {
            let timed = |line: &Line| line.time_ns.is_some_and(|begun| begun <= time);
            lines.iter().rposition(timed)
        }
        (None, None) => None,
    };
    let Some(at) = at else { return Vec::new() };
    let end = at.saturating_add(1 + AROUND.1).min(lines.len());
    lines[at.saturating_sub(AROUND.0)..end].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing;
    use vmm::trace::Record;

    fn written(time: u64, address: u64, value: u64) -> Record {
        Record {
            time,
            address,
            value,
            kind: Kind::PortWrite,
            size: 1,
            processor: 0,
        }
    }

    #[test]
    fn lines_have_the_time_of_their_first_byte() {
        let mut evidence = testing::good();
        evidence.console = "ab\nc\nd".into();
        evidence.console_parts.truncate(1);
        evidence.trace.records = vec![
            written(1, LINE_CONTROL, 0x83),
            written(2, TRANSMIT, 1),
            written(3, LINE_CONTROL, 0x03),
            written(10, TRANSMIT, b'a'.into()),
            written(20, TRANSMIT, b'b'.into()),
            written(30, TRANSMIT, b'\n'.into()),
            written(40, TRANSMIT, b'c'.into()),
            written(50, TRANSMIT, b'x'.into()),
            written(60, TRANSMIT, b'd'.into()),
        ];
        let told: Vec<_> = lines(&evidence)
            .into_iter()
            .map(|line| (line.time_ns, line.text))
            .collect();
        let line = |time, text: &str| (time, text.to_owned());
        assert_eq!(told, [line(Some(10), "ab"), line(Some(40), "c"), line(None, "d")]);
    }

    #[test]
    fn a_long_console_is_cut_in_the_middle_of_each_phase() {
        let mut evidence = testing::good();
        evidence.console = (0..5000).map(|number| format!("line {number}\n")).collect();
        evidence.console_parts.truncate(1);
        let excerpts = excerpts(&lines(&evidence));
        let [part] = &excerpts[..] else {
            panic!("{} parts", excerpts.len())
        };
        assert_eq!(part.head.len() + part.tail.len(), MOST);
        assert_eq!(part.left_out, 5000 - MOST);
        assert_eq!(part.head[0].text, "line 0");
        assert_eq!(part.tail.last().unwrap().text, "line 4999");
        // However many phases there are, memory is bounded by their number.
        let mut lines = lines(&evidence);
        for (number, line) in (0u32..).zip(&mut lines) {
            line.generation = number / 10;
        }
        let excerpts = super::excerpts(&lines);
        assert!(
            excerpts
                .iter()
                .all(|part| part.head.len() + part.tail.len() == LEAST)
        );
    }
}
