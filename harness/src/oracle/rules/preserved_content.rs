//! `preserved-content`: at every checkpoint of a new kernel each preserved page holds its pattern, overlaid with the
//! agent's list of the ring's pages and descriptors, and then with the device's writes in order. The agent's digests of
//! the same pages agree. What injections wrote, and what they made of the device's writes, is expected; that they did
//! is a finding of its own, whose last writer is the injection.

use crate::evidence::{Checkpoint, DigestRecord, Moment, ObjectEvidence, PageContent, describe};
use crate::oracle::content::{Context, ExpectedPage};
use crate::oracle::finding::{Finding, Findings, Writer, difference, many};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use guest_agent::pattern::{PAGE_BYTES, PAGE_WORDS, page_digest};

const RULE: RuleName = RuleName::PreservedContent;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (mut findings, mut pages, mut digests, mut checkpoints) = (Findings::default(), 0, 0, 0);
    for (number, checkpoint) in context.checkpoints() {
        let mut looked = false;
        let known = context
            .preserved_into(checkpoint.at.generation)
            .filter(|object| !object.is_found());
        for object in known {
            let Some(capture) = checkpoint
                .objects
                .iter()
                .find(|capture| capture.object == object.id)
            else {
                continue;
            };
            let frames = object.frames(checkpoint.at.generation);
            for (index, (content, frame)) in (0u64..).zip(capture.pages.iter().zip(&frames)) {
                pages += 1;
                looked = true;
                let expected = context.expected(object, index, *frame, checkpoint.at);
                if context.is_injected(*frame) {
                    check_injected(
                        context,
                        checkpoint,
                        (object, index, *frame),
                        *content,
                        &mut findings,
                    );
                }
                if expected.is_none() && *content == PageContent::Pattern {
                    continue;
                }
                check_page(
                    context,
                    (number, checkpoint),
                    object,
                    index,
                    *frame,
                    expected,
                    *content,
                    &mut findings,
                );
            }
        }
        checkpoints += u64::from(looked);
    }
    for record in &context.evidence.captures.digests {
        digests += check_digests(context, record, &mut findings);
    }
    let bytes = pages * PAGE_BYTES as u64;
    let note = format!("{bytes} bytes at {checkpoints} checkpoints, and {digests} digests of the agent's");
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: pages,
            unit: "pages",
            note,
        },
        findings,
        blind: Vec::new(),
    }
}

#[allow(clippy::too_many_arguments)] // a page, where it is, and what is known of it
fn check_page(
    context: &Context<'_>,
    (number, checkpoint): (usize, &Checkpoint),
    object: &ObjectEvidence,
    index: u64,
    frame: u64,
    expected: Option<ExpectedPage>,
    content: PageContent,
    findings: &mut Findings,
) {
    let expected = expected.unwrap_or_else(|| ExpectedPage {
        bytes: context.pattern_page(object, index),
        device: Vec::new(),
    });
    let Some(actual) = context.actual(object.id, index, content) else {
        findings.add(|| Finding {
            rule: RULE,
            page: Some(frame),
            address: Some(frame * PAGE_BYTES as u64),
            owner: object.owner(),
            expected: "memory of the guest".into(),
            actual: "outside guest memory".into(),
            last_writer: Writer::Nobody,
            text: format!(
                "page {index} of {}, captured {}, is said to be outside guest memory",
                object.owner(),
                checkpoint.when()
            ),
            question: None,
            explained_by: Vec::new(),
        });
        return;
    };
    let Some(found) = difference(&expected.bytes, &actual, 0..PAGE_BYTES) else {
        return;
    };
    findings.add(|| {
        let address = frame * PAGE_BYTES as u64 + found.offset as u64;
        let (last_writer, question) = context.last_cpu_writer(number, address);
        let should = match expected.author(found.offset) {
            Some(write) => format!("what the device wrote as {}", describe(context.write(write))),
            None if object.laid.is_some() => "what the scenario's steps have put there".into(),
            None => "the pattern that the agent filled in".into(),
        };
        let text = format!(
            "page {index} of {}, captured {}, differs in {}, first at offset {:#x}, from {should}",
            object.owner(),
            checkpoint.when(),
            many(found.bytes as u64, "byte"),
            found.offset
        );
        Finding {
            rule: RULE,
            page: Some(frame),
            address: Some(address),
            owner: object.owner(),
            expected: found.expected,
            actual: found.actual,
            last_writer,
            text,
            question,
            explained_by: Vec::new(),
        }
    });
}

/// Tells of a page that holds what injections made of it, and not what it would hold without them.
fn check_injected(
    context: &Context<'_>,
    checkpoint: &Checkpoint,
    (object, index, frame): (&ObjectEvidence, u64, u64),
    content: PageContent,
    findings: &mut Findings,
) {
    let at = checkpoint.at;
    let page = |page: Option<ExpectedPage>| {
        page.map_or_else(|| context.pattern_page(object, index), |page| page.bytes)
    };
    let made = page(context.expected(object, index, frame, at));
    let meant = page(context.meant(object, index, frame, at));
    let Some(actual) = context.actual(object.id, index, content) else {
        return;
    };
    // A byte that somebody else has written since is not the injection's any more.
    let mut left = meant;
    for byte in 0..PAGE_BYTES {
        if made[byte] == actual[byte] {
            left[byte] = made[byte];
        }
    }
    let Some(found) = difference(&meant, &left, 0..PAGE_BYTES) else {
        return;
    };
    let address = frame * PAGE_BYTES as u64 + found.offset as u64;
    let Some(entry) = context.injected_at(address, at.ledger_length) else {
        return;
    };
    findings.add(|| {
        let last_writer = Writer::of(&context.evidence.ledger, entry);
        Finding {
            rule: RULE,
            page: Some(frame),
            address: Some(address),
            owner: object.owner(),
            text: format!(
                "page {index} of {}, captured {}, differs in {}, first at offset {:#x}, because of an injection",
                object.owner(),
                checkpoint.when(),
                many(found.bytes as u64, "byte"),
                found.offset
            ),
            expected: found.expected,
            actual: found.actual,
            last_writer,
            question: None,
            explained_by: Vec::new(),
        }
    });
}

/// Compares the agent's digests with those of the expected content, and returns how many were compared. Skips pages
/// that the device wrote to while the agent read them, because they have no single digest.
fn check_digests(context: &Context<'_>, record: &DigestRecord, findings: &mut Findings) -> u64 {
    let Some(object) = context
        .preserved_into(record.generation)
        .find(|object| object.id == record.object)
    else {
        return 0;
    };
    let Some(pattern) = context.pattern(object.id) else {
        return 0;
    };
    let (frames, mut compared, mut words) = (object.frames(record.generation), 0, [0u64; PAGE_WORDS]);
    for (index, digest) in (record.first_page..).zip(&record.values) {
        let Some(frame) = usize::try_from(index).ok().and_then(|index| frames.get(index)) else {
            break;
        };
        let during = record.ledger_before..record.ledger_after;
        let at = Moment {
            generation: record.generation,
            time_ns: record.asked_ns,
            ledger_length: record.ledger_after,
        };
        if context
            .device_writes(*frame)
            .iter()
            .any(|write| during.contains(&context.write(*write).index))
        {
            continue;
        }
        compared += 1;
        match context.expected(object, index, *frame, at) {
            None => pattern.fill(index, &mut words),
            Some(expected) => {
                for (word, bytes) in words.iter_mut().zip(expected.bytes.as_chunks().0) {
                    *word = u64::from_le_bytes(*bytes);
                }
            }
        }
        let expected = page_digest(&words);
        if expected != *digest {
            findings.add(|| Finding {
                rule: RULE,
                page: Some(*frame),
                address: Some(frame * PAGE_BYTES as u64),
                owner: object.owner(),
                expected: format!("digest {expected:016x}"),
                actual: format!("digest {digest:016x}"),
                last_writer: Writer::Unknown {
                    reason: "a digest does not tell which byte differs".into(),
                },
                text: format!(
                    "the agent of generation {} found unexpected content in page {index} of {}",
                    record.generation,
                    object.owner()
                ),
                question: None,
                explained_by: Vec::new(),
            });
        }
    }
    compared
}
