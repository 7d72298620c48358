//! Finding the handover in an image of RAM when nobody tells where it is.
//!
//! The kernel was told by a `setup_data` node of type 10, and that node lies in RAM too. Where it is gone, any page
//! that begins with an FDT of a known KHO version will do; RAM holds several of those after a chain of live updates
//! (what the old kernel had received, what it handed on), so that they are ranked.

use alloc::vec;
use alloc::vec::Vec;

use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::bytes::word;
use crate::fdt;
use crate::memory::{PhysicalMemory, Region, len64};
use crate::model::Handover;
use crate::read::KhoData;

/// Candidates that are looked at; RAM made to mislead holds any number of FDTs.
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
    /// How sure we are: told by setup_data, preserved by its own map, sound.
    fn confidence(&self) -> (bool, bool, bool) {
        let preserved = self.handover.map.is_preserved(self.entry.fdt.start);
        (
            self.setup_data.is_some(),
            preserved,
            self.handover.findings.is_empty(),
        )
    }
}

/// Finds every handover in memory, the most certain first.
pub fn find(memory: &dyn PhysicalMemory) -> Vec<Found> {
    let candidates = scan(memory);
    let mut found = Vec::new();
    for fdt in candidates.fdts {
        let setup = candidates.setups.iter().find(|(_, data)| data.fdt.start == fdt);
        let entry = match setup {
            Some((_, data)) => *data,
            None => KhoData {
                fdt: Region::new(fdt, PAGE_BYTES),
                scratch: Region::new(0, 0),
            },
        };
        if let Ok(handover) = Handover::read(memory, entry.fdt, entry.scratch) {
            found.push(Found {
                entry,
                setup_data: setup.map(|(at, _)| *at),
                handover,
            });
        }
    }
    found.sort_by_key(|found| core::cmp::Reverse(found.confidence()));
    found
}

#[derive(Default)]
struct Candidates {
    /// Pages that begin with the FDT magic and name a KHO version.
    fdts: Vec<u64>,
    /// `setup_data` nodes of the right type and length.
    setups: Vec<(u64, KhoData)>,
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
    let is_kho = |page: &[u8]| page.windows(5).any(|window| window == b"kho-v");
    if candidates.fdts.len() < MAX_CANDIDATES && fdt::total_size(page).is_ok() && is_kho(page) {
        candidates.fdts.push(at);
    }
    // {u64 next, u32 type, u32 length, struct kho_data}; nodes are aligned to eight bytes.
    const HEADER: u64 = (KhoData::SIZE as u64) << 32 | KhoData::SETUP_TYPE as u64;
    for index in 1..PAGE_SIZE / 8 {
        if word(page, index) != HEADER || candidates.setups.len() >= MAX_CANDIDATES {
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
