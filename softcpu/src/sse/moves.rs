//! Instructions that only move bits.

use super::softfloat::low64;
use super::{Form, low32, slot};
use crate::core::{Core, Ctx, Faulted};
use crate::mmu::Access;
use crate::op::{Op, family};

family! {
    /// Moves. For a store, the first register is the data and the operand in memory the destination.
    Move {
        LoadAligned: Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128,
        Load: Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128,
        StoreAligned: Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm
            | Movntps_m128_xmm | Movntpd_m128_xmm | Movntdq_m128_xmm,
        Store: Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm,
        LoadSingle: Movss_xmm_xmmm32,
        LoadDouble: Movsd_xmm_xmmm64,
        StoreSingle: Movss_xmmm32_xmm,
        StoreDouble: Movsd_xmmm64_xmm,
        LoadQuad: Movq_xmm_xmmm64,
        StoreQuad: Movq_xmmm64_xmm,
        LoadLow: Movlps_xmm_m64 | Movlpd_xmm_m64,
        LoadHigh: Movhps_xmm_m64 | Movhpd_xmm_m64,
        StoreLow: Movlps_m64_xmm | Movlpd_m64_xmm,
        StoreHigh: Movhps_m64_xmm | Movhpd_m64_xmm,
        HighToLow: Movhlps_xmm_xmm,
        LowToHigh: Movlhps_xmm_xmm,
        FromGeneral32: Movd_xmm_rm32,
        FromGeneral64: Movq_xmm_rm64,
        ToGeneral32: Movd_rm32_xmm,
        ToGeneral64: Movq_rm64_xmm,
        SignsSingle: Movmskps_r32_xmm | Movmskps_r64_xmm,
        SignsDouble: Movmskpd_r32_xmm | Movmskpd_r64_xmm,
        SignsByte: Pmovmskb_r32_xmm | Pmovmskb_r64_xmm,
        ExtractWord: Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8,
        InsertWord: Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8,
        MaskedStore: Maskmovdqu_rDI_xmm_xmm,
    }
}

/// The sign bits of `lanes` lanes, lane 0 in bit 0.
pub(super) fn signs(v: u128, lanes: u32) -> u64 {
    let width = 128 / lanes;
    (0..lanes).fold(0, |mask, i| mask | (low64(v >> (i * width + width - 1)) & 1) << i)
}

/// `v` with its low 64 bits replaced.
pub(super) fn with_low(v: u128, low: u64) -> u128 {
    v >> 64 << 64 | u128::from(low)
}

/// `v` with its high 64 bits replaced.
fn with_high(v: u128, high: u64) -> u128 {
    u128::from(low64(v)) | u128::from(high) << 64
}

#[inline]
pub(super) fn execute(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Move,
) -> Result<(), Faulted> {
    let (a, b) = (slot(op.a), slot(op.b));
    match operation {
        Move::LoadAligned => core.xmm[a] = core.source128(cx, op, form)?,
        Move::Load => {
            core.xmm[a] = if form.memory() {
                core.read128(cx, core.ea(op))?
            } else {
                core.xmm[b]
            }
        }
        Move::StoreAligned if form.memory() => {
            let va = core.aligned_ea(op)?;
            core.write128(cx, va, core.xmm[a])?;
        }
        Move::Store if form.memory() => core.write128(cx, core.ea(op), core.xmm[a])?,
        Move::StoreAligned | Move::Store => core.xmm[a] = core.xmm[b],
        // A load from memory clears the other bits of the register; a move between registers keeps them.
        Move::LoadSingle if form.memory() => core.xmm[a] = u128::from(core.read::<u32>(cx, core.ea(op))?),
        Move::LoadDouble if form.memory() => core.xmm[a] = u128::from(core.read::<u64>(cx, core.ea(op))?),
        Move::StoreSingle if form.memory() => core.write(cx, core.ea(op), low32(core.xmm[a]))?,
        Move::StoreDouble if form.memory() => core.write(cx, core.ea(op), low64(core.xmm[a]))?,
        Move::LoadSingle | Move::StoreSingle => {
            core.xmm[a] = core.xmm[a] >> 32 << 32 | u128::from(low32(core.xmm[b]));
        }
        Move::LoadDouble | Move::StoreDouble => core.xmm[a] = with_low(core.xmm[a], low64(core.xmm[b])),
        Move::StoreQuad if form.memory() => core.write(cx, core.ea(op), low64(core.xmm[a]))?,
        Move::LoadQuad | Move::StoreQuad => core.xmm[a] = u128::from(core.source64(cx, op, form)?),
        Move::LoadLow => core.xmm[a] = with_low(core.xmm[a], core.read(cx, core.ea(op))?),
        Move::LoadHigh => core.xmm[a] = with_high(core.xmm[a], core.read(cx, core.ea(op))?),
        Move::StoreLow => core.write(cx, core.ea(op), low64(core.xmm[a]))?,
        Move::StoreHigh => core.write(cx, core.ea(op), low64(core.xmm[a] >> 64))?,
        Move::HighToLow => core.xmm[a] = with_low(core.xmm[a], low64(core.xmm[b] >> 64)),
        Move::LowToHigh => core.xmm[a] = with_high(core.xmm[a], low64(core.xmm[b])),
        Move::FromGeneral32 => {
            let value = if form.memory() {
                core.read(cx, core.ea(op))?
            } else {
                core.get::<u32>(op.b)
            };
            core.xmm[a] = u128::from(value);
        }
        Move::FromGeneral64 => {
            let value = if form.memory() {
                core.read(cx, core.ea(op))?
            } else {
                core.get::<u64>(op.b)
            };
            core.xmm[a] = u128::from(value);
        }
        Move::ToGeneral32 if form.memory() => core.write(cx, core.ea(op), low32(core.xmm[a]))?,
        Move::ToGeneral64 if form.memory() => core.write(cx, core.ea(op), low64(core.xmm[a]))?,
        Move::ToGeneral32 => core.set(op.a, low32(core.xmm[b])),
        Move::ToGeneral64 => core.set(op.a, low64(core.xmm[b])),
        Move::SignsSingle => core.set(op.a, signs(core.xmm[b], 4)),
        Move::SignsDouble => core.set(op.a, signs(core.xmm[b], 2)),
        Move::SignsByte => core.set(op.a, signs(core.xmm[b], 16)),
        Move::ExtractWord => {
            let word = low64(core.xmm[b] >> (16 * u32::from(form.imm8() & 7))) & 0xffff;
            core.set(op.a, word);
        }
        Move::InsertWord => {
            let word = if form.memory() {
                core.read(cx, core.ea(op))?
            } else {
                core.get::<u16>(op.b)
            };
            let at = 16 * u32::from(form.imm8() & 7);
            core.xmm[a] = core.xmm[a] & !(0xffff << at) | u128::from(word) << at;
        }
        Move::MaskedStore => {
            let (data, mask) = (core.xmm[a].to_le_bytes(), core.xmm[b].to_le_bytes());
            masked_store(core, cx, op, form, data, mask)?;
        }
    }
    Ok(())
}

/// MASKMOVDQU and MASKMOVQ: the bytes of `data` whose byte of `mask` has its sign bit set go to the memory at RDI.
pub(super) fn masked_store<const N: usize>(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    data: [u8; N],
    mask: [u8; N],
) -> Result<(), Faulted> {
    let offset: u64 = core.get(crate::registers::RDI);
    let offset = if form.address32() {
        offset & 0xffff_ffff
    } else {
        offset
    };
    let va = offset.wrapping_add(core.get(op.seg));
    let chosen = |i: &u64| mask[usize::from(i.to_le_bytes()[0])] & 0x80 != 0;
    let all = 0..N as u64;
    let (Some(first), Some(last)) = (all.clone().find(chosen), all.clone().rfind(chosen)) else {
        return Ok(());
    };
    // Both pages are checked first, so that nothing is written if one of them faults.
    core.locate(cx, va.wrapping_add(first), Access::Write)?;
    core.locate(cx, va.wrapping_add(last), Access::Write)?;
    for i in all.filter(chosen) {
        core.write(cx, va.wrapping_add(i), data[usize::from(i.to_le_bytes()[0])])?;
    }
    Ok(())
}
