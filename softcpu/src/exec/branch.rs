//! Branches, and the conditions of Jcc, SETcc and CMOVcc.

use super::fast::{Source, push_value};
use crate::core::{Core, Ctx, Faulted};
use crate::flags::Lazy;
use crate::mmu;
use crate::op::Op;
use crate::registers::RSP;

macro_rules! conditions {
    ($($name:ident $not:ident = $test:expr;)*) => {
        $(
            #[inline(always)]
            pub(super) fn $name(lazy: Lazy) -> bool {
                let test: fn(Lazy) -> bool = $test;
                test(lazy)
            }
            #[inline(always)]
            pub(super) fn $not(lazy: Lazy) -> bool {
                !$name(lazy)
            }
        )*
        /// Whether condition number `number` (its encoding) holds.
        #[inline(always)]
        pub(crate) fn holds(lazy: Lazy, number: u64) -> bool {
            let positive = match number >> 1 & 7 {
                0 => o(lazy),
                1 => b(lazy),
                2 => z(lazy),
                3 => be(lazy),
                4 => s(lazy),
                5 => p(lazy),
                6 => l(lazy),
                _ => le(lazy),
            };
            positive != (number & 1 != 0)
        }
    };
}

conditions! {
    o no = Lazy::of;
    b nb = Lazy::cf;
    z nz = Lazy::zf;
    be nbe = |f| f.cf() | f.zf();
    s ns = Lazy::sf;
    p np = Lazy::pf;
    l nl = |f| f.sf() != f.of();
    le nle = |f| f.zf() | (f.sf() != f.of());
}

/// JMP: nothing comes before the branch.
#[inline(always)]
pub(super) fn jump(_: &mut Core, _: &mut Ctx<'_>, _: &Op) -> Result<(), Faulted> {
    Ok(())
}

/// CALL: pushes the return address before the branch.
#[inline(always)]
pub(super) fn call(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    push_value(core, cx, op, core.next_rip(op))
}

/// JMP through a register or memory; returns the target.
#[inline(always)]
pub(super) fn jump_indirect<S: Source>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<u64, Faulted> {
    let target = S::read(core, cx, op, op.a)?;
    canonical(core, target)
}

/// CALL through a register or memory; returns the target.
#[inline(always)]
pub(super) fn call_indirect<S: Source>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<u64, Faulted> {
    let target = S::read(core, cx, op, op.a)?;
    if !mmu::canonical(target) {
        // A fault on the stack comes before the one for the target. As on AMD, the return address is not pushed;
        // Intel has written it below RSP when the exception is raised.
        let top = core.get::<u64>(RSP).wrapping_sub(8);
        core.check_write(cx, top, 8)?;
    }
    canonical(core, target)?;
    call(core, cx, op)?;
    Ok(target)
}

/// RET; returns the target.
#[inline(always)]
pub(super) fn ret(core: &mut Core, cx: &mut Ctx<'_>, _: &Op) -> Result<u64, Faulted> {
    return_over(core, cx, 0)
}

/// RET that also drops `imm` bytes of arguments; returns the target.
#[inline(always)]
pub(super) fn ret_and_pop(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<u64, Faulted> {
    return_over(core, cx, op.imm)
}

#[inline(always)]
fn return_over(core: &mut Core, cx: &mut Ctx<'_>, arguments: u64) -> Result<u64, Faulted> {
    let top = core.get::<u64>(RSP);
    let target = core.read(cx, top)?;
    let target = canonical(core, target)?;
    core.set(RSP, top.wrapping_add(8).wrapping_add(arguments));
    Ok(target)
}

/// `target`, or #GP(0) if it is not canonical. The branch itself faults, and has changed nothing yet.
#[inline(always)]
fn canonical(core: &mut Core, target: u64) -> Result<u64, Faulted> {
    if mmu::canonical(target) {
        Ok(target)
    } else {
        Err(core.protection())
    }
}
