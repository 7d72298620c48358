//! Handover blobs: captured page by page when a kernel is entered, decoded by the oracle.

use crate::evidence::{BlobEvidence, PAGE};
use guest_agent::pattern::PAGE_BYTES;
use kho_core::abi::{memblock, test_kho};
use kho_core::model::Content;
use kho_core::{
    Handover, KhoData, MemoryError, Owner, Owners, PhysicalMemory, ReadError, Region, Severity, SparseMemory,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of pages kept of one blob: 64 MiB.
const MAX_BLOB_PAGES: usize = 16 * 1024;

/// The parts of a decoded handover that the rules need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// Version of the KHO root.
    pub version: String,
    /// Page frames in the preserved-memory map.
    pub preserved: BTreeSet<u64>,
    /// Those page frames of `preserved` that belong to the handover itself or to another subsystem, with a
    /// description.
    pub own: BTreeMap<u64, String>,
    /// The files in sessions, with their pages in RAM.
    pub files: Vec<HandedFile>,
    /// Names of the regions of reserve_mem that it hands over; `None` if their record cannot be read.
    pub reserve_mem: Option<BTreeSet<String>>,
    /// Number of folios that the kernel's own test handed over, 0 if the test's record cannot be read; `None` without
    /// the test's data.
    pub test_folios: Option<u64>,
    /// The scratch areas, from which the new kernel may allocate before it has read the map.
    pub scratch: Vec<Region>,
    /// Findings of at least the severity of a warning.
    pub problems: Vec<String>,
}

/// A file in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedFile {
    /// Name of the session.
    pub session: String,
    /// LUO token.
    pub token: u64,
    /// Page frames of its contents that are RAM, ascending.
    pub frames: BTreeSet<u64>,
}

/// Why a blob cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The new kernel was not given one.
    #[error("no KHO setup_data was handed to the new kernel{}", .reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    None {
        /// Why not, where that is known.
        reason: Option<String>,
    },
    /// It is larger than what evidence keeps of a blob.
    #[error("only the first {pages} pages of it were kept, and it has more")]
    Cut {
        /// Number of pages kept.
        pages: usize,
    },
    /// It cannot be decoded.
    #[error("{text}")]
    Unreadable {
        /// The decoder's error and its causes, on one line.
        text: String,
    },
}

impl From<ReadError> for BlobError {
    fn from(error: ReadError) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::Unreadable { text }
    }
}

/// Memory that remembers which pages were read.
struct Recorder<'a> {
    memory: &'a dyn PhysicalMemory,
    pages: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl PhysicalMemory for Recorder<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, buf)?;
        let mut pages = self.pages.borrow_mut();
        let last = address.saturating_add((buf.len() as u64).saturating_sub(1)) / PAGE;
        for frame in address / PAGE..=last {
            if pages.len() >= MAX_BLOB_PAGES {
                return Err(MemoryError::Failed {
                    address,
                    size: buf.len() as u64,
                });
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = pages.entry(frame) {
                let mut page = vec![0; PAGE_BYTES];
                self.memory.read(frame * PAGE, &mut page)?;
                entry.insert(page);
            }
        }
        Ok(())
    }

    fn ranges(&self) -> Vec<Region> {
        self.memory.ranges()
    }
}

/// Returns the pages of guest memory that decoding the blob at `kho` reads, and whether these are all: of a blob that
/// is larger than [`MAX_BLOB_PAGES`] only the first pages are kept.
pub fn capture(memory: &dyn PhysicalMemory, kho: KhoData) -> (BTreeMap<u64, Vec<u8>>, bool) {
    let recorder = Recorder {
        memory,
        pages: RefCell::default(),
    };
    // The oracle decides whether the blob can be decoded. Only the pages read matter here.
    let _ = read(&recorder, kho);
    let pages = recorder.pages.into_inner();
    let complete = pages.len() < MAX_BLOB_PAGES;
    (pages, complete)
}

fn read(memory: &dyn PhysicalMemory, kho: KhoData) -> Result<Handover, ReadError> {
    Handover::read(memory, kho.fdt, kho.scratch)
}

/// The pages of a captured blob as memory.
pub fn memory(blob: &BlobEvidence) -> SparseMemory {
    let ram = blob.ram.iter().map(|(start, size)| Region::new(*start, *size));
    let mut memory = SparseMemory::new(ram.collect());
    for (frame, page) in &blob.pages {
        if let Ok(page) = <[u8; PAGE_BYTES]>::try_from(page.as_slice()) {
            memory.insert(frame.saturating_mul(PAGE), page);
        }
    }
    memory
}

/// Decodes a captured blob.
pub fn decode(blob: &BlobEvidence) -> Result<Handed, BlobError> {
    let kho = blob.kho.ok_or_else(|| BlobError::None {
        reason: blob.problem.clone(),
    })?;
    if !blob.complete {
        let pages = blob.pages.len();
        return Err(BlobError::Cut { pages });
    }
    let memory = memory(blob);
    let ram = memory.ranges();
    let handover = read(&memory, kho)?;
    let verdict = kho_core::verify(&handover, &memory);
    let owners = Owners::of(&handover);
    let named = |name: &str| {
        let mut blobs = handover.sub_blobs.iter().filter(|blob| blob.name == name);
        blobs.next().map(|blob| &blob.content)
    };
    let mut handed = Handed {
        version: handover.version.to_string(),
        preserved: BTreeSet::new(),
        own: BTreeMap::new(),
        files: files(&handover, &owners, &ram),
        reserve_mem: match named(memblock::NODE_NAME) {
            Some(Content::Memblock(memblock)) => Some(
                memblock
                    .regions
                    .iter()
                    .map(|region| region.name.clone())
                    .collect(),
            ),
            Some(_) => None,
            None => Some(BTreeSet::new()),
        },
        test_folios: named(test_kho::NODE_NAME).map(|content| match content {
            Content::TestKho(test) => test.count.into(),
            _ => 0,
        }),
        scratch: handover.scratch.iter().map(|area| area.region).collect(),
        problems: verdict
            .findings
            .iter()
            .filter(|finding| finding.severity() >= Severity::Warning)
            .map(ToString::to_string)
            .collect(),
    };
    for extent in handover.map.extents() {
        // The map is untrusted and may claim more than RAM, so list only pages that are RAM.
        let inside = ram.iter().filter(|range| range.overlaps(&extent));
        for range in inside {
            let (first, end) = (
                extent.start.max(range.start) / PAGE,
                extent.end().min(range.end()).div_ceil(PAGE),
            );
            handed.preserved.extend(first..end);
        }
        if !ram.iter().any(|range| range.covers(&extent)) {
            handed
                .problems
                .push(format!("the map preserves {extent}, which is not all RAM"));
        }
    }
    for record in owners
        .iter()
        .filter(|record| !matches!(record.owner, Owner::FileData { .. }))
    {
        let name = record.owner.describe(&handover).to_string();
        let (first, last) = (
            record.region.start / PAGE,
            record.region.end().saturating_sub(1) / PAGE,
        );
        let frames = handed.preserved.range(first..=last.max(first)).copied();
        handed.own.extend(frames.map(|frame| (frame, name.clone())));
    }
    Ok(handed)
}

/// The files of a handover. Its records are untrusted and may claim more than RAM.
fn files(handover: &Handover, owners: &Owners, ram: &[Region]) -> Vec<HandedFile> {
    let mut files: BTreeMap<(usize, usize), HandedFile> = BTreeMap::new();
    for record in owners.iter() {
        let Owner::FileData { session, file } = record.owner else {
            continue;
        };
        let Some(of) = handover.sessions().get(session) else {
            continue;
        };
        let Some(token) = of.files.get(file).map(|file| file.token) else {
            continue;
        };
        let known = files.entry((session, file)).or_insert_with(|| HandedFile {
            session: of.name.clone(),
            token,
            frames: BTreeSet::new(),
        });
        for range in ram.iter().filter(|range| range.overlaps(&record.region)) {
            let first = record.region.start.max(range.start) / PAGE;
            let end = record.region.end().min(range.end()).div_ceil(PAGE);
            known.frames.extend(first..end);
        }
    }
    files.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// Evidence directories contain these names.
    #[test]
    fn kho_data_is_written_as_four_numbers() {
        let data = KhoData {
            fdt: Region::new(1, 2),
            scratch: Region::new(3, 4),
        };
        let text = r#"{"fdt_address":1,"fdt_bytes":2,"scratch_address":3,"scratch_bytes":4}"#;
        assert_eq!(serde_json::to_string(&data).unwrap(), text);
        assert_eq!(serde_json::from_str::<KhoData>(text).unwrap(), data);
    }

    #[test]
    fn no_blob_is_said() {
        let mut blob = testing::good().blobs.remove(0);
        blob.kho = None;
        blob.problem = Some("boot_params outside RAM".into());
        let message = decode(&blob).unwrap_err().to_string();
        assert!(
            message.contains("no KHO setup_data") && message.contains("outside RAM"),
            "{message}"
        );
    }

    #[test]
    fn a_blob_with_missing_pages_is_an_error_with_its_cause() {
        let mut blob = testing::good().blobs.remove(0);
        blob.pages.clear();
        let message = decode(&blob).unwrap_err().to_string();
        assert!(message.contains("KHO FDT"), "{message}");
    }

    #[test]
    fn what_capture_keeps_is_all_that_decoding_needs() {
        let blob = testing::good().blobs.remove(0);
        let mut memory = SparseMemory::new(vec![Region::new(0, testing::RAM)]);
        for (frame, page) in &blob.pages {
            memory.insert(frame * PAGE, page.as_slice().try_into().unwrap());
        }
        memory.insert(77 * PAGE, [1; PAGE_BYTES]);
        let (pages, complete) = capture(&memory, blob.kho.unwrap());
        assert!(complete);
        let again = BlobEvidence {
            pages,
            ..blob.clone()
        };
        assert!(!again.pages.contains_key(&77));
        assert_eq!(decode(&again), decode(&blob));
    }
}
