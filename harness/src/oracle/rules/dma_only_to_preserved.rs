//! `dma-only-to-preserved`: after a jump the device writes only to pages of objects that were preserved over it, and
//! not after the agent has closed them.

use crate::evidence::{Evidence, Moment, describe, frames_of, injected};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer, many};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use std::collections::{BTreeMap, HashMap};
use vmm::ledger::Entry;

const RULE: RuleName = RuleName::DmaOnlyToPreserved;

/// Writes to one page that is not preserved.
struct Stray<'a> {
    first: &'a Entry,
    last: &'a Entry,
    count: u64,
}

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let evidence = context.evidence;
    let jumps: Vec<(u32, u64)> = (0..evidence.kexecs)
        .filter_map(|left| Some((left, evidence.jump_time(left)?)))
        .collect();
    let allowed: HashMap<u32, HashMap<u64, Option<Moment>>> = jumps
        .iter()
        .map(|(left, _)| (*left, preserved_frames(evidence, *left)))
        .collect();
    let (mut looked, mut strays) = (0, BTreeMap::<u64, Stray<'_>>::new());
    // What the injector writes by itself is no device write.
    let ledger = &evidence.ledger;
    let by_device = |write: &Entry| injected(ledger, write).is_none_or(|injected| injected.of.is_some());
    let to_memory = |write: &&Entry| write.goes_to_memory() && write.was_made() && by_device(write);
    for write in evidence.ledger.entries.iter().filter(to_memory) {
        let Some((left, _)) = jumps.iter().rev().find(|(_, time)| *time <= write.time) else {
            continue;
        };
        looked += 1;
        for frame in frames_of(write) {
            let closed = allowed.get(left).and_then(|frames| frames.get(&frame));
            if closed.is_some_and(|closed| closed.is_none_or(|closed| write.index <= closed.ledger_length)) {
                continue;
            }
            let stray = strays.entry(frame).or_insert(Stray {
                first: write,
                last: write,
                count: 0,
            });
            stray.last = write;
            stray.count += 1;
        }
    }
    let mut findings = Findings::default();
    for (frame, stray) in strays {
        findings.add(|| finding(context, frame, &stray));
    }
    let note = "those after the first jump".into();
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: looked,
            unit: "device writes",
            note,
        },
        findings,
        blind: Vec::new(),
    }
}

/// Frames preserved over the jump out of generation `left`, and when they were closed.
fn preserved_frames(evidence: &Evidence, left: u32) -> HashMap<u64, Option<Moment>> {
    let preserved = evidence
        .objects
        .iter()
        // A payload that has preserved memory has not given it to the device.
        .filter(|object| object.preserved_by.contains(&left) && !object.is_found());
    preserved
        .flat_map(|object| {
            object
                .frames(left)
                .into_iter()
                .map(|frame| (frame, object.closed))
        })
        .collect()
}

fn finding(context: &Context<'_>, frame: u64, stray: &Stray<'_>) -> Finding {
    let Stray { first, last, count } = stray;
    let generation = u32::from(first.stamp.generation).max(1);
    let owner = owner(context, frame, generation);
    let mut preserved = context.preserved_into(generation);
    // Others are the device's.
    let whose = if preserved.any(|object| object.is_found() && object.frames(generation).contains(&frame)) {
        "which the payload has preserved and nobody has given to the device"
    } else {
        "which is not preserved"
    };
    Finding {
        rule: RULE,
        page: Some(frame),
        address: Some(first.address),
        expected: "no device write after the jump".into(),
        actual: match count {
            1 => describe(first),
            count => format!(
                "{count} device writes, from {} to {}",
                describe(first),
                describe(last)
            ),
        },
        last_writer: Writer::of(&context.evidence.ledger, last),
        text: format!(
            "{} after the jump, first in {}, went to page {frame:#x}, {whose}",
            many(*count, "device write"),
            first.stamp.phase
        ),
        owner,
        question: None,
        explained_by: Vec::new(),
    }
}

/// The owner of a frame in `generation`, according to the evidence.
pub(super) fn owner(context: &Context<'_>, frame: u64, generation: u32) -> String {
    let evidence = context.evidence;
    let mut preserved = context.preserved_into(generation);
    if let Some(object) = preserved.find(|object| object.frames(generation).contains(&frame)) {
        return object.owner();
    }
    let was = evidence
        .objects
        .iter()
        .find(|object| object.frames(generation - 1).contains(&frame));
    let was = was.map_or(String::new(), |object| format!(", formerly {}", object.owner()));
    if !evidence.is_ram(frame) {
        return "nobody: it is outside guest memory".into();
    }
    match context
        .cpu_writes(frame)
        .iter()
        .find(|write| write.generation >= generation)
    {
        Some(write) => {
            let at = match (&write.symbol, write.rip) {
                (Some(symbol), _) => format!(" at {symbol}"),
                (None, Some(rip)) => format!(" at {rip:#x}"),
                (None, None) => String::new(),
            };
            format!(
                "the kernel of generation {generation}, first used{at} in {}{was}",
                write.phase
            )
        }
        None => format!("the kernel of generation {generation}, not in use yet{was}"),
    }
}
