//! `blob-well-formed`: each handover blob can be decoded, and has no finding of at least a warning.

use crate::blob::BlobError;
use crate::evidence::BlobEvidence;
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};

const RULE: RuleName = RuleName::BlobWellFormed;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (mut findings, mut notes, mut blind) = (Findings::default(), Vec::new(), Vec::new());
    for blob in &context.evidence.blobs {
        match crate::blob::decode(blob) {
            Ok(handed) => {
                notes.push(format!("{} in {} pages", handed.version, blob.pages.len()));
                for problem in handed.problems {
                    findings.add(|| finding(blob, problem));
                }
            }
            Err(error @ BlobError::Cut { .. }) => blind.push(cut(blob, &error)),
            Err(error) => findings.add(|| finding(blob, error.to_string())),
        }
    }
    let count = context.evidence.blobs.len() as u64;
    let looked_at = LookedAt {
        count,
        unit: "handover blobs",
        note: notes.join("; "),
    };
    RuleResult {
        rule: RULE,
        looked_at,
        findings,
        blind,
    }
}

/// What a rule says of a blob that is cut.
pub(super) fn cut(blob: &BlobEvidence, error: &BlobError) -> String {
    format!("the handover blob of generation {}: {error}", blob.generation)
}

fn finding(blob: &BlobEvidence, problem: String) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: blob.kho.map(|kho| kho.fdt.start),
        owner: format!("handover blob of generation {}", blob.generation),
        expected: "a sound handover blob".into(),
        actual: problem.clone(),
        last_writer: Writer::Nobody,
        text: format!(
            "the handover blob of generation {} is unsound: {problem}",
            blob.generation
        ),
        question: None,
        explained_by: Vec::new(),
    }
}
