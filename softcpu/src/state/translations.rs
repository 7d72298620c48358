//! What the TLBs hold, as plain data.
//!
//! A guest that changes a page table without INVLPG goes on with what is cached, so this is part of the processor.
//! Entries are listed by ascending slot, which follows from the virtual page.

use serde::{Deserialize, Serialize};

use super::StateError;
use crate::core::{CODE_TLB, CodeEntry, Core};
use crate::memory::{PAGE_SIZE, Ram};
use crate::mmu::{self, TLB_ENTRIES, Tag, TlbEntry, USER_TAG, slot};

/// The contents of both TLBs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translations {
    /// For reads and writes, by ascending slot.
    pub data: Vec<DataTranslation>,
    /// For fetches, by ascending slot.
    pub code: Vec<CodeTranslation>,
    /// Which 2 MiB regions (hashed, one bit each) have pieces of large pages in the TLBs: INVLPG drops everything
    /// there.
    pub large_regions: [[u64; 32]; 2],
    /// The same, of pages that are global.
    pub large_global_regions: [[u64; 32]; 2],
}

/// A cached translation for reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataTranslation {
    /// Virtual page number: bits 63:12 of the address.
    pub page: u64,
    /// Used in user mode.
    pub user: bool,
    /// Where the page lies in RAM: the offset of its first byte (see [`crate::memory`]).
    pub offset: u64,
    /// Writes go ahead without a walk: they are allowed, and the dirty bit was set.
    pub writable: bool,
    /// Loading CR3 does not drop it.
    pub global: bool,
}

/// A cached translation for fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeTranslation {
    /// Virtual page number: bits 63:12 of the address.
    pub page: u64,
    /// Used in user mode.
    pub user: bool,
    /// Where the page lies in RAM.
    pub offset: u64,
    /// The stop before low supervisor code was reported and is not again.
    pub passed: bool,
    /// Loading CR3 does not drop it.
    pub global: bool,
}

/// The tag of a page, checked with what else an entry says.
fn tag(page: u64, user: bool, offset: u64, ram: &Ram) -> Result<Tag, StateError> {
    if page >> 52 != 0 || !mmu::canonical(page << 12) {
        return Err(StateError::VirtualPage { page });
    }
    if !offset.is_multiple_of(PAGE_SIZE) || offset >= ram.len() {
        return Err(StateError::Offset { page, offset });
    }
    Ok(Tag::of(page << 12, if user { USER_TAG } else { 0 }))
}

/// The slot of `page`, if it is above the last one.
fn next_slot<const N: usize>(last: &mut Option<usize>, page: u64) -> Result<usize, StateError> {
    let slot = slot::<N>(page);
    if last.is_some_and(|last| slot <= last) {
        return Err(StateError::SlotOrder { page });
    }
    *last = Some(slot);
    Ok(slot)
}

impl Translations {
    pub(super) fn of(core: &Core) -> Self {
        let data = |(slot, entry): (usize, &TlbEntry)| {
            // A withheld write tag is a matter of the watches.
            let TlbEntry {
                read,
                write,
                offset,
                // Follows from the offset.
                host: _,
            } = *entry;
            let (page, user) = read.page(slot)?;
            Some(DataTranslation {
                page,
                user,
                offset,
                writable: !write.is_absent(slot),
                global: core.filled.is_global(slot),
            })
        };
        let code = |(slot, entry): (usize, &CodeEntry)| {
            let CodeEntry {
                tag,
                offset,
                // Decoded and translated code are caches.
                page: _,
                entries: _,
                passed,
            } = *entry;
            let (page, user) = tag.page(slot)?;
            Some(CodeTranslation {
                page,
                user,
                offset,
                passed,
                global: core.filled_code.is_global(slot),
            })
        };
        Self {
            data: core.tlb.iter().enumerate().filter_map(data).collect(),
            code: core.code_tlb.iter().enumerate().filter_map(code).collect(),
            large_regions: halves(&core.large_regions),
            large_global_regions: halves(&core.large_global_regions),
        }
    }

    pub(super) fn put_into(&self, core: &mut Core, ram: &Ram) -> Result<(), StateError> {
        let Self {
            data,
            code,
            large_regions,
            large_global_regions,
        } = self;
        core.flush_tlb();
        let mut last = None;
        for &DataTranslation {
            page,
            user,
            offset,
            writable,
            global,
        } in data
        {
            let tag = tag(page, user, offset, ram)?;
            let slot = next_slot::<TLB_ENTRIES>(&mut last, page)?;
            core.fill(ram, slot, tag, offset, writable, global);
        }
        last = None;
        for &CodeTranslation {
            page,
            user,
            offset,
            passed,
            global,
        } in code
        {
            let tag = tag(page, user, offset, ram)?;
            let slot = next_slot::<CODE_TLB>(&mut last, page)?;
            core.fill_code(slot, tag, offset, passed, global);
        }
        for (regions, halves) in [
            (&mut core.large_regions, large_regions),
            (&mut core.large_global_regions, large_global_regions),
        ] {
            for (words, half) in regions.chunks_exact_mut(32).zip(halves) {
                words.copy_from_slice(half);
            }
        }
        Ok(())
    }
}

fn halves(regions: &[u64; 64]) -> [[u64; 32]; 2] {
    let mut halves = [[0; 32]; 2];
    for (half, words) in halves.iter_mut().zip(regions.chunks_exact(32)) {
        half.copy_from_slice(words);
    }
    halves
}
