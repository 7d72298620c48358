//! Detects a kexec on KVM by hardware breakpoints and single steps, without changing the guest.
//!
//! Once the new kernel is loaded, its entry point is in RAM: purgatory's `entry64_regs` hold it (`struct
//! kexec_entry64_regs`, arch/x86/include/asm/kexec.h), with the address of the boot parameters. A breakpoint at the
//! entry point catches the entry. To catch the jump, the vCPU is single-stepped from `machine_kexec` until it executes
//! in the lower half of the address space. This needs the address of `machine_kexec`. Without symbols, all that is
//! known of the jump is that it came before the entry.

use crate::boot::layout::ENTRY_64;
use crate::memory::{GuestRam, PAGE_BYTES, PAGE_SIZE};

/// Number of hardware breakpoints of a processor.
pub(super) const BREAKPOINTS: usize = 4;
/// Most single steps from `machine_kexec` on. The function only copies a page and switches page tables before it jumps.
pub(super) const MAX_STEPS: u32 = 200_000;

/// Bytes of `struct kexec_entry64_regs`: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15, rip.
const ENTRY_REGS: usize = 17 * 8;
const RSP: usize = 4;
const RSI: usize = 6;
const RIP: usize = 16;
/// Smallest alignment of a kernel's load address: CONFIG_PHYSICAL_ALIGN is at least 2 MiB on x86-64.
const ALIGNMENT: u64 = 2 << 20;

/// What is known about the next kexec before it happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExpectedKexec {
    /// Address of `machine_kexec` in the running kernel.
    pub machine_kexec: Option<u64>,
    /// Candidates for the loaded kernel's entry point: one, unless other data in RAM looks the same.
    pub entries: Vec<u64>,
}

/// Searches all pages that were ever written for the entry point of a loaded kernel. Returns at most two candidates.
pub(super) fn find_entries(ram: &GuestRam) -> Vec<u64> {
    let mut found = Vec::new();
    let mut page = [0; PAGE_BYTES];
    for pfn in ram.touched_pages() {
        if ram.read(pfn * PAGE_SIZE, &mut page).is_err() {
            continue;
        }
        for at in (0..=PAGE_BYTES - ENTRY_REGS).step_by(8) {
            if let Some(entry) = entry_in(&page[at..at + ENTRY_REGS], ram)
                && !found.contains(&entry)
            {
                found.push(entry);
            }
        }
    }
    found.truncate(2);
    found
}

/// The entry point in `bytes`, if they look like `entry64_regs` as the bzImage loader fills them in: RSP, the address
/// of the boot parameters in RSI, the entry point in RIP, and zero elsewhere.
fn entry_in(bytes: &[u8], ram: &GuestRam) -> Option<u64> {
    let word = |index: usize| -> Option<u64> {
        Some(u64::from_le_bytes(
            bytes.get(index * 8..index * 8 + 8)?.try_into().ok()?,
        ))
    };
    let (stack, params, entry) = (word(RSP)?, word(RSI)?, word(RIP)?);
    let load_address = entry.checked_sub(ENTRY_64).filter(|address| *address > 0)?;
    let plausible = load_address.is_multiple_of(ALIGNMENT)
        && params != 0
        && params.is_multiple_of(PAGE_SIZE)
        && stack != 0
        && [load_address, params]
            .into_iter()
            .all(|address| ram.contains(address, PAGE_SIZE));
    if !plausible {
        return None;
    }
    let others = (0..16).filter(|index| ![RSP, RSI].contains(index));
    others.map(word).all(|value| value == Some(0)).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM;

    fn image(change: &dyn Fn(&mut [u64; 17])) -> Vec<u8> {
        let mut words = [0; 17];
        (words[RSP], words[RSI], words[RIP]) = (0x9f000, 0x9_9000, 0x100_0200);
        change(&mut words);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_loaded_kernels_entry_is_found_once() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        assert!(find_entries(&ram).is_empty());
        let regs = image(&|_| {});
        ram.write(0x5008, &regs).unwrap();
        ram.write(0x80_0100, &regs).unwrap();
        assert_eq!(find_entries(&ram), [0x100_0200]);
    }

    #[test]
    fn bytes_that_only_resemble_entry_registers_are_ignored() {
        type Change<'a> = &'a dyn Fn(&mut [u64; 17]);
        let changes: [Change<'_>; 6] = [
            &|words| words[RIP] = 0x100_0201,
            &|words| words[RIP] = 0x200,
            &|words| words[RIP] = MIN_RAM + 0x200,
            &|words| words[RSI] = 0x123,
            &|words| words[RSP] = 0,
            &|words| words[3] = 1,
        ];
        for change in changes {
            let ram = GuestRam::new(MIN_RAM).unwrap();
            ram.write(0x5000, &image(change)).unwrap();
            assert!(find_entries(&ram).is_empty());
        }
    }
}
