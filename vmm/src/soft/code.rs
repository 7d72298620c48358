//! Keeps decoded code coherent between processors: a write by one must invalidate code that another has decoded.

use std::collections::HashMap;

use crate::memory::PAGE_SIZE;
use crate::vcpu::Vcpu;

/// Which processors hold decoded code of which page frames. A processor that dropped its code by itself stays listed
/// until the page is written.
#[derive(Debug, Default)]
pub(super) struct SharedCode {
    /// One bit per processor.
    holders: HashMap<u64, u8>,
}

impl SharedCode {
    /// To be called after each turn, of processor `ran`: the others drop code that it overwrote, and guard pages that
    /// it decoded.
    pub fn settle(&mut self, vcpus: &mut [Box<dyn Vcpu>], ran: usize) {
        for pfn in vcpus[ran].take_new_code() {
            *self.holders.entry(pfn).or_default() |= bit(ran);
            for (_, other) in others(vcpus, ran) {
                other.guard(pfn, true);
            }
        }
        for (address, length) in vcpus[ran].take_guarded_writes() {
            for (_, other) in others(vcpus, ran) {
                other.memory_written(address, length);
            }
            self.release(vcpus, address / PAGE_SIZE);
        }
    }

    /// Updates who guards a page after a write: a processor guards it as long as another holds code of it.
    fn release(&mut self, vcpus: &mut [Box<dyn Vcpu>], pfn: u64) {
        let mut holders = 0;
        for (index, vcpu) in vcpus.iter().enumerate() {
            if vcpu.has_code(pfn) {
                holders |= bit(index);
            }
        }
        if self.holders.get(&pfn) == Some(&holders) {
            return;
        }
        if holders == 0 {
            self.holders.remove(&pfn);
        } else {
            self.holders.insert(pfn, holders);
        }
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            vcpu.guard(pfn, holders & !bit(index) != 0);
        }
    }
}

/// A machine has at most eight processors.
fn bit(index: usize) -> u8 {
    1 << (index % 8)
}

fn others(vcpus: &mut [Box<dyn Vcpu>], ran: usize) -> impl Iterator<Item = (usize, &mut Box<dyn Vcpu>)> {
    vcpus
        .iter_mut()
        .enumerate()
        .filter(move |(index, _)| *index != ran)
}
