//! How instructions reach memory: the TLB's fast path, the slow path behind it, and the upkeep of both.

use crate::core::{CODE_TLB, CodeEntry, Core, Ctx, Faulted, stop};
use crate::memory::{PAGE_SIZE, Ram};
use crate::mmu::{self, Access, TLB_ENTRIES, Tag, TlbEntry, Translation, WalkMode, slot};
use crate::op::PAGE;
use crate::registers::{CR4_PGE, EFER_NXE};
use crate::word::Word;

impl Core {
    #[inline(always)]
    pub fn read<T: Word>(&mut self, cx: &mut Ctx<'_>, va: u64) -> Result<T, Faulted> {
        let entry = &self.tlb[slot::<TLB_ENTRIES>(va >> 12)];
        let inside = entry.read.offset_of(va, self.mode_tag);
        if inside <= PAGE_SIZE - T::BYTES {
            return Ok(cx.ram.load(entry.offset + inside));
        }
        self.read_slow(cx, va, T::BYTES).map(T::cut)
    }

    #[inline(always)]
    pub fn write<T: Word>(&mut self, cx: &mut Ctx<'_>, va: u64, value: T) -> Result<(), Faulted> {
        let entry = &self.tlb[slot::<TLB_ENTRIES>(va >> 12)];
        let inside = entry.write.offset_of(va, self.mode_tag);
        if inside <= PAGE_SIZE - T::BYTES {
            cx.ram.store(entry.offset + inside, value);
            return Ok(());
        }
        self.write_slow(cx, va, value.zx(), T::BYTES)
    }

    /// Reads what the instruction will write back: where it may not write, that is the fault, before anything else.
    #[inline(always)]
    pub fn read_modify<T: Word>(&mut self, cx: &mut Ctx<'_>, va: u64) -> Result<T, Faulted> {
        let entry = &self.tlb[slot::<TLB_ENTRIES>(va >> 12)];
        let inside = entry.write.offset_of(va, self.mode_tag);
        if inside <= PAGE_SIZE - T::BYTES {
            return Ok(cx.ram.load(entry.offset + inside));
        }
        self.check_write(cx, va, T::BYTES)?;
        self.read(cx, va)
    }

    /// Faults as a write of `len` bytes would (one or two pages), without writing.
    #[cold]
    #[inline(never)]
    pub fn check_write(&mut self, cx: &mut Ctx<'_>, va: u64, len: u64) -> Result<(), Faulted> {
        self.locate(cx, va, Access::Write)?;
        let last = va.wrapping_add(len - 1);
        if last >> 12 != va >> 12 {
            self.locate(cx, last & !(PAGE_SIZE - 1), Access::Write)?;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, cx: &mut Ctx<'_>, va: u64, size: u64) -> Result<u64, Faulted> {
        if va % PAGE_SIZE + size > PAGE_SIZE {
            let mut bytes = [0; 8];
            let len = usize::from(size.to_le_bytes()[0]);
            self.read_bytes(cx, va, &mut bytes[..len])?;
            return Ok(u64::from_le_bytes(bytes));
        }
        match self.locate(cx, va, Access::Read)? {
            Place::Ram(offset) => Ok(match size {
                1 => cx.ram.load::<u8>(offset).zx(),
                2 => cx.ram.load::<u16>(offset).zx(),
                4 => cx.ram.load::<u32>(offset).zx(),
                _ => cx.ram.load(offset),
            }),
            Place::Outside(gpa) => {
                let value = cx.bus.mmio_read(self.tick(), gpa, size.to_le_bytes()[0]);
                self.cut(stop::BUS);
                Ok(value)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, cx: &mut Ctx<'_>, va: u64, value: u64, size: u64) -> Result<(), Faulted> {
        let len = usize::from(size.to_le_bytes()[0]);
        if va % PAGE_SIZE + size > PAGE_SIZE {
            return self.write_bytes(cx, va, &value.to_le_bytes()[..len]);
        }
        match self.locate(cx, va, Access::Write)? {
            Place::Ram(offset) => {
                self.written(cx.ram, offset, size);
                cx.ram.store_bytes(offset, &value.to_le_bytes()[..len]);
            }
            Place::Outside(gpa) => {
                cx.bus.mmio_write(self.tick(), gpa, size.to_le_bytes()[0], value);
                self.cut(stop::BUS);
            }
        }
        Ok(())
    }

    /// Reads bytes that may lie across pages. MMIO is read byte by byte.
    pub fn read_bytes(&mut self, cx: &mut Ctx<'_>, va: u64, bytes: &mut [u8]) -> Result<(), Faulted> {
        let mut done = 0;
        while done < bytes.len() {
            let at = va.wrapping_add(done as u64);
            let len = page_rest(at).min(bytes.len() - done);
            match self.locate(cx, at, Access::Read)? {
                Place::Ram(offset) => cx.ram.load_bytes(offset, &mut bytes[done..done + len]),
                Place::Outside(gpa) => {
                    for (i, byte) in bytes[done..done + len].iter_mut().enumerate() {
                        *byte = cx.bus.mmio_read(self.tick(), gpa + i as u64, 1).to_le_bytes()[0];
                    }
                    self.cut(stop::BUS);
                }
            }
            done += len;
        }
        Ok(())
    }

    /// Writes bytes that may lie across two pages; both are checked before either is written.
    pub fn write_bytes(&mut self, cx: &mut Ctx<'_>, va: u64, bytes: &[u8]) -> Result<(), Faulted> {
        let first = page_rest(va).min(bytes.len());
        let (low, high) = bytes.split_at(first);
        let places = [
            (self.locate(cx, va, Access::Write)?, low),
            if high.is_empty() {
                (Place::Outside(0), high)
            } else {
                (
                    self.locate(cx, va.wrapping_add(first as u64), Access::Write)?,
                    high,
                )
            },
        ];
        for (place, part) in places {
            match place {
                _ if part.is_empty() => {}
                Place::Ram(offset) => {
                    self.written(cx.ram, offset, part.len() as u64);
                    cx.ram.store_bytes(offset, part);
                }
                Place::Outside(gpa) => {
                    for (i, byte) in part.iter().enumerate() {
                        cx.bus
                            .mmio_write(self.tick(), gpa + i as u64, 1, u64::from(*byte));
                    }
                    self.cut(stop::BUS);
                }
            }
        }
        Ok(())
    }

    pub fn read128(&mut self, cx: &mut Ctx<'_>, va: u64) -> Result<u128, Faulted> {
        if va % PAGE_SIZE <= PAGE_SIZE - 16 {
            let low: u64 = self.read(cx, va)?;
            let high: u64 = self.read(cx, va + 8)?;
            return Ok(u128::from(low) | u128::from(high) << 64);
        }
        let mut bytes = [0; 16];
        self.read_bytes(cx, va, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    #[allow(clippy::cast_possible_truncation)] // halves of a u128
    pub fn write128(&mut self, cx: &mut Ctx<'_>, va: u64, value: u128) -> Result<(), Faulted> {
        if va % PAGE_SIZE <= PAGE_SIZE - 16 {
            self.write(cx, va, value as u64)?;
            return self.write(cx, va + 8, (value >> 64) as u64);
        }
        self.write_bytes(cx, va, &value.to_le_bytes())
    }

    /// Finds where a linear address lies for data and fills the TLB; a page fault is recorded.
    pub fn locate(&mut self, cx: &mut Ctx<'_>, va: u64, access: Access) -> Result<Place, Faulted> {
        let slot = slot::<TLB_ENTRIES>(va >> 12);
        let tag = Tag::of(va, self.mode_tag);
        let cached = &self.tlb[slot];
        let known = if access == Access::Write {
            cached.write.offered(slot) == tag
        } else {
            cached.read == tag
        };
        if !known {
            let found = self.walk(cx, va, access)?;
            let Some(offset) = cx.ram.page_offset(found.physical) else {
                return Ok(Place::Outside(found.physical));
            };
            self.hooks.note_access(offset, self.tick());
            self.fill(cx.ram, slot, tag, offset, found.writable, found.global);
        }
        let entry = &mut self.tlb[slot];
        // After the first write of an epoch the tag waits until `written` has seen it.
        if access == Access::Write && self.hooks.fast_writes(entry.offset) {
            entry.write = tag;
        }
        Ok(Place::Ram(entry.offset + va % PAGE_SIZE))
    }

    /// Finds the page of RAM that code at a linear address lies in and fills the code TLB; a page fault is recorded.
    pub fn locate_code(&mut self, cx: &mut Ctx<'_>, va: u64) -> Result<Place, Faulted> {
        let slot = slot::<CODE_TLB>(va >> 12);
        let tag = Tag::of(va, self.mode_tag);
        let cached = &self.code_tlb[slot];
        if cached.tag.offered(slot) == tag {
            return Ok(Place::Ram(cached.offset));
        }
        let found = self.walk(cx, va, Access::Fetch)?;
        let Some(offset) = cx.ram.page_offset(found.physical) else {
            return Ok(Place::Outside(found.physical));
        };
        self.fill_code(slot, tag, offset, false, found.global);
        Ok(Place::Ram(offset))
    }

    /// Walks the page tables; a fault is recorded.
    fn walk(&mut self, cx: &mut Ctx<'_>, va: u64, access: Access) -> Result<Translation, Faulted> {
        if !mmu::canonical(va) {
            return Err(self.protection());
        }
        let mode = self.walk_mode();
        let mut changed = [None; 4];
        let mut places = changed.iter_mut();
        let found = mmu::walk(cx.ram, mode, va, access, |offset| {
            if let Some(place) = places.next() {
                *place = Some(offset);
            }
        });
        for offset in changed.into_iter().flatten() {
            self.drop_code_at(offset, 8, access != Access::Fetch);
            // An instruction that only reads is not told to the hooks: of its walk the place is not known.
            let rip = match access {
                Access::Read => 0,
                Access::Write => self.current_rip(),
                Access::Fetch => va,
            };
            self.record_write(cx.ram, offset, 8, rip, false);
        }
        match found {
            Ok(found) => {
                if found.size != PAGE_SIZE && cx.ram.page_offset(found.physical).is_some() {
                    self.note_large(va, found.size, found.global);
                }
                Ok(found)
            }
            Err(code) => {
                self.cr2 = va;
                Err(self.raise(14, Some(code)))
            }
        }
    }

    /// Sees to it that code decoded from bytes that are being written is decoded anew.
    /// `leave`: the loop may be executing it.
    fn drop_code_at(&mut self, offset: u64, len: u64, leave: bool) {
        if self.hooks.code_overlaps(offset, len) {
            let page = offset & !(PAGE_SIZE - 1);
            if self.stale_code.last() != Some(&page) {
                self.stale_code.push(page);
            }
            if leave {
                self.cut(stop::CODE);
            }
        }
    }

    /// Notes a write to RAM that did not go through the TLB's write tag.
    pub fn written(&mut self, ram: &Ram, offset: u64, len: u64) {
        self.drop_code_at(offset, len, true);
        self.record_write(ram, offset, len, self.current_rip(), self.mode_tag != 0);
    }

    fn record_write(&mut self, ram: &Ram, offset: u64, len: u64, rip: u64, user: bool) {
        if self.hooks.wants_write(offset) {
            let record = crate::hooks::CpuWrite {
                gpa: ram.address_of(offset),
                len: u16::try_from(len).unwrap_or(u16::MAX),
                rip,
                time: self.tick(),
                user,
            };
            self.hooks.record_write(offset, record);
        }
    }

    /// The instruction that is writing to memory.
    fn current_rip(&self) -> u64 {
        self.regs[usize::from(PAGE)].wrapping_add(u64::from(self.writer))
    }

    pub fn walk_mode(&self) -> WalkMode {
        WalkMode {
            cr0: self.cr0,
            cr3: self.cr3,
            efer: self.efer & EFER_NXE,
            user: self.mode_tag != 0,
            global: self.cr4 & CR4_PGE != 0,
        }
    }

    // TLB upkeep.

    /// Puts a translation into the TLB: the page lies at `offset` in RAM. Its first write goes the slow way.
    pub fn fill(&mut self, ram: &Ram, slot: usize, tag: Tag, offset: u64, writable: bool, global: bool) {
        self.filled
            .note(slot, self.tlb[slot].read.is_absent(slot), global);
        self.tlb[slot] = TlbEntry {
            read: tag,
            write: if writable {
                tag.withheld(slot)
            } else {
                Tag::absent(slot)
            },
            offset,
            host: ram.host_address(offset),
        };
    }

    /// Puts a translation into the code TLB. What is known of the code there is still to be found.
    pub fn fill_code(&mut self, slot: usize, tag: Tag, offset: u64, passed: bool, global: bool) {
        self.filled_code
            .note(slot, self.code_tlb[slot].tag.is_absent(slot), global);
        self.code_tlb[slot] = CodeEntry {
            tag: tag.withheld(slot),
            offset,
            passed,
            ..CodeEntry::empty(slot)
        };
    }

    /// Drops what the code TLB says of the code page with this number.
    pub fn detach_code(&mut self, number: u32) {
        for (slot, entry) in self.code_tlb.iter_mut().enumerate() {
            if entry.page == number {
                entry.detach(slot);
            }
        }
    }

    /// Drops all that the code TLB says of code pages.
    pub fn detach_all_code(&mut self) {
        for (slot, entry) in self.code_tlb.iter_mut().enumerate() {
            entry.detach(slot);
        }
    }

    /// Drops all translations.
    pub fn flush_tlb(&mut self) {
        let (tlb, code_tlb) = (&mut self.tlb, &mut self.code_tlb);
        self.filled.drain(|slot| tlb[slot] = TlbEntry::empty(slot));
        self.filled_code
            .drain(|slot| code_tlb[slot] = CodeEntry::empty(slot));
        self.large_regions.fill(0);
        self.large_global_regions.fill(0);
    }

    /// Drops all translations but those of global pages, as loading CR3 does.
    pub fn flush_address_space(&mut self) {
        let (tlb, code_tlb) = (&mut self.tlb, &mut self.code_tlb);
        self.filled.drain_local(|slot| tlb[slot] = TlbEntry::empty(slot));
        self.filled_code
            .drain_local(|slot| code_tlb[slot] = CodeEntry::empty(slot));
        self.large_regions.fill(0);
    }

    /// Remembers that the TLB holds a piece of a large page.
    pub fn note_large(&mut self, va: u64, size: u64, global: bool) {
        let regions = if global {
            &mut self.large_global_regions
        } else {
            &mut self.large_regions
        };
        if size == mmu::SIZE_1G {
            regions.fill(u64::MAX);
        } else {
            let region = va >> 21;
            regions[slot::<64>(region >> 6)] |= 1 << (region % 64);
        }
    }

    /// INVLPG.
    pub fn flush_page(&mut self, va: u64) {
        // The loop looks at the code TLB when it enters a page. It must do so at once where that page's translation
        // goes, or it would depend on the next deadline when the guest's new page tables take effect.
        self.cut(stop::MODE);
        let region = va >> 21;
        let word = slot::<64>(region >> 6);
        let large = self.large_regions[word] | self.large_global_regions[word];
        if large >> (region % 64) & 1 != 0 {
            return self.flush_tlb();
        }
        let data = slot::<TLB_ENTRIES>(va >> 12);
        self.tlb[data] = TlbEntry::empty(data);
        let code = slot::<CODE_TLB>(va >> 12);
        self.code_tlb[code] = CodeEntry::empty(code);
    }

    /// Makes every next write to the page at `offset` go the slow way once more.
    pub fn revoke_writes(&mut self, offset: u64) {
        for (slot, entry) in self.tlb.iter_mut().enumerate() {
            if entry.offset == offset {
                entry.write = entry.write.withheld(slot);
            }
        }
    }

    /// Drops what is known of where the page at `offset` lies, so that the next access to it walks the page tables.
    pub fn forget_page(&mut self, offset: u64) {
        for (slot, entry) in self.tlb.iter_mut().enumerate() {
            if entry.offset == offset {
                *entry = TlbEntry::empty(slot);
            }
        }
    }

    /// Makes the loop ask again before it executes code of any page.
    pub fn withhold_all_code(&mut self) {
        for (slot, entry) in self.code_tlb.iter_mut().enumerate() {
            entry.tag = entry.tag.withheld(slot);
        }
    }

    /// Sees to it that what the TLB says of host addresses is true of `ram`.
    pub fn settle_on(&mut self, ram: &Ram) {
        let identity = ram.identity();
        if self.native.ram == identity {
            return;
        }
        self.native.ram = identity;
        for (slot, entry) in self.tlb.iter_mut().enumerate() {
            if entry.offset < ram.len() {
                entry.host = ram.host_address(entry.offset);
            } else {
                *entry = TlbEntry::empty(slot);
            }
        }
    }

    pub fn revoke_all_writes(&mut self) {
        for (slot, entry) in self.tlb.iter_mut().enumerate() {
            entry.write = entry.write.withheld(slot);
        }
    }
}

/// Where a linear address turned out to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In RAM, at this offset.
    Ram(u64),
    /// Not in RAM; the guest physical address.
    Outside(u64),
}

/// Bytes from `va` to the end of its page.
#[allow(clippy::cast_possible_truncation)] // at most PAGE_SIZE
pub(crate) fn page_rest(va: u64) -> usize {
    (PAGE_SIZE - va % PAGE_SIZE) as usize
}
