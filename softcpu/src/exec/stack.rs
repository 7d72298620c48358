//! Stack instructions of 16 bits and with memory operands, and ENTER.

use crate::core::{Core, Ctx, Faulted};
use crate::op::Op;
use crate::registers::{RBP, RSP};
use crate::word::Word;

pub(super) fn push<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, value: T) -> Result<(), Faulted> {
    let top = core.get::<u64>(RSP).wrapping_sub(T::BYTES);
    core.write(cx, top, value)?;
    core.set(RSP, top);
    Ok(())
}

/// ENTER: makes a frame of `size` bytes and copies `level` (modulo 32) frame pointers of enclosing frames into it.
pub(super) fn enter<T: Word>(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    level: u64,
    size: u64,
) -> Result<(), Faulted> {
    let level = level % 32;
    let (mut top, mut link) = (core.get::<u64>(RSP).wrapping_sub(T::BYTES), core.get::<u64>(RBP));
    let frame = top;
    core.write(cx, top, core.get::<T>(RBP))?;
    for step in (0..level).rev() {
        let value = if step == 0 {
            T::cut(frame)
        } else {
            link = link.wrapping_sub(T::BYTES);
            core.read::<T>(cx, link)?
        };
        top = top.wrapping_sub(T::BYTES);
        core.write(cx, top, value)?;
    }
    let top = top.wrapping_sub(size);
    // The end of the frame must be writable, although nothing is written there.
    core.check_write(cx, top, T::BYTES)?;
    core.set(RBP, T::cut(frame));
    core.set(RSP, top);
    Ok(())
}

/// POP to a register or to memory. An address based on RSP uses its value after the increment.
pub(super) fn pop<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op, memory: bool) -> Result<(), Faulted> {
    let top = core.get::<u64>(RSP);
    let value = core.read::<T>(cx, top)?;
    core.set(RSP, top.wrapping_add(T::BYTES));
    if !memory {
        core.set(op.a, value);
        return Ok(());
    }
    let va = core.ea(op);
    core.write(cx, va, value).inspect_err(|_| core.set(RSP, top))
}
