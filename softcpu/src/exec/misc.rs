//! User-level integer instructions that are too rare for an opcode per form and size.
//!
//! What to do is packed into the operation's immediate:
//!
//! ```text
//! bits 7:0    MiscOp
//! bits 9:8    log2 of the operand size in bytes
//! bit  10     the first (or only) operand that may be memory is memory
//! bits 23:16  an 8-bit immediate: shift count, bit number, condition
//! bits 63:32  a 32-bit immediate
//! ```

use super::arith::{divide, double_shift, mask, multiply, rotate, rotate_through_carry, sign};
use super::stack::{enter, pop, push};
use super::{alu, branch};
use crate::core::{Core, Ctx, Faulted};
use crate::exec::alu::Alu;
use crate::flags;
use crate::op::{HIGH_BYTE, Op};
use crate::registers::{RAX, RBP, RBX, RCX, RDX, RSP};
use crate::word::Word;

macro_rules! kinds {
    ($($name:ident),* $(,)?) => {
        /// Which instruction.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum MiscOp {
            $($name),*
        }
        /// All of them, by number.
        const KINDS: &[MiscOp] = &[$(MiscOp::$name),*];
    };
}

kinds! {
    ShlImm, ShlCl, ShrImm, ShrCl, SarImm, SarCl, RolImm, RolCl, RorImm, RorCl, RclImm, RclCl, RcrImm, RcrCl,
    ShldImm, ShldCl, ShrdImm, ShrdCl,
    Inc, Dec, Neg, Not, Mul, Imul, Imul2, Imul3, Div, Idiv,
    Xchg, Cmpxchg, CmpxchgWide, Xadd,
    BtImm, BtReg, BtsImm, BtsReg, BtrImm, BtrReg, BtcImm, BtcReg,
    Bsf, Bsr, Popcnt, Bswap, MovzxToWord, MovsxToWord, MovsxdToWord,
    Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo, Lahf, Sahf, Clc, Stc, Cmc, Cld, Std, Xlat, Xlat32, Movnti, Touch,
    PushWord, PushWordImm, PopWord, PopMemory, Enter, LeaveWord, Cmov, Set, Loop, Loope, Loopne, Jrcxz,
}

/// Packs an immediate word.
pub(crate) fn pack(kind: MiscOp, size: usize, memory: bool, extra: u8) -> u64 {
    (kind as u64) | ((size as u64 & 3) << 8) | (u64::from(memory) << 10) | (u64::from(extra) << 16)
}

/// Executes; true when [`Core::rip`] has been set and control goes there.
pub(super) fn execute(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    match op.imm >> 8 & 3 {
        0 => sized::<u8>(core, cx, op),
        1 => sized::<u16>(core, cx, op),
        2 => sized::<u32>(core, cx, op),
        _ => sized::<u64>(core, cx, op),
    }
}

/// The operand that may be a register or memory.
struct Place {
    memory: Option<u64>,
    register: u8,
}

impl Place {
    fn load<T: Word>(&self, core: &mut Core, cx: &mut Ctx<'_>) -> Result<T, Faulted> {
        match self.memory {
            Some(va) => core.read(cx, va),
            None => Ok(core.get(self.register)),
        }
    }

    /// For an instruction that stores to the same place afterwards.
    fn load_modify<T: Word>(&self, core: &mut Core, cx: &mut Ctx<'_>) -> Result<T, Faulted> {
        match self.memory {
            Some(va) => core.read_modify(cx, va),
            None => Ok(core.get(self.register)),
        }
    }

    fn store<T: Word>(&self, core: &mut Core, cx: &mut Ctx<'_>, value: T) -> Result<(), Faulted> {
        match self.memory {
            Some(va) => core.write(cx, va, value),
            None => {
                core.set(self.register, value);
                Ok(())
            }
        }
    }
}

#[allow(clippy::too_many_lines)] // one match over the kinds
fn sized<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    use MiscOp as K;
    let Some(kind) = KINDS.get(usize::from(op.imm.to_le_bytes()[0])).copied() else {
        return Err(core.unknown("an operation that the decoder does not make"));
    };
    let memory = (op.imm >> 10 & 1 != 0).then(|| core.ea(op));
    let extra = u64::from(op.imm.to_le_bytes()[2]);
    let wide = op.imm >> 32;
    let first = Place {
        memory,
        register: op.a,
    };
    // For instructions whose second operand may be memory.
    let second = Place {
        memory,
        register: op.b,
    };
    match kind {
        K::ShlImm
        | K::ShlCl
        | K::ShrImm
        | K::ShrCl
        | K::SarImm
        | K::SarCl
        | K::RolImm
        | K::RolCl
        | K::RorImm
        | K::RorCl
        | K::RclImm
        | K::RclCl
        | K::RcrImm
        | K::RcrCl => {
            let by_cl = matches!(
                kind,
                K::ShlCl | K::ShrCl | K::SarCl | K::RolCl | K::RorCl | K::RclCl | K::RcrCl
            );
            let count = if by_cl { core.get::<u8>(RCX).zx() } else { extra } & mask::<T>();
            let a = first.load_modify::<T>(core, cx)?;
            let mut lazy = core.lazy;
            let r = match kind {
                _ if count == 0 => a,
                K::ShlImm | K::ShlCl => alu::shl(&mut lazy, a, count),
                K::ShrImm | K::ShrCl => alu::shr(&mut lazy, a, count),
                K::SarImm | K::SarCl => alu::sar(&mut lazy, a, count),
                K::RolImm | K::RolCl | K::RorImm | K::RorCl => {
                    let left = matches!(kind, K::RolImm | K::RolCl);
                    rotate(&mut lazy, a, count, left)
                }
                _ => {
                    let left = matches!(kind, K::RclImm | K::RclCl);
                    rotate_through_carry(&mut lazy, a, count, left)
                }
            };
            first.store(core, cx, r)?;
            core.lazy = lazy;
        }
        K::ShldImm | K::ShldCl | K::ShrdImm | K::ShrdCl => {
            let by_cl = matches!(kind, K::ShldCl | K::ShrdCl);
            let count = if by_cl { core.get::<u8>(RCX).zx() } else { extra } & mask::<T>();
            let left = matches!(kind, K::ShldImm | K::ShldCl);
            let a = first.load_modify::<T>(core, cx)?;
            if count == 0 {
                // A 32-bit register is zero-extended all the same.
                return first.store(core, cx, a).map(|()| false);
            }
            let (r, cf) = double_shift(a, core.get::<T>(op.b), count, left);
            first.store(core, cx, r)?;
            core.lazy.result_with(r, cf, (r.sx() ^ a.sx()) >> 63 != 0);
        }
        K::Inc | K::Dec | K::Neg | K::Not => {
            let a = first.load_modify::<T>(core, cx)?;
            let mut lazy = core.lazy;
            let r = match kind {
                K::Inc => alu::inc(&mut lazy, a),
                K::Dec => alu::dec(&mut lazy, a),
                K::Neg => Alu::sub(&mut lazy, T::default(), a),
                _ => T::cut(!a.zx()),
            };
            first.store(core, cx, r)?;
            core.lazy = lazy;
        }
        K::Mul | K::Imul => {
            let factor = first.load::<T>(core, cx)?;
            multiply(core, factor, kind == K::Imul);
        }
        K::Imul2 | K::Imul3 => {
            let b = second.load::<T>(core, cx)?;
            let a = if kind == K::Imul2 {
                core.get(op.a)
            } else {
                T::cut(wide)
            };
            let r = alu::imul(&mut core.lazy, a, b);
            core.set(op.a, r);
        }
        K::Div | K::Idiv => {
            let divisor = first.load::<T>(core, cx)?;
            divide(core, divisor, kind == K::Idiv)?;
        }
        K::Xchg => {
            // Whichever operand is memory: the exchange is symmetric.
            let (place, register) = if memory.is_some() && op.a != crate::op::ZERO {
                (
                    Place {
                        memory,
                        register: op.b,
                    },
                    op.a,
                )
            } else {
                (first, op.b)
            };
            let a = place.load_modify::<T>(core, cx)?;
            let b = core.get::<T>(register);
            place.store(core, cx, b)?;
            core.set(register, a);
        }
        K::Cmpxchg => {
            let found = first.load_modify::<T>(core, cx)?;
            let expected = core.get::<T>(RAX);
            let equal = found == expected;
            // Memory is written either way; a register keeps even its upper half when the values differ.
            if equal {
                first.store(core, cx, core.get::<T>(op.b))?;
            } else if memory.is_some() {
                first.store(core, cx, found)?;
            }
            Alu::cmp(&mut core.lazy, expected, found);
            if !equal {
                core.set(RAX, found);
            }
        }
        K::CmpxchgWide => compare_exchange_wide::<T>(core, cx, core.ea(op))?,
        K::Xadd => {
            let a = first.load_modify::<T>(core, cx)?;
            let b = core.get::<T>(op.b);
            let mut lazy = core.lazy;
            let sum = Alu::add(&mut lazy, a, b);
            if memory.is_some() {
                first.store(core, cx, sum)?;
                core.set(op.b, a);
            } else {
                core.set(op.b, a);
                core.set(op.a, sum);
            }
            core.lazy = lazy;
        }
        K::BtImm | K::BtsImm | K::BtrImm | K::BtcImm => bit_test::<T>(core, cx, kind, &first, extra)?,
        K::BtReg | K::BtsReg | K::BtrReg | K::BtcReg => {
            let number = core.get::<T>(op.b);
            // In memory, the bit number reaches beyond the operand, in either direction.
            let beyond = (number.sx().cast_signed() >> T::BITS.trailing_zeros()).cast_unsigned();
            let place = Place {
                memory: memory.map(|va| va.wrapping_add(beyond.wrapping_mul(T::BYTES))),
                register: op.a,
            };
            bit_test::<T>(core, cx, kind, &place, number.zx())?;
        }
        K::Bsf | K::Bsr => {
            let value = second.load::<T>(core, cx)?.zx();
            if value == 0 {
                // The destination stays as it is (as on every processor of the vendor, and now documented); a 32-bit one
                // keeps its upper half too.
                core.lazy.logic(0u64);
            } else {
                let bit = if kind == K::Bsf {
                    value.trailing_zeros()
                } else {
                    63 - value.leading_zeros()
                };
                core.set(op.a, T::cut(u64::from(bit)));
                core.lazy.logic(1u64);
            }
        }
        K::Popcnt => {
            let value = second.load::<T>(core, cx)?.zx();
            core.set(op.a, T::cut(u64::from(value.count_ones())));
            core.set_flags_explicit(if value == 0 { flags::ZF } else { 0 });
        }
        K::Bswap => match T::BITS {
            64 => core.set(op.a, core.get::<u64>(op.a).swap_bytes()),
            32 => core.set(op.a, core.get::<u32>(op.a).swap_bytes()),
            // Undefined for 16 bits; processors clear the register's low half.
            _ => core.set(op.a, 0u16),
        },
        K::MovzxToWord => {
            let value = second.load::<u8>(core, cx)?;
            core.set(op.a, u16::from(value));
        }
        K::MovsxToWord => {
            let value = second.load::<u8>(core, cx)?;
            core.set(op.a, u16::cut(value.sx()));
        }
        K::MovsxdToWord => {
            let value = second.load::<u16>(core, cx)?;
            core.set(op.a, value);
        }
        K::Cbw => core.set(RAX, u16::cut(core.get::<u8>(RAX).sx())),
        K::Cwde => core.set(RAX, u32::cut(core.get::<u16>(RAX).sx())),
        K::Cdqe => core.set(RAX, core.get::<u32>(RAX).sx()),
        K::Cwd => core.set(RDX, u16::cut(sign(core.get::<u16>(RAX).sx()))),
        K::Cdq => core.set(RDX, u32::cut(sign(core.get::<u32>(RAX).sx()))),
        K::Cqo => core.set(RDX, sign(core.get::<u64>(RAX))),
        K::Lahf => core.set(RAX | HIGH_BYTE, u8::cut(core.lazy.image() | flags::FIXED)),
        K::Sahf => {
            const LOW: u64 = flags::SF | flags::ZF | flags::AF | flags::PF | flags::CF;
            let image = (core.lazy.image() & !LOW) | (core.get::<u8>(RAX | HIGH_BYTE).zx() & LOW);
            core.set_flags_explicit(image);
        }
        K::Clc => core.lazy.set_cf(false),
        K::Stc => core.lazy.set_cf(true),
        K::Cmc => core.lazy.set_cf(!core.lazy.cf()),
        K::Cld => core.flags &= !flags::DF,
        K::Std => core.flags |= flags::DF,
        K::Xlat | K::Xlat32 => {
            let offset = core.get::<u64>(RBX).wrapping_add(core.get::<u8>(RAX).zx());
            let offset = if kind == K::Xlat {
                offset
            } else {
                u32::cut(offset).zx()
            };
            let value = core.read::<u8>(cx, offset.wrapping_add(core.get(op.seg)))?;
            core.set(RAX, value);
        }
        K::Touch => {
            core.read::<u8>(cx, core.ea(op))?;
        }
        K::Movnti => first.store(core, cx, core.get::<T>(op.b))?,
        K::PushWord => {
            let value = first.load::<u16>(core, cx)?;
            push(core, cx, value)?;
        }
        K::PushWordImm => push(core, cx, u16::cut(wide))?,
        K::PopWord => pop::<u16>(core, cx, op, memory.is_some())?,
        K::PopMemory => pop::<u64>(core, cx, op, memory.is_some())?,
        K::Enter => enter::<T>(core, cx, extra, wide)?,
        K::LeaveWord => {
            let frame = core.get::<u64>(RBP);
            let value = core.read::<u16>(cx, frame)?;
            core.set(RSP, frame.wrapping_add(2));
            core.set(RBP, value);
        }
        K::Cmov => {
            let value = second.load::<T>(core, cx)?;
            if branch::holds(core.lazy, extra) {
                core.set(op.a, value);
            }
        }
        K::Set => first.store(core, cx, u8::from(branch::holds(core.lazy, extra)))?,
        K::Loop | K::Loope | K::Loopne | K::Jrcxz => {
            let taken = if kind == K::Jrcxz {
                core.get::<T>(RCX).zx() == 0
            } else {
                let count = T::cut(core.get::<T>(RCX).zx().wrapping_sub(1));
                core.set(RCX, count);
                let flag = match kind {
                    K::Loope => core.lazy.zf(),
                    K::Loopne => !core.lazy.zf(),
                    _ => true,
                };
                count.zx() != 0 && flag
            };
            if taken {
                let page = core.rip_of(op).wrapping_sub(u64::from(op.off));
                core.rip = page.wrapping_add(i64::from(op.disp).cast_unsigned());
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// CMPXCHG8B (`T` = u32) and CMPXCHG16B (`T` = u64).
fn compare_exchange_wide<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, va: u64) -> Result<(), Faulted> {
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

fn bit_test<T: Word>(
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
