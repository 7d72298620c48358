//! The pages that processors wrote, from KVM's dirty log.
//!
//! The log holds the writes of vCPUs, and what KVM itself writes on their behalf. Device writes come from this process and are not in
//! it; nor are the writes of instructions that softcpu executed in KVM's place, which are added here.

use std::collections::BTreeMap;

use kvm_ioctls::VmFd;

use super::Refused;
use crate::memory::{PAGE_BYTES, PAGE_SIZE};
use crate::vcpu::CpuWrite;

/// Length of a write of which only the page is known.
const PAGE: u32 = 4096;

/// One memory slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub number: u32,
    pub start: u64,
    pub bytes: usize,
}

/// Pages written since the epoch began.
#[derive(Debug)]
pub(super) struct Dirty {
    /// Per slot: one bit per page, taken from the log and not yet forgotten.
    slots: Vec<(Slot, Vec<u64>)>,
    /// First write of softcpu to each page, by page frame number.
    exact: BTreeMap<u64, CpuWrite>,
    since: u64,
}

impl Dirty {
    pub fn new(slots: &[Slot]) -> Self {
        let bitmap = |slot: &Slot| vec![0; (slot.bytes / PAGE_BYTES).div_ceil(64)];
        Self {
            slots: slots.iter().map(|slot| (*slot, bitmap(slot))).collect(),
            exact: BTreeMap::new(),
            since: 0,
        }
    }

    /// A write that is known exactly, because softcpu made it.
    pub fn add(&mut self, write: CpuWrite) {
        let first = write.address / PAGE_SIZE;
        let last = write.address.saturating_add(u64::from(write.length.max(1)) - 1) / PAGE_SIZE;
        for pfn in first..=last {
            self.exact.entry(pfn).or_insert(write);
        }
    }

    /// Fetches the log, which KVM forgets with that, and hands every page written in this epoch to `each`. Where and by which
    /// instruction is known for softcpu's writes only: the others say the whole page, no instruction, and the epoch's beginning.
    pub fn writes(&mut self, vm: &VmFd, each: &mut dyn FnMut(CpuWrite)) -> Result<(), Refused> {
        for (slot, pages) in &mut self.slots {
            let log = vm
                .get_dirty_log(slot.number, slot.bytes)
                .map_err(Refused::at("KVM_GET_DIRTY_LOG"))?;
            for (kept, new) in pages.iter_mut().zip(log) {
                *kept |= new;
            }
            for (index, mut word) in pages.iter().copied().enumerate() {
                while word != 0 {
                    let page = index as u64 * 64 + u64::from(word.trailing_zeros());
                    word &= word - 1;
                    let address = slot.start + page * PAGE_SIZE;
                    if !self.exact.contains_key(&(address / PAGE_SIZE)) {
                        each(whole_page(address, self.since));
                    }
                }
            }
        }
        self.exact.values().for_each(|write| each(*write));
        Ok(())
    }

    /// Forgets everything; `now` is when the next epoch begins.
    pub fn begin_epoch(&mut self, vm: &VmFd, now: u64) -> Result<(), Refused> {
        self.writes(vm, &mut |_| {})?;
        for (_, pages) in &mut self.slots {
            pages.fill(0);
        }
        self.exact.clear();
        self.since = now;
        Ok(())
    }
}

/// A page that a processor wrote at some time since `since`.
fn whole_page(address: u64, since: u64) -> CpuWrite {
    CpuWrite {
        address,
        length: PAGE,
        rip: 0,
        time: since,
        privilege: 0,
    }
}
