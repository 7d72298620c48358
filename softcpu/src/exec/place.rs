//! Instructions that read an operand, in a register or memory, and write it back.

use super::misc::MiscOp;
use crate::core::{Core, Ctx, Faulted};
use crate::flags;
use crate::registers::{RAX, RBX, RCX, RDX};
use crate::word::Word;

/// The operand that may be a register or memory.
pub(super) struct Place {
    pub memory: Option<u64>,
    pub register: u8,
}

impl Place {
    pub fn load<T: Word>(&self, core: &mut Core, cx: &mut Ctx<'_>) -> Result<T, Faulted> {
        match self.memory {
            Some(va) => core.read(cx, va),
            None => Ok(core.get(self.register)),
        }
    }

    /// Reads the operand of an instruction that stores to the same place afterwards.
    pub fn load_modify<T: Word>(&self, core: &mut Core, cx: &mut Ctx<'_>) -> Result<T, Faulted> {
        match self.memory {
            Some(va) => core.read_modify(cx, va),
            None => Ok(core.get(self.register)),
        }
    }

    pub fn store<T: Word>(&self, core: &mut Core, cx: &mut Ctx<'_>, value: T) -> Result<(), Faulted> {
        match self.memory {
            Some(va) => core.write(cx, va, value),
            None => {
                core.set(self.register, value);
                Ok(())
            }
        }
    }
}

/// CMPXCHG8B (`T` = u32) and CMPXCHG16B (`T` = u64) on the memory at `va`.
pub(super) fn compare_exchange_wide<T: Word>(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    va: u64,
) -> Result<(), Faulted> {
    if T::BITS == 64 && !va.is_multiple_of(16) {
        return Err(core.protection());
    }
    core.check_write(cx, va, 2 * T::BYTES)?;
    let high_at = va.wrapping_add(T::BYTES);
    let (low, high) = (core.read::<T>(cx, va)?, core.read::<T>(cx, high_at)?);
    let equal = low == core.get(RAX) && high == core.get(RDX);
    let (new_low, new_high) = if equal {
        (core.get(RBX), core.get(RCX))
    } else {
        (low, high)
    };
    let mut bytes = [0; 16];
    let size = usize::from(T::BYTES.to_le_bytes()[0]);
    bytes[..size].copy_from_slice(&new_low.zx().to_le_bytes()[..size]);
    bytes[size..2 * size].copy_from_slice(&new_high.zx().to_le_bytes()[..size]);
    core.write_bytes(cx, va, &bytes[..2 * size])?;
    if !equal {
        core.set(RAX, low);
        core.set(RDX, high);
    }
    let image = core.lazy.image();
    core.set_flags_explicit(if equal {
        image | flags::ZF
    } else {
        image & !flags::ZF
    });
    Ok(())
}

/// BT, BTS, BTR and BTC on bit `number` (modulo the operand size) of `place`.
pub(super) fn bit_test<T: Word>(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    kind: MiscOp,
    place: &Place,
    number: u64,
) -> Result<(), Faulted> {
    use MiscOp as K;
    let bit = 1u64 << (number % u64::from(T::BITS));
    let reads_only = matches!(kind, K::BtImm | K::BtReg);
    let value = if reads_only {
        place.load::<T>(core, cx)
    } else {
        place.load_modify(core, cx)
    }?
    .zx();
    let new = match kind {
        K::BtsImm | K::BtsReg => Some(value | bit),
        K::BtrImm | K::BtrReg => Some(value & !bit),
        K::BtcImm | K::BtcReg => Some(value ^ bit),
        _ => None,
    };
    if let Some(new) = new {
        place.store(core, cx, T::cut(new))?;
    }
    let image = core.lazy.image();
    core.set_flags_explicit(if value & bit != 0 {
        image | flags::CF
    } else {
        image & !flags::CF
    });
    Ok(())
}
