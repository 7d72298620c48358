//! What the harness may watch: writes to pages, execution of pages, the first write to each page of an epoch.
//!
//! One byte of flags per page of RAM decides whether writes may take the TLB's fast path; nothing here costs anything
//! on a path that nobody watches.

mod state;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
pub use state::{WatchedPage, Watches};

use crate::memory::{PAGE_SIZE, Ram};

/// One write of the processor to RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuWrite {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes, within one page.
    pub len: u16,
    /// Virtual address of the writing instruction.
    pub rip: u64,
    /// Guest time of the instruction, in ticks.
    pub time: u64,
    /// Executed in user mode.
    pub user: bool,
}

const CODE: u8 = 1 << 0;
const WATCHED: u8 = 1 << 1;
const LOGGED: u8 = 1 << 2;
const EXECUTION: u8 = 1 << 3;

/// Bytes per bit of a page's code map.
const GRANULE: u64 = PAGE_SIZE / 64;
/// Last writers are kept per this many bytes.
const UNIT: u64 = 8;

#[derive(Default)]
pub(crate) struct Hooks {
    /// Flags per page of RAM.
    pages: Vec<u8>,
    /// Per page, which 64-byte granules hold decoded instructions.
    code: Vec<u64>,
    /// Whether any page may: a new processor need not clear what it has not.
    any_code: bool,
    /// First write to each page since the epoch began, in order.
    epoch: Vec<CpuWrite>,
    /// Last writer of each unit of the watched pages, by page number in RAM.
    watched: BTreeMap<usize, Vec<Option<CpuWrite>>>,
    /// Pages watched for execution, by page number in RAM.
    executed: BTreeSet<usize>,
    /// Time of the first access to each page watched for that, by page number in RAM.
    accessed: BTreeMap<usize, Option<u64>>,
    pub low_supervisor_fetch: bool,
    /// Stop before kernel code at these virtual addresses, as far as they are in [`Self::address_mask`].
    addresses: Vec<u64>,
    /// Bits of virtual addresses that are compared.
    address_mask: u64,
    /// The stop at this instruction has been reported; go on past it.
    pub pass: Option<u64>,
    /// When user mode was last left.
    pub left_user: Option<u64>,
    /// When user mode was first entered since the marks were reset.
    pub entered_user: Option<u64>,
}

#[allow(clippy::cast_possible_truncation)] // page numbers of host memory
fn number(offset: u64) -> usize {
    (offset / PAGE_SIZE) as usize
}

impl Hooks {
    pub fn cover(&mut self, ram: &Ram) {
        let pages = number(ram.len());
        if self.pages.len() != pages {
            self.pages.resize(pages, 0);
            self.code.resize(pages, 0);
        }
    }

    fn flags(&self, offset: u64) -> u8 {
        self.pages.get(number(offset)).copied().unwrap_or(0)
    }

    fn set(&mut self, offset: u64, flag: u8, on: bool) {
        if let Some(flags) = self.pages.get_mut(number(offset)) {
            *flags = if on { *flags | flag } else { *flags & !flag };
        }
    }

    /// Whether writes to the page may bypass [`Self::record_write`].
    pub fn fast_writes(&self, offset: u64) -> bool {
        self.flags(offset) & (CODE | WATCHED | LOGGED) == LOGGED
    }

    pub fn wants_write(&self, offset: u64) -> bool {
        let flags = self.flags(offset);
        flags & LOGGED == 0 || flags & WATCHED != 0
    }

    pub fn record_write(&mut self, offset: u64, record: CpuWrite) {
        if self.flags(offset) & LOGGED == 0 {
            self.set(offset, LOGGED, true);
            self.epoch.push(record);
        }
        if let Some(units) = self.watched.get_mut(&number(offset)) {
            let first = offset % PAGE_SIZE / UNIT;
            let last = (offset % PAGE_SIZE + u64::from(record.len).max(1) - 1) / UNIT;
            for unit in units.iter_mut().take(number_of(last) + 1).skip(number_of(first)) {
                *unit = Some(record);
            }
        }
    }

    // Decoded code.

    /// Which granules of the page hold decoded instructions.
    pub fn code_map(&self, page: u64) -> u64 {
        self.code.get(number(page)).copied().unwrap_or(0)
    }

    /// Notes that these granules hold decoded instructions; true if the page had none.
    pub fn mark_granules(&mut self, page: u64, granules: u64) -> bool {
        let fresh = self.flags(page) & CODE == 0;
        self.any_code = true;
        self.set(page, CODE, true);
        if let Some(map) = self.code.get_mut(number(page)) {
            *map |= granules;
        }
        fresh
    }

    pub fn clear_code(&mut self, page: u64) {
        self.set(page, CODE, false);
        if let Some(map) = self.code.get_mut(number(page)) {
            *map = 0;
        }
    }

    pub fn clear_all_code(&mut self) {
        if !std::mem::take(&mut self.any_code) {
            return;
        }
        self.pages.iter_mut().for_each(|flags| *flags &= !CODE);
        self.code.fill(0);
    }

    pub fn has_code(&self, page: u64) -> bool {
        self.flags(page) & CODE != 0
    }

    pub fn code_overlaps(&self, offset: u64, len: u64) -> bool {
        self.flags(offset) & CODE != 0
            && self
                .code
                .get(number(offset))
                .is_some_and(|map| map & granules(offset % PAGE_SIZE, len) != 0)
    }

    // Epochs.

    pub fn begin_epoch(&mut self, ram: &Ram) {
        for record in std::mem::take(&mut self.epoch) {
            if let Some(page) = ram.page_offset(record.gpa) {
                self.set(page, LOGGED, false);
            }
        }
    }

    pub fn epoch(&self) -> &[CpuWrite] {
        &self.epoch
    }

    // Watches.

    pub fn watch_writes(&mut self, page: u64, on: bool) {
        self.set(page, WATCHED, on);
        if on {
            self.watched
                .entry(number(page))
                .or_insert_with(|| vec![None; number_of(PAGE_SIZE / UNIT)]);
        } else {
            self.watched.remove(&number(page));
        }
    }

    pub fn last_write(&self, offset: u64) -> Option<CpuWrite> {
        let units = self.watched.get(&number(offset))?;
        *units.get(number_of(offset % PAGE_SIZE / UNIT))?
    }

    pub fn watch_execution(&mut self, page: u64, on: bool) {
        self.set(page, EXECUTION, on);
        if on {
            self.executed.insert(number(page));
        } else {
            self.executed.remove(&number(page));
        }
    }

    pub fn watches_execution(&self, page: u64) -> bool {
        self.flags(page) & EXECUTION != 0
    }

    pub fn await_addresses(&mut self, addresses: &[u64], mask: u64) {
        self.addresses = addresses.to_vec();
        self.address_mask = mask;
    }

    /// Whether an awaited address can lie in the page of `rip`, and whether `rip` is one.
    pub fn awaits(&self, rip: u64) -> (bool, bool) {
        if self.addresses.is_empty() {
            return (false, false);
        }
        let differs = |address: &u64| (address ^ rip) & self.address_mask;
        let page = self
            .addresses
            .iter()
            .any(|address| differs(address) & !(PAGE_SIZE - 1) == 0);
        (
            page,
            page && self.addresses.iter().any(|address| differs(address) == 0),
        )
    }

    pub fn watch_first_access(&mut self, page: u64) {
        self.accessed.insert(number(page), None);
    }

    /// Notes an access whose translation was not known. Pages are watched from when no translation to them is.
    pub fn note_access(&mut self, offset: u64, time: u64) {
        if self.accessed.is_empty() {
            return;
        }
        if let Some(first) = self.accessed.get_mut(&number(offset)) {
            first.get_or_insert(time);
        }
    }

    pub fn first_access(&self, page: u64) -> Option<u64> {
        *self.accessed.get(&number(page))?
    }
}

#[allow(clippy::cast_possible_truncation)] // at most units of a page
fn number_of(units: u64) -> usize {
    units as usize
}

/// The granules of a page that `len` bytes from page offset `from` touch.
pub(crate) fn granules(from: u64, len: u64) -> u64 {
    let first = from / GRANULE;
    let last = (from + len.max(1) - 1).min(PAGE_SIZE - 1) / GRANULE;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_cover_exactly_what_is_touched() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(4095, 1), 1 << 63);
        assert_eq!(granules(0, 4096), u64::MAX);
        assert_eq!(granules(4090, 15), 1 << 63);
    }

    #[test]
    fn the_first_write_of_an_epoch_is_logged_once() {
        let ram = Ram::new_owned(8192);
        let mut hooks = Hooks::default();
        hooks.cover(&ram);
        let record = CpuWrite {
            gpa: 0x1008,
            len: 8,
            rip: 1,
            time: 1,
            user: false,
        };
        assert!(!hooks.fast_writes(0x1000));
        hooks.record_write(0x1008, record);
        hooks.record_write(0x1010, CpuWrite { rip: 2, ..record });
        assert_eq!(hooks.epoch(), [record]);
        assert!(hooks.fast_writes(0x1000));
        hooks.begin_epoch(&ram);
        assert!(!hooks.fast_writes(0x1000));
        assert!(hooks.epoch().is_empty());
    }

    #[test]
    fn a_watched_page_knows_the_last_writer_of_each_word() {
        let ram = Ram::new_owned(8192);
        let mut hooks = Hooks::default();
        hooks.cover(&ram);
        hooks.watch_writes(0x1000, true);
        let record = CpuWrite {
            gpa: 0x1004,
            len: 8,
            rip: 1,
            time: 1,
            user: false,
        };
        hooks.record_write(0x1004, record);
        hooks.record_write(
            0x1008,
            CpuWrite {
                gpa: 0x1008,
                len: 1,
                rip: 2,
                ..record
            },
        );
        assert_eq!(hooks.last_write(0x1003).map(|w| w.rip), Some(1));
        assert_eq!(hooks.last_write(0x100b).map(|w| w.rip), Some(2));
        assert_eq!(hooks.last_write(0x1010), None);
        assert!(!hooks.fast_writes(0x1000));
    }
}
