//! Address translation: page-table walks and the software TLB.
//!
//! Four-level paging as in the Intel SDM, volume 3, chapter 5 (linear addresses of 48 bits, pages of 4 KiB, 2 MiB and 1 GiB, NX,
//! WP, accessed and dirty bits). The TLB is direct-mapped and holds 4 KiB pieces whatever the page size is.
//!
//! ```text
//! entry:  read tag  | address of the virtual page, marked USER for user mode; ABSENT when reads must walk
//!         write tag | the same for writes, only there once the dirty bit is set; WITHHELD when somebody wants to see
//!                   | writes to the page (decoded code, watched pages, first write of an epoch)
//!         offset    | where the page lies in RAM (crate::memory)
//!         host      | where the host has the page, for translated code
//! ```
//!
//! An address that is XORed with the tag of its slot is an offset in the page exactly if the tag is that of its page
//! and not marked: one comparison says that, and that the access does not leave the page. For that, a mark is a bit of
//! the slot's number that is not as it should be, so that a marked tag is the tag of no address in this slot.
//!
//! A guest that changes its page tables without INVLPG can see what is cached, so what is cached must not depend on
//! who watches. A withheld tag keeps an access off the fast path only: the slow path uses the same translation and
//! does not walk.

use crate::memory::{PAGE_SIZE, Ram};
use crate::registers::{CR0_WP, EFER_NXE};

/// Page-table entry bits.
pub(crate) mod pte {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Address bits of an entry (52-bit physical addresses at most).
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Page-fault error code bits (SDM volume 3, section 6.15).
pub(crate) mod fault {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// Number of TLB entries; a power of two.
pub(crate) const TLB_ENTRIES: usize = 2048;
/// Size of the largest page.
pub(crate) const SIZE_1G: u64 = 1 << 30;
/// Marks the tags of user mode.
pub(crate) const USER_TAG: u64 = 1 << 12;
/// Marks a tag that no access has.
const ABSENT: u64 = 1 << 13;
/// Marks a tag that keeps accesses off the fast path although their translation is known.
const WITHHELD: u64 = 1 << 14;

/// What a TLB compares with the page of an address: see the head of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(crate) struct Tag(u64);

impl Tag {
    /// The tag of the page of `va`; `mode` is [`USER_TAG`] or 0.
    #[inline(always)]
    pub const fn of(va: u64, mode: u64) -> Self {
        Self((va & !(PAGE_SIZE - 1)) ^ mode)
    }

    /// The tag of an empty entry.
    pub const fn absent(slot: usize) -> Self {
        Self(((slot as u64) << 12) ^ ABSENT)
    }

    /// The tag as a number, as translated code compares it.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The offset in the page if this is the tag of the page of `va`, and at least [`PAGE_SIZE`] if it is not.
    #[inline(always)]
    pub const fn offset_of(self, va: u64, mode: u64) -> u64 {
        va ^ self.0 ^ mode
    }

    const fn marked(self, slot: usize, mark: u64) -> Self {
        Self((self.0 & !mark) | (!((slot as u64) << 12) & mark))
    }

    const fn is_marked(self, slot: usize, mark: u64) -> bool {
        (self.0 ^ ((slot as u64) << 12)) & mark != 0
    }

    /// Kept off the fast path.
    #[must_use]
    pub const fn withheld(self, slot: usize) -> Self {
        self.marked(slot, WITHHELD)
    }

    /// Good for the fast path.
    #[must_use]
    pub const fn offered(self, slot: usize) -> Self {
        Self((self.0 & !WITHHELD) | (((slot as u64) << 12) & WITHHELD))
    }

    pub const fn is_absent(self, slot: usize) -> bool {
        self.is_marked(slot, ABSENT)
    }

    /// The virtual page's number, and whether it is user mode's; `None` for an empty entry.
    pub const fn page(self, slot: usize) -> Option<(u64, bool)> {
        if self.is_absent(slot) {
            return None;
        }
        let user = self.is_marked(slot, USER_TAG);
        let Self(address) = self.offered(slot);
        Some(((address ^ if user { USER_TAG } else { 0 }) >> 12, user))
    }
}

/// A cached translation of one 4 KiB page. Translated code reads it: 32 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    pub read: Tag,
    pub write: Tag,
    pub offset: u64,
    /// Address of the page in the host's memory.
    pub host: u64,
}

const _: () = assert!(size_of::<TlbEntry>() == 32);

impl TlbEntry {
    pub const fn empty(slot: usize) -> Self {
        Self {
            read: Tag::absent(slot),
            write: Tag::absent(slot),
            offset: 0,
            host: 0,
        }
    }
}

/// Which slots of a TLB may hold something, so that a guest that loads CR3 often does not have all of them cleared each
/// time, and which of them hold a global page, which stays when CR3 is loaded.
#[derive(Debug)]
pub(crate) struct Filled {
    local: Slots,
    global: Slots,
    /// A bit for each slot: what was put there last is a global page.
    is_global: Box<[u64]>,
}

impl Filled {
    /// For a table with so many slots, a multiple of 64.
    pub fn new(slots: usize) -> Self {
        Self {
            local: Slots::default(),
            global: Slots::default(),
            is_global: vec![0; slots / 64].into(),
        }
    }

    /// Notes what is put into a slot, which was empty before or not.
    pub fn note(&mut self, slot: usize, empty: bool, global: bool) {
        if empty || self.is_global(slot) != global {
            let slots = if global { &mut self.global } else { &mut self.local };
            slots.add(slot);
            let (word, bit) = (&mut self.is_global[slot / 64], 1 << (slot % 64));
            *word = if global { *word | bit } else { *word & !bit };
        }
    }

    /// Whether what was put there last is a global page.
    pub fn is_global(&self, slot: usize) -> bool {
        self.is_global[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// Gives the slots that do not hold a global page, and forgets them.
    pub fn drain_local(&mut self, mut clear: impl FnMut(usize)) {
        let is_global = &self.is_global;
        self.local.drain(is_global.len() * 64, |slot| {
            if is_global[slot / 64] >> (slot % 64) & 1 == 0 {
                clear(slot);
            }
        });
    }

    /// Gives all slots, and forgets them.
    pub fn drain(&mut self, mut clear: impl FnMut(usize)) {
        let all = self.is_global.len() * 64;
        self.local.drain(all, &mut clear);
        self.global.drain(all, clear);
        self.is_global.fill(0);
    }
}

/// Some slots, or all.
#[derive(Debug, Default)]
struct Slots(Vec<u16>);

impl Slots {
    /// From here on it is all.
    const MANY: usize = 256;

    fn add(&mut self, slot: usize) {
        if self.0.len() < Self::MANY {
            self.0.push(u16::try_from(slot).unwrap_or(0));
        }
    }

    /// Gives the slots, of a table with `all` slots, and forgets them.
    fn drain(&mut self, all: usize, mut each: impl FnMut(usize)) {
        if self.0.len() < Self::MANY {
            self.0.drain(..).for_each(|slot| each(usize::from(slot)));
        } else {
            self.0.clear();
            (0..all).for_each(each);
        }
    }
}

const _: () = assert!(TLB_ENTRIES <= 1 << 16);

/// Index of a virtual page in a direct-mapped table of `N` entries.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn slot<const N: usize>(page: u64) -> usize {
    page as usize & (N - 1)
}

/// What an access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// What of the processor's state a walk depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalkMode {
    pub cr0: u64,
    pub cr3: u64,
    pub efer: u64,
    pub user: bool,
    /// Page-table entries say whether their page is global (CR4.PGE).
    pub global: bool,
}

/// A finished walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Translation {
    /// Guest physical address.
    pub physical: u64,
    /// Size of the page in bytes.
    pub size: u64,
    /// Writes may go ahead without another walk: allowed, and the dirty bit is set.
    pub writable: bool,
    /// The page is in all address spaces: loading CR3 does not drop its translation.
    pub global: bool,
}

/// Walks the page tables for `va` and sets accessed and dirty bits; the error is a page-fault error code. `changed`
/// is told the RAM offset of each entry that was written.
pub(crate) fn walk(
    ram: &mut Ram,
    mode: WalkMode,
    va: u64,
    access: Access,
    mut changed: impl FnMut(u64),
) -> Result<Translation, u32> {
    let mut code = 0;
    if access == Access::Write {
        code |= fault::WRITE;
    }
    if mode.user {
        code |= fault::USER;
    }
    let nx = mode.efer & EFER_NXE != 0;
    if access == Access::Fetch && nx {
        code |= fault::FETCH;
    }
    let mut table = mode.cr3 & pte::ADDRESS;
    let (mut writable, mut user_page, mut no_execute) = (true, true, false);
    let mut level = 4u32;
    loop {
        let shift = 12 + 9 * (level - 1);
        let entry_at = table + ((va >> shift) & 0x1ff) * 8;
        // A table outside RAM reads as zeroes would: not present.
        let Some(offset) = ram.page_offset(entry_at).map(|page| page + entry_at % PAGE_SIZE) else {
            return Err(code);
        };
        let entry: u64 = ram.load(offset);
        if entry & pte::PRESENT == 0 {
            return Err(code);
        }
        if (entry & pte::NX != 0 && !nx) || (level == 4 && entry & pte::LARGE != 0) {
            return Err(code | fault::PRESENT | fault::RESERVED);
        }
        writable &= entry & pte::WRITE != 0;
        user_page &= entry & pte::USER != 0;
        no_execute |= entry & pte::NX != 0;
        let leaf = level == 1 || (level <= 3 && entry & pte::LARGE != 0);
        if !leaf {
            if entry & pte::ACCESSED == 0 {
                ram.store(offset, entry | pte::ACCESSED);
                changed(offset);
            }
            table = entry & pte::ADDRESS;
            level -= 1;
            continue;
        }
        let size = 1u64 << shift;
        let reserved = if level == 1 {
            0
        } else {
            (size - 1) & pte::ADDRESS & !(1 << 12)
        };
        if entry & reserved != 0 {
            return Err(code | fault::PRESENT | fault::RESERVED);
        }
        let may_write = writable || (!mode.user && mode.cr0 & CR0_WP == 0);
        let denied = (mode.user && !user_page)
            || (access == Access::Write && !may_write)
            || (access == Access::Fetch && no_execute);
        if denied {
            return Err(code | fault::PRESENT);
        }
        let mut updated = entry | pte::ACCESSED;
        if access == Access::Write {
            updated |= pte::DIRTY;
        }
        if updated != entry {
            ram.store(offset, updated);
            changed(offset);
        }
        let base = entry & pte::ADDRESS & !(size - 1);
        return Ok(Translation {
            physical: base | (va & (size - 1)),
            size,
            writable: may_write && updated & pte::DIRTY != 0,
            global: mode.global && entry & pte::GLOBAL != 0,
        });
    }
}

/// Whether an address is canonical: bits 63:47 all alike.
#[inline(always)]
pub(crate) fn canonical(va: u64) -> bool {
    (va.cast_signed() << 16 >> 16).cast_unsigned() == va
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(ram: &mut Ram, mode: WalkMode, va: u64, access: Access) -> Result<Translation, u32> {
        super::walk(ram, mode, va, access, |_| {})
    }

    const MODE: WalkMode = WalkMode {
        cr0: CR0_WP,
        cr3: 0x1000,
        efer: EFER_NXE,
        user: false,
        global: true,
    };

    fn mapped(leaf: u64, level: u32) -> Ram {
        let mut ram = Ram::new_owned(0x10000);
        for (table, next) in [
            (0x1000u64, 0x2000u64),
            (0x2000, 0x3000),
            (0x3000, 0x4000),
            (0x4000, 0),
        ] {
            let depth = 4 - (table / 0x1000 - 1);
            let entry = if depth == u64::from(level) { leaf } else { next | 7 };
            ram.write(table, &entry.to_le_bytes());
        }
        ram
    }

    #[test]
    fn a_read_sets_accessed_and_a_write_sets_dirty() {
        let mut ram = mapped(0x5000 | pte::PRESENT | pte::WRITE, 1);
        let read = walk(&mut ram, MODE, 0x123, Access::Read).unwrap();
        assert_eq!(
            read,
            Translation {
                physical: 0x5123,
                size: 0x1000,
                writable: false,
                global: false,
            }
        );
        let mut entry = [0; 8];
        ram.read(0x4000, &mut entry);
        assert_eq!(u64::from_le_bytes(entry) & 0x60, pte::ACCESSED);
        assert!(walk(&mut ram, MODE, 0x123, Access::Write).unwrap().writable);
        ram.read(0x4000, &mut entry);
        assert_eq!(u64::from_le_bytes(entry) & 0x60, pte::ACCESSED | pte::DIRTY);
    }

    #[test]
    fn rights_are_checked_with_the_architecture_s_error_codes() {
        let user = WalkMode { user: true, ..MODE };
        let mut ram = mapped(0x5000 | pte::PRESENT, 1);
        assert_eq!(
            walk(&mut ram, MODE, 0, Access::Write),
            Err(fault::PRESENT | fault::WRITE)
        );
        assert!(
            walk(&mut ram, WalkMode { cr0: 0, ..MODE }, 0, Access::Write).is_ok(),
            "without WP"
        );
        assert_eq!(
            walk(&mut ram, user, 0, Access::Read),
            Err(fault::PRESENT | fault::USER)
        );
        assert_eq!(walk(&mut ram, MODE, 0x1000, Access::Read), Err(0), "not present");
        let mut ram = mapped(0x5000 | pte::PRESENT | pte::NX, 1);
        assert_eq!(
            walk(&mut ram, MODE, 0, Access::Fetch),
            Err(fault::PRESENT | fault::FETCH)
        );
        let no_nx = WalkMode { efer: 0, ..MODE };
        assert_eq!(
            walk(&mut ram, no_nx, 0, Access::Read),
            Err(fault::PRESENT | fault::RESERVED)
        );
    }

    #[test]
    fn large_pages_translate_and_reject_reserved_bits() {
        let mut ram = mapped(0x20_0000 | pte::PRESENT | pte::LARGE, 2);
        assert_eq!(
            walk(&mut ram, MODE, 0x1234, Access::Read).unwrap().physical,
            0x20_1234
        );
        let mut ram = mapped(0x4000_0000 | pte::PRESENT | pte::LARGE, 3);
        assert_eq!(
            walk(&mut ram, MODE, 0x12_3456, Access::Read).unwrap().physical,
            0x4012_3456
        );
        let mut ram = mapped(0x20_2000 | pte::PRESENT | pte::LARGE, 2);
        assert_eq!(
            walk(&mut ram, MODE, 0, Access::Read),
            Err(fault::PRESENT | fault::RESERVED)
        );
    }

    #[test]
    fn a_page_is_global_only_where_cr4_says_that_pages_can_be() {
        let mut ram = mapped(0x5000 | pte::PRESENT | pte::GLOBAL, 1);
        assert!(walk(&mut ram, MODE, 0, Access::Read).unwrap().global);
        let without = WalkMode {
            global: false,
            ..MODE
        };
        assert!(!walk(&mut ram, without, 0, Access::Read).unwrap().global);
    }

    #[test]
    fn slots_of_global_pages_stay_until_everything_goes() {
        for many in [1, 300] {
            let mut filled = Filled::new(512);
            for slot in 0..many {
                filled.note(slot, true, false);
            }
            filled.note(400, true, true);
            // It was global and is not any more; and the other way round.
            filled.note(500, true, true);
            filled.note(500, false, false);
            filled.note(0, false, true);
            let (mut local, mut all) = (Vec::new(), Vec::new());
            filled.drain_local(|slot| local.push(slot));
            assert!(local.contains(&500) && !local.contains(&400) && !local.contains(&0));
            assert!((1..many).all(|slot| local.contains(&slot)), "{many}");
            filled.drain(|slot| all.push(slot));
            assert!(all.contains(&400) && all.contains(&0));
            filled.drain(|slot| panic!("{slot} is left"));
        }
    }

    #[test]
    fn a_table_outside_ram_is_not_present() {
        let mut ram = Ram::new_owned(0x1000);
        assert_eq!(
            walk(&mut ram, WalkMode { cr3: 1 << 40, ..MODE }, 0, Access::Read),
            Err(0)
        );
    }
}
