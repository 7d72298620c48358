//! `interrupts-neither-lost-nor-invented`: each message that the DMA engine sends while the agent's driver has its
//! vector armed becomes an interrupt, no interrupt comes without a message, and the agent counts each interrupt once.
//!
//! A local APIC holds one pending interrupt per vector. Messages that arrive while it is pending merge with it (Intel
//! SDM volume 3, "Interrupt Acceptance for Fixed Interrupts"), so one interrupt stands for all messages since the one
//! before.
//!
//! What counts are the messages that were sent. That an injection kept one back, changed its vector, sent it twice or
//! sent one that the device did not mean is a finding whose last writer is the injection.

use crate::evidence::{ArmedRecord, DisarmedRecord, Moment, bytes_of, injected, meant};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer, millis};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use std::collections::BTreeSet;
use vmm::ledger::{Entry, Kind};
use vmm::trace::Kind as TraceKind;

const RULE: RuleName = RuleName::InterruptsNeitherLostNorInvented;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let evidence = context.evidence;
    let (mut findings, mut blind, mut looked) = (Findings::default(), Vec::new(), Looked::default());
    if evidence.trace.dropped > 0 && !evidence.interrupts.is_empty() {
        blind.push(format!(
            "{} records of the trace were dropped",
            evidence.trace.dropped
        ));
    }
    for record in &evidence.interrupts {
        let generation = record.armed.generation;
        match record.disarmed {
            Some(disarmed) if disarmed.answered.ledger_length > evidence.ledger.made => {
                blind.push(format!(
                    "the ledger ends before generation {generation} reported how many interrupts came"
                ));
            }
            Some(disarmed) => armed(context, record, disarmed, &mut looked, &mut findings),
            None => blind.push(format!(
                "generation {generation} never reported how many interrupts came"
            )),
        }
    }
    let merged = looked.messages.saturating_sub(looked.taken);
    let note = if evidence.interrupts.is_empty() {
        "the agent armed no interrupts".to_owned()
    } else if traced(context) {
        format!(
            "{} interrupts taken, {merged} messages merged with a pending one, {} counted by the agent",
            looked.taken, looked.counted
        )
    } else {
        format!(
            "{} interrupts counted by the agent; {} does not record which interrupts a processor takes",
            looked.counted, evidence.backend
        )
    };
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: looked.messages,
            unit: "interrupt messages",
            note,
        },
        findings,
        blind,
    }
}

#[derive(Default)]
struct Looked {
    messages: u64,
    taken: u64,
    counted: u64,
}

/// Whether the backend records interrupts.
fn traced(context: &Context<'_>) -> bool {
    !context.evidence.trace.records.is_empty()
}

/// Checks one time during which the vector was armed.
fn armed(
    context: &Context<'_>,
    record: &ArmedRecord,
    disarmed: DisarmedRecord,
    looked: &mut Looked,
    findings: &mut Findings,
) {
    let DisarmedRecord {
        asked,
        answered,
        count,
    } = disarmed;
    let during = record.armed.ledger_length..answered.ledger_length;
    let entries = context.evidence.ledger.entries.iter();
    let all: Vec<&Entry> = entries
        .filter(|entry| !entry.goes_to_memory() && during.contains(&entry.index))
        .collect();
    let vectors: BTreeSet<u64> = all
        .iter()
        .filter(|entry| entry.was_meant())
        .filter_map(|entry| vector_of(context, entry))
        .collect();
    let ours = |entry: &&&Entry| vector_of(context, entry).is_some_and(|vector| vectors.contains(&vector));
    let sent = all.iter().filter(|entry| entry.was_made()).filter(ours);
    let messages: Vec<&Entry> = sent.copied().collect();
    injections(context, &all, &vectors, findings);
    looked.messages += messages.len() as u64;
    looked.counted += count;
    // A message sent after the agent was asked to disarm may find the vector disabled.
    let due = messages.partition_point(|message| message.time < asked.time_ns);
    if !traced(context) {
        let most = messages.len() as u64;
        if count > most || count == 0 && due > 0 {
            let expected = if due > 0 {
                format!("1 to {most}")
            } else {
                format!("at most {most}")
            };
            findings.add(|| miscounted(record.armed, expected, count));
        }
        return;
    }
    let taken = taken(context, &vectors, record.armed.time_ns, answered.time_ns);
    looked.taken += taken.len() as u64;
    let (mut next, mut before_asked) = (0, 0u64);
    for time in &taken {
        before_asked += u64::from(*time < asked.time_ns);
        let sent = messages[next..].partition_point(|message| message.time <= *time);
        if sent == 0 {
            findings.add(|| invented(record.armed, *time));
        }
        next += sent;
    }
    for message in messages[..due].iter().skip(next) {
        findings.add(|| lost(context, message));
    }
    let all = taken.len() as u64;
    if !(before_asked..=all).contains(&count) {
        let expected = if before_asked == all {
            all.to_string()
        } else {
            format!("{before_asked} to {all}")
        };
        findings.add(|| miscounted(record.armed, expected, count));
    }
}

/// When processors took interrupts of the messages' vectors, in order.
fn taken(context: &Context<'_>, vectors: &BTreeSet<u64>, from: u64, to: u64) -> Vec<u64> {
    let records = context.evidence.trace.records.iter();
    let ours = records.filter(|record| {
        record.kind == TraceKind::Interrupt
            && vectors.contains(&record.value)
            && (from..=to).contains(&record.time)
    });
    ours.map(|record| record.time).collect()
}

/// The vector of a message.
fn vector_of(context: &Context<'_>, entry: &Entry) -> Option<u64> {
    match entry.kind {
        Kind::Msi { data } => Some(u64::from(data & 0xff)),
        // The seed is that of blocks.
        Kind::Injected { .. } => bytes_of(&context.evidence.ledger, entry, 0)
            .first()
            .map(|vector| (*vector).into()),
        _ => None,
    }
}

/// Tells what injections made of messages: lost, sent with another vector, twice, or without the device.
fn injections(context: &Context<'_>, all: &[&Entry], vectors: &BTreeSet<u64>, findings: &mut Findings) {
    let ledger = &context.evidence.ledger;
    let made_of = |index: u64| {
        let entries = ledger.entries.iter();
        let of = move |entry: &&Entry| injected(ledger, entry).and_then(|made| made.of) == Some(index);
        entries.filter(of)
    };
    let ours = |entry: &Entry| vector_of(context, entry).is_some_and(|vector| vectors.contains(&vector));
    for message in all {
        if !message.was_made() && !made_of(message.index).any(ours) {
            findings.add(|| lost(context, message));
        }
        let Some(made) = injected(ledger, message) else {
            continue;
        };
        let again = meant(ledger, made).is_some_and(Entry::was_made);
        let unasked = made.of.is_none() && ours(message);
        if !again && !unasked {
            continue;
        }
        let (expected, actual, what) = if again {
            (
                "one message",
                "the same message again",
                "a message of the device again",
            )
        } else {
            (
                "no message",
                "a message",
                "a message that the device did not send,",
            )
        };
        findings.add(|| Finding {
            expected: expected.into(),
            actual: actual.into(),
            text: format!("an injection sent {what} at {}", millis(message.time)),
            ..lost(context, message)
        });
    }
}

fn lost(context: &Context<'_>, message: &Entry) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: Some(message.address),
        owner: "DMA engine".into(),
        expected: "an interrupt".into(),
        actual: "none".into(),
        last_writer: Writer::of(&context.evidence.ledger, message),
        text: format!(
            "no processor took an interrupt for the message that the device sent in {} of generation {}, at {}",
            message.stamp.phase,
            message.stamp.generation,
            millis(message.time)
        ),
        question: None,
        explained_by: Vec::new(),
    }
}

fn invented(armed: Moment, time: u64) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner: "DMA engine".into(),
        expected: "no interrupt".into(),
        actual: "an interrupt of the device's vector".into(),
        last_writer: Writer::Nobody,
        text: format!(
            "generation {} took an interrupt of the device's vector at {}, for which the device sent no message",
            armed.generation,
            millis(time)
        ),
        question: None,
        explained_by: Vec::new(),
    }
}

fn miscounted(armed: Moment, expected: String, count: u64) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner: format!("the agent of generation {}", armed.generation),
        expected: format!("{expected} interrupts"),
        actual: format!("{count} interrupts"),
        last_writer: Writer::Nobody,
        text: format!(
            "the agent of generation {} counted {count} interrupts of the device, {expected} were due",
            armed.generation
        ),
        question: None,
        explained_by: Vec::new(),
    }
}
