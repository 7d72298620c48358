//! Integer, logical and shuffling vector operations: pure functions of two vectors and an immediate byte.
//!
//! A vector is split into an array of lanes and joined again; the compiler turns the loops over lanes into vector code.

use super::{Form, slot};
use crate::core::{Core, Ctx, Faulted};
use crate::op::{Op, family};

family! {
    /// Operations with a vector destination and a vector (or memory, or immediate) source. Instructions that do the
    /// same to the lanes of an MMX and of an XMM register are one operation; see [`super::mmx`] for the former.
    Lanes {
        And: Pand_mm_mmm64 | Pand_xmm_xmmm128 | Andps_xmm_xmmm128 | Andpd_xmm_xmmm128,
        AndNot: Pandn_mm_mmm64 | Pandn_xmm_xmmm128 | Andnps_xmm_xmmm128 | Andnpd_xmm_xmmm128,
        Or: Por_mm_mmm64 | Por_xmm_xmmm128 | Orps_xmm_xmmm128 | Orpd_xmm_xmmm128,
        Xor: Pxor_mm_mmm64 | Pxor_xmm_xmmm128 | Xorps_xmm_xmmm128 | Xorpd_xmm_xmmm128,
        Paddb: Paddb_mm_mmm64 | Paddb_xmm_xmmm128,
        Paddw: Paddw_mm_mmm64 | Paddw_xmm_xmmm128,
        Paddd: Paddd_mm_mmm64 | Paddd_xmm_xmmm128,
        Paddq: Paddq_mm_mmm64 | Paddq_xmm_xmmm128,
        Psubb: Psubb_mm_mmm64 | Psubb_xmm_xmmm128,
        Psubw: Psubw_mm_mmm64 | Psubw_xmm_xmmm128,
        Psubd: Psubd_mm_mmm64 | Psubd_xmm_xmmm128,
        Psubq: Psubq_mm_mmm64 | Psubq_xmm_xmmm128,
        Paddsb: Paddsb_mm_mmm64 | Paddsb_xmm_xmmm128,
        Paddsw: Paddsw_mm_mmm64 | Paddsw_xmm_xmmm128,
        Paddusb: Paddusb_mm_mmm64 | Paddusb_xmm_xmmm128,
        Paddusw: Paddusw_mm_mmm64 | Paddusw_xmm_xmmm128,
        Psubsb: Psubsb_mm_mmm64 | Psubsb_xmm_xmmm128,
        Psubsw: Psubsw_mm_mmm64 | Psubsw_xmm_xmmm128,
        Psubusb: Psubusb_mm_mmm64 | Psubusb_xmm_xmmm128,
        Psubusw: Psubusw_mm_mmm64 | Psubusw_xmm_xmmm128,
        Pmullw: Pmullw_mm_mmm64 | Pmullw_xmm_xmmm128,
        Pmulhw: Pmulhw_mm_mmm64 | Pmulhw_xmm_xmmm128,
        Pmulhuw: Pmulhuw_mm_mmm64 | Pmulhuw_xmm_xmmm128,
        Pmuludq: Pmuludq_mm_mmm64 | Pmuludq_xmm_xmmm128,
        Pmaddwd: Pmaddwd_mm_mmm64 | Pmaddwd_xmm_xmmm128,
        Psadbw: Psadbw_mm_mmm64 | Psadbw_xmm_xmmm128,
        Pavgb: Pavgb_mm_mmm64 | Pavgb_xmm_xmmm128,
        Pavgw: Pavgw_mm_mmm64 | Pavgw_xmm_xmmm128,
        Pminub: Pminub_mm_mmm64 | Pminub_xmm_xmmm128,
        Pminsw: Pminsw_mm_mmm64 | Pminsw_xmm_xmmm128,
        Pmaxub: Pmaxub_mm_mmm64 | Pmaxub_xmm_xmmm128,
        Pmaxsw: Pmaxsw_mm_mmm64 | Pmaxsw_xmm_xmmm128,
        Pcmpeqb: Pcmpeqb_mm_mmm64 | Pcmpeqb_xmm_xmmm128,
        Pcmpeqw: Pcmpeqw_mm_mmm64 | Pcmpeqw_xmm_xmmm128,
        Pcmpeqd: Pcmpeqd_mm_mmm64 | Pcmpeqd_xmm_xmmm128,
        Pcmpgtb: Pcmpgtb_mm_mmm64 | Pcmpgtb_xmm_xmmm128,
        Pcmpgtw: Pcmpgtw_mm_mmm64 | Pcmpgtw_xmm_xmmm128,
        Pcmpgtd: Pcmpgtd_mm_mmm64 | Pcmpgtd_xmm_xmmm128,
        Psllw: Psllw_mm_mmm64 | Psllw_xmm_xmmm128,
        Pslld: Pslld_mm_mmm64 | Pslld_xmm_xmmm128,
        Psllq: Psllq_mm_mmm64 | Psllq_xmm_xmmm128,
        Psrlw: Psrlw_mm_mmm64 | Psrlw_xmm_xmmm128,
        Psrld: Psrld_mm_mmm64 | Psrld_xmm_xmmm128,
        Psrlq: Psrlq_mm_mmm64 | Psrlq_xmm_xmmm128,
        Psraw: Psraw_mm_mmm64 | Psraw_xmm_xmmm128,
        Psrad: Psrad_mm_mmm64 | Psrad_xmm_xmmm128,
        PsllwImm: Psllw_mm_imm8 | Psllw_xmm_imm8,
        PslldImm: Pslld_mm_imm8 | Pslld_xmm_imm8,
        PsllqImm: Psllq_mm_imm8 | Psllq_xmm_imm8,
        PsrlwImm: Psrlw_mm_imm8 | Psrlw_xmm_imm8,
        PsrldImm: Psrld_mm_imm8 | Psrld_xmm_imm8,
        PsrlqImm: Psrlq_mm_imm8 | Psrlq_xmm_imm8,
        PsrawImm: Psraw_mm_imm8 | Psraw_xmm_imm8,
        PsradImm: Psrad_mm_imm8 | Psrad_xmm_imm8,
        Pslldq: Pslldq_xmm_imm8,
        Psrldq: Psrldq_xmm_imm8,
        Packsswb: Packsswb_mm_mmm64 | Packsswb_xmm_xmmm128,
        Packssdw: Packssdw_mm_mmm64 | Packssdw_xmm_xmmm128,
        Packuswb: Packuswb_mm_mmm64 | Packuswb_xmm_xmmm128,
        Punpcklbw: Punpcklbw_mm_mmm32 | Punpcklbw_xmm_xmmm128,
        Punpcklwd: Punpcklwd_mm_mmm32 | Punpcklwd_xmm_xmmm128,
        Punpckldq: Punpckldq_mm_mmm32 | Punpckldq_xmm_xmmm128 | Unpcklps_xmm_xmmm128,
        Punpcklqdq: Punpcklqdq_xmm_xmmm128 | Unpcklpd_xmm_xmmm128,
        Punpckhbw: Punpckhbw_mm_mmm64 | Punpckhbw_xmm_xmmm128,
        Punpckhwd: Punpckhwd_mm_mmm64 | Punpckhwd_xmm_xmmm128,
        Punpckhdq: Punpckhdq_mm_mmm64 | Punpckhdq_xmm_xmmm128 | Unpckhps_xmm_xmmm128,
        Punpckhqdq: Punpckhqdq_xmm_xmmm128 | Unpckhpd_xmm_xmmm128,
        Pshufd: Pshufd_xmm_xmmm128_imm8,
        Pshuflw: Pshufw_mm_mmm64_imm8 | Pshuflw_xmm_xmmm128_imm8,
        Pshufhw: Pshufhw_xmm_xmmm128_imm8,
        Shufps: Shufps_xmm_xmmm128_imm8,
        Shufpd: Shufpd_xmm_xmmm128_imm8,
    }
}

pub(super) fn execute(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Lanes,
) -> Result<(), Faulted> {
    let source = core.source128(cx, op, form)?;
    let place = &mut core.xmm[slot(op.a)];
    *place = compute(operation, *place, source, form.imm8());
    Ok(())
}

macro_rules! lanes {
    ($split:ident, $join:ident, $type:ty, $n:literal) => {
        #[inline(always)]
        #[allow(clippy::cast_possible_truncation)] // one lane at a time
        fn $split(v: u128) -> [$type; $n] {
            std::array::from_fn(|i| (v >> (i * (128 / $n))) as $type)
        }
        #[inline(always)]
        fn $join(lanes: [$type; $n]) -> u128 {
            lanes
                .iter()
                .rev()
                .fold(0, |v, lane| v << (128 / $n - 1) << 1 | u128::from(*lane))
        }
    };
    ($split:ident, $join:ident, $type:ty, $n:literal, $signed_split:ident, $signed_join:ident, $signed:ty) => {
        lanes!($split, $join, $type, $n);
        #[inline(always)]
        fn $signed_split(v: u128) -> [$signed; $n] {
            $split(v).map(<$type>::cast_signed)
        }
        #[inline(always)]
        fn $signed_join(lanes: [$signed; $n]) -> u128 {
            $join(lanes.map(<$signed>::cast_unsigned))
        }
    };
}
lanes!(bytes, from_bytes, u8, 16, i_bytes, from_i_bytes, i8);
lanes!(words, from_words, u16, 8, i_words, from_i_words, i16);
lanes!(dwords, from_dwords, u32, 4, i_dwords, from_i_dwords, i32);
lanes!(qwords, from_qwords, u64, 2);

/// Applies `f` to pairs of lanes.
#[inline(always)]
fn zip<T: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// All ones if the condition holds, otherwise zero.
macro_rules! mask {
    ($type:ty, $condition:expr) => {
        if $condition { <$type>::MAX } else { 0 }
    };
}

/// Shift count of a vector shift: the low 64 bits of the source, at most 255 (which shifts everything out of any lane).
#[inline(always)]
fn count(source: u128) -> u32 {
    u32::try_from(super::softfloat::low64(source).min(255)).unwrap_or(255)
}

/// The result of `op` on destination `a` and source `b`.
#[allow(clippy::too_many_lines)] // one line or two for each instruction
pub(crate) fn compute(op: Lanes, a: u128, b: u128, imm: u8) -> u128 {
    let shift_imm = u32::from(imm);
    match op {
        Lanes::And => a & b,
        Lanes::AndNot => !a & b,
        Lanes::Or => a | b,
        Lanes::Xor => a ^ b,
        Lanes::Paddb => from_bytes(zip(bytes(a), bytes(b), u8::wrapping_add)),
        Lanes::Paddw => from_words(zip(words(a), words(b), u16::wrapping_add)),
        Lanes::Paddd => from_dwords(zip(dwords(a), dwords(b), u32::wrapping_add)),
        Lanes::Paddq => from_qwords(zip(qwords(a), qwords(b), u64::wrapping_add)),
        Lanes::Psubb => from_bytes(zip(bytes(a), bytes(b), u8::wrapping_sub)),
        Lanes::Psubw => from_words(zip(words(a), words(b), u16::wrapping_sub)),
        Lanes::Psubd => from_dwords(zip(dwords(a), dwords(b), u32::wrapping_sub)),
        Lanes::Psubq => from_qwords(zip(qwords(a), qwords(b), u64::wrapping_sub)),
        Lanes::Paddsb => from_i_bytes(zip(i_bytes(a), i_bytes(b), i8::saturating_add)),
        Lanes::Paddsw => from_i_words(zip(i_words(a), i_words(b), i16::saturating_add)),
        Lanes::Paddusb => from_bytes(zip(bytes(a), bytes(b), u8::saturating_add)),
        Lanes::Paddusw => from_words(zip(words(a), words(b), u16::saturating_add)),
        Lanes::Psubsb => from_i_bytes(zip(i_bytes(a), i_bytes(b), i8::saturating_sub)),
        Lanes::Psubsw => from_i_words(zip(i_words(a), i_words(b), i16::saturating_sub)),
        Lanes::Psubusb => from_bytes(zip(bytes(a), bytes(b), u8::saturating_sub)),
        Lanes::Psubusw => from_words(zip(words(a), words(b), u16::saturating_sub)),
        Lanes::Pmullw => from_words(zip(words(a), words(b), u16::wrapping_mul)),
        Lanes::Pmulhw => from_i_words(zip(i_words(a), i_words(b), |x, y| {
            high_word(i32::from(x) * i32::from(y))
        })),
        Lanes::Pmulhuw => {
            let high =
                |x: u16, y: u16| high_word((u32::from(x) * u32::from(y)).cast_signed()).cast_unsigned();
            from_words(zip(words(a), words(b), high))
        }
        Lanes::Pmuludq => from_qwords(zip(qwords(a), qwords(b), |x, y| {
            (x & 0xffff_ffff) * (y & 0xffff_ffff)
        })),
        Lanes::Pmaddwd => {
            let (x, y) = (i_words(a), i_words(b));
            let product = |i: usize| i32::from(x[i]) * i32::from(y[i]);
            from_i_dwords(std::array::from_fn(|i| {
                product(2 * i).wrapping_add(product(2 * i + 1))
            }))
        }
        Lanes::Psadbw => {
            let (x, y) = (bytes(a), bytes(b));
            let sum = |half: usize| {
                (0..8)
                    .map(|i| u64::from(x[8 * half + i].abs_diff(y[8 * half + i])))
                    .sum()
            };
            from_qwords([sum(0), sum(1)])
        }
        Lanes::Pavgb => from_bytes(zip(bytes(a), bytes(b), |x, y| {
            (x & y) + ((x ^ y) >> 1) + ((x ^ y) & 1)
        })),
        Lanes::Pavgw => from_words(zip(words(a), words(b), |x, y| {
            (x & y) + ((x ^ y) >> 1) + ((x ^ y) & 1)
        })),
        Lanes::Pminub => from_bytes(zip(bytes(a), bytes(b), u8::min)),
        Lanes::Pminsw => from_i_words(zip(i_words(a), i_words(b), i16::min)),
        Lanes::Pmaxub => from_bytes(zip(bytes(a), bytes(b), u8::max)),
        Lanes::Pmaxsw => from_i_words(zip(i_words(a), i_words(b), i16::max)),
        Lanes::Pcmpeqb => from_bytes(zip(bytes(a), bytes(b), |x, y| mask!(u8, x == y))),
        Lanes::Pcmpeqw => from_words(zip(words(a), words(b), |x, y| mask!(u16, x == y))),
        Lanes::Pcmpeqd => from_dwords(zip(dwords(a), dwords(b), |x, y| mask!(u32, x == y))),
        Lanes::Pcmpgtb => from_bytes(zip(bytes(a), bytes(b), |x, y| {
            mask!(u8, x.cast_signed() > y.cast_signed())
        })),
        Lanes::Pcmpgtw => from_words(zip(words(a), words(b), |x, y| {
            mask!(u16, x.cast_signed() > y.cast_signed())
        })),
        Lanes::Pcmpgtd => from_dwords(zip(dwords(a), dwords(b), |x, y| {
            mask!(u32, x.cast_signed() > y.cast_signed())
        })),
        Lanes::Psllw => shift_left_words(a, count(b)),
        Lanes::Pslld => shift_left_dwords(a, count(b)),
        Lanes::Psllq => shift_left_qwords(a, count(b)),
        Lanes::Psrlw => shift_right_words(a, count(b)),
        Lanes::Psrld => shift_right_dwords(a, count(b)),
        Lanes::Psrlq => shift_right_qwords(a, count(b)),
        Lanes::Psraw => from_i_words(i_words(a).map(|x| x >> count(b).min(15))),
        Lanes::Psrad => from_i_dwords(i_dwords(a).map(|x| x >> count(b).min(31))),
        Lanes::PsllwImm => shift_left_words(a, shift_imm),
        Lanes::PslldImm => shift_left_dwords(a, shift_imm),
        Lanes::PsllqImm => shift_left_qwords(a, shift_imm),
        Lanes::PsrlwImm => shift_right_words(a, shift_imm),
        Lanes::PsrldImm => shift_right_dwords(a, shift_imm),
        Lanes::PsrlqImm => shift_right_qwords(a, shift_imm),
        Lanes::PsrawImm => from_i_words(i_words(a).map(|x| x >> shift_imm.min(15))),
        Lanes::PsradImm => from_i_dwords(i_dwords(a).map(|x| x >> shift_imm.min(31))),
        Lanes::Pslldq => a.checked_shl(8 * shift_imm).unwrap_or(0),
        Lanes::Psrldq => a.checked_shr(8 * shift_imm).unwrap_or(0),
        Lanes::Packsswb => {
            let (x, y) = (i_words(a), i_words(b));
            from_i_bytes(std::array::from_fn(|i| {
                saturate_byte(if i < 8 { x[i] } else { y[i - 8] })
            }))
        }
        Lanes::Packuswb => {
            let (x, y) = (i_words(a), i_words(b));
            from_bytes(std::array::from_fn(|i| {
                saturate_unsigned_byte(if i < 8 { x[i] } else { y[i - 8] })
            }))
        }
        Lanes::Packssdw => {
            let (x, y) = (i_dwords(a), i_dwords(b));
            from_i_words(std::array::from_fn(|i| {
                saturate_word(if i < 4 { x[i] } else { y[i - 4] })
            }))
        }
        Lanes::Punpcklbw => interleave_bytes(a, b, 0),
        Lanes::Punpckhbw => interleave_bytes(a, b, 8),
        Lanes::Punpcklwd => interleave_words(a, b, 0),
        Lanes::Punpckhwd => interleave_words(a, b, 4),
        Lanes::Punpckldq => interleave_dwords(a, b, 0),
        Lanes::Punpckhdq => interleave_dwords(a, b, 2),
        Lanes::Punpcklqdq => from_qwords([qwords(a)[0], qwords(b)[0]]),
        Lanes::Punpckhqdq => from_qwords([qwords(a)[1], qwords(b)[1]]),
        Lanes::Pshufd => {
            let x = dwords(b);
            from_dwords(std::array::from_fn(|i| x[select(imm, i)]))
        }
        Lanes::Pshuflw => {
            let x = words(b);
            from_words(std::array::from_fn(
                |i| if i < 4 { x[select(imm, i)] } else { x[i] },
            ))
        }
        Lanes::Pshufhw => {
            let x = words(b);
            from_words(std::array::from_fn(|i| {
                if i < 4 { x[i] } else { x[4 + select(imm, i - 4)] }
            }))
        }
        Lanes::Shufps => {
            let (x, y) = (dwords(a), dwords(b));
            from_dwords(std::array::from_fn(|i| {
                if i < 2 {
                    x[select(imm, i)]
                } else {
                    y[select(imm, i)]
                }
            }))
        }
        Lanes::Shufpd => from_qwords([
            qwords(a)[usize::from(imm & 1)],
            qwords(b)[usize::from(imm >> 1 & 1)],
        ]),
    }
}

/// The two bits of a shuffle immediate that choose lane `i`.
#[inline(always)]
fn select(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i) & 3)
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // bits 31:16
fn high_word(product: i32) -> i16 {
    (product >> 16) as i16
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // clamped
fn saturate_byte(x: i16) -> i8 {
    x.clamp(-128, 127) as i8
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
fn saturate_unsigned_byte(x: i16) -> u8 {
    x.clamp(0, 255) as u8
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // clamped
fn saturate_word(x: i32) -> i16 {
    x.clamp(-0x8000, 0x7fff) as i16
}

macro_rules! shifts {
    ($($left:ident, $right:ident, $split:ident, $join:ident;)*) => {$(
        #[inline(always)]
        fn $left(v: u128, by: u32) -> u128 {
            $join($split(v).map(|x| x.checked_shl(by).unwrap_or(0)))
        }
        #[inline(always)]
        fn $right(v: u128, by: u32) -> u128 {
            $join($split(v).map(|x| x.checked_shr(by).unwrap_or(0)))
        }
    )*};
}
shifts! {
    shift_left_words, shift_right_words, words, from_words;
    shift_left_dwords, shift_right_dwords, dwords, from_dwords;
    shift_left_qwords, shift_right_qwords, qwords, from_qwords;
}

macro_rules! interleave {
    ($($name:ident, $split:ident, $join:ident;)*) => {$(
        /// Lanes of `a` and `b` in turn, from lane `first` on.
        #[inline(always)]
        fn $name(a: u128, b: u128, first: usize) -> u128 {
            let (x, y) = ($split(a), $split(b));
            $join(std::array::from_fn(|i| if i % 2 == 0 { x[first + i / 2] } else { y[first + i / 2] }))
        }
    )*};
}
interleave! {
    interleave_bytes, bytes, from_bytes;
    interleave_words, words, from_words;
    interleave_dwords, dwords, from_dwords;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_survive_the_round_trip() {
        let v = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100u128;
        assert_eq!(from_bytes(bytes(v)), v);
        assert_eq!(from_words(words(v)), v);
        assert_eq!(from_dwords(dwords(v)), v);
        assert_eq!(from_qwords(qwords(v)), v);
        assert_eq!(bytes(v)[3], 3);
    }

    #[test]
    fn saturation_and_packing() {
        let big = from_i_words([300, -300, 127, -128, 1, -1, 0, 255]);
        let packed = compute(Lanes::Packsswb, big, 0, 0);
        assert_eq!(&i_bytes(packed)[..8], &[127, -128, 127, -128, 1, -1, 0, 127]);
        let packed = compute(Lanes::Packuswb, big, 0, 0);
        assert_eq!(&bytes(packed)[..8], &[255, 0, 127, 0, 1, 0, 0, 255]);
    }

    #[test]
    fn shift_counts_beyond_the_lane_clear_or_fill() {
        let v = from_i_words([-1; 8]);
        assert_eq!(compute(Lanes::PsllwImm, v, 0, 16), 0);
        assert_eq!(compute(Lanes::Psraw, v, u128::from(u64::MAX), 0), v);
        assert_eq!(
            compute(Lanes::Psrlq, v, 1 << 64, 0),
            v,
            "only the low half of the count matters"
        );
        assert_eq!(compute(Lanes::Pslldq, 1, 0, 15), 1 << 120);
        assert_eq!(compute(Lanes::Pslldq, 1, 0, 16), 0);
    }

    #[test]
    fn shuffles_select_lanes() {
        let v = from_dwords([10, 11, 12, 13]);
        assert_eq!(
            dwords(compute(Lanes::Pshufd, 0, v, 0b00_01_10_11)),
            [13, 12, 11, 10]
        );
        let w = from_dwords([20, 21, 22, 23]);
        assert_eq!(
            dwords(compute(Lanes::Shufps, v, w, 0b11_10_01_00)),
            [10, 11, 22, 23]
        );
        assert_eq!(dwords(compute(Lanes::Punpckhdq, v, w, 0)), [12, 22, 13, 23]);
    }
}
