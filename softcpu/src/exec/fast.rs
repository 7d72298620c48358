//! The other instructions with operations of their own: moves that extend, conditional moves, shifts, IMUL, the stack.

use super::{alu, branch};
use crate::core::{Core, Ctx, Faulted};
use crate::op::Op;
use crate::registers::{RBP, RSP};
use crate::word::Word;

/// Where the operand that can be a register or memory is.
pub(super) trait Source {
    /// Reads it; `register` is its number if it is a register.
    fn read<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op, register: u8) -> Result<T, Faulted>;
}

pub(super) struct Register;
impl Source for Register {
    #[inline(always)]
    fn read<T: Word>(core: &mut Core, _: &mut Ctx<'_>, _: &Op, register: u8) -> Result<T, Faulted> {
        Ok(core.get(register))
    }
}

pub(super) struct Memory;
impl Source for Memory {
    #[inline(always)]
    fn read<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op, _: u8) -> Result<T, Faulted> {
        core.read(cx, core.ea(op))
    }
}

macro_rules! instruction {
    // The instruction's operand is a register or memory.
    ($(#[$doc:meta])* $name:ident<$source:ident; $($type:ident),+>($core:ident, $cx:ident, $op:ident) $body:block) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<$source: Source, $($type: Word),+>(
            $core: &mut Core,
            $cx: &mut Ctx<'_>,
            $op: &Op,
        ) -> Result<(), Faulted> {
            $body
            Ok(())
        }
    };
    // The instruction has one form.
    ($(#[$doc:meta])* $name:ident<$type:ident>($core:ident, $cx:ident, $op:ident) $body:block) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<$type: Word>(
            $core: &mut Core,
            $cx: &mut Ctx<'_>,
            $op: &Op,
        ) -> Result<(), Faulted> {
            $body
            Ok(())
        }
    };
}

instruction! {
    /// MOVZX to 32 or 64 bits: the same, because a 32-bit result clears the upper half.
    movzx<S; T>(core, cx, op) {
        let value = S::read::<T>(core, cx, op, op.b)?;
        core.set(op.a, value.zx());
    }
}

instruction! {
    /// MOVSX and MOVSXD from `T` to `To`.
    movsx<S; T, To>(core, cx, op) {
        let value = S::read::<T>(core, cx, op, op.b)?;
        core.set(op.a, To::cut(value.sx()));
    }
}

instruction! {
    /// CMOVcc. Memory is read, and a 32-bit destination cleared in its upper half, even if the condition does not hold.
    cmov<S; T>(core, cx, op) {
        let source = S::read::<T>(core, cx, op, op.b)?;
        let value = if branch::holds(core.lazy, op.imm) { source } else { core.get(op.a) };
        core.set(op.a, value);
    }
}

instruction! {
    /// IMUL of two operands.
    imul<S; T>(core, cx, op) {
        let b = S::read::<T>(core, cx, op, op.b)?;
        let a = core.get(op.a);
        let r = alu::imul(&mut core.lazy, a, b);
        core.set(op.a, r);
    }
}

instruction! {
    /// IMUL of an operand and an immediate.
    imul_immediate<S; T>(core, cx, op) {
        let a = S::read::<T>(core, cx, op, op.b)?;
        let r = alu::imul(&mut core.lazy, a, T::cut(op.imm));
        core.set(op.a, r);
    }
}

instruction! {
    /// PUSH of a register or memory.
    push<S; T>(core, cx, op) {
        let value = S::read::<T>(core, cx, op, op.a)?;
        push_value(core, cx, op, value)?;
    }
}

instruction! {
    /// PUSH of an immediate.
    push_immediate<T>(core, cx, op) {
        push_value(core, cx, op, T::cut(op.imm))?;
    }
}

instruction! {
    /// POP to a register.
    pop<T>(core, cx, op) {
        let top = core.get::<u64>(RSP);
        let value = core.read::<T>(cx, top)?;
        // This order, because POP RSP keeps the value that was popped.
        core.set(RSP, top.wrapping_add(T::BYTES));
        core.set(op.a, value);
    }
}

instruction! {
    /// LEAVE.
    leave<T>(core, cx, _op) {
        let frame = core.get::<u64>(RBP);
        let value = core.read::<T>(cx, frame)?;
        core.set(RSP, frame.wrapping_add(T::BYTES));
        core.set(RBP, value);
    }
}

instruction! {
    /// LEA.
    lea<T>(core, _cx, op) {
        core.set(op.a, T::cut(core.ea(op)));
    }
}

macro_rules! shifts {
    ($($name:ident)*) => {$(
        instruction! {
            /// A shift of a register by an immediate that is not zero.
            $name<T>(core, _cx, op) {
                let a = core.get::<T>(op.a);
                let r = alu::$name(&mut core.lazy, a, op.imm);
                core.set(op.a, r);
            }
        }
    )*};
}
shifts!(shl shr sar);

macro_rules! steps {
    ($($name:ident)*) => {$(
        instruction! {
            /// INC or DEC of a register.
            $name<T>(core, _cx, op) {
                let a = core.get::<T>(op.a);
                let r = alu::$name(&mut core.lazy, a);
                core.set(op.a, r);
            }
        }
    )*};
}
steps!(inc dec);

/// Pushes `value`; nothing changes if the write faults.
#[inline(always)]
pub(super) fn push_value<T: Word>(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    value: T,
) -> Result<(), Faulted> {
    core.writer = op.off;
    let top = core.get::<u64>(RSP).wrapping_sub(T::BYTES);
    core.write(cx, top, value)?;
    core.set(RSP, top);
    Ok(())
}
