//! `baton blob fields`: every field of a handover, with its path.

use super::{Exit, address, complain, json, open_ram, print, text, wrong};
use clap::Args;
use harness::conductor::chain;
use harness::evidence::{BlobEvidence, Evidence};
use kho_core::fields::{Field, LIST_LIMIT, Place, Source, Value, unpadded};
use kho_core::tree::Counted;
use kho_core::{Handover, SparseMemory};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct FieldsArgs {
    /// Image of RAM with the handover in it, or evidence that `baton run --out` kept.
    #[arg(value_name = "FILE|EVIDENCE")]
    source: PathBuf,
    /// Physical address of the KHO FDT, or of the setup_data node that points to it, as for show.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    at: Option<u64>,
    /// Of evidence, the handover that this kernel generation left.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    generation: u32,
    /// List every folio, word and block, however many there are.
    #[arg(long)]
    all: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Lists the fields.
pub(super) fn fields(args: &FieldsArgs) -> Result<Exit, Exit> {
    let limit = if args.all { usize::MAX } else { LIST_LIMIT };
    let fields = if args.source.is_dir() {
        let evidence = harness::evidence::load(&args.source).map_err(|error| {
            complain(chain(&error));
            Exit::Failed
        })?;
        let (memory, handover) = of_evidence(&args.source, &evidence, args.generation)?;
        let source = Source {
            handover: &handover,
            memory: &memory,
            setup_data: None,
        };
        source.list(limit)
    } else {
        let located = open_ram(&args.source, args.at)?;
        let source = Source {
            handover: &located.found.handover,
            memory: &located.image,
            setup_data: located.found.setup_data,
        };
        source.list(limit)
    };
    let shown = if args.json {
        json::fields(&args.source, &fields)
    } else {
        lines(&fields)
    };
    print(&shown).map(|()| Exit::Met)
}

/// The handover that a generation left, from the evidence in a directory.
pub(super) fn of_evidence(
    directory: &Path,
    evidence: &Evidence,
    generation: u32,
) -> Result<(SparseMemory, Handover), Exit> {
    let blobs = evidence.blobs.iter();
    let blob = { blobs }.find(|blob| blob.generation == generation);
    let missing = || wrong(directory, format!("generation {generation} left no handover"));
    let blob: &BlobEvidence = blob.ok_or_else(missing)?;
    let kho = blob.kho.ok_or_else(missing)?;
    let memory = harness::blob::memory(blob);
    let handover = Handover::read(&memory, kho.fdt, kho.scratch);
    let handover = handover.map_err(|error| wrong(directory, chain(&error)))?;
    Ok((memory, handover))
}

fn lines(fields: &[Field]) -> String {
    let width = fields.iter().map(|field| field.path.len()).max().unwrap_or(0);
    let line = |field: &Field| {
        let (at, bits) = match field.place {
            Place::Bytes { at, bits, width, .. } if field.kind.is_number() => {
                let part = if u64::from(bits) == width as u64 * 8 {
                    ""
                } else {
                    "."
                };
                (format!("{at:#14x}"), format!("{bits}{part}"))
            }
            Place::Bytes { at, width, .. } => (format!("{at:#14x}"), format!("{}", width * 8)),
            Place::Block { .. } => (" ".repeat(14), "-".into()),
        };
        let (path, kind) = (&field.path, field.kind);
        let shown = value(&field.value);
        text::clean(&format!("{at}  {bits:>5}  {kind:<8}  {path:<width$}  {shown}")) + "\n"
    };
    let all: String = fields.iter().map(line).collect();
    let head = format!(
        "{:>14}  {:>5}  {:<8}  {:<width$}  value\n",
        "address", "bits", "kind", "path"
    );
    format!("{head}{all}{}\n", Counted::of(fields.len(), "field"))
}

fn value(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("{number:#x}"),
        Value::Bytes(bytes) => format!("\"{}\"", unpadded(bytes).escape_ascii()),
    }
}
