//! Finds the handover in a file.

use harness::evidence::PAGE;
use harness::handover::{Image, ImageError};
use kho_core::find::{Found, Unread, find};
use kho_core::{Handover, KhoData, PhysicalMemory, Region};
use std::path::Path;

/// Most unreadable KHO FDTs whose errors are listed in a message.
pub(super) const MAX_REASONS: usize = 8;

/// A RAM image and the handover found in it.
pub(super) struct Located {
    /// The image.
    pub image: Image,
    /// The handover.
    pub found: Found,
    /// Addresses of the KHO FDTs of other handovers in the image; empty if it was not searched.
    pub others: Vec<u64>,
    /// KHO FDTs in the image that cannot be read; empty if it was not searched.
    pub unread: Vec<Unread>,
}

/// Contents of a file, as far as `blob` tells them apart.
pub(super) enum Input {
    /// RAM with a handover.
    Ram(Box<Located>),
    /// The bytes of an FDT alone.
    Fdt(Vec<u8>),
}

/// Why there is no handover to look at.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocateError {
    /// The file cannot be used as an image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Nothing was found.
    #[error("holds no handover: no page of its {size} bytes is a KHO FDT that can be read")]
    Nothing {
        /// Size of the image in bytes.
        size: u64,
    },
    /// Every KHO FDT found is of an unknown version or damaged.
    #[error("holds no handover that can be read: {}", reasons(.0))]
    Unread(Vec<Unread>),
    /// There is no handover at the given address.
    #[error("holds no handover at {at:#x}: {reason}")]
    NotThere {
        /// The address given.
        at: u64,
        /// Why not.
        reason: String,
    },
}

/// Opens a file and finds the handover in it: at the address of a KHO FDT or a `setup_data` node, or by searching.
pub(super) fn open(path: &Path, at: Option<u64>) -> Result<Input, LocateError> {
    let image = Image::open(path)?;
    if at.is_none()
        && let Some(bytes) = bare_fdt(&image)
    {
        return Ok(Input::Fdt(bytes));
    }
    let (found, others, unread) = match at {
        Some(at) => (at_address(&image, at)?, Vec::new(), Vec::new()),
        None => {
            let search = find(&image);
            let mut all = search.found.into_iter();
            let Some(first) = all.next() else {
                return Err(nothing(&image, search.unread));
            };
            let others = all.map(|other| other.handover.fdt.start).collect();
            (first, others, search.unread)
        }
    };
    Ok(Input::Ram(Box::new(Located {
        image,
        found,
        others,
        unread,
    })))
}

/// The error for a search without a readable handover.
fn nothing(image: &Image, unread: Vec<Unread>) -> LocateError {
    if unread.is_empty() {
        LocateError::Nothing { size: image.size() }
    } else {
        LocateError::Unread(unread)
    }
}

/// Why a KHO FDT cannot be read, with its address and that of the `setup_data` node that points to it.
pub(super) fn reason(unread: &Unread) -> String {
    let told = match unread.setup_data {
        Some(at) => format!(" (setup_data at {at:#x} points to it)"),
        None => String::new(),
    };
    format!("{}{told}", harness::conductor::chain(&unread.error))
}

/// Why KHO FDTs cannot be read, on one line. At most [`MAX_REASONS`] are named, because a hostile image holds hundreds.
fn reasons(unread: &[Unread]) -> String {
    let (some, others) = unread.split_at(unread.len().min(MAX_REASONS));
    let mut reasons: Vec<String> = some.iter().map(reason).collect();
    if !others.is_empty() {
        reasons.push(format!("and {} more", others.len()));
    }
    reasons.join("; ")
}

/// The file's bytes if it is an FDT and nothing else. An image of RAM that begins with an FDT is larger than that FDT.
fn bare_fdt(image: &Image) -> Option<Vec<u8>> {
    let bytes = image.small(kho_core::read::MAX_FDT_SIZE)?;
    let stated = kho_core::fdt::total_size(&bytes).ok()?;
    // Saved pages are padded to whole pages.
    let padded = u64::from(stated).next_multiple_of(PAGE);
    (image.size() <= padded).then_some(bytes)
}

fn at_address(image: &Image, at: u64) -> Result<Found, LocateError> {
    let not_there = |reason: String| LocateError::NotThere { at, reason };
    if let Some(entry) = setup_data(image, at) {
        let handover = Handover::read(image, entry.fdt, entry.scratch)
            .map_err(|error| not_there(harness::conductor::chain(&error)))?;
        return Ok(Found {
            entry,
            setup_data: Some(at),
            handover,
        });
    }
    let room = kho_core::read::MAX_FDT_SIZE.min(image.size().saturating_sub(at));
    let entry = KhoData {
        fdt: Region::new(at, room),
        scratch: Region::new(0, 0),
    };
    let handover = Handover::read(image, entry.fdt, entry.scratch)
        .map_err(|error| not_there(harness::conductor::chain(&error)))?;
    // Only a setup_data node says where the scratch array is, so the image is searched for one that points to this FDT.
    let told = find(image)
        .found
        .into_iter()
        .find(|found| found.entry.fdt.start == at);
    Ok(told.unwrap_or(Found {
        entry,
        setup_data: None,
        handover,
    }))
}

/// The payload of the KHO `setup_data` node {next, type, length, payload} at an address; `None` if there is no such
/// node.
fn setup_data(image: &Image, at: u64) -> Option<KhoData> {
    let mut node = [0; KhoData::NODE_SIZE];
    image.read(at, &mut node).ok()?;
    KhoData::from_node(&node)
}
