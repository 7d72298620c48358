//! Reads guest memory by virtual addresses, as the host looks at a guest that stands: no access rights, no accessed
//! bits, no TLB.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::memory::{GuestRam, PAGE_SIZE};
use crate::vcpu::Registers;

/// CR4.LA57: five levels of page tables.
const CR4_LA57: u64 = 1 << 12;
const PRESENT: u64 = 1;
/// In an entry of a level above the last: it maps a large page.
const LARGE: u64 = 1 << 7;
/// Bits of an entry, and of CR3, that hold a physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// In CR3 under page table isolation: user space's tables, which lie in the page behind the kernel's (Linux,
/// arch/x86/entry/calling.h, `PTI_USER_PGTABLE_BIT`).
const ISOLATED_USER: u64 = 1 << 12;

/// An entry forbids to execute what it maps.
const NO_EXECUTE: u64 = 1 << 63;
/// First entry of the top level that is about the upper half of the address space, the kernel's.
const UPPER_HALF: u64 = 256;
/// Most tables that a walk reads: those of 256 GiB in pages of 4 KiB, and as many again.
const MAX_TABLES: usize = 1 << 18;

/// Memory that page tables map in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First virtual address.
    pub address: u64,
    /// Guest physical address of it.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether it can be executed, as far as the entries say.
    pub executable: bool,
}

/// What a walk through page tables finds, each once.
struct Walk<'a> {
    ram: &'a GuestRam,
    /// Page frames of the tables, in the order in which they are found.
    tables: Vec<u64>,
    seen: BTreeSet<(u32, u64)>,
    /// Where to look for mappings.
    within: Range<u64>,
    mappings: Vec<Mapping>,
}

impl Walk<'_> {
    fn table(&mut self, level: u32, table: u64, from: u64, indexes: Range<u64>, executable: bool) {
        let shift = 12 + 9 * level;
        if self.tables.len() >= MAX_TABLES || !self.seen.insert((level, table)) {
            return;
        }
        let mut page = [0; 4096];
        if self.ram.read(table, &mut page).is_err() {
            return;
        }
        self.tables.push(table / PAGE_SIZE);
        let entries = (0..).zip(page.as_chunks::<8>().0);
        for (index, entry) in entries.filter(|(index, _)| indexes.contains(index)) {
            let entry = u64::from_le_bytes(*entry);
            let address = from.wrapping_add(index << shift);
            if entry & PRESENT == 0 {
                continue;
            }
            let executable = executable && entry & NO_EXECUTE == 0;
            if level > 0 && !(level <= 2 && entry & LARGE != 0) {
                self.table(level - 1, entry & ADDRESS, address, 0..512, executable);
            } else if self.within.contains(&address) {
                let length = 1 << shift;
                self.mappings.push(Mapping {
                    address,
                    physical: entry & ADDRESS & !(length - 1),
                    length,
                    executable,
                });
            }
        }
    }
}

/// The address space of a kernel in long mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressSpace {
    root: u64,
    levels: u32,
}

impl AddressSpace {
    /// The address spaces that the registers can stand for: the current one, and the kernel's if that is user space's
    /// of a kernel with page table isolation.
    #[must_use]
    pub fn all_of(registers: &Registers) -> Vec<Self> {
        let levels = if registers.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
        let root = registers.cr3 & ADDRESS;
        let mut roots = vec![root, root & !ISOLATED_USER];
        roots.dedup();
        roots.into_iter().map(|root| Self { root, levels }).collect()
    }

    /// Guest physical address of a virtual one; `None` if it is not mapped, or if a table lies outside RAM.
    #[must_use]
    pub fn translate(&self, ram: &GuestRam, address: u64) -> Option<u64> {
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let entry = ram.read_u64(table + (address >> shift & 0x1ff) * 8).ok()?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || level <= 2 && entry & LARGE != 0 {
                let inside = (1 << shift) - 1;
                return Some(entry & ADDRESS & !inside | address & inside);
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// Page frames of the tables, the root first: those for addresses in the upper half, the kernel's, or all.
    #[must_use]
    pub fn tables(&self, ram: &GuestRam, upper_half_only: bool) -> Vec<u64> {
        self.walk(ram, 0..0, upper_half_only).tables
    }

    /// What is mapped in the upper half from within a range of virtual addresses on, ascending.
    #[must_use]
    pub fn mappings(&self, ram: &GuestRam, within: Range<u64>) -> Vec<Mapping> {
        self.walk(ram, within, true).mappings
    }

    fn walk<'a>(&self, ram: &'a GuestRam, within: Range<u64>, upper_half_only: bool) -> Walk<'a> {
        let mut walk = Walk {
            ram,
            tables: Vec::new(),
            seen: BTreeSet::new(),
            within,
            mappings: Vec::new(),
        };
        let shift = 12 + 9 * self.levels;
        let (lower, upper) = (0..UPPER_HALF, UPPER_HALF..512);
        walk.table(self.levels - 1, self.root, u64::MAX << shift, upper, true);
        if !upper_half_only {
            walk.seen.remove(&(self.levels - 1, self.root));
            walk.table(self.levels - 1, self.root, 0, lower, true);
            let mut seen = BTreeSet::new();
            walk.tables.retain(|table| seen.insert(*table));
        }
        walk
    }

    /// Reads memory at a virtual address. Returns whether all of it is mapped to RAM; if not, `buffer` is undefined.
    #[must_use]
    pub fn read(&self, ram: &GuestRam, address: u64, buffer: &mut [u8]) -> bool {
        let (mut at, mut rest) = (address, buffer);
        while !rest.is_empty() {
            let room = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(room.min(rest.len()));
            let physical = self.translate(ram, at);
            if physical.is_none_or(|physical| ram.read(physical, now).is_err()) {
                return false;
            }
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM;
    use proptest::prelude::*;

    const ROOT: u64 = 0x10_0000;
    const KERNEL: u64 = 0xffff_ffff_8100_0000;

    /// RAM in which `KERNEL` is mapped to 2 MiB as a large page and its last page but one as a small one, and the
    /// registers of a processor that uses that.
    fn guest() -> (std::sync::Arc<GuestRam>, Registers) {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let entry =
            |table: u64, index: u64, value: u64| ram.write(table + index * 8, &value.to_le_bytes()).unwrap();
        entry(ROOT, 511, 0x11_0000 | 3);
        entry(0x11_0000, 510, 0x11_1000 | 3);
        entry(0x11_1000, 8, 0x20_0000 | LARGE | 3);
        entry(0x11_1000, 9, 0x11_2000 | 3);
        entry(0x11_2000, 0, 1 << 63 | 0x50_3000 | 3);
        entry(0x11_2000, 1, 0x7fff_f000 | 3);
        let registers = Registers {
            cr3: ROOT | 0x18,
            ..Registers::default()
        };
        (ram, registers)
    }

    #[test]
    fn large_and_small_pages_are_followed_across_their_ends() {
        let (ram, registers) = guest();
        let [space] = AddressSpace::all_of(&registers)[..] else {
            panic!()
        };
        assert_eq!(space.translate(&ram, KERNEL + 0x1234), Some(0x20_1234));
        assert_eq!(space.translate(&ram, KERNEL + (2 << 20)), Some(0x50_3000));
        ram.write(0x3f_fffe, b"ab").unwrap();
        ram.write(0x50_3000, b"cd").unwrap();
        let mut text = [0; 4];
        assert!(space.read(&ram, KERNEL + (2 << 20) - 2, &mut text));
        assert_eq!(&text, b"abcd");
        assert!(
            !space.read(&ram, KERNEL + (2 << 20) + 0x1000, &mut text),
            "a page outside RAM"
        );
        assert!(
            !space.read(&ram, KERNEL + (2 << 20) + 0x1fff, &mut text),
            "no page"
        );
        assert!(!space.read(&ram, KERNEL - 2, &mut text));
    }

    #[test]
    fn isolated_user_space_gives_the_kernels_tables_too() {
        let (ram, mut registers) = guest();
        registers.cr3 = ROOT | ISOLATED_USER;
        let [user, kernel] = AddressSpace::all_of(&registers)[..] else {
            panic!()
        };
        assert_eq!(user.translate(&ram, KERNEL), None);
        assert_eq!(kernel.translate(&ram, KERNEL), Some(0x20_0000));
        registers.cr4 = CR4_LA57;
        let five = AddressSpace::all_of(&registers)[1];
        assert_eq!(
            five.translate(&ram, KERNEL),
            None,
            "those tables have four levels"
        );
    }

    #[test]
    fn tables_and_mappings_of_the_upper_half_are_found_by_a_walk() {
        let (ram, registers) = guest();
        let space = AddressSpace::all_of(&registers)[0];
        // The lower half has the tables of the upper one, and one more.
        ram.write(ROOT, &(0x11_0000u64 | 3).to_le_bytes()).unwrap();
        ram.write(ROOT + 8, &(0x11_3000u64 | 3).to_le_bytes()).unwrap();
        let tables = [ROOT, 0x11_0000, 0x11_1000, 0x11_2000].map(|table| table / PAGE_SIZE);
        assert_eq!(space.tables(&ram, true), tables);
        assert_eq!(space.tables(&ram, false), [&tables[..], &[0x113]].concat());
        let found = space.mappings(&ram, KERNEL..u64::MAX);
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.address - KERNEL, one.physical, one.length, one.executable))
            .collect();
        assert_eq!(
            told,
            [
                (0, 0x20_0000, 2 << 20, true),
                (2 << 20, 0x50_3000, 4096, false),
                ((2 << 20) + 4096, 0x7fff_f000, 4096, true)
            ]
        );
        assert_eq!(space.mappings(&ram, 0..KERNEL), []);
    }

    proptest! {
        #[test]
        fn any_tables_give_an_answer(cr3: u64, cr4: u64, address: u64, words in proptest::collection::vec(any::<u64>(), 512)) {
            let (ram, mut registers) = guest();
            let page: Vec<u8> = words.iter().flat_map(|word| (word & 0x1f_ffff | 1).to_le_bytes()).collect();
            ram.write(ROOT, &page).unwrap();
            (registers.cr3, registers.cr4) = (cr3, cr4);
            let here = AddressSpace { root: ROOT, levels: 5 };
            for space in AddressSpace::all_of(&registers).into_iter().chain([here]) {
                let _ = space.read(&ram, address, &mut [0; 16]);
                let _ = space.tables(&ram, false);
                let _ = space.mappings(&ram, address..u64::MAX);
            }
        }
    }
}
