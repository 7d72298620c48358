//! When things happened: phases, kexecs, blackouts, device writes, engine events, findings.

use crate::report::by_device;
use harness::evidence::{Evidence, Phase};
use harness::oracle::{Finding, Writer};
use std::ops::Range;
use vmm::ledger::EngineEventKind;

/// Parts into which the device's writes are counted over a whole run, and around one kexec.
const BINS: (usize, usize) = (240, 120);
/// Most marks of one kind.
const MAX_MARKS: usize = 64;
/// Most kexecs that are shown from close up.
const MAX_CLOSE_UPS: usize = 8;

/// All times are guest nanoseconds since power-on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::report) struct Timeline {
    /// The whole run.
    pub whole: View,
    /// One view of each of the first kexecs: from the handover to the new kernel's entry, and as much around it.
    pub close_ups: Vec<View>,
    /// Phases in order.
    pub phases: Vec<Span>,
    /// Blackouts whose beginning is on record.
    pub blackouts: Vec<Range<u64>>,
    /// Moments worth a mark.
    pub marks: Vec<Mark>,
    /// How many more there are.
    pub marks_left_out: usize,
}

/// A part of the run with the device's writes in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::report) struct View {
    /// First and last time.
    pub from_ns: u64,
    pub to_ns: u64,
    /// Device writes in equal parts of that time.
    pub writes: Vec<u64>,
}

/// A phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Span {
    pub generation: u32,
    pub phase: Phase,
    pub begin_ns: u64,
    pub end_ns: u64,
}

/// What kind of moment a mark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::report) enum MarkKind {
    /// The old kernel jumped, or the new one was entered.
    Kexec,
    /// The device changed its state, or the driver did.
    Device,
    /// A fault was injected.
    Injection,
    /// A session or memfd was retrieved, or was not.
    Retrieval,
    /// What a finding is about was written.
    Finding,
}

/// A moment worth a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Mark {
    pub time_ns: u64,
    pub kind: MarkKind,
    pub text: String,
}

impl Timeline {
    /// Of a run's evidence and findings.
    pub fn new<'a>(evidence: &Evidence, findings: impl Iterator<Item = &'a Finding>) -> Self {
        let span = |record: &harness::evidence::PhaseRecord| Span {
            generation: record.generation,
            phase: record.phase,
            begin_ns: record.begin_ns,
            end_ns: record.begin_ns.saturating_add(record.guest_ns),
        };
        let phases: Vec<Span> = evidence.phases.iter().map(span).collect();
        let end = phases.iter().map(|span| span.end_ns).max().unwrap_or(0);
        let views = phases.iter().filter(|span| span.phase == Phase::Jump);
        let close_ups = views.take(MAX_CLOSE_UPS).map(|jump| {
            let before = phases
                .iter()
                .rfind(|span| span.end_ns <= jump.begin_ns && span.phase == Phase::Handover);
            let begin = before.map_or(jump.begin_ns, |handover| handover.begin_ns);
            let pad = jump.end_ns.saturating_sub(begin).max(1);
            let (from, to) = (
                begin.saturating_sub(pad),
                jump.end_ns.saturating_add(pad).min(end),
            );
            view(evidence, from, to, BINS.1)
        });
        let ends = evidence.blackout_begins_ns.iter().zip(&evidence.blackouts_ns);
        let (marks, marks_left_out) = marks(evidence, &phases, findings);
        Self {
            whole: view(evidence, 0, end, BINS.0),
            close_ups: close_ups.collect(),
            blackouts: ends
                .map(|(begin, length)| *begin..begin.saturating_add(*length))
                .collect(),
            phases,
            marks,
            marks_left_out,
        }
    }
}

fn view(evidence: &Evidence, from_ns: u64, to_ns: u64, bins: usize) -> View {
    let mut writes = vec![0; bins];
    let length = u128::from(to_ns.saturating_sub(from_ns).max(1));
    for entry in &evidence.ledger.entries {
        if (from_ns..to_ns).contains(&entry.time) && by_device(evidence, entry) {
            let bin = u128::from(entry.time - from_ns) * bins as u128 / length;
            if let Some(count) = usize::try_from(bin).ok().and_then(|bin| writes.get_mut(bin)) {
                *count += 1;
            }
        }
    }
    View {
        from_ns,
        to_ns,
        writes,
    }
}

/// The marks in order of time, at most [`MAX_MARKS`] of a kind, and how many are left out.
fn marks<'a>(
    evidence: &Evidence,
    phases: &[Span],
    findings: impl Iterator<Item = &'a Finding>,
) -> (Vec<Mark>, usize) {
    let mark = |time_ns, kind, text| Mark { time_ns, kind, text };
    let mut kinds: [Vec<Mark>; 5] = Default::default();
    for span in phases.iter().filter(|span| span.phase == Phase::Jump) {
        let new = span.generation.saturating_add(1);
        kinds[0].push(mark(
            span.begin_ns,
            MarkKind::Kexec,
            format!("generation {} jumps", span.generation),
        ));
        kinds[0].push(mark(
            span.end_ns,
            MarkKind::Kexec,
            format!("generation {new} is entered"),
        ));
    }
    let events = evidence.ledger.events.iter();
    kinds[1] = events
        .filter_map(|event| Some(mark(event.time, MarkKind::Device, describe(&event.kind)?)))
        .collect();
    let retrieval = |one: &harness::evidence::Retrieval| {
        let done = if one.failure.is_some() {
            "not retrieved"
        } else {
            "retrieved"
        };
        mark(one.time_ns, MarkKind::Retrieval, format!("{} {done}", one.what))
    };
    kinds[2] = evidence.retrievals.iter().map(retrieval).collect();
    kinds[3] = findings
        .filter_map(|finding| {
            Some(mark(
                written_at(&finding.last_writer)?,
                MarkKind::Finding,
                finding.text.clone(),
            ))
        })
        .collect();
    kinds[3].sort_by_key(|mark| mark.time_ns);
    kinds[3].dedup_by_key(|mark| mark.time_ns);
    let injections = (0..).zip(&evidence.injections);
    let firings =
        injections.flat_map(|(number, one): (u32, _)| one.firings.iter().map(move |firing| (number, firing)));
    kinds[4] = firings
        .map(|(number, firing)| {
            let text = format!("injection {number}: {}", firing.what);
            mark(firing.at.time_ns, MarkKind::Injection, text)
        })
        .collect();
    let total: usize = kinds.iter().map(Vec::len).sum();
    let kept = kinds
        .into_iter()
        .flat_map(|kind| kind.into_iter().take(MAX_MARKS));
    let mut kept: Vec<Mark> = kept.collect();
    kept.sort_by_key(|mark| mark.time_ns);
    let left_out = total - kept.len();
    (kept, left_out)
}

/// When the writer of a finding wrote, if that is known.
pub(in crate::report) fn written_at(writer: &Writer) -> Option<u64> {
    match writer {
        Writer::Device { time_ns, .. } | Writer::Cpu { time_ns, .. } | Writer::Injected { time_ns, .. } => {
            Some(*time_ns)
        }
        Writer::CpuPage { .. } | Writer::Unknown { .. } | Writer::Nobody => None,
    }
}

/// An engine event in words. Waits are too many to show, and injections have marks of their own.
fn describe(kind: &EngineEventKind) -> Option<String> {
    Some(match kind {
        EngineEventKind::Start => "device started".into(),
        EngineEventKind::Stop => "device stopped".into(),
        EngineEventKind::Reset => "device reset".into(),
        EngineEventKind::BusMaster { on, obeyed } => {
            let bit = if *on { "set" } else { "cleared" };
            let then = if *obeyed { "" } else { ", and the device goes on" };
            format!("bus master {bit}{then}")
        }
        EngineEventKind::Fault { reason, .. } => format!("device fault: {}", reason.text()),
        EngineEventKind::WaitBegin | EngineEventKind::WaitEnd | EngineEventKind::Injected { .. } => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing::{self, BLOCKS, JUMP, MESSAGES};

    #[test]
    fn every_write_is_counted_once_and_the_kexec_is_seen_from_close_up() {
        let timeline = Timeline::new(&testing::good(), std::iter::empty());
        let writes: u64 = timeline.whole.writes.iter().sum();
        assert_eq!(writes, 2 * BLOCKS.0 + MESSAGES.2);
        assert_eq!(timeline.whole.to_ns, 2_500_000);
        let [close] = &timeline.close_ups[..] else {
            panic!("{:?}", timeline.close_ups);
        };
        assert_eq!(
            (close.from_ns, close.to_ns),
            (900_000 - 101_000, JUMP.1 + 101_000)
        );
        assert_eq!(
            timeline.blackouts,
            [Range {
                start: 950_000,
                end: 1_850_000
            }]
        );
        let kexec: Vec<u64> = timeline
            .marks
            .iter()
            .filter(|mark| mark.kind == MarkKind::Kexec)
            .map(|mark| mark.time_ns)
            .collect();
        assert_eq!(kexec, [JUMP.0, JUMP.1]);
    }

    #[test]
    fn however_much_happened_the_timeline_stays_small() {
        let mut evidence = testing::good();
        let first = evidence.ledger.entries[0];
        evidence.ledger.entries = vec![first; 500_000];
        let event = vmm::ledger::EngineEvent {
            time: 1,
            stamp: first.stamp,
            kind: EngineEventKind::Reset,
        };
        evidence.ledger.events = vec![event; 10_000];
        let timeline = Timeline::new(&evidence, std::iter::empty());
        assert_eq!(timeline.whole.writes.len(), BINS.0);
        assert_eq!(timeline.whole.writes.iter().sum::<u64>(), 500_000);
        assert!(timeline.marks.len() < 5 * MAX_MARKS);
        assert_eq!(timeline.marks_left_out, 10_000 - MAX_MARKS);
    }
}
