//! REP MOVS and REP STOS, if all of it is one piece: as many elements as RCX says, within one page on each side,
//! upwards, of memory that the TLB reaches. The host's instruction does the work.

use super::emit::{Alu, Reg, Shift, Size, Unary};
use super::kind::set;
use super::layout::{FREE, FREE2, GUEST_RAX, SYSTEM_FLAGS, TARGET, condition};
use super::writer::Writer;
use crate::flags::{DF, TF};
use crate::memory::PAGE_SIZE;

/// Bits above a page offset.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // twelve bits
const PAGE_MASK: i32 = -(PAGE_SIZE as i32);

impl Writer {
    /// REP MOVS, or with `fill` REP STOS, of elements of this size.
    pub(super) fn string(&mut self, fill: bool, size: Size) {
        self.host_flags = set::NONE;
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // two of the low flags
        self.code.test_imm(Size::D, SYSTEM_FLAGS, (DF | TF) as i32);
        self.punt_if(condition::NOT_ZERO);
        self.within_page(Reg::RDI, size);
        if !fill {
            self.within_page(Reg::RSI, size);
        }
        self.code.mov_rm(Size::Q, FREE2, Reg::RDI);
        self.look_up(size.bytes(), true);
        if fill {
            self.fill(size);
        } else {
            self.copy(size);
        }
    }

    /// Leaves the instruction to the interpreter if RCX elements from this address on leave the page.
    fn within_page(&mut self, pointer: Reg, size: Size) {
        // The low half of the address with all bits above the page offset set is minus the rest of the page.
        self.code.mov_rm(Size::D, FREE, pointer);
        self.code.alu_imm(Alu::Or, Size::D, FREE, PAGE_MASK);
        self.code.unary(Unary::Neg, Size::D, FREE);
        self.shift_by_size(size);
        self.code.alu_rm(Alu::Cmp, Size::Q, Reg::RCX, FREE);
        self.punt_if(condition::ABOVE);
    }

    /// Makes elements of the bytes in [`FREE`].
    fn shift_by_size(&mut self, size: Size) {
        let by = size.bytes().trailing_zeros().to_le_bytes()[0];
        if by != 0 {
            self.code.shift_imm(Shift::Shr, Size::Q, FREE, by);
        }
    }

    /// The destination is in [`FREE2`].
    fn fill(&mut self, size: Size) {
        self.code.push(Reg::RDI);
        self.code.mov_rm(Size::Q, Reg::RDI, FREE2);
        self.code.mov_rm(Size::Q, FREE, GUEST_RAX);
        self.code.rep_stos(size);
        self.code.mov_rm(Size::Q, FREE, Reg::RDI);
        self.code.alu_rm(Alu::Sub, Size::Q, FREE, FREE2);
        self.code.pop(Reg::RDI);
        self.code.alu_rm(Alu::Add, Size::Q, Reg::RDI, FREE);
    }

    /// The destination is in [`FREE2`].
    fn copy(&mut self, size: Size) {
        self.code.mov_mr(Size::Q, TARGET, FREE2);
        self.code.mov_rm(Size::Q, FREE2, Reg::RSI);
        self.look_up(size.bytes(), false);
        // If the destination begins inside the source, later elements are copies of earlier ones.
        self.code.mov_rm(Size::Q, FREE, TARGET);
        self.code.alu_rm(Alu::Sub, Size::Q, FREE, FREE2);
        self.shift_by_size(size);
        self.code.alu_rm(Alu::Cmp, Size::Q, FREE, Reg::RCX);
        self.punt_if(condition::CARRY);
        self.code.push(Reg::RSI);
        self.code.push(Reg::RDI);
        self.code.mov_rm(Size::Q, Reg::RDI, TARGET);
        self.code.mov_rm(Size::Q, Reg::RSI, FREE2);
        self.code.rep_movs(size);
        self.code.mov_rm(Size::Q, FREE, Reg::RSI);
        self.code.alu_rm(Alu::Sub, Size::Q, FREE, FREE2);
        self.code.pop(Reg::RDI);
        self.code.pop(Reg::RSI);
        self.code.alu_rm(Alu::Add, Size::Q, Reg::RDI, FREE);
        self.code.alu_rm(Alu::Add, Size::Q, Reg::RSI, FREE);
    }
}
