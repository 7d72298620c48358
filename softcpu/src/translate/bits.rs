//! Shifts, rotates, bit tests and bit scans.

use super::emit::{Alu, Bit, Mem, Reg, Rm, Shift, Size};
use super::flags;
use super::kind::{By, set};
use super::layout::{FLAGS, FREE, FREE2, condition};
use super::writer::{Store, Writer};
use crate::op::Op;

impl Writer {
    pub(super) fn shift(&mut self, op: &Op, shift: Shift, size: Size, by: By, memory: bool, wanted: u8) {
        let place = self.target(op, size, memory);
        let counted = match (shift, by) {
            (Shift::Rol | Shift::Ror, By::Immediate(count)) => {
                return self.rotate(op, shift, size, count, wanted);
            }
            (_, By::Immediate(count)) => {
                self.change(place, op.a, size, memory, |code, place| {
                    code.shift_imm(shift, size, place, count);
                });
                count
            }
            (_, By::Register) => {
                if wanted == set::NONE {
                    self.change(place, op.a, size, false, |code, place| {
                        code.shift_cl(shift, size, place)
                    });
                    self.host_flags = set::NONE;
                } else {
                    self.shift_by_cl(op, shift, size, wanted);
                }
                return;
            }
        };
        let how = match (shift, counted) {
            // The host's OF is right for a count of one only.
            (Shift::Shl | Shift::Shr, 1) => Store::NoAf,
            (Shift::Shl, _) => Store::ShiftedLeft,
            _ => Store::NoOverflow,
        };
        self.flags(wanted, how);
    }

    fn shift_by_cl(&mut self, op: &Op, shift: Shift, size: Size, wanted: u8) {
        let place = Self::place(op.a);
        if size == Size::D {
            // With a count of zero too.
            self.code.mov_rm(Size::D, FREE, place);
            self.store(op.a, Size::D, FREE);
        }
        let mask = if size == Size::Q { 63 } else { 31 };
        self.code.test_imm(Size::B, Reg::RCX, mask);
        let unchanged = self.code.skip(condition::ZERO);
        self.change(place, op.a, size, false, |code, place| {
            code.shift_cl(shift, size, place)
        });
        match shift {
            Shift::Shl => self.flags(wanted, Store::ShiftedLeft),
            Shift::Shr => {
                // OF is the XOR of the result's two top bits, of which the upper one is clear.
                self.code.lahf();
                self.code.bit_imm(Bit::Bt, size, place, size.bits() - 2);
                self.code.mov_byte(FREE, flags::NO_OVERFLOW);
                let clear = self.code.skip(condition::NO_CARRY);
                self.code.mov_byte(FREE, flags::OVERFLOW);
                self.code.land(clear);
                self.code.mov_mr(Size::W, FLAGS, FREE);
            }
            _ => self.flags(wanted, Store::NoOverflow),
        }
        self.code.land(unchanged);
        self.host_flags = set::NONE;
    }

    fn rotate(&mut self, op: &Op, shift: Shift, size: Size, count: u8, wanted: u8) {
        let place = Self::place(op.a);
        if wanted != set::NONE {
            // A rotate keeps all flags but CF and OF.
            self.need_all();
        }
        self.change(place, op.a, size, false, |code, place| {
            code.shift_imm(shift, size, place, count);
        });
        self.host_flags = set::NONE;
        if wanted == set::NONE {
            return;
        }
        self.code.lahf();
        // OF is the XOR of two bits, which is the parity of both: after ROL the top one and the lowest, after ROR the
        // two top ones.
        self.code.mov_rm(size, FREE2, place);
        if shift == Shift::Rol {
            self.code.shift_imm(Shift::Rol, size, FREE2, 1);
        } else {
            self.code.shift_imm(Shift::Rol, size, FREE2, 2);
        }
        self.code.alu_imm(Alu::And, Size::D, FREE2, 3);
        self.code.set(condition::NO_PARITY, FREE);
        self.code.mov_mr(Size::W, FLAGS, FREE);
    }

    pub(super) fn bit(&mut self, op: &Op, bit: Bit, size: Size, by: By, wanted: u8) {
        let place = Self::place(op.a);
        let in_core = matches!(place, Rm::Mem(_));
        let register = match place {
            Rm::Reg(register) => register,
            Rm::Mem(place) => {
                self.code.mov_rm(size, FREE2, place);
                FREE2
            }
        };
        match by {
            By::Immediate(number) => self.code.bit_imm(bit, size, register, number & (size.bits() - 1)),
            By::Register => {
                let number = self.load(op.b, FREE);
                self.code.bit(bit, size, register, number);
            }
        }
        if in_core && bit != Bit::Bt {
            self.store(op.a, size, FREE2);
        }
        self.store_carry(wanted);
    }

    pub(super) fn bit_in_memory(&mut self, op: &Op, bit: Bit, size: Size, by: By, wanted: u8) {
        match by {
            By::Immediate(number) => {
                let place = self.memory(op, size.bytes(), bit != Bit::Bt);
                self.code.bit_imm(bit, size, place, number & (size.bits() - 1));
            }
            By::Register => {
                // The number can address bits before and after the operand.
                let (shift, scale) = if size == Size::Q { (6, 3) } else { (5, 2) };
                self.linear_address(op);
                match size {
                    Size::Q => self.code.mov_rm(Size::Q, FREE, Self::place(op.b)),
                    _ => self.code.movsx(size, Size::Q, FREE, Self::place(op.b)),
                }
                self.code.shift_imm(Shift::Sar, Size::Q, FREE, shift);
                self.code.lea(Size::Q, FREE2, Mem::indexed(FREE2, FREE, scale, 0));
                let place = self.look_up(size.bytes(), bit != Bit::Bt);
                self.code.mov_rm(size, FREE, place);
                let (number, borrowed) = self.borrow(op.b);
                self.code.bit(bit, size, FREE, number);
                self.give_back(borrowed);
                if bit != Bit::Bt {
                    self.code.mov_mr(size, place, FREE);
                }
            }
        }
        self.store_carry(wanted);
    }

    /// Stores the host's CF, and keeps the other flags, which manuals leave undefined after a bit test.
    fn store_carry(&mut self, wanted: u8) {
        self.host_flags = set::NONE;
        if wanted == set::NONE {
            return;
        }
        self.code.set(condition::CARRY, FREE2);
        self.code.movzx(Size::B, FREE2, FREE2);
        self.code.movzx(Size::W, FREE, FLAGS);
        self.code.alu_imm(Alu::And, Size::D, FREE, !(1 << 8));
        self.code.shift_imm(Shift::Shl, Size::D, FREE2, 8);
        self.code.alu_rm(Alu::Or, Size::D, FREE, FREE2);
        self.code.mov_mr(Size::W, FLAGS, FREE);
    }

    pub(super) fn scan(&mut self, op: &Op, reverse: bool, size: Size, memory: bool, wanted: u8) {
        // Flags as of a result of 0 or 1.
        const ZERO: u64 = 0x4600;
        const ONE: u64 = 0x0200;
        let source = self.source(op, op.b, size, memory);
        self.code.scan(reverse, size, FREE, source);
        // Nothing found: the register stays as it is.
        let nothing = self.code.skip(condition::ZERO);
        self.store(op.a, size, FREE);
        self.code.land(nothing);
        self.host_flags = set::NONE;
        if wanted == set::NONE {
            return;
        }
        self.code.constant(FREE, ZERO);
        let nothing = self.code.skip(condition::ZERO);
        self.code.constant(FREE, ONE);
        self.code.land(nothing);
        self.code.mov_mr(Size::W, FLAGS, FREE);
    }
}
