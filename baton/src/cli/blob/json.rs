//! What `baton blob --json` prints; docs/blob.md describes it.

use super::classes::{self, Extent};
use super::locate::Located;
use kho_core::diff::Diff;
use kho_core::fields::Value::{Bytes, Number};
use kho_core::fields::{Field, Place};
use kho_core::find::Unread;
use kho_core::tree::Line;
use kho_core::verify::Verdict;
use kho_core::{Handover, Rule};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Version of the schema; goes up when a field is removed or changes its meaning.
const VERSION: u32 = 1;

/// A document with the fields of every command, followed by `fields`.
fn document(command: &str, fields: Value) -> String {
    let mut all = Map::new();
    all.insert("schema".into(), json!("baton-blob"));
    all.insert("version".into(), json!(VERSION));
    all.insert("baton".into(), json!(env!("CARGO_PKG_VERSION")));
    all.insert("command".into(), json!(command));
    if let Value::Object(fields) = fields {
        all.extend(fields);
    }
    format!("{:#}", Value::Object(all))
}

/// The file, and the addresses at which the handover was found.
fn source(file: &Path, located: &Located) -> Value {
    let found = &located.found;
    json!({
        "file": file.display().to_string(),
        "ram_bytes": located.image.size(),
        "setup_data": found.setup_data,
        "fdt": found.entry.fdt,
        "scratch_array": found.entry.scratch,
        "other_fdts": located.others,
        "unread_fdts": located.unread.iter().map(unread).collect::<Vec<_>>(),
    })
}

fn unread(unread: &Unread) -> Value {
    json!({
        "fdt": unread.fdt,
        "setup_data": unread.setup_data,
        "reason": harness::conductor::chain(&unread.error),
    })
}

fn owners(handover: &Handover) -> Vec<Value> {
    classes::totals(&classes::extents(handover))
        .into_iter()
        .map(|(owner, bytes)| {
            json!({"kind": classes::kind(owner), "owner": classes::name(owner, handover), "bytes": bytes})
        })
        .collect()
}

/// `show` of an image.
pub(super) fn show(file: &Path, located: &Located) -> String {
    let handover = &located.found.handover;
    document(
        "show",
        json!({
            "source": source(file, located),
            "handover": handover,
            "owners": owners(handover),
        }),
    )
}

/// `show` of an FDT alone.
pub(super) fn fdt(file: &Path, tree: &Line) -> String {
    document("show", json!({"file": file.display().to_string(), "fdt": tree}))
}

/// `verify`.
pub(super) fn verify(file: &Path, located: &Located, verdict: &Verdict) -> String {
    let rules: Vec<Value> = Rule::ALL
        .iter()
        .map(|rule| {
            json!({
                "rule": rule.name(),
                "severity": rule.severity(),
                "explanation": rule.explanation().trim(),
                "judged": verdict.judged(*rule),
                "findings": verdict.findings.of(*rule).count(),
            })
        })
        .collect();
    document(
        "verify",
        json!({
            "source": source(file, located),
            "sound": verdict.is_sound(),
            "worst": verdict.findings.worst(),
            "findings": verdict.findings.iter().collect::<Vec<_>>(),
            "dropped": verdict.findings.dropped(),
            "rules": rules,
        }),
    )
}

/// `diff`.
pub(super) fn diff(
    (file, one): (&Path, &Located),
    (other_file, other): (&Path, &Located),
    diff: &Diff,
) -> String {
    document(
        "diff",
        json!({
            "before": source(file, one),
            "after": source(other_file, other),
            "differences": diff.differences,
            "dropped": diff.dropped,
        }),
    )
}

/// `extents`.
pub(super) fn extents(file: &Path, located: &Located, extents: &[Extent]) -> String {
    let handover = &located.found.handover;
    let list: Vec<Value> = extents
        .iter()
        .map(|extent| {
            json!({
                "start": extent.region.start,
                "size": extent.region.size,
                "kind": classes::kind(extent.owner),
                "owner": classes::name(extent.owner, handover),
            })
        })
        .collect();
    document(
        "extents",
        json!({"source": source(file, located), "extents": list, "owners": owners(handover)}),
    )
}

/// `build`.
pub(super) fn build(file: &Path, located: &Located, verdict: &Verdict) -> String {
    document(
        "build",
        json!({
            "source": source(file, located),
            "sound": verdict.is_sound(),
            "findings": verdict.findings.iter().collect::<Vec<_>>(),
        }),
    )
}

/// `fields`.
pub(super) fn fields(file: &Path, fields: &[Field]) -> String {
    let list: Vec<Value> = fields
        .iter()
        .map(|field| {
            let (at, width) = match field.place {
                Place::Bytes { at, width, .. } => (Some(at), Some(width)),
                Place::Block { .. } => (None, None),
            };
            let (number, bytes) = match &field.value {
                Number(number) => (Some(*number), None),
                Bytes(bytes) => (None, Some(bytes)),
            };
            json!({
                "path": field.path, "kind": field.kind, "at": at, "width": width, "number": number, "bytes": bytes,
            })
        })
        .collect();
    document(
        "fields",
        json!({"file": file.display().to_string(), "fields": list}),
    )
}
