//! `session-retrieved`: each session, each memfd and each region of reserve_mem that was preserved is retrieved in the
//! new kernel, and the kernel's own test of Kexec HandOver, if it ran, says that it has its data again.

use crate::evidence::{Evidence, MemfdEnd, ObjectEvidence, ObjectKind, OutcomeKind, PageContent};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};

const RULE: RuleName = RuleName::SessionRetrieved;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (evidence, mut findings) = (context.evidence, Findings::default());
    for retrieval in &evidence.retrievals {
        let Some(failure) = retrieval
            .failure
            .and_then(|failure| evidence.failures.get(failure))
        else {
            continue;
        };
        let text = format!(
            "generation {} could not retrieve {}: {failure}",
            retrieval.generation, retrieval.what
        );
        findings.add(|| finding(retrieval.what.clone(), failure.to_string(), text));
    }
    // What the failure means for the object's memory; losing the session alone says nothing about that.
    for generation in 1..=evidence.kexecs {
        if evidence.jump_time(generation - 1).is_none() {
            continue;
        }
        // What a run that was cut short had not come to is not lost.
        let outcome = &evidence.outcome;
        if outcome.kind == OutcomeKind::LedgerFull && outcome.generation == generation {
            continue;
        }
        let seen = evidence
            .payload
            .as_ref()
            .is_some_and(|payload| payload.retrievals_seen);
        let wanted = context
            .preserved_into(generation)
            .filter(|object| object.end == MemfdEnd::Retrieved && (seen || !object.is_found()));
        for object in wanted {
            let done = evidence.retrievals.iter().any(|retrieval| {
                let same = retrieval.generation == generation && retrieval.object == Some(object.id);
                same && retrieval.failure.is_none()
            });
            if !done {
                let text = format!(
                    "generation {generation} never retrieved {}; {}",
                    object.owner(),
                    kept(context, object, generation)
                );
                findings.add(|| finding(object.owner(), "not retrieved".into(), text));
            }
        }
    }
    let (tests, blind) = check_test(evidence, &mut findings);
    let count = evidence.retrievals.len() as u64 + tests;
    let looked_at = LookedAt {
        count,
        unit: "retrievals",
        note: "sessions, memfds, regions of reserve_mem, and the kernel's own test".into(),
    };
    RuleResult {
        rule: RULE,
        looked_at,
        findings,
        blind,
    }
}

/// Checks what new kernels say of the data of the kernel's own test. Returns how many jumps had such data, and what
/// could not be seen.
fn check_test(evidence: &Evidence, findings: &mut Findings) -> (u64, Vec<String>) {
    let (mut jumps, mut blind) = (0, Vec::new());
    for blob in &evidence.blobs {
        // Another rule says what cannot be decoded.
        let Some(folios) = crate::blob::decode(blob)
            .ok()
            .and_then(|handed| handed.test_folios)
        else {
            continue;
        };
        jumps += 1;
        let generation = blob.generation.saturating_add(1);
        match test_restored(evidence, generation) {
            Some(true) => {}
            Some(false) => findings.add(|| {
                let text = format!(
                    "generation {generation} was handed {folios} folios by the kernel's own test, and does not say \
                     that it has restored them"
                );
                finding("data of the kernel's own test".into(), "not restored".into(), text)
            }),
            None => blind.push(format!(
                "the log of generation {generation} is missing, which says what became of the test's data"
            )),
        }
    }
    if evidence.test_kho && jumps == 0 && !evidence.blobs.is_empty() {
        blind.push("no kernel handed data of its own test over (CONFIG_TEST_KEXEC_HANDOVER)".into());
    }
    (jumps, blind)
}

/// What lib/test_kho.c logs if it has all its folios again and their checksum agrees.
const RESTORED: &str = "KHO restore succeeded";

/// Whether a new kernel says that its own test has its data again; `None` if its log was not read, or not from its
/// beginning.
pub(crate) fn test_restored(evidence: &Evidence, generation: u32) -> Option<bool> {
    let log = evidence
        .kernel_logs
        .iter()
        .find(|log| log.generation == generation)?;
    let said = log.records.iter().any(|record| record.text.contains(RESTORED));
    (said || log.lost == 0).then_some(said)
}

fn finding(owner: String, actual: String, text: String) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner,
        expected: "retrieved".into(),
        actual,
        last_writer: Writer::Nobody,
        text,
        question: None,
        explained_by: Vec::new(),
    }
}

/// How many of an object's pages have their expected content at the last checkpoint of `generation`.
fn kept(context: &Context<'_>, object: &ObjectEvidence, generation: u32) -> String {
    let checkpoint = context
        .checkpoints()
        .filter(|(_, checkpoint)| checkpoint.at.generation == generation)
        .last();
    let capture = checkpoint.and_then(|(_, checkpoint)| {
        let capture = checkpoint
            .objects
            .iter()
            .find(|capture| capture.object == object.id)?;
        Some((checkpoint, capture))
    });
    let Some((checkpoint, capture)) = capture else {
        return "its memory was not looked at".into();
    };
    let frames = object.frames(generation);
    let intact = (0u64..)
        .zip(capture.pages.iter().zip(&frames))
        .filter(
            |(index, (content, frame))| match context.expected(object, *index, **frame, checkpoint.at) {
                None => **content == PageContent::Pattern,
                Some(expected) => context.actual(object.id, *index, **content) == Some(expected.bytes),
            },
        );
    let what = if object.kind == ObjectKind::Anonymous {
        "the memory"
    } else {
        "its memory"
    };
    format!(
        "{what} has {} of {} pages intact at the end",
        intact.count(),
        capture.pages.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::good;
    use guest_agent::protocol::LogRecord;

    #[test]
    fn the_kernels_own_test_counts_only_by_its_word() {
        let mut evidence = good();
        assert_eq!(test_restored(&evidence, 1), Some(false));
        evidence.kernel_log(1).lost = 1;
        assert_eq!(test_restored(&evidence, 1), None, "it may have said so earlier");
        let said = |text: &str| LogRecord {
            time_us: 5,
            level: 6,
            text: text.into(),
        };
        evidence
            .kernel_log(1)
            .records
            .push(said("test_kho: KHO restore failed"));
        assert_eq!(test_restored(&evidence, 1), None);
        evidence
            .kernel_log(1)
            .records
            .push(said("test_kho: KHO restore succeeded"));
        assert_eq!(test_restored(&evidence, 1), Some(true));
        evidence.kernel_logs.clear();
        assert_eq!(test_restored(&evidence, 1), None);
    }

    #[test]
    fn a_test_that_was_wanted_and_did_not_run_is_not_judged() {
        let mut evidence = good();
        let mut findings = Findings::default();
        assert_eq!(check_test(&evidence, &mut findings), (0, Vec::new()));
        evidence.test_kho = true;
        let (jumps, blind) = check_test(&evidence, &mut findings);
        assert_eq!((jumps, blind.len(), findings.total), (0, 1, 0));
        assert!(blind[0].contains("CONFIG_TEST_KEXEC_HANDOVER"), "{blind:?}");
    }
}
