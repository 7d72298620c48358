//! User-level integer instructions that are too rare for an opcode per form and size.
//!
//! Number and operands are in [`Op::imm`], see [`Packed`].

use super::arith::{divide, double_shift, mask, multiply, rotate, rotate_through_carry, sign};
use super::packed::Packed;
use super::place::{Place, bit_test, compare_exchange_wide};
use super::stack::{enter, pop, push};
use super::{alu, branch};
use crate::core::{Core, Ctx, Faulted};
use crate::exec::alu::Alu;
use crate::flags;
use crate::op::{HIGH_BYTE, Op, family};
use crate::registers::{RAX, RBP, RBX, RCX, RDX, RSP};
use crate::word::Word;

family! {
    /// User-level integer instructions, as far as the loop has no operation of their own for them.
    MiscOp {
        ShlImm: Shl_rm8_imm8 | Shl_rm16_imm8 | Shl_rm32_imm8 | Shl_rm64_imm8 | Shl_rm8_1 | Shl_rm16_1
            | Shl_rm32_1 | Shl_rm64_1 | Sal_rm8_imm8 | Sal_rm16_imm8 | Sal_rm32_imm8 | Sal_rm64_imm8
            | Sal_rm8_1 | Sal_rm16_1 | Sal_rm32_1 | Sal_rm64_1,
        ShlCl: Shl_rm8_CL | Shl_rm16_CL | Shl_rm32_CL | Shl_rm64_CL | Sal_rm8_CL | Sal_rm16_CL | Sal_rm32_CL
            | Sal_rm64_CL,
        ShrImm: Shr_rm8_imm8 | Shr_rm16_imm8 | Shr_rm32_imm8 | Shr_rm64_imm8 | Shr_rm8_1 | Shr_rm16_1
            | Shr_rm32_1 | Shr_rm64_1,
        ShrCl: Shr_rm8_CL | Shr_rm16_CL | Shr_rm32_CL | Shr_rm64_CL,
        SarImm: Sar_rm8_imm8 | Sar_rm16_imm8 | Sar_rm32_imm8 | Sar_rm64_imm8 | Sar_rm8_1 | Sar_rm16_1
            | Sar_rm32_1 | Sar_rm64_1,
        SarCl: Sar_rm8_CL | Sar_rm16_CL | Sar_rm32_CL | Sar_rm64_CL,
        RolImm: Rol_rm8_imm8 | Rol_rm16_imm8 | Rol_rm32_imm8 | Rol_rm64_imm8 | Rol_rm8_1 | Rol_rm16_1
            | Rol_rm32_1 | Rol_rm64_1,
        RolCl: Rol_rm8_CL | Rol_rm16_CL | Rol_rm32_CL | Rol_rm64_CL,
        RorImm: Ror_rm8_imm8 | Ror_rm16_imm8 | Ror_rm32_imm8 | Ror_rm64_imm8 | Ror_rm8_1 | Ror_rm16_1
            | Ror_rm32_1 | Ror_rm64_1,
        RorCl: Ror_rm8_CL | Ror_rm16_CL | Ror_rm32_CL | Ror_rm64_CL,
        RclImm: Rcl_rm8_imm8 | Rcl_rm16_imm8 | Rcl_rm32_imm8 | Rcl_rm64_imm8 | Rcl_rm8_1 | Rcl_rm16_1
            | Rcl_rm32_1 | Rcl_rm64_1,
        RclCl: Rcl_rm8_CL | Rcl_rm16_CL | Rcl_rm32_CL | Rcl_rm64_CL,
        RcrImm: Rcr_rm8_imm8 | Rcr_rm16_imm8 | Rcr_rm32_imm8 | Rcr_rm64_imm8 | Rcr_rm8_1 | Rcr_rm16_1
            | Rcr_rm32_1 | Rcr_rm64_1,
        RcrCl: Rcr_rm8_CL | Rcr_rm16_CL | Rcr_rm32_CL | Rcr_rm64_CL,
        ShldImm: Shld_rm16_r16_imm8 | Shld_rm32_r32_imm8 | Shld_rm64_r64_imm8,
        ShldCl: Shld_rm16_r16_CL | Shld_rm32_r32_CL | Shld_rm64_r64_CL,
        ShrdImm: Shrd_rm16_r16_imm8 | Shrd_rm32_r32_imm8 | Shrd_rm64_r64_imm8,
        ShrdCl: Shrd_rm16_r16_CL | Shrd_rm32_r32_CL | Shrd_rm64_r64_CL,
        Inc: Inc_rm8 | Inc_rm16 | Inc_rm32 | Inc_rm64,
        Dec: Dec_rm8 | Dec_rm16 | Dec_rm32 | Dec_rm64,
        Neg: Neg_rm8 | Neg_rm16 | Neg_rm32 | Neg_rm64,
        Not: Not_rm8 | Not_rm16 | Not_rm32 | Not_rm64,
        Mul: Mul_rm8 | Mul_rm16 | Mul_rm32 | Mul_rm64,
        Imul: Imul_rm8 | Imul_rm16 | Imul_rm32 | Imul_rm64,
        Imul2: Imul_r16_rm16,
        Imul3: Imul_r16_rm16_imm16 | Imul_r16_rm16_imm8,
        Div: Div_rm8 | Div_rm16 | Div_rm32 | Div_rm64,
        Idiv: Idiv_rm8 | Idiv_rm16 | Idiv_rm32 | Idiv_rm64,
        Xchg: Xchg_rm8_r8 | Xchg_rm16_r16 | Xchg_rm32_r32 | Xchg_rm64_r64 | Xchg_r16_AX | Xchg_r32_EAX
            | Xchg_r64_RAX,
        Cmpxchg: Cmpxchg_rm8_r8 | Cmpxchg_rm16_r16 | Cmpxchg_rm32_r32 | Cmpxchg_rm64_r64,
        CmpxchgWide: Cmpxchg8b_m64 | Cmpxchg16b_m128,
        Xadd: Xadd_rm8_r8 | Xadd_rm16_r16 | Xadd_rm32_r32 | Xadd_rm64_r64,
        BtImm: Bt_rm16_imm8 | Bt_rm32_imm8 | Bt_rm64_imm8,
        BtReg: Bt_rm16_r16 | Bt_rm32_r32 | Bt_rm64_r64,
        BtsImm: Bts_rm16_imm8 | Bts_rm32_imm8 | Bts_rm64_imm8,
        BtsReg: Bts_rm16_r16 | Bts_rm32_r32 | Bts_rm64_r64,
        BtrImm: Btr_rm16_imm8 | Btr_rm32_imm8 | Btr_rm64_imm8,
        BtrReg: Btr_rm16_r16 | Btr_rm32_r32 | Btr_rm64_r64,
        BtcImm: Btc_rm16_imm8 | Btc_rm32_imm8 | Btc_rm64_imm8,
        BtcReg: Btc_rm16_r16 | Btc_rm32_r32 | Btc_rm64_r64,
        Bsf: Bsf_r16_rm16 | Bsf_r32_rm32 | Bsf_r64_rm64,
        Bsr: Bsr_r16_rm16 | Bsr_r32_rm32 | Bsr_r64_rm64,
        Popcnt: Popcnt_r16_rm16 | Popcnt_r32_rm32 | Popcnt_r64_rm64,
        Bswap: Bswap_r16 | Bswap_r32 | Bswap_r64,
        MovzxToWord: Movzx_r16_rm8,
        MovsxToWord: Movsx_r16_rm8,
        MovsxdToWord: Movzx_r16_rm16 | Movsx_r16_rm16 | Movsxd_r16_rm16,
        Cbw: Cbw,
        Cwde: Cwde,
        Cdqe: Cdqe,
        Cwd: Cwd,
        Cdq: Cdq,
        Cqo: Cqo,
        Lahf: Lahf,
        Sahf: Sahf,
        Clc: Clc,
        Stc: Stc,
        Cmc: Cmc,
        Cld: Cld,
        Std: Std,
        Xlat: Xlat_m8,
        Movnti: Movnti_m32_r32 | Movnti_m64_r64,
        Touch: Clflush_m8,
        PushWord: Push_r16 | Push_rm16,
        PushWordImm: Push_imm16 | Pushw_imm8,
        PopWord: Pop_r16 | Pop_rm16,
        PopMemory: Pop_rm64,
        EnterWord: Enterw_imm16_imm8,
        Enter: Enterq_imm16_imm8,
        LeaveWord: Leavew,
        Cmov: Cmovo_r16_rm16 | Cmovno_r16_rm16 | Cmovb_r16_rm16 | Cmovae_r16_rm16 | Cmove_r16_rm16
            | Cmovne_r16_rm16 | Cmovbe_r16_rm16 | Cmova_r16_rm16 | Cmovs_r16_rm16 | Cmovns_r16_rm16
            | Cmovp_r16_rm16 | Cmovnp_r16_rm16 | Cmovl_r16_rm16 | Cmovge_r16_rm16 | Cmovle_r16_rm16
            | Cmovg_r16_rm16,
        Set: Seto_rm8 | Setno_rm8 | Setb_rm8 | Setae_rm8 | Sete_rm8 | Setne_rm8 | Setbe_rm8 | Seta_rm8
            | Sets_rm8 | Setns_rm8 | Setp_rm8 | Setnp_rm8 | Setl_rm8 | Setge_rm8 | Setle_rm8 | Setg_rm8,
        Loop: Loop_rel8_64_RCX | Loop_rel8_64_ECX,
        Loope: Loope_rel8_64_RCX | Loope_rel8_64_ECX,
        Loopne: Loopne_rel8_64_RCX | Loopne_rel8_64_ECX,
        Jrcxz: Jrcxz_rel8_64 | Jecxz_rel8_64,
    }
}

/// Executes one instruction. Returns true if it set [`Core::rip`], where execution then continues.
pub(super) fn execute(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    match Packed::of(op).size() {
        0 => sized::<u8>(core, cx, op),
        1 => sized::<u16>(core, cx, op),
        2 => sized::<u32>(core, cx, op),
        _ => sized::<u64>(core, cx, op),
    }
}

#[allow(clippy::too_many_lines)] // one match over the kinds
fn sized<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    use MiscOp as K;
    let packed = Packed::of(op);
    let kind = MiscOp::from_number(packed.number());
    let memory = packed.memory().then(|| core.ea(op));
    let extra = u64::from(packed.extra());
    let wide = packed.wide();
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
                // The store still clears the upper half of a 32-bit register.
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
            // Either operand can be the one in memory, because the exchange is symmetric.
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
            // Memory is written even if the values differ. A register then keeps all its bits, the upper half included.
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
            // In memory, the bit number can address bits before and after the operand.
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
                // The destination is unchanged, as current manuals say and all processors do. A 32-bit destination
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
            // The result for 16 bits is undefined; processors clear the low 16 bits.
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
        K::Xlat => {
            let offset = core.get::<u64>(RBX).wrapping_add(core.get::<u8>(RAX).zx());
            // The decoder sets `extra` if the address is EBX + AL.
            let offset = if extra == 0 { offset } else { u32::cut(offset).zx() };
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
        K::EnterWord => enter::<u16>(core, cx, extra, wide)?,
        K::Enter => enter::<u64>(core, cx, extra, wide)?,
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
