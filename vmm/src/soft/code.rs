//! Code that several processors remember: what one writes, the others must not go on executing from memory of old.

use std::collections::HashMap;

use crate::memory::PAGE_SIZE;
use crate::vcpu::Vcpu;

/// Which processors remember code of which page frames. What they forget by themselves stays here until the page is written.
#[derive(Debug, Default)]
pub(super) struct SharedCode {
    /// One bit per processor.
    holders: HashMap<u64, u8>,
}

impl SharedCode {
    /// Processor `ran` has had its turn: the others hear what it wrote, and learn what they have to guard for it.
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

    /// Takes the guard off a page for whom no other processor remembers it any more.
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
