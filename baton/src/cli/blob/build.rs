//! `baton blob build`: a handover from a model file into an image of RAM.

use super::locate::Located;
use super::{Exit, complain, json, print, text, wrong};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use guest_agent::pattern::PAGE_BYTES;
use harness::evidence::PAGE;
use harness::handover::{Image, ImageError, LOW_MEMORY, Model, Source, SourceError};
use harness::scenario::Bytes;
use kho_core::find::{Found, find};
use kho_core::{
    Abi, FreeRegions, Handover, KhoData, PageAllocator, PhysicalMemory, PhysicalMemoryMut, Region, Severity,
};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// What is to be handed over; docs/blob.md describes the form. Or a directory that extract made, whose pages are
    /// written into the image, too.
    #[arg(value_name = "MODEL.toml|DIR")]
    model: PathBuf,
    /// Version of the records; unless given, the model's.
    #[arg(long, value_parser = abis())]
    abi: Option<Abi>,
    /// Raw image of RAM to write the handover into. Only zeroed pages are written to, unless the model names free
    /// memory.
    #[arg(long, value_name = "RAM.img")]
    into: PathBuf,
    /// Make the image, of this size, all zeroes; it must not exist yet.
    #[arg(long, value_name = "SIZE")]
    ram: Option<Bytes>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

fn abis() -> impl TypedValueParser<Value = Abi> {
    // `PossibleValuesParser` accepts only names of `Abi::ALL`, so the error never occurs.
    PossibleValuesParser::new(Abi::ALL.map(Abi::name))
        .try_map(|name| Abi::from_name(&name).ok_or("no such ABI"))
}

/// Allocates blocks that hold only zeroes, so that nothing in the image is overwritten.
struct Zeroed {
    regions: FreeRegions,
    image: Image,
    /// Whether the model names free memory; blocks are then handed out whatever they hold.
    trusted: bool,
}

impl PageAllocator for Zeroed {
    fn allocate(&mut self, order: u8) -> Option<u64> {
        loop {
            let address = self.regions.allocate(order)?;
            if self.trusted || is_zero(&self.image, address, PAGE << order) {
                return Some(address);
            }
        }
    }
}

fn is_zero(image: &Image, address: u64, size: u64) -> bool {
    let mut page = [0; PAGE_BYTES];
    (0..size / PAGE).all(|index| {
        image.read(address + index * PAGE, &mut page).is_ok() && page.iter().all(|byte| *byte == 0)
    })
}

/// Builds the handover, reads it back and verifies it. If that fails, an image that `--ram` made is removed.
pub(super) fn build(args: &BuildArgs) -> Result<Exit, Exit> {
    let Source { model, pages } = Source::load(&args.model).map_err(|error| {
        complain(&error);
        match error {
            SourceError::Unreadable { .. } => Exit::Failed,
            _ => Exit::Usage,
        }
    })?;
    let Some(abi) = args.abi.or(model.abi) else {
        return Err(wrong(&args.model, "it names no ABI: expected --abi"));
    };
    let image = target(args)?;
    let result = build_into(args, &model, abi, pages.as_ref(), image);
    if result.is_err()
        && args.ram.is_some()
        && let Err(error) = std::fs::remove_file(&args.into)
    {
        complain(format!("{}: cannot be removed: {error}", args.into.display()));
    }
    result
}

fn build_into(
    args: &BuildArgs,
    model: &Model,
    abi: Abi,
    pages: Option<&Image>,
    mut image: Image,
) -> Result<Exit, Exit> {
    let before = find(&image);
    if let Some(pages) = pages {
        pages
            .copy_into(&mut image)
            .map_err(|error| wrong(&args.into, harness::conductor::chain(&error)))?;
    }
    let mut free = allocator(model, &image).map_err(|error| failed(&args.into, error))?;
    let plan = model
        .blueprint(image.size(), &mut free)
        .map_err(|error| wrong(&args.model, error))?;
    let entry = kho_core::build(&plan, abi, &mut image, &mut free)
        .map_err(|error| wrong(&args.model, harness::conductor::chain(&error)))?;
    let setup_data = announce(entry, &mut image, &mut free).map_err(|error| failed(&args.into, error))?;
    let handover = Handover::read(&image, entry.fdt, entry.scratch)
        .map_err(|error| failed(&args.into, harness::conductor::chain(&error)))?;
    let located = Located {
        image,
        found: Found {
            entry,
            setup_data: Some(setup_data),
            handover,
        },
        others: before
            .found
            .iter()
            .map(|found| found.handover.fdt.start)
            .collect(),
        unread: before.unread,
    };
    let verdict = kho_core::verify(&located.found.handover, &located.image);
    let broken = verdict.findings.worst() == Some(Severity::Error);
    let shown = match (args.json, broken) {
        (true, _) => json::build(&args.into, &located, &verdict),
        (false, true) => text::verify(&args.into, &located, &verdict),
        (false, false) => format!(
            "{}\n{}",
            text::head(&args.into, &located),
            text::summary(&located.found.handover)
        ),
    };
    print(&shown)?;
    Ok(if broken { Exit::Unmet } else { Exit::Met })
}

/// Opens the image to write into; with `--ram` creates it first.
fn target(args: &BuildArgs) -> Result<Image, Exit> {
    if let Some(size) = args.ram {
        let made = std::fs::File::create_new(&args.into).and_then(|file| file.set_len(size.0));
        made.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                wrong(&args.into, "exists already, but --ram makes a new image")
            }
            _ => failed(&args.into, error),
        })?;
    }
    Image::open_writable(&args.into).map_err(|error| match error {
        ImageError::Unreadable(error) => failed(&args.into, error),
        ImageError::Wrong(error) => wrong(&args.into, error),
    })
}

fn allocator(model: &Model, image: &Image) -> Result<Zeroed, ImageError> {
    let ram = image.ranges();
    let placed = model.placed();
    let trusted = model.free().next().is_some();
    let regions = if trusted {
        let inside: Vec<Region> = model.free().filter(|region| image.is_ram(region)).collect();
        FreeRegions::outside(&inside, placed)
    } else {
        FreeRegions::outside(&ram, placed.into_iter().chain([LOW_MEMORY]))
    };
    Ok(Zeroed {
        regions,
        image: image.again()?,
        trusted,
    })
}

/// Writes a `setup_data` node that points to the handover. Returns its address.
fn announce(entry: KhoData, image: &mut Image, free: &mut Zeroed) -> Result<u64, String> {
    let at = free.allocate(0).ok_or("no free page for setup_data")?;
    let mut node = vec![0; PAGE_BYTES];
    node[..KhoData::NODE_SIZE].copy_from_slice(&entry.to_node(0));
    image.write(at, &node).map_err(|error| error.to_string())?;
    Ok(at)
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Exit {
    complain(format!("{}: {error}", path.display()));
    Exit::Failed
}
