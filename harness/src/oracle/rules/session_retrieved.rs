//! `session-retrieved`: each session and each memfd that was preserved is retrieved in the new kernel.

use crate::evidence::{ObjectEvidence, ObjectKind, OutcomeKind, PageContent};
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
        for object in context.preserved_into(generation) {
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
    let count = evidence.retrievals.len() as u64;
    let looked_at = LookedAt {
        count,
        unit: "retrievals",
        note: "sessions and memfds".into(),
    };
    RuleResult {
        rule: RULE,
        looked_at,
        findings,
        blind: Vec::new(),
    }
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
        .filter(|(index, (content, frame))| {
            match context.expected(object, *index, **frame, checkpoint.at.ledger_length) {
                None => **content == PageContent::Pattern,
                Some(expected) => context.actual(object.id, *index, **content) == Some(expected.bytes),
            }
        });
    let what = if matches!(object.kind, ObjectKind::Memfd { .. }) {
        "its memory"
    } else {
        "the memory"
    };
    format!(
        "{what} has {} of {} pages intact at the end",
        intact.count(),
        capture.pages.len()
    )
}
