//! Rotates, double shifts, multiplication and division.

use crate::core::{Core, Faulted};
use crate::flags;
use crate::registers::{RAX, RDX};
use crate::word::Word;

/// Shift counts are taken modulo 64 for 64-bit operands, modulo 32 for all others.
pub(super) fn mask<T: Word>() -> u64 {
    if T::BITS == 64 { 63 } else { 31 }
}

/// All ones if the sign bit is set, otherwise zero.
pub(super) fn sign(value: u64) -> u64 {
    (value.cast_signed() >> 63).cast_unsigned()
}

pub(super) fn rotate<T: Word>(lazy: &mut flags::Lazy, a: T, count: u64, left: bool) -> T {
    let bits = u64::from(T::BITS);
    let turn = count % bits;
    let turn = if left || turn == 0 { turn } else { bits - turn };
    let r = if turn == 0 {
        a
    } else {
        T::cut((a.zx() << turn) | (a.zx() >> (bits - turn)))
    };
    let (top, second) = (r.zx() >> (bits - 1) & 1 != 0, r.zx() >> (bits - 2) & 1 != 0);
    let (cf, of) = if left {
        let cf = r.zx() & 1 != 0;
        (cf, top != cf)
    } else {
        (top, top != second)
    };
    with_carry_and_overflow(lazy, cf, of);
    r
}

pub(super) fn rotate_through_carry<T: Word>(lazy: &mut flags::Lazy, a: T, count: u64, left: bool) -> T {
    let bits = u64::from(T::BITS);
    let mut cf = lazy.cf();
    let mut value = a.zx();
    for _ in 0..count % (bits + 1) {
        let carry_in = u64::from(cf);
        if left {
            cf = value >> (bits - 1) & 1 != 0;
            value = T::cut((value << 1) | carry_in).zx();
        } else {
            cf = value & 1 != 0;
            value = (value >> 1) | (carry_in << (bits - 1));
        }
    }
    let (top, second) = (value >> (bits - 1) & 1 != 0, value >> (bits - 2) & 1 != 0);
    with_carry_and_overflow(lazy, cf, if left { top != cf } else { top != second });
    T::cut(value)
}

/// Sets CF and OF, the only flags that a rotate changes.
fn with_carry_and_overflow(lazy: &mut flags::Lazy, cf: bool, of: bool) {
    let mut image = lazy.image() & !(flags::CF | flags::OF);
    if cf {
        image |= flags::CF;
    }
    if of {
        image |= flags::OF;
    }
    *lazy = flags::Lazy::from_image(image);
}

/// SHLD and SHRD by 1 or more. For a 16-bit operand and a count above 16 the result is undefined; processors shift in
/// the bits of the pair again, and so does this function.
pub(super) fn double_shift<T: Word>(a: T, b: T, count: u64, left: bool) -> (T, bool) {
    let bits = u64::from(T::BITS);
    let (a, b) = (u128::from(a.zx()), u128::from(b.zx()));
    #[allow(clippy::cast_possible_truncation)] // cut to the operand size on purpose
    let low = |value: u128| T::cut(value as u64);
    if left {
        let pair = if bits == 16 {
            a << 32 | b << 16 | a
        } else {
            a << bits | b
        };
        let width = if bits == 16 { 48 } else { 2 * bits };
        let shifted = pair << count;
        (low(shifted >> (width - bits)), pair >> (width - count) & 1 != 0)
    } else {
        let pair = if bits == 16 {
            a << 32 | b << 16 | a
        } else {
            b << bits | a
        };
        (low(pair >> count), pair >> (count - 1) & 1 != 0)
    }
}

pub(super) fn multiply<T: Word>(core: &mut Core, factor: T, signed: bool) {
    let a = core.get::<T>(RAX);
    #[allow(clippy::cast_possible_truncation)] // halves of the product
    let (low, high) = if signed {
        let product = i128::from(a.sx().cast_signed()) * i128::from(factor.sx().cast_signed());
        (product as u64, (product >> T::BITS) as u64)
    } else {
        let product = u128::from(a.zx()) * u128::from(factor.zx());
        (product as u64, (product >> T::BITS) as u64)
    };
    let (low, high) = (T::cut(low), T::cut(high));
    if T::BITS == 8 {
        core.set(RAX, u16::cut(low.zx() | high.zx() << 8));
    } else {
        core.set(RAX, low);
        core.set(RDX, high);
    }
    let cut = if signed {
        high != T::cut(sign(low.sx()))
    } else {
        high.zx() != 0
    };
    core.lazy.result_with(low, cut, cut);
}

pub(super) fn divide<T: Word>(core: &mut Core, divisor: T, signed: bool) -> Result<(), Faulted> {
    let (low, high) = if T::BITS == 8 {
        let ax = core.get::<u16>(RAX);
        (T::cut(ax.zx()), T::cut(ax.zx() >> 8))
    } else {
        (core.get::<T>(RAX), core.get::<T>(RDX))
    };
    if divisor.zx() == 0 {
        return Err(core.raise(0, None));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked to fit just below
    let (quotient, remainder, fits) = if signed {
        let dividend = (i128::from(high.sx().cast_signed()) << T::BITS) | i128::from(low.zx());
        let by = i128::from(divisor.sx().cast_signed());
        let (q, r) = (dividend.wrapping_div(by), dividend.wrapping_rem(by));
        let quotient = T::cut(q as u64);
        (
            quotient,
            T::cut(r as u64),
            i128::from(quotient.sx().cast_signed()) == q,
        )
    } else if T::BITS == 64 && high.zx() == 0 {
        (
            T::cut(low.zx() / divisor.zx()),
            T::cut(low.zx() % divisor.zx()),
            true,
        )
    } else {
        let dividend = (u128::from(high.zx()) << T::BITS) | u128::from(low.zx());
        let by = u128::from(divisor.zx());
        let (q, r) = (dividend / by, dividend % by);
        let quotient = T::cut(q as u64);
        (quotient, T::cut(r as u64), u128::from(quotient.zx()) == q)
    };
    if !fits {
        return Err(core.raise(0, None));
    }
    if T::BITS == 8 {
        core.set(RAX, u16::cut(quotient.zx() | remainder.zx() << 8));
    } else {
        core.set(RAX, quotient);
        core.set(RDX, remainder);
    }
    Ok(())
}
