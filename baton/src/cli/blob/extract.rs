//! `baton blob extract`: a handover as a model and the pages that it hands over, for `build`.

use super::locate::Located;
use super::{Exit, address, complain, open_ram, print, written, wrong};
use clap::Args;
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use harness::conductor::{Run, chain};
use harness::evidence::{CheckpointKind, Evidence, PAGE};
use harness::handover::{MODEL, PAGES};
use harness::scenario::Bytes;
use harness::snapshot::RunSnapshot;
use kho_core::find::find;
use kho_core::tree::Counted;
use kho_core::{Abi, Blueprint, Handover, MemoryError, Owner, Owners, PhysicalMemory, Region, SparseMemory};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct ExtractArgs {
    /// Evidence that `baton run --out` kept, a snapshot, or an image of RAM.
    #[arg(value_name = "EVIDENCE|SNAPSHOT|RAM.img")]
    source: PathBuf,
    /// Directory to make; it must not exist yet.
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Of an image, the physical address of the KHO FDT, or of the setup_data node that points to it, as for show.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    at: Option<u64>,
    /// Of evidence, the handover that this kernel generation left.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    generation: u32,
}

/// Extracts a handover.
pub(super) fn extract(args: &ExtractArgs) -> Result<Exit, Exit> {
    let told = if args.source.is_dir() {
        of_evidence(args)
    } else if harness::snapshot::is_snapshot(&args.source) {
        of_snapshot(args)
    } else {
        let located = open_ram(&args.source, args.at)?;
        let Located { image, found, .. } = &*located;
        keep(args, image, &found.handover, &BTreeSet::new())
    }?;
    print(&told).map(|()| Exit::Met)
}

fn of_snapshot(args: &ExtractArgs) -> Result<String, Exit> {
    let failed = |error: &dyn std::error::Error| {
        complain(format!("{}: {}", args.source.display(), chain(error)));
        Exit::Failed
    };
    let snapshot = RunSnapshot::read(&args.source).map_err(|error| failed(&error))?;
    let run = Run::from_snapshot(&snapshot, &[]).map_err(|error| failed(&error))?;
    let memory = run.memory();
    let found = find(&memory).found.into_iter().next();
    let found = found.ok_or_else(|| wrong(&args.source, "its memory holds no handover that can be read"))?;
    keep(args, &memory, &found.handover, &BTreeSet::new())
}

fn of_evidence(args: &ExtractArgs) -> Result<String, Exit> {
    let evidence = harness::evidence::load(&args.source).map_err(|error| {
        complain(chain(&error));
        Exit::Failed
    })?;
    let (mut memory, handover) = super::fields::of_evidence(&args.source, &evidence, args.generation)?;
    let known = captured(&evidence, args.generation, &mut memory);
    let data = data(&handover);
    let frames = data.iter().flat_map(frames);
    let missing = frames.filter(|frame| !known.contains(frame)).collect();
    keep(args, &memory, &handover, &missing)
}

/// Puts the pages of memfds into memory as they were when the next kernel had retrieved them. Returns their frames.
fn captured(evidence: &Evidence, generation: u32, memory: &mut SparseMemory) -> BTreeSet<u64> {
    let mut known = BTreeSet::new();
    let checkpoints = evidence.captures.checkpoints.iter();
    let of_next = |at: u32| at == generation.saturating_add(1);
    let mut retrieved = checkpoints
        .filter(|one| of_next(one.at.generation))
        .filter(|one| matches!(one.kind, CheckpointKind::Retrieved | CheckpointKind::End));
    let Some(first) = retrieved.next() else {
        return known;
    };
    for capture in &first.objects {
        let Some(object) = evidence.object(capture.object) else {
            continue;
        };
        let pattern = Pattern::new(object.pattern_seed);
        let pages = (0..).zip(object.frames(generation)).zip(&capture.pages);
        for ((index, frame), content) in pages {
            if let Some(page) = evidence.captures.bytes(&pattern, index, *content) {
                memory.insert(frame.saturating_mul(PAGE), page);
                known.insert(frame);
            }
        }
    }
    known
}

/// Memory that is handed over for its content: files, regions, what sub-blobs refer to, and blocks of unknown owners.
fn data(handover: &Handover) -> Vec<Region> {
    let owners = Owners::of(handover);
    let mut regions = owners.regions(|owner: Owner| !owner.is_record());
    let blocks = handover.map.blocks_by_address();
    let unclaimed = blocks.filter(|block| owners.at(block.address).is_none());
    regions.extend(unclaimed.map(|block| block.region()));
    regions
}

fn frames(region: &Region) -> std::ops::Range<u64> {
    region.start / PAGE..region.end().div_ceil(PAGE)
}

/// Writes the directory. Returns what is said of it.
fn keep(
    args: &ExtractArgs,
    memory: &dyn PhysicalMemory,
    handover: &Handover,
    missing: &BTreeSet<u64>,
) -> Result<String, Exit> {
    let unreadable = |error: MemoryError| wrong(&args.source, chain(&error));
    let plan = handover.blueprint(memory).map_err(unreadable)?;
    let abi = Abi::of(handover);
    let ram = memory.ranges().iter().map(Region::end).max().unwrap_or(0);
    let mut wanted: BTreeSet<u64> = data(handover).iter().flat_map(frames).collect();
    wanted.retain(|frame| *frame < ram / PAGE && !missing.contains(frame));
    let failed = |path: &Path, error: std::io::Error| {
        complain(format!("{}: {error}", path.display()));
        Exit::Failed
    };
    std::fs::create_dir(&args.out).map_err(|error| failed(&args.out, error))?;
    let model = args.out.join(MODEL);
    std::fs::write(&model, text(&plan, abi, ram)).map_err(|error| failed(&model, error))?;
    let pages = args.out.join(PAGES);
    let count = write_pages(&pages, memory, ram, &wanted).map_err(|error| failed(&pages, error))?;
    let mut told = format!(
        "{}: {abi}, {} of file data and regions kept, RAM of {}\n",
        args.out.display(),
        Bytes(count * PAGE),
        Bytes(ram)
    );
    if !missing.is_empty() {
        let pages = Counted::of(missing.len(), "page");
        told.push_str(&format!(
            "{pages} of preserved memory not in the evidence, and zeroes here\n"
        ));
    }
    Ok(told)
}

/// Writes these page frames as an image of RAM. Returns how many pages there are.
fn write_pages(
    path: &Path,
    memory: &dyn PhysicalMemory,
    ram: u64,
    wanted: &BTreeSet<u64>,
) -> std::io::Result<u64> {
    let mut out = zstd::Encoder::new(std::fs::File::create_new(path)?, 3)?;
    let (mut page, zeroes) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    let mut count = 0;
    for frame in 0..ram / PAGE {
        let read = wanted.contains(&frame) && memory.read(frame * PAGE, &mut page).is_ok();
        count += u64::from(read);
        out.write_all(if read { &page } else { &zeroes })?;
    }
    out.finish()?.sync_all()?;
    Ok(count)
}

/// The model file of a blueprint.
fn text(plan: &Blueprint, abi: Abi, ram: u64) -> String {
    let head = format!(
        "# A handover of {abi}, from RAM of {}; docs/blob.md of baton describes the form.\nabi = \"{abi}\"\n",
        Bytes(ram)
    );
    head + &written::model(plan)
}
