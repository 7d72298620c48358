//! How a block reaches guest memory and other code: addresses, and entries of the TLBs.

use super::CODE_ENTRY_ENTRIES;
use super::emit::{Alu, Mem, Reg, Shift, Size};
use super::kind::set;
use super::layout::{CODE_BASE, CODES, FREE, FREE2, TARGET, TLB, condition, field, found, in_core};
use super::writer::Writer;
use crate::core::{CODE_TLB, CodeEntry};
use crate::memory::PAGE_SIZE;
use crate::mmu::{TLB_ENTRIES, Tag, TlbEntry, USER_TAG, slot};
use crate::op::{Op, PAGE, ZERO};
use std::mem::offset_of;

/// The parts of an address: `base + (index << scale) + disp`, of which the first two may be missing.
#[derive(Debug, Clone, Copy)]
struct Parts {
    base: Option<u8>,
    /// Register and scale.
    index: Option<(u8, u8)>,
    disp: i32,
}

impl Writer {
    /// Compares a 64-bit word with a constant.
    pub(super) fn compare(&mut self, mem: Mem, value: u64) {
        if let Ok(short) = i32::try_from(value.cast_signed()) {
            self.code.alu_imm(Alu::Cmp, Size::Q, mem, short);
        } else {
            self.code.constant(FREE, value);
            self.code.alu_mr(Alu::Cmp, Size::Q, mem, FREE);
        }
    }

    pub(super) fn tag(&self, va: u64) -> u64 {
        Tag::of(va, if self.user { USER_TAG } else { 0 }).bits()
    }

    // Memory.

    /// Computes the sum of the parts into `into`, which is free.
    fn sum(&mut self, into: Reg, size: Size, parts: Parts) {
        let Parts { base, index, disp } = parts;
        let index = index.map(|(register, scale)| {
            let host = self.load(register, FREE);
            (host, scale)
        });
        let base = base.map(|register| self.load(register, FREE2));
        match (base, index) {
            (None, None) if size == Size::Q => self.code.mov_imm(Size::Q, into, disp),
            (Some(base), None) if disp == 0 => {
                if base != into || size != Size::Q {
                    self.code.mov_rm(size, into, base);
                }
            }
            (base, index) => self.code.lea(size, into, Mem { base, index, disp }),
        }
    }

    /// The parts of an address: base, index and displacement, with the page's address in the displacement.
    /// `None` if that does not fit.
    fn parts(&self, op: &Op) -> Option<Parts> {
        let index = (op.index != ZERO).then_some((op.index, op.scale));
        if op.base != PAGE {
            return Some(Parts {
                base: (op.base != ZERO).then_some(op.base),
                index,
                disp: op.disp,
            });
        }
        let constant = self.constant(op);
        Some(Parts {
            base: None,
            index,
            disp: i32::try_from(constant.cast_signed()).ok()?,
        })
    }

    pub(super) fn constant(&self, op: &Op) -> u64 {
        self.page.wrapping_add(i64::from(op.disp).cast_unsigned())
    }

    /// Computes the address of the operand, without the segment's base, into `into`.
    pub(super) fn address(&mut self, op: &Op, into: Reg, size: Size) {
        match self.parts(op) {
            Some(parts) => self.sum(into, size, parts),
            None => {
                let index = (op.index != ZERO).then(|| self.load(op.index, FREE));
                self.code.constant(FREE2, self.constant(op));
                match index {
                    Some(index) => {
                        self.code
                            .lea(size, into, Mem::indexed(FREE2, index, op.scale & 3, 0));
                    }
                    None if into != FREE2 || size != Size::Q => self.code.mov_rm(size, into, FREE2),
                    None => {}
                }
            }
        }
    }

    /// The memory operand in the host's memory: `bytes` of it, to be read or, if `write`, written (and read). Uses both
    /// free registers, of which the second one is part of the operand, and the host's flags.
    pub(super) fn memory(&mut self, op: &Op, bytes: u64, write: bool) -> Mem {
        if op.base == PAGE && op.index == ZERO && op.seg == ZERO {
            return self.memory_at(self.constant(op), bytes, write);
        }
        self.linear_address(op);
        self.look_up(bytes, write)
    }

    /// Computes the operand's address, with its segment's base, into [`FREE2`].
    pub(super) fn linear_address(&mut self, op: &Op) {
        self.address(op, FREE2, Size::Q);
        if op.seg != ZERO {
            self.host_flags = set::NONE;
            self.code.alu_rm(Alu::Add, Size::Q, FREE2, in_core(op.seg));
        }
    }

    pub(super) fn which(write: bool) -> usize {
        if write {
            offset_of!(TlbEntry, write)
        } else {
            offset_of!(TlbEntry, read)
        }
    }

    /// Memory at a constant address.
    fn memory_at(&mut self, va: u64, bytes: u64, write: bool) -> Mem {
        self.host_flags = set::NONE;
        let inside = va % PAGE_SIZE;
        let entry = TLB + slot::<TLB_ENTRIES>(va >> 12) * size_of::<TlbEntry>();
        if inside + bytes > PAGE_SIZE {
            let hole = self.code.jmp();
            self.punts.push(hole);
        }
        self.compare(field(entry + Self::which(write)), self.tag(va));
        self.punt_if(condition::NOT_ZERO);
        self.code
            .mov_rm(Size::Q, FREE2, field(entry + offset_of!(TlbEntry, host)));
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // a page offset
        Mem::at(FREE2, inside as i32)
    }

    /// Looks the virtual address in [`FREE2`] up in the table at `table` of the Core, of `N` entries of type `E`, whose
    /// tags are at `tag`. Leaves the offset in the page in [`FREE2`], and the entry's distance from the table in
    /// [`FREE`]; or leaves the instruction to the interpreter if there is no such entry or `bytes` leave the page.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // a Core is smaller than 2 GiB
    fn find_entry<E, const N: usize>(&mut self, table: usize, tag: usize, bytes: u64) {
        let shift = 12 - size_of::<E>().trailing_zeros() as u8;
        let mask = ((N - 1) * size_of::<E>()) as i32;
        self.host_flags = set::NONE;
        self.code.mov_rm(Size::D, FREE, FREE2);
        self.code.shift_imm(Shift::Shr, Size::D, FREE, shift);
        self.code.alu_imm(Alu::And, Size::D, FREE, mask);
        self.code.alu_rm(Alu::Xor, Size::Q, FREE2, found(table + tag));
        if self.user {
            self.code.alu_imm(Alu::Xor, Size::Q, FREE2, USER_TAG as i32);
        }
        self.code
            .alu_imm(Alu::Cmp, Size::Q, FREE2, (PAGE_SIZE - bytes) as i32);
        self.punt_if(condition::ABOVE);
    }

    /// Makes a host address of the virtual address in [`FREE2`].
    pub(super) fn look_up(&mut self, bytes: u64, write: bool) -> Mem {
        self.find_entry::<TlbEntry, TLB_ENTRIES>(TLB, Self::which(write), bytes);
        let host = found(TLB + offset_of!(TlbEntry, host));
        self.code.alu_rm(Alu::Add, Size::Q, FREE2, host);
        Mem::at(FREE2, 0)
    }

    // Code.

    /// Finds the translated code at the virtual address in [`FREE2`] and leaves its address in [`FREE`], or leaves the
    /// instruction to the interpreter.
    pub(super) fn find_code(&mut self) {
        self.find_entry::<CodeEntry, CODE_TLB>(CODES, offset_of!(CodeEntry, tag), 1);
        self.code.mov_rm(Size::Q, FREE, found(CODES + CODE_ENTRY_ENTRIES));
        self.code.mov_rm(Size::D, FREE, Mem::indexed(FREE, FREE2, 2, 0));
        self.code.test_mr(Size::D, FREE, FREE);
        self.punt_if(condition::ZERO);
        self.code.alu_rm(Alu::Add, Size::Q, FREE, CODE_BASE);
    }

    /// Keeps the address that [`Self::find_code`] found.
    pub(super) fn keep_target(&mut self) {
        self.code.mov_mr(Size::Q, TARGET, FREE);
    }

    /// Goes to the address that was kept.
    pub(super) fn go_to_target(&mut self) {
        self.code.jmp_rm(TARGET);
    }
}
