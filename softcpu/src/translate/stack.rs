//! The stack: PUSH, POP, calls and returns, as far as they are of the stack.

use super::emit::{Mem, Rm, Size};
use super::layout::{FREE, FREE2, GUEST_RSP};
use super::writer::Writer;
use crate::op::Op;

impl Writer {
    /// The 8 bytes at the address in a register of the guest.
    pub(super) fn at(&mut self, register: u8) -> Mem {
        let address = self.load(register, FREE2);
        self.code.mov_rm(Size::Q, FREE2, address);
        self.look_up(8, false)
    }

    /// The 8 bytes below the top of the stack, to be written.
    pub(super) fn below_top(&mut self) -> Mem {
        self.code.lea(Size::Q, FREE2, Mem::at(GUEST_RSP, -8));
        self.look_up(8, true)
    }

    pub(super) fn move_top(&mut self, by: i32) {
        self.code.lea(Size::Q, GUEST_RSP, Mem::at(GUEST_RSP, by));
    }

    pub(super) fn put_constant(&mut self, place: Mem, value: u64) {
        if let Ok(short) = i32::try_from(value.cast_signed()) {
            self.code.mov_imm(Size::Q, place, short);
        } else {
            self.code.constant(FREE, value);
            self.code.mov_mr(Size::Q, place, FREE);
        }
    }

    pub(super) fn push(&mut self, op: &Op, memory: bool) {
        if memory {
            let source = self.memory(op, 8, false);
            self.code.mov_rm(Size::Q, FREE, source);
            self.code
                .mov_mr(Size::Q, super::layout::in_core(crate::op::SCRATCH), FREE);
        }
        let top = self.below_top();
        let source = if memory {
            self.load(crate::op::SCRATCH, FREE)
        } else {
            self.load(op.a, FREE)
        };
        self.code.mov_mr(Size::Q, top, source);
        self.move_top(-8);
    }

    pub(super) fn push_return(&mut self, op: &Op) {
        let value = self.next_rip(op);
        let top = self.below_top();
        self.put_constant(top, value);
        self.move_top(-8);
    }

    /// The target of an indirect branch.
    pub(super) fn load_target(&mut self, op: &Op, memory: bool) {
        let source = self.source(op, op.a, Size::Q, memory);
        if source != Rm::Reg(FREE2) {
            self.code.mov_rm(Size::Q, FREE2, source);
        }
    }
}
