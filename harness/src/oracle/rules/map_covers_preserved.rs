//! `map-covers-preserved`: the map in each handover blob covers exactly the pages that the agent preserved and the
//! pages that the handover itself consists of.

use super::blob_well_formed::cut;
use crate::blob::{BlobError, Handed};
use crate::evidence::{BlobEvidence, ObjectEvidence, ObjectKind, PAGE};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use std::collections::{BTreeSet, HashMap, HashSet};

const RULE: RuleName = RuleName::MapCoversPreserved;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (mut findings, mut looked) = (Findings::default(), 0);
    let (mut notes, mut blind) = (Vec::new(), Vec::new());
    for blob in &context.evidence.blobs {
        match crate::blob::decode(blob) {
            Ok(handed) => {
                let (pages, own) = check_map(context, blob, &handed, &mut findings);
                looked += pages;
                notes.push(format!(
                    "jump {}: {pages} pages, {own} of them the handover's own",
                    blob.generation + 1
                ));
            }
            Err(error @ BlobError::Cut { .. }) => blind.push(cut(blob, &error)),
            Err(error) => findings.add(|| Finding {
                rule: RULE,
                page: None,
                address: None,
                owner: format!("handover blob of generation {}", blob.generation),
                expected: "a handover blob with a map".into(),
                actual: error.to_string(),
                last_writer: Writer::Nobody,
                text: format!(
                    "the handover blob of generation {} cannot be read: {error}",
                    blob.generation
                ),
                question: None,
                explained_by: Vec::new(),
            }),
        }
    }
    let note = notes.join("; ");
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: looked,
            unit: "pages",
            note,
        },
        findings,
        blind,
    }
}

/// Compares one map with the preserved pages. Returns how many pages were checked and how many of them are the
/// handover's own.
fn check_map(
    context: &Context<'_>,
    blob: &BlobEvidence,
    handed: &Handed,
    findings: &mut Findings,
) -> (u64, u64) {
    let mut agents: HashMap<u64, (&ObjectEvidence, u64)> = HashMap::new();
    let by_the_map = context
        .preserved_into(blob.generation + 1)
        .filter(|object| object.kind != ObjectKind::Device);
    for object in by_the_map {
        agents.extend(
            (0..)
                .zip(object.frames(blob.generation))
                .map(|(index, frame)| (frame, (object, index))),
        );
    }
    let mut missing: Vec<_> = agents
        .iter()
        .filter(|(frame, _)| !handed.preserved.contains(*frame))
        .collect();
    missing.sort_unstable_by_key(|(frame, _)| **frame);
    for (frame, (object, index)) in missing {
        let text = format!("page {index} of {} is not in the handover map", object.owner());
        findings.add(|| finding(*frame, object.owner(), "in the map", "not in the map", text));
    }
    let by_loops = preserved_by_loops(context, handed);
    for frame in by_loops
        .iter()
        .filter(|frame| !handed.preserved.contains(**frame))
    {
        let text = format!("page {frame:#x} of a file that a loop has preserved is not in the handover map");
        findings.add(|| finding(**frame, "a file".into(), "in the map", "not in the map", text));
    }
    let mut own = 0;
    for frame in &handed.preserved {
        if agents.contains_key(frame) {
            continue;
        }
        if handed.own.contains_key(frame) {
            own += 1;
            continue;
        }
        if by_loops.contains(frame) {
            continue;
        }
        let text =
            format!("page {frame:#x} is in the handover map, and neither the agent's nor the handover's own");
        findings.add(|| finding(*frame, "nobody".into(), "not in the map", "in the map", text));
    }
    (handed.preserved.len() as u64, own)
}

/// Page frames of the files in sessions that a step with `loop = true` fills. Whether there is such a session at the
/// jump is a matter of chance, but what the blob says is in it has to be in the map, and the other way round.
fn preserved_by_loops<'a>(context: &Context<'_>, handed: &'a Handed) -> BTreeSet<&'a u64> {
    let steps = context.evidence.steps.iter();
    let sessions: HashSet<&str> = steps.filter_map(|step| step.fills.as_deref()).collect();
    let files = handed.files.iter();
    let theirs = files.filter(|file| sessions.contains(file.session.as_str()));
    theirs.flat_map(|file| &file.frames).collect()
}

fn finding(frame: u64, owner: String, expected: &str, actual: &str, text: String) -> Finding {
    Finding {
        rule: RULE,
        page: Some(frame),
        address: Some(frame.saturating_mul(PAGE)),
        owner,
        expected: expected.into(),
        actual: actual.into(),
        last_writer: Writer::Nobody,
        text,
        question: None,
        explained_by: Vec::new(),
    }
}
