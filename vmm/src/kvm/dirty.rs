//! The pages that processors wrote, from KVM's dirty log.
//!
//! The log has the writes of vCPUs and what KVM itself writes for them. Device writes are made by this process and are
//! not in the log. Neither are the writes of instructions that softcpu executed in KVM's place; [`DirtyLog::add`] adds
//! those.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;

use super::error::KvmError;
use crate::memory::{PAGE_BYTES, PAGE_SIZE};
use crate::vcpu::CpuWrite;

const BITMAP_PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES).unwrap();
/// Length of a write of which only the page is known.
const WHOLE_PAGE: u16 = 4096;

/// A memory slot of the virtual machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemorySlot {
    pub number: u32,
    /// Guest physical address.
    pub start: u64,
    pub bytes: usize,
}

/// Pages written since the epoch began.
#[derive(Debug)]
pub(super) struct DirtyLog {
    /// The slots and their pages that were in the log at some time in this epoch.
    slots: Vec<(MemorySlot, AtomicBitmap)>,
    /// softcpu's first write to each page, by page frame number.
    softcpu: BTreeMap<u64, CpuWrite>,
    /// Guest time at which the epoch began, in nanoseconds.
    since: u64,
}

impl DirtyLog {
    pub fn new(slots: &[MemorySlot]) -> Self {
        let bitmap = |slot: &MemorySlot| AtomicBitmap::new(slot.bytes, BITMAP_PAGE);
        Self {
            slots: slots.iter().map(|slot| (*slot, bitmap(slot))).collect(),
            softcpu: BTreeMap::new(),
            since: 0,
        }
    }

    /// Adds a write that softcpu made.
    pub fn add(&mut self, write: CpuWrite) {
        self.softcpu.entry(write.gpa / PAGE_SIZE).or_insert(write);
    }

    /// Calls `each` for every page written in this epoch. Only softcpu's writes have an exact address and instruction.
    /// The others are one whole page each, without an instruction, at the time when the epoch began.
    pub fn writes(&mut self, vm: &VmFd, each: &mut dyn FnMut(CpuWrite)) -> Result<(), KvmError> {
        self.fetch(vm)?;
        for (slot, pages) in &self.slots {
            let dirty = (0..pages.len()).filter(|page| pages.is_bit_set(*page));
            for address in dirty.map(|page| slot.start + page as u64 * PAGE_SIZE) {
                if !self.softcpu.contains_key(&(address / PAGE_SIZE)) {
                    each(whole_page(address, self.since));
                }
            }
        }
        self.softcpu.values().for_each(|write| each(*write));
        Ok(())
    }

    /// Forgets all pages. The next epoch begins at guest time `now`.
    pub fn begin_epoch(&mut self, vm: &VmFd, now: u64) -> Result<(), KvmError> {
        self.fetch(vm)?;
        self.slots.iter().for_each(|(_, pages)| pages.reset());
        self.softcpu.clear();
        self.since = now;
        Ok(())
    }

    /// Takes the pages that KVM has logged since the last call. KVM clears its log with that, so they are kept here.
    fn fetch(&mut self, vm: &VmFd) -> Result<(), KvmError> {
        for (slot, pages) in &self.slots {
            let log = vm
                .get_dirty_log(slot.number, slot.bytes)
                .map_err(KvmError::ioctl("KVM_GET_DIRTY_LOG"))?;
            for (index, mut word) in log.into_iter().enumerate() {
                while word != 0 {
                    pages.set_bit(index * 64 + word.trailing_zeros() as usize);
                    word &= word - 1;
                }
            }
        }
        Ok(())
    }
}

/// A page that a processor wrote at some time after `since`.
fn whole_page(address: u64, since: u64) -> CpuWrite {
    CpuWrite {
        gpa: address,
        len: WHOLE_PAGE,
        rip: 0,
        time: since,
        user: false,
    }
}
