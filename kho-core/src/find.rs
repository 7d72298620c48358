//! Finding a handover of unknown address in an image of RAM.
//!
//! The kernel is told by a `setup_data` node of type 10, which lies in RAM too. If that node is gone, every page that
//! begins with an FDT of a KHO version is a candidate. After a chain of live updates RAM holds several handovers (one
//! that the old kernel received, one that it handed on), so the results are ranked.

use alloc::vec;
use alloc::vec::Vec;

use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::bytes::word;
use crate::fdt;
use crate::memory::{PhysicalMemory, Region, len64};
use crate::model::Handover;
use crate::read::{MAX_FDT_SIZE, ReadError};
use crate::setup_data::KhoData;

/// Maximum number of candidates examined, because malicious RAM can hold any number of FDTs.
pub const MAX_CANDIDATES: usize = 256;

/// A handover that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Where it begins.
    pub entry: KhoData,
    /// Address of the `setup_data` node that points to it, when one does.
    pub setup_data: Option<u64>,
    /// The handover.
    pub handover: Handover,
}

impl Found {
    /// Sort key, in order of weight: a `setup_data` node points to it, its own map preserves it, it has no findings.
    fn confidence(&self) -> (bool, bool, bool) {
        let preserved = self.handover.map.is_preserved(self.entry.fdt.start);
        (
            self.setup_data.is_some(),
            preserved,
            self.handover.findings.is_empty(),
        )
    }
}

/// A KHO FDT that cannot be read, because it is damaged or of an unknown version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Physical address of the FDT.
    pub fdt: u64,
    /// Address of the `setup_data` node that points to it, when one does.
    pub setup_data: Option<u64>,
    /// What is wrong with it; an unknown version is named.
    pub error: ReadError,
}

/// What a search came upon.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Search {
    /// The handovers, the most certain first.
    pub found: Vec<Found>,
    /// KHO FDTs that cannot be read, those that `setup_data` points to first.
    pub unread: Vec<Unread>,
}

/// Finds every handover in memory, and every KHO FDT that cannot be read as one.
pub fn find(memory: &dyn PhysicalMemory) -> Search {
    let candidates = scan(memory);
    let mut search = Search::default();
    for (entry, setup_data) in candidates.entries() {
        match Handover::read(memory, entry.fdt, entry.scratch) {
            Ok(handover) => search.found.push(Found {
                entry,
                setup_data,
                handover,
            }),
            Err(error) if is_kho(&error, &entry, setup_data) => search.unread.push(Unread {
                fdt: entry.fdt.start,
                setup_data,
                error,
            }),
            Err(_) => {}
        }
    }
    search
        .found
        .sort_by_key(|found| core::cmp::Reverse(found.confidence()));
    search.unread.sort_by_key(|unread| unread.setup_data.is_none());
    search
}

/// Whether an unreadable candidate was meant to be a handover. RAM is full of numbers that look like a `setup_data`
/// node, and of device trees that contain the letters of a version by chance.
fn is_kho(error: &ReadError, entry: &KhoData, setup_data: Option<u64>) -> bool {
    let names_kho = matches!(error, ReadError::UnknownVersion { found, .. } if found.starts_with("kho-"));
    names_kho || (setup_data.is_some() && is_kho_data(entry))
}

/// Whether a kernel could have written these fields: the FDT starts on a page, and there is at least one scratch
/// area.
fn is_kho_data(data: &KhoData) -> bool {
    const ENTRY: u64 = crate::abi::kexec_handover::SCRATCH_ENTRY_SIZE as u64;
    let (fdt, scratch) = (data.fdt, data.scratch);
    fdt.start.is_multiple_of(PAGE_BYTES)
        && (1..=MAX_FDT_SIZE).contains(&fdt.size)
        && scratch.start != 0
        && scratch.size != 0
        && scratch.size.is_multiple_of(ENTRY)
}

#[derive(Default)]
struct Candidates {
    /// Pages that begin with the FDT magic and name a KHO version.
    fdts: Vec<u64>,
    /// `setup_data` nodes of the right type and length.
    setups: Vec<(u64, KhoData)>,
}

impl Candidates {
    /// All candidates, each with the address of the node that points to it. Every FDT is listed once, even if several
    /// nodes point to it.
    fn entries(&self) -> impl Iterator<Item = (KhoData, Option<u64>)> {
        let mut told = self.setups.clone();
        told.sort_by_key(|(_, data)| (data.fdt.start, !is_kho_data(data)));
        told.dedup_by_key(|(_, data)| data.fdt.start);
        let untold = |fdt: &&u64| !self.setups.iter().any(|(_, data)| data.fdt.start == **fdt);
        let alone = |fdt: &u64| KhoData {
            fdt: Region::new(*fdt, PAGE_BYTES),
            scratch: Region::new(0, 0),
        };
        let alone = self.fdts.iter().filter(untold).map(alone);
        told.into_iter()
            .map(|(at, data)| (data, Some(at)))
            .chain(alone.map(|data| (data, None)))
    }
}

fn scan(memory: &dyn PhysicalMemory) -> Candidates {
    let mut candidates = Candidates::default();
    let mut page = vec![0; PAGE_SIZE];
    for range in memory.ranges() {
        let mut next = range.start.checked_next_multiple_of(PAGE_BYTES);
        while let Some(at) = next.filter(|at| range.covers(&Region::new(*at, PAGE_BYTES))) {
            if memory.read(at, &mut page).is_ok() {
                look(at, &page, &mut candidates);
            }
            next = at.checked_add(PAGE_BYTES);
        }
    }
    candidates
}

fn look(at: u64, page: &[u8], candidates: &mut Candidates) {
    let has_version = |page: &[u8]| page.windows(5).any(|window| window == b"kho-v");
    if candidates.fdts.len() < MAX_CANDIDATES && fdt::total_size(page).is_ok() && has_version(page) {
        candidates.fdts.push(at);
    }
    // The kernel aligns `setup_data` nodes to eight bytes. Type and length are the second word of a node.
    for index in 1..PAGE_SIZE / 8 {
        if word(page, index) != KhoData::NODE_HEADER || candidates.setups.len() >= MAX_CANDIDATES {
            continue;
        }
        let payload = page
            .get(index.saturating_add(1).saturating_mul(8)..)
            .and_then(KhoData::from_bytes);
        if let Some(data) = payload.filter(|data| data.fdt.start != 0) {
            candidates.setups.push((
                at.saturating_add(len64(index.saturating_sub(1).saturating_mul(8))),
                data,
            ));
        }
    }
}

const _: () = assert!(PAGE_SIZE.is_multiple_of(8));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Abi, Block, Blueprint, FreeRegions, PhysicalMemoryMut, SliceMemory, build};

    /// 1 MiB of RAM with a handover, and where that begins.
    fn ram() -> (SliceMemory<Vec<u8>>, KhoData) {
        let mut memory = SliceMemory::new(0, vec![0; 1 << 20]);
        let plan = Blueprint {
            scratch: vec![Region::new(0x8_0000, 0x1_0000)],
            blocks: vec![Block::new(0x4_0000, 0)],
            ..Blueprint::default()
        };
        let mut free = FreeRegions::new(vec![Region::new(0x1000, 0x2_0000)]);
        let entry = build(&plan, Abi::KhoV4, &mut memory, &mut free).unwrap();
        (memory, entry)
    }

    /// Writes a `setup_data` node.
    fn tell(memory: &mut SliceMemory<Vec<u8>>, at: u64, data: KhoData) {
        memory.write(at, &data.to_node(0)).unwrap();
    }

    /// Turns the FDT's version into one that does not exist yet.
    fn age(memory: &mut SliceMemory<Vec<u8>>, fdt: u64) {
        let mut page = [0; PAGE_SIZE];
        memory.read(fdt, &mut page).unwrap();
        let version = page.windows(6).position(|window| window == b"kho-v4").unwrap();
        memory.write(fdt + len64(version) + 5, b"9").unwrap();
    }

    #[test]
    fn the_node_that_told_the_kernel_is_found() {
        let (mut memory, entry) = ram();
        let search = find(&memory);
        assert_eq!((search.found.len(), search.found[0].setup_data), (1, None));
        tell(&mut memory, 0x208, entry);
        let search = find(&memory);
        assert_eq!((search.found.len(), search.found[0].setup_data), (1, Some(0x208)));
        assert_eq!(search.found[0].handover.scratch.len(), 1);
        assert!(search.unread.is_empty());
    }

    #[test]
    fn an_unknown_version_is_named_with_its_address() {
        let (mut memory, entry) = ram();
        age(&mut memory, entry.fdt.start);
        let unread = |setup_data| Unread {
            fdt: entry.fdt.start,
            setup_data,
            error: ReadError::UnknownVersion {
                address: entry.fdt.start,
                found: "kho-v9".into(),
            },
        };
        let search = find(&memory);
        assert_eq!((search.found.len(), search.unread), (0, vec![unread(None)]));
        tell(&mut memory, 0x100, entry);
        let search = find(&memory);
        assert_eq!(
            (search.found.len(), search.unread),
            (0, vec![unread(Some(0x100))])
        );
    }

    #[test]
    fn what_setup_data_points_to_is_judged_even_when_it_is_no_fdt() {
        let (mut memory, entry) = ram();
        let fdt = Region::new(0xf_0000, PAGE_BYTES);
        tell(&mut memory, 0x100, KhoData { fdt, ..entry });
        let search = find(&memory);
        assert_eq!(search.found.len(), 1);
        let [unread] = search.unread.as_slice() else {
            panic!("{:?}", search.unread)
        };
        assert_eq!((unread.fdt, unread.setup_data), (0xf_0000, Some(0x100)));
        assert!(matches!(unread.error, ReadError::Fdt { .. }));
    }

    #[test]
    fn numbers_that_look_like_a_node_are_not_reported() {
        let (mut memory, _) = ram();
        let nonsense = KhoData {
            fdt: Region::new(0xf_0123, 7),
            scratch: Region::new(3, 5),
        };
        tell(&mut memory, 0x100, nonsense);
        let search = find(&memory);
        assert_eq!((search.found.len(), search.unread.len()), (1, 0));
    }

    #[test]
    fn a_device_tree_that_only_mentions_a_version_is_not_reported() {
        let (mut memory, entry) = ram();
        age(&mut memory, entry.fdt.start);
        let mut page = [0; PAGE_SIZE];
        memory.read(entry.fdt.start, &mut page).unwrap();
        let version = page.windows(6).position(|window| window == b"kho-v9").unwrap();
        memory.write(entry.fdt.start + len64(version), b"xkho-v").unwrap();
        assert_eq!(find(&memory), Search::default());
    }
}
