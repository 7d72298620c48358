//! `device-never-silent`: while the engine is enabled and not waiting for a descriptor, no two writes are further
//! apart than its rate allows.

use crate::evidence::{DmaEvidence, EventCause, Moment, OutcomeKind, injected, meant};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer, millis};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use vmm::ledger::{EngineEvent, EngineEventKind, Entry, Kind};

const RULE: RuleName = RuleName::DeviceNeverSilent;

/// Tolerance beyond the time of two blocks, in nanoseconds: the processor finishes its instruction, and the machine
/// its turn, before the device is served.
const SLACK_NS: u64 = 20_000;

/// A point in the device's life.
enum Point<'a> {
    Block,
    /// An engine event, and its position in the ledger's list of events.
    Event(usize, &'a EngineEvent),
    /// A block that an injection withheld.
    Withheld(&'a Entry),
    End,
}

impl Point<'_> {
    /// Whether a silence ends here: the device wrote, or is no longer expected to write.
    fn ends_silence(&self) -> bool {
        match self {
            Self::Block | Self::End => true,
            Self::Withheld(_) => false,
            Self::Event(_, event) => matches!(event.kind, EngineEventKind::WaitBegin | EngineEventKind::Stop),
        }
    }
}

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (evidence, mut findings) = (context.evidence, Findings::default());
    let Some((dma, started)) = evidence.dma.as_ref().and_then(|dma| Some((dma, dma.started?))) else {
        let note = "the DMA engine was never started".into();
        return RuleResult {
            rule: RULE,
            looked_at: LookedAt {
                count: 0,
                unit: "device writes",
                note,
            },
            findings,
            blind: Vec::new(),
        };
    };
    let end = dma
        .stopped
        .map_or_else(|| last_seen(context, started), |stopped| stopped.time_ns);
    let lateness = evidence.device_lateness_ns;
    let allowed = 2 * dma.setup.period_ns() + SLACK_NS + lateness;
    let (mut last, mut writing, mut blocks, mut longest) = (started.time_ns, true, 0u64, 0);
    let mut stopped = false;
    let mut silencer = None;
    let dropped = dropped_events(context);
    // Beyond the last event on record nothing tells a wait from a silence.
    let end = match (&dropped, context.evidence.ledger.events.last()) {
        (Some(_), Some(last)) => end.min(last.time),
        _ => end,
    };
    for (time, point) in points(context, started, end) {
        let gap = if writing && point.ends_silence() {
            time.saturating_sub(last)
        } else {
            0
        };
        longest = longest.max(gap);
        if gap > allowed {
            let by = silencer.as_ref();
            findings.add(|| finding(context, dma, (last, gap), by, !matches!(point, Point::Block)));
        }
        match point {
            Point::Block => {
                (last, blocks, writing) = (time, blocks + 1, true);
                silencer = None;
            }
            Point::Event(position, event) => match event.kind {
                EngineEventKind::WaitBegin => writing = false,
                EngineEventKind::Stop => (writing, stopped) = (false, true),
                // The stop itself ended the wait.
                EngineEventKind::WaitEnd if stopped => {}
                EngineEventKind::WaitEnd => (last, writing) = (time, true),
                EngineEventKind::Start => (last, writing, stopped) = (time, true, false),
                EngineEventKind::BusMaster {
                    on: false,
                    obeyed: true,
                }
                | EngineEventKind::Reset
                | EngineEventKind::Fault { .. }
                | EngineEventKind::Injected { .. } => {
                    silencer = silencer.or(Some(Silencer::Event(position, event)));
                }
                EngineEventKind::BusMaster { .. } => {}
            },
            Point::Withheld(entry) => silencer = silencer.or(Some(Silencer::Withheld(entry))),
            Point::End => {}
        }
    }
    let late = if lateness == 0 {
        String::new()
    } else {
        format!(
            ", {} of it because the host served the device that late",
            millis(lateness)
        )
    };
    let note = format!(
        "blocks; the longest gap was {}, {} are allowed{late}",
        millis(longest),
        millis(allowed)
    );
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: blocks,
            unit: "device writes",
            note,
        },
        findings,
        blind: dropped.into_iter().collect(),
    }
}

/// Blocks and events from `started` to `end`, in order of time.
fn points<'a>(context: &Context<'a>, started: Moment, end: u64) -> Vec<(u64, Point<'a>)> {
    let ledger = &context.evidence.ledger;
    let is_block = |write: &Entry| matches!(write.kind, Kind::Block { .. });
    let point = |write: &'a Entry| {
        if is_block(write) {
            let point = write.withheld.map(|_| Point::Withheld(write));
            return Some((write.time, point.unwrap_or(Point::Block)));
        }
        // What an injection made of a block.
        let of = meant(ledger, injected(ledger, write)?)?;
        is_block(of).then_some((write.time, Point::Block))
    };
    let mut points: Vec<_> = ledger.entries.iter().filter_map(point).collect();
    let events = ledger.events.iter().enumerate();
    points.extend(events.map(|(position, event)| (event.time, Point::Event(position, event))));
    points.retain(|(time, _)| (started.time_ns..=end).contains(time));
    points.sort_by_key(|(time, _)| *time);
    points.push((end, Point::End));
    points
}

/// Until when an engine that nobody stopped was seen: the end of the run, or the last write that the ledger had room
/// for.
fn last_seen(context: &Context<'_>, started: Moment) -> u64 {
    let evidence = context.evidence;
    if evidence.outcome.kind == OutcomeKind::LedgerFull {
        let last = evidence.ledger.entries.last();
        return last.map_or(started.time_ns, |write| write.time.max(started.time_ns));
    }
    let last = evidence.phases.last();
    last.map_or(0, |record| record.begin_ns.saturating_add(record.guest_ns))
}

/// Engine events that the ledger had no room for. Without them a wait may look like a silence.
fn dropped_events(context: &Context<'_>) -> Option<String> {
    let counters = context.evidence.ledger.counters.iter();
    let dropped: u64 = counters.map(|(_, counters)| counters.events_dropped).sum();
    (dropped > 0).then(|| format!("{dropped} engine events are not on record"))
}

fn cause_of<'a>(context: &Context<'a>, position: usize) -> Option<&'a EventCause> {
    context
        .evidence
        .event_causes
        .iter()
        .find(|cause| cause.event == position)
}

/// What may have silenced the device.
enum Silencer<'a> {
    /// An engine event, and its position in the ledger's list of events.
    Event(usize, &'a EngineEvent),
    /// An injection withheld a block.
    Withheld(&'a Entry),
}

impl Silencer<'_> {
    fn writer(&self, context: &Context<'_>) -> Writer {
        match self {
            Self::Event(position, event) => match event.kind {
                EngineEventKind::Injected { injection } => Writer::Injected {
                    injection: injection.into(),
                    what: "acted on the engine".into(),
                    time_ns: event.time,
                    generation: event.stamp.generation.into(),
                    phase: event.stamp.phase,
                },
                _ => Writer::access(event, cause_of(context, *position)),
            },
            Self::Withheld(entry) => Writer::of(&context.evidence.ledger, entry),
        }
    }
}

fn finding(
    context: &Context<'_>,
    dma: &DmaEvidence,
    (since, gap): (u64, u64),
    silencer: Option<&Silencer<'_>>,
    for_good: bool,
) -> Finding {
    let last_writer = silencer.map_or(
        Writer::Unknown {
            reason: "no event on record".into(),
        },
        |silencer| silencer.writer(context),
    );
    let why = match silencer {
        None => "nothing on record says why".to_owned(),
        Some(_) if matches!(last_writer, Writer::Injected { .. }) => last_writer.to_string(),
        Some(Silencer::Withheld(_)) => String::new(),
        Some(Silencer::Event(position, event)) => {
            let cause = cause_of(context, *position);
            let what = match &event.kind {
                EngineEventKind::BusMaster { .. } => "its bus-master bit was cleared".to_owned(),
                EngineEventKind::Fault { reason, address, .. } => {
                    format!("it stopped at {address:#x} because {}", reason.text())
                }
                _ => "it was reset".to_owned(),
            };
            let by = cause
                .and_then(|cause| cause.symbol.as_ref())
                .map_or(String::new(), |at| format!(" by {at}"));
            format!("{what}{by} in {}, at {}", event.stamp, millis(event.time))
        }
    };
    let rest = if for_good {
        "until it was stopped or the run ended"
    } else {
        "and then went on"
    };
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner: "DMA engine".into(),
        expected: format!("a block every {} ns", dma.setup.period_ns()),
        actual: format!("none for {}", millis(gap)),
        last_writer,
        text: format!(
            "the device was silent for {} after {}, {rest}: {why}",
            millis(gap),
            millis(since)
        ),
        question: None,
        explained_by: Vec::new(),
    }
}
