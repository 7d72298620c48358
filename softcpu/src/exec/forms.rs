//! Two-operand instructions: the five forms that their operands take.
//!
//! An instruction is a type that implements [`Operation`]; each form is a function generic over it and over the
//! operand size.

use super::alu::Alu;
use crate::core::{Core, Ctx, Faulted};
use crate::flags::Lazy;
use crate::op::Op;
use crate::word::Word;

/// What a two-operand instruction computes.
pub(super) trait Operation {
    /// Whether the result depends on the destination's old value.
    const READS: bool = true;
    /// Whether the result is stored; CMP and TEST only set flags.
    const WRITES: bool = true;
    /// The result of destination `a` and source `b`; sets the flags in `lazy`.
    fn apply<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T;
}

macro_rules! operation {
    ($($name:ident $function:ident $writes:literal;)*) => {$(
        pub(super) struct $name;
        impl Operation for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
                Alu::$function(lazy, a, b)
            }
        }
    )*};
}
operation! {
    Add add true;
    Or or true;
    Adc adc true;
    Sbb sbb true;
    And and true;
    Sub sub true;
    Xor xor true;
    Cmp cmp false;
    Test test false;
}

/// MOV: the source replaces the destination, and no flags change.
pub(super) struct Mov;
impl Operation for Mov {
    const READS: bool = false;
    #[inline(always)]
    fn apply<T: Word>(_: &mut Lazy, _: T, b: T) -> T {
        b
    }
}

/// Register and register.
#[inline(always)]
pub(super) fn rr<O: Operation, T: Word>(core: &mut Core, _: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    to_register::<O, T>(core, op, core.get(op.b));
    Ok(())
}

/// Register and immediate.
#[inline(always)]
pub(super) fn ri<O: Operation, T: Word>(core: &mut Core, _: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    to_register::<O, T>(core, op, T::cut(op.imm));
    Ok(())
}

/// Register and memory source.
#[inline(always)]
pub(super) fn rm<O: Operation, T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    let b = core.read(cx, core.ea(op))?;
    to_register::<O, T>(core, op, b);
    Ok(())
}

/// Memory destination and register.
#[inline(always)]
pub(super) fn mr<O: Operation, T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    to_memory::<O, T>(core, cx, op, core.get(op.b))
}

/// Memory destination and immediate.
#[inline(always)]
pub(super) fn mi<O: Operation, T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    to_memory::<O, T>(core, cx, op, T::cut(op.imm))
}

#[inline(always)]
fn to_register<O: Operation, T: Word>(core: &mut Core, op: &Op, b: T) {
    let a = if O::READS { core.get(op.a) } else { T::default() };
    let r = O::apply(&mut core.lazy, a, b);
    if O::WRITES {
        core.set(op.a, r);
    }
}

#[inline(always)]
fn to_memory<O: Operation, T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op, b: T) -> Result<(), Faulted> {
    let va = core.ea(op);
    if !O::WRITES {
        let a = core.read(cx, va)?;
        O::apply(&mut core.lazy, a, b);
        return Ok(());
    }
    core.writer = op.off;
    if !O::READS {
        return core.write(cx, va, b);
    }
    let a = core.read_modify(cx, va)?;
    // The flags change only once the write has not faulted.
    let mut lazy = core.lazy;
    let r = O::apply(&mut lazy, a, b);
    core.write(cx, va, r)?;
    core.lazy = lazy;
    Ok(())
}
