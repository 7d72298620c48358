//! The translation of each kind of instruction.

use super::emit::{Alu, Bit, Condition, Mem, Reg, Rm, Shift, Size, Unary};
use super::flags;
use super::kind::{Family, Form, Kind, set};
use super::layout::{
    BUDGET, CR0, CR4, FLAGS, FREE, FREE2, GS, GUEST_RAX, GUEST_RSP, KERNEL_GS, SHADOW_UNTIL, SYSTEM_FLAGS,
    UNTIL, WINDOW_WANTED, condition, vector_in_core,
};
use super::plan::Step;
use super::writer::{Store, Writer};
use crate::op::Op;
use crate::registers::{CR0_EM, CR0_TS, CR4_OSFXSR, RBP, RSP};
use crate::sse::hosted::{Hosted, Operands};

/// IF's place in RFLAGS.
const INTERRUPT_BIT: u8 = 9;

/// The source of a two-operand instruction.
#[derive(Debug, Clone, Copy)]
enum Source {
    Place(Rm),
    Immediate(i64),
}

impl Writer {
    /// Translates one operation.
    pub(super) fn translate(&mut self, step: &Step) {
        let Step { op, kind, wanted } = *step;
        match kind {
            Kind::Two(family, form, size) => self.two(&op, family, form, size, wanted),
            Kind::Extend {
                signed,
                from,
                to,
                memory,
            } => {
                let source = if memory {
                    Rm::Mem(self.memory(&op, from.bytes(), false))
                } else {
                    self.byte_place(op.b)
                };
                self.into(op.a, to, |code, into| {
                    if signed {
                        code.movsx(from, to, into, source);
                    } else {
                        code.movzx(from, into, source);
                    }
                });
            }
            Kind::Cmov(holds, size, memory) => self.cmov(&op, holds, size, memory),
            Kind::Imul {
                size,
                memory,
                immediate,
            } => self.imul(&op, size, memory, immediate, wanted),
            Kind::Lea(size) => match Self::place(op.a) {
                Rm::Reg(into) => self.address(&op, into, size),
                Rm::Mem(_) => {
                    self.address(&op, FREE2, size);
                    self.store(op.a, size, FREE2);
                }
            },
            Kind::Push { memory } => self.push(&op, memory),
            Kind::PushImmediate => {
                let top = self.below_top();
                self.put_constant(top, op.imm);
                self.move_top(-8);
            }
            Kind::Pop => {
                let top = self.at(RSP);
                self.move_top(8);
                self.into(op.a, Size::Q, |code, into| code.mov_rm(Size::Q, into, top));
            }
            Kind::Leave => {
                let frame = self.at(RBP);
                self.code.lea(Size::Q, GUEST_RSP, Mem::at(Reg::RBP, 8));
                self.code.mov_rm(Size::Q, Reg::RBP, frame);
            }
            Kind::Shift {
                shift,
                size,
                by,
                memory,
            } => self.shift(&op, shift, size, by, memory, wanted),
            Kind::Step { down, size, memory } => {
                let target = self.target(&op, size, memory);
                if wanted != set::NONE {
                    // CF is kept, and stored with the others.
                    self.need_carry();
                }
                self.change(target, op.a, size, memory, |code, place| {
                    code.step(down, size, place);
                });
                self.flags(wanted, Store::All);
            }
            Kind::Negate { unary, size, memory } => {
                let target = self.target(&op, size, memory);
                let kept = self.host_flags;
                self.change(target, op.a, size, memory, |code, place| {
                    code.unary(unary, size, place);
                });
                if unary == Unary::Neg {
                    self.flags(wanted, Store::All);
                } else {
                    self.host_flags = kept;
                }
            }
            Kind::Multiply { unary, size, memory } => {
                let source = self.source(&op, op.a, size, memory);
                self.code.mov_rm(Size::Q, FREE, GUEST_RAX);
                self.code.unary(unary, size, source);
                self.code.mov_rm(Size::Q, GUEST_RAX, FREE);
                self.product(Rm::Reg(GUEST_RAX), size, wanted);
            }
            Kind::Divide { size, memory } => {
                let source = self.source(&op, op.a, size, memory);
                self.host_flags = set::NONE;
                self.code.alu_imm(Alu::Cmp, size, source, 0);
                self.punt_if(condition::ZERO);
                self.code.test_mr(size, Reg::RDX, Reg::RDX);
                self.punt_if(condition::NOT_ZERO);
                self.code.mov_rm(Size::Q, FREE, GUEST_RAX);
                self.code.unary(Unary::Div, size, source);
                self.code.mov_rm(Size::Q, GUEST_RAX, FREE);
            }
            Kind::Bit {
                bit,
                size,
                by,
                memory: false,
            } => self.bit(&op, bit, size, by, wanted),
            Kind::Bit { bit, size, by, .. } => self.bit_in_memory(&op, bit, size, by, wanted),
            Kind::Vector(hosted, operands) => self.vector(&op, hosted, operands),
            Kind::PushFlags => self.push_flags(),
            Kind::ClearInterrupts => {
                self.code
                    .alu_imm(Alu::And, Size::Q, SYSTEM_FLAGS, !(1 << INTERRUPT_BIT));
                self.host_flags = set::NONE;
            }
            Kind::SetInterrupts => self.set_interrupts(),
            Kind::SwapGs => {
                self.code.mov_rm(Size::Q, FREE, GS);
                self.code.mov_rm(Size::Q, FREE2, KERNEL_GS);
                self.code.mov_mr(Size::Q, GS, FREE2);
                self.code.mov_mr(Size::Q, KERNEL_GS, FREE);
            }
            Kind::Scan {
                reverse,
                size,
                memory,
            } => self.scan(&op, reverse, size, memory, wanted),
            Kind::Bswap(size) => match Self::place(op.a) {
                Rm::Reg(register) => self.code.bswap(size, register),
                Rm::Mem(place) => {
                    self.code.mov_rm(size, FREE, place);
                    self.code.bswap(size, FREE);
                    self.code.mov_mr(Size::Q, place, FREE);
                }
            },
            Kind::Set(holds, memory) => {
                let target = if memory {
                    Rm::Mem(self.memory(&op, 1, true))
                } else {
                    Self::place(op.a)
                };
                self.need(holds);
                self.code.set(holds, target);
            }
            Kind::CompareExchange(size) => self.compare_exchange(&op, size, wanted),
            Kind::ExchangeAdd(size) => {
                let target = self.memory(&op, size.bytes(), true);
                self.code.mov_rm(Size::Q, FREE, Self::place(op.b));
                self.code.xadd(size, target, FREE);
                self.store(op.b, size, FREE);
                self.flags(wanted, Store::All);
            }
            Kind::Exchange(size, memory) => self.exchange(&op, size, memory),
            Kind::ExtendRax(size) => {
                let from = if size == Size::Q { Size::D } else { Size::W };
                self.code.movsx(from, size, GUEST_RAX, GUEST_RAX);
            }
            Kind::SignToRdx(size) => {
                self.code.mov_rm(Size::Q, FREE, GUEST_RAX);
                self.code.sign_to_rdx(size);
            }
            Kind::String { fill, size } => self.string(fill, size),
            Kind::Nop => {}
            Kind::Address32 => {
                self.address(&op, FREE2, Size::D);
                self.code
                    .mov_mr(Size::Q, super::layout::in_core(crate::op::SCRATCH), FREE2);
            }
            Kind::Branch(holds, target) => {
                self.need(holds);
                self.branch(holds, target);
            }
            Kind::Jump(target) => self.go(target),
            Kind::Call(target) => {
                self.push_return(&op);
                self.go(target);
            }
            Kind::JumpIndirect { memory } => {
                self.load_target(&op, memory);
                self.find_code();
                self.code.jmp_rm(FREE);
            }
            Kind::CallIndirect { memory } => {
                self.load_target(&op, memory);
                self.find_code();
                self.keep_target();
                self.push_return(&op);
                self.go_to_target();
            }
            Kind::Return { arguments } => {
                let top = self.at(RSP);
                self.code.mov_rm(Size::Q, FREE2, top);
                self.find_code();
                self.move_top(8 + i32::from(arguments));
                self.code.jmp_rm(FREE);
            }
        }
    }

    /// The operand that is read and may be in memory.
    pub(super) fn source(&mut self, op: &Op, register: u8, size: Size, memory: bool) -> Rm {
        if memory {
            Rm::Mem(self.memory(op, size.bytes(), false))
        } else {
            Self::place(register)
        }
    }

    /// The operand that is read and written and may be in memory.
    pub(super) fn target(&mut self, op: &Op, size: Size, memory: bool) -> Rm {
        if memory {
            Rm::Mem(self.memory(op, size.bytes(), true))
        } else {
            Self::place(op.a)
        }
    }

    /// Changes an operand in its place. A register of the guest that is in the Core and has 32 bits is zero-extended.
    pub(super) fn change(
        &mut self,
        target: Rm,
        register: u8,
        size: Size,
        memory: bool,
        change: impl FnOnce(&mut super::emit::Emitter, Rm),
    ) {
        if size == Size::D && !memory && matches!(target, Rm::Mem(_)) {
            self.code.mov_rm(Size::D, FREE2, target);
            change(&mut self.code, Rm::Reg(FREE2));
            self.store(register, Size::D, FREE2);
        } else {
            change(&mut self.code, target);
        }
    }

    /// Computes a result of 32 or 64 bits into a register of the guest.
    fn into(&mut self, register: u8, size: Size, compute: impl FnOnce(&mut super::emit::Emitter, Reg)) {
        match Self::place(register) {
            Rm::Reg(host) => compute(&mut self.code, host),
            Rm::Mem(_) => {
                compute(&mut self.code, FREE);
                self.store(register, size, FREE);
            }
        }
    }

    // Two operands.

    fn two(&mut self, op: &Op, family: Family, form: Form, size: Size, wanted: u8) {
        let memory = matches!(form, Form::mr | Form::mi);
        let target = if memory {
            Rm::Mem(self.memory(op, size.bytes(), family.writes()))
        } else {
            self.byte_place(op.a)
        };
        let source = match form {
            Form::rr | Form::mr => Source::Place(self.byte_place(op.b)),
            Form::ri | Form::mi => Source::Immediate(cut(op.imm, size)),
            Form::rm => Source::Place(Rm::Mem(self.memory(op, size.bytes(), false))),
        };
        if matches!(family, Family::Alu(Alu::Adc | Alu::Sbb)) {
            self.need_carry();
        }
        match target {
            Rm::Mem(place) if !memory && size == Size::D && family.writes() => {
                // A result of 32 bits clears the upper half of the register, which is in the Core.
                if family != Family::Mov {
                    self.code.mov_rm(Size::D, FREE, place);
                }
                self.apply(family, size, Rm::Reg(FREE), source);
                self.code.mov_mr(Size::Q, place, FREE);
            }
            target => self.apply(family, size, target, source),
        }
        if family.writes() && !memory {
            self.back(op.a);
        }
        match family {
            Family::Mov => {}
            Family::Test | Family::Alu(Alu::And | Alu::Or | Alu::Xor) => self.flags(wanted, Store::Logic),
            Family::Alu(_) => self.flags(wanted, Store::All),
        }
    }

    /// One instruction, through [`FREE`] where both operands are in memory or the immediate is too long.
    fn apply(&mut self, family: Family, size: Size, target: Rm, source: Source) {
        match (target, source) {
            (Rm::Reg(target), Source::Place(source)) => match family {
                Family::Mov => self.code.mov_rm(size, target, source),
                Family::Test => self.code.test_mr(size, source, target),
                Family::Alu(alu) => self.code.alu_rm(alu, size, target, source),
            },
            (target @ Rm::Mem(_), Source::Place(source)) => {
                let source = match source {
                    Rm::Reg(source) => source,
                    Rm::Mem(_) => {
                        self.code.mov_rm(size, FREE, source);
                        FREE
                    }
                };
                match family {
                    Family::Mov => self.code.mov_mr(size, target, source),
                    Family::Test => self.code.test_mr(size, target, source),
                    Family::Alu(alu) => self.code.alu_mr(alu, size, target, source),
                }
            }
            (target, Source::Immediate(value)) => self.apply_immediate(family, size, target, value),
        }
    }

    fn apply_immediate(&mut self, family: Family, size: Size, target: Rm, value: i64) {
        let short = i32::try_from(value);
        match (family, target) {
            (Family::Mov, Rm::Reg(target)) if size == Size::Q => {
                self.code.constant(target, value.cast_unsigned());
            }
            (Family::Mov, Rm::Reg(target)) if size == Size::D => {
                self.code
                    .constant(target, value.cast_unsigned() & u64::from(u32::MAX));
            }
            (Family::Mov, target) => match short {
                Ok(short) => self.code.mov_imm(size, target, short),
                Err(_) => {
                    self.code.constant(FREE, value.cast_unsigned());
                    self.code.mov_mr(size, target, FREE);
                }
            },
            (Family::Test, target) => self.code.test_imm(size, target, short.unwrap_or(0)),
            (Family::Alu(alu), target) => self.code.alu_imm(alu, size, target, short.unwrap_or(0)),
        }
    }

    fn cmov(&mut self, op: &Op, holds: Condition, size: Size, memory: bool) {
        let source = self.source(op, op.b, size, memory);
        self.need(holds);
        match Self::place(op.a) {
            Rm::Reg(into) => self.code.cmov(holds, size, into, source),
            Rm::Mem(place) => {
                self.code.mov_rm(Size::Q, FREE, place);
                self.code.cmov(holds, size, FREE, source);
                self.code.mov_mr(Size::Q, place, FREE);
            }
        }
    }

    // Multiplication.

    fn imul(&mut self, op: &Op, size: Size, memory: bool, immediate: bool, wanted: u8) {
        let source = self.source(op, op.b, size, memory);
        let place = Self::place(op.a);
        let into = match place {
            Rm::Reg(into) => into,
            Rm::Mem(_) => FREE,
        };
        if immediate {
            let value = i32::try_from(cut(op.imm, size)).unwrap_or(0);
            self.code.imul_imm(size, into, source, value);
        } else {
            if into == FREE {
                self.code.mov_rm(Size::Q, FREE, place);
            }
            self.code.imul(size, into, source);
        }
        if into == FREE {
            self.store(op.a, size, FREE);
        }
        self.product(place, size, wanted);
    }

    /// The flags of a product: CF and OF say whether it was cut, which the host's CF tells; the others are those of
    /// the result.
    fn product(&mut self, result: Rm, size: Size, wanted: u8) {
        self.host_flags = set::NONE;
        if wanted == set::NONE {
            return;
        }
        self.code.set(condition::CARRY, FREE);
        self.code.alu_imm(Alu::Cmp, size, result, 0);
        self.code.lahf();
        self.code.or_ah_al();
        // 0 and 1 become NO_OVERFLOW and OVERFLOW.
        self.code.unary(Unary::Neg, Size::B, FREE);
        self.code.alu_imm(
            Alu::And,
            Size::B,
            FREE,
            i32::from(flags::NO_OVERFLOW ^ flags::OVERFLOW),
        );
        self.code
            .alu_imm(Alu::Xor, Size::B, FREE, i32::from(flags::NO_OVERFLOW));
        self.code.mov_mr(Size::W, FLAGS, FREE);
    }

    // Shifts and bits.

    // Vectors and system flags.

    fn vector(&mut self, op: &Op, hosted: Hosted, operands: Operands) {
        const LOAD: u8 = 0x6f;
        const STORE: u8 = 0x7f;
        let Operands {
            first,
            second,
            memory,
        } = operands;
        self.host_flags = set::NONE;
        if !self.vectors {
            let unavailable = i32::try_from(CR0_EM | CR0_TS).unwrap_or(0);
            self.code.test_imm(Size::D, CR0, unavailable);
            self.punt_if(condition::NOT_ZERO);
            let available = i32::try_from(CR4_OSFXSR).unwrap_or(0);
            self.code.test_imm(Size::D, CR4, available);
            self.punt_if(condition::ZERO);
            self.vectors = true;
        }
        let aligned = !matches!(
            hosted,
            Hosted::Load { aligned: false } | Hosted::Store { aligned: false }
        );
        let place = if memory {
            let place = self.memory(op, 16, matches!(hosted, Hosted::Store { .. }));
            if aligned {
                // Pages are aligned alike for guest and host.
                self.code.lea(Size::Q, FREE2, place);
                self.code.test_imm(Size::B, FREE2, 15);
                self.punt_if(condition::NOT_ZERO);
                Mem::at(FREE2, 0)
            } else {
                place
            }
        } else {
            vector_in_core(second)
        };
        match hosted {
            Hosted::Lanes { opcode, immediate } => {
                self.code.vector_unaligned(LOAD, 0, vector_in_core(first));
                self.code.vector_unaligned(LOAD, 1, place);
                self.code.vector(opcode, 0, 1, immediate);
                self.code.vector_unaligned(STORE, 0, vector_in_core(first));
            }
            Hosted::Load { .. } => {
                self.code.vector_unaligned(LOAD, 0, place);
                self.code.vector_unaligned(STORE, 0, vector_in_core(first));
            }
            Hosted::Store { .. } => {
                self.code.vector_unaligned(LOAD, 0, vector_in_core(first));
                self.code.vector_unaligned(STORE, 0, place);
            }
        }
    }

    fn push_flags(&mut self) {
        const SCRATCH: Mem = super::layout::in_core(crate::op::SCRATCH);
        // The stored flags have AH's flags at bits 15:8 and OF at bit 0; RF is pushed clear.
        self.load_flags();
        self.code.mov_rm(Size::D, FREE2, FREE);
        self.code.alu_imm(Alu::And, Size::D, FREE, 1);
        self.code.shift_imm(Shift::Shl, Size::D, FREE, 11);
        self.code.shift_imm(Shift::Shr, Size::D, FREE2, 8);
        self.code.alu_imm(Alu::And, Size::D, FREE2, 0xd5);
        self.code.alu_rm(Alu::Or, Size::D, FREE, FREE2);
        self.code.alu_rm(Alu::Or, Size::Q, FREE, SYSTEM_FLAGS);
        self.code.mov_mr(Size::Q, SCRATCH, FREE);
        let top = self.below_top();
        self.code.mov_rm(Size::Q, FREE, SCRATCH);
        self.code.mov_mr(Size::Q, top, FREE);
        self.move_top(-8);
    }

    fn set_interrupts(&mut self) {
        self.host_flags = set::NONE;
        self.code.alu_imm(Alu::Cmp, Size::B, WINDOW_WANTED, 0);
        self.punt_if(condition::NOT_ZERO);
        self.code.bit_imm(Bit::Bts, Size::D, SYSTEM_FLAGS, INTERRUPT_BIT);
        let set = self.code.skip(condition::CARRY);
        // Interrupts stay blocked for one more instruction. The whole block has been charged for.
        self.code.mov_rm(Size::Q, FREE, UNTIL);
        self.code.alu_rm(Alu::Sub, Size::Q, FREE, BUDGET);
        self.code.alu_imm(Alu::Add, Size::Q, FREE, 1 - self.after());
        self.code.mov_mr(Size::Q, SHADOW_UNTIL, FREE);
        self.code.land(set);
    }

    // Exchanges.

    /// A host register that holds a register of the guest while both free ones are in use; give it to
    /// [`Self::give_back`].
    pub(super) fn borrow(&mut self, register: u8) -> (Reg, bool) {
        match Self::place(register) {
            Rm::Reg(host) => (host, false),
            Rm::Mem(place) => {
                self.code.push(Reg::RCX);
                self.code.mov_rm(Size::Q, Reg::RCX, place);
                (Reg::RCX, true)
            }
        }
    }

    pub(super) fn give_back(&mut self, borrowed: bool) {
        if borrowed {
            self.code.pop(Reg::RCX);
        }
    }

    fn compare_exchange(&mut self, op: &Op, size: Size, wanted: u8) {
        let target = self.memory(op, size.bytes(), true);
        let (source, borrowed) = self.borrow(op.b);
        self.code.mov_rm(Size::Q, FREE, GUEST_RAX);
        self.code.cmpxchg(size, target, source);
        self.give_back(borrowed);
        // Equal: RAX keeps all its bits.
        let equal = self.code.skip(condition::ZERO);
        self.code.mov_rm(size, GUEST_RAX, FREE);
        self.code.land(equal);
        self.flags(wanted, Store::All);
    }

    fn exchange(&mut self, op: &Op, size: Size, memory: bool) {
        if !memory {
            self.code.mov_rm(size, FREE, Self::place(op.a));
            self.code.mov_rm(size, FREE2, Self::place(op.b));
            self.store(op.a, size, FREE2);
            self.store(op.b, size, FREE);
            return;
        }
        let target = self.memory(op, size.bytes(), true);
        self.code.mov_rm(size, FREE, target);
        let (source, borrowed) = self.borrow(op.b);
        self.code.mov_mr(size, target, source);
        self.give_back(borrowed);
        self.store(op.b, size, FREE);
    }

    // The stack.
}

/// An immediate of the operand size, sign-extended.
#[allow(clippy::cast_possible_truncation)] // cut on purpose
fn cut(value: u64, size: Size) -> i64 {
    match size {
        Size::B => i64::from(value as i8),
        Size::W => i64::from(value as i16),
        Size::D => i64::from(value as i32),
        Size::Q => value.cast_signed(),
    }
}
