//! `device-writes-landed`: at every checkpoint of a new kernel, memory holds every completed device write, unless a
//! later device write overwrote it. A write that an injection changed is looked for as it was made, if it went where
//! the device meant it to go; that an injection kept one back is a finding whose last writer is the injection.

use crate::evidence::{Checkpoint, PAGE, PageContent, describe, end_of, injected, meant};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer, difference, many};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use guest_agent::pattern::PAGE_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64;

const RULE: RuleName = RuleName::DeviceWritesLanded;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (mut findings, mut looked, mut bytes) = (Findings::default(), BTreeSet::new(), 0u64);
    for (number, checkpoint) in context
        .checkpoints()
        .filter(|(_, checkpoint)| checkpoint.at.generation > 0)
    {
        let captured = captured_frames(context, checkpoint);
        for frame in context.written_frames() {
            let Some((object, index, content)) = captured.get(&frame) else {
                continue;
            };
            let mut expected = [0; PAGE_BYTES];
            let parts = context.overlay(frame, checkpoint.at.ledger_length, &mut expected);
            let actual = match object {
                Some(object) => context.actual(*object, *index, *content),
                None => context.evidence.captures.bytes_without_pattern(*content),
            };
            let Some(actual) = actual else { continue };
            for (range, write) in parts.into_iter().filter(|(_, write)| is_due(context, *write)) {
                looked.insert(write);
                bytes += range.len() as u64;
                let Some(found) = difference(&expected, &actual, range) else {
                    continue;
                };
                findings.add(|| {
                    let address = frame * PAGE + found.offset as u64;
                    let (last_writer, question) = context.last_cpu_writer(number, address);
                    let lost = context.write(write);
                    let owner = super::dma_only_to_preserved::owner(context, frame, checkpoint.at.generation);
                    let text = format!(
                        "{} of the device, written in {} of generation {} and captured {}, has {} changed at {address:#x}",
                        describe(lost),
                        lost.stamp.phase,
                        lost.stamp.generation,
                        checkpoint.when(),
                        many(found.bytes as u64, "byte")
                    );
                    Finding {
                        rule: RULE,
                        page: Some(frame),
                        address: Some(address),
                        owner,
                        expected: found.expected,
                        actual: found.actual,
                        last_writer,
                        text,
                        question,
                        explained_by: Vec::new(),
                    }
                });
            }
            kept_back(context, checkpoint, frame, &actual, &mut looked, &mut findings);
        }
    }
    let left_out: u64 = context
        .checkpoints()
        .map(|(_, checkpoint)| checkpoint.strays_left_out)
        .sum();
    let mut blind: Vec<String> = check_ledger(context, &looked).into_iter().collect();
    if left_out > 0 {
        blind.push(format!(
            "{left_out} pages outside all objects, to which the device wrote, were not captured"
        ));
    }
    let note = format!("those not overwritten by the device itself, {bytes} bytes");
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: looked.len() as u64,
            unit: "device writes",
            note,
        },
        findings,
        blind,
    }
}

/// Whether a write that was made has to be found: the device's own, and what an injection made of one, unless it went
/// elsewhere. Nobody has to keep what the injector wrote.
fn is_due(context: &Context<'_>, position: u32) -> bool {
    let (ledger, entry) = (&context.evidence.ledger, context.write(position));
    let Some(injected) = injected(ledger, entry) else {
        return true;
    };
    meant(ledger, injected)
        .is_some_and(|meant| meant.address <= entry.address && end_of(entry) <= end_of(meant))
}

/// Tells of writes to a frame that injections kept back, and that nobody has made since.
fn kept_back(
    context: &Context<'_>,
    checkpoint: &Checkpoint,
    frame: u64,
    actual: &[u8; PAGE_BYTES],
    looked: &mut BTreeSet<u32>,
    findings: &mut Findings,
) {
    if !context.is_injected(frame) {
        return;
    }
    let mut meant = [0; PAGE_BYTES];
    for (range, position) in context.meant_overlay(frame, checkpoint.at.ledger_length, &mut meant) {
        let write = context.write(position);
        if write.was_made() {
            continue;
        }
        looked.insert(position);
        let Some(found) = difference(&meant, actual, range) else {
            continue;
        };
        findings.add(|| Finding {
            rule: RULE,
            page: Some(frame),
            address: Some(frame * PAGE + found.offset as u64),
            owner: super::dma_only_to_preserved::owner(context, frame, checkpoint.at.generation),
            text: format!(
                "{} of the device, meant in {} of generation {} and captured {}, is not as it was meant in {}",
                describe(write),
                write.stamp.phase,
                write.stamp.generation,
                checkpoint.when(),
                many(found.bytes as u64, "byte")
            ),
            expected: found.expected,
            actual: found.actual,
            last_writer: Writer::of(&context.evidence.ledger, write),
            question: None,
            explained_by: Vec::new(),
        });
    }
}

/// Every frame whose content a checkpoint has, with its object (if any) and the page index in it.
fn captured_frames(
    context: &Context<'_>,
    checkpoint: &Checkpoint,
) -> BTreeMap<u64, (Option<u32>, u64, PageContent)> {
    let mut frames: BTreeMap<_, _> = checkpoint
        .strays
        .iter()
        .map(|(frame, content)| (*frame, (None, 0, *content)))
        .collect();
    for capture in &checkpoint.objects {
        let Some(object) = context.evidence.object(capture.object) else {
            continue;
        };
        let pages = object
            .frames(checkpoint.at.generation)
            .into_iter()
            .zip(&capture.pages);
        frames.extend(
            (0..)
                .zip(pages)
                .map(|(index, (frame, content))| (frame, (Some(object.id), index, *content))),
        );
    }
    frames
}

/// The ledger proves nothing of a write whose checksum does not agree with the stream.
fn check_ledger(context: &Context<'_>, looked: &BTreeSet<u32>) -> Option<String> {
    let mut damaged = looked.iter().map(|index| context.write(*index)).filter(|write| {
        let checksum = xxh3_64(&context.bytes_of(write));
        checksum != write.checksum
    });
    let first = damaged.next()?;
    let count = damaged.count() + 1;
    Some(format!(
        "the ledger is damaged: {count} of its entries have a checksum that does not fit what they say was written, \
         the first of them {}",
        describe(first)
    ))
}
