//! `baton blob`: shows, checks, compares, extracts and builds the handover in an image of RAM.

mod build;
mod classes;
mod extract;
mod fdt;
mod fields;
mod json;
mod locate;
mod map;
mod text;
mod written;

use super::{Exit, complain, print};
use clap::{Args, Subcommand};
use harness::handover::ImageError;
use harness::hex::address;
use kho_core::Severity;
use locate::{Input, LocateError, Located};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = EXIT_HELP)]
pub(super) struct BlobArgs {
    #[command(subcommand)]
    command: BlobCommand,
}

const EXIT_HELP: &str = "FILE is a raw image of guest RAM whose byte 0 is physical address 0, or one packed with \
zstd; show takes a KHO FDT alone, too. Exit status: 0 fine, 1 verify found errors or diff found differences, 2 bad \
usage or a file without what was asked for, 3 a file cannot be read or written.";

#[derive(Debug, Subcommand)]
enum BlobCommand {
    /// Show the handover as a tree, each line with its physical address.
    Show(ShowArgs),
    /// Check the handover against every rule of its ABI.
    Verify(LookArgs),
    /// Compare two handovers: what appeared, vanished, moved or changed.
    Diff(DiffArgs),
    /// List preserved memory, and whose it is.
    Extents(LookArgs),
    /// List every field with its path, its address and its value.
    Fields(fields::FieldsArgs),
    /// Write the model and the pages of a handover into a directory, which build takes.
    Extract(extract::ExtractArgs),
    /// Write a handover into an image of RAM.
    Build(build::BuildArgs),
}

/// Arguments of the commands that read one handover.
#[derive(Debug, Args)]
struct LookArgs {
    /// Image of RAM with the handover in it.
    file: PathBuf,
    /// Physical address of the KHO FDT, or of the setup_data node that points to it; searched for when not given.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    at: Option<u64>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Draw the address space too: RAM, scratch, preserved memory by owner.
    #[arg(long, value_name = "FILE.svg")]
    map: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    look: LookArgs,
    /// List every folio, extent and the like, however many there are.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct DiffArgs {
    /// Image with the first handover.
    before: PathBuf,
    /// Image with the second handover.
    after: PathBuf,
    /// Address of the first handover, as for show.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    at: Option<u64>,
    /// Address of the second handover.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    at_second: Option<u64>,
    /// Compare what the records say only, not the bytes that they hand over.
    #[arg(long)]
    records: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Runs the command. A command returns `Err` with the exit status after it has printed its error.
pub(super) fn blob(args: &BlobArgs) -> Exit {
    let result = match &args.command {
        BlobCommand::Show(args) => show(args),
        BlobCommand::Verify(args) => verify(args),
        BlobCommand::Diff(args) => diff(args),
        BlobCommand::Extents(args) => extents(args),
        BlobCommand::Fields(args) => fields::fields(args),
        BlobCommand::Extract(args) => extract::extract(args),
        BlobCommand::Build(args) => build::build(args),
    };
    result.unwrap_or_else(|failed| failed)
}

fn show(args: &ShowArgs) -> Result<Exit, Exit> {
    let look = &args.look;
    let limit = if args.all {
        usize::MAX
    } else {
        kho_core::tree::LIST_LIMIT
    };
    let located = match open(&look.file, look.at)? {
        Input::Ram(located) => located,
        Input::Fdt(bytes) => {
            let tree = fdt::decode(&bytes).map_err(|error| wrong(&look.file, error))?;
            if look.map.is_some() {
                return Err(wrong(&look.file, "is an FDT alone: there is no memory to draw"));
            }
            let shown = if look.json {
                json::fdt(&look.file, &tree)
            } else {
                text::fdt(&look.file, &tree)
            };
            return print(&shown).map(|()| Exit::Met);
        }
    };
    draw(look, &located)?;
    let shown = if look.json {
        json::show(&look.file, &located)
    } else {
        text::show(&look.file, &located, limit)
    };
    print(&shown).map(|()| Exit::Met)
}

fn verify(args: &LookArgs) -> Result<Exit, Exit> {
    let located = open_ram(&args.file, args.at)?;
    draw(args, &located)?;
    let verdict = kho_core::verify(&located.found.handover, &located.image);
    let shown = if args.json {
        json::verify(&args.file, &located, &verdict)
    } else {
        text::verify(&args.file, &located, &verdict)
    };
    print(&shown)?;
    Ok(match verdict.findings.worst() {
        Some(Severity::Error) => Exit::Unmet,
        _ => Exit::Met,
    })
}

fn diff(args: &DiffArgs) -> Result<Exit, Exit> {
    let before = open_ram(&args.before, args.at)?;
    let after = open_ram(&args.after, args.at_second)?;
    let diff = kho_core::diff(side(&before, args.records), side(&after, args.records));
    let (one, other) = ((args.before.as_path(), &*before), (args.after.as_path(), &*after));
    let shown = if args.json {
        json::diff(one, other, &diff)
    } else {
        text::diff(one, other, &diff)
    };
    print(&shown)?;
    Ok(if diff.differences.is_empty() {
        Exit::Met
    } else {
        Exit::Unmet
    })
}

/// One side of a comparison: the handover, and the memory unless only `records` are compared.
fn side(located: &Located, records: bool) -> kho_core::diff::Side<'_> {
    kho_core::diff::Side {
        handover: &located.found.handover,
        memory: (!records).then_some(&located.image as &dyn kho_core::PhysicalMemory),
    }
}

fn extents(args: &LookArgs) -> Result<Exit, Exit> {
    let located = open_ram(&args.file, args.at)?;
    draw(args, &located)?;
    let extents = classes::extents(&located.found.handover);
    let shown = if args.json {
        json::extents(&args.file, &located, &extents)
    } else {
        text::extents(&args.file, &located, &extents)
    };
    print(&shown).map(|()| Exit::Met)
}

fn draw(args: &LookArgs, located: &Located) -> Result<(), Exit> {
    let Some(path) = &args.map else { return Ok(()) };
    let svg = map::draw(&args.file, located);
    std::fs::write(path, svg).map_err(|error| {
        complain(format!("{}: cannot be written: {error}", path.display()));
        Exit::Failed
    })
}

fn open(path: &Path, at: Option<u64>) -> Result<Input, Exit> {
    locate::open(path, at).map_err(|error| {
        let exit = match error {
            LocateError::Image(ImageError::Unreadable(_)) => Exit::Failed,
            _ => Exit::Usage,
        };
        // The message may quote the image, which is not trusted.
        complain(text::clean(&format!("{}: {error}", path.display())));
        exit
    })
}

fn open_ram(path: &Path, at: Option<u64>) -> Result<Box<Located>, Exit> {
    match open(path, at)? {
        Input::Ram(located) => Ok(located),
        Input::Fdt(_) => Err(wrong(
            path,
            "is an FDT alone, expected an image of RAM: what the FDT points to is not in it",
        )),
    }
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> Exit {
    complain(format!("{}: {error}", path.display()));
    Exit::Usage
}
