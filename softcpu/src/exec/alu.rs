//! Arithmetic and logic on one operand size, with flags.

use crate::flags::Lazy;
use crate::word::Word;

/// The two-operand instructions. Each function takes destination `a` and source `b`, sets the flags and returns the
/// result.
pub(crate) struct Alu;

impl Alu {
    #[inline(always)]
    pub fn add<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx().wrapping_add(b.zx()));
        lazy.add(a, b, r);
        r
    }

    #[inline(always)]
    pub fn adc<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx().wrapping_add(b.zx()).wrapping_add(u64::from(lazy.cf())));
        lazy.add(a, b, r);
        r
    }

    #[inline(always)]
    pub fn sub<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx().wrapping_sub(b.zx()));
        lazy.sub(a, b, r);
        r
    }

    #[inline(always)]
    pub fn sbb<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx().wrapping_sub(b.zx()).wrapping_sub(u64::from(lazy.cf())));
        lazy.sub(a, b, r);
        r
    }

    #[inline(always)]
    pub fn cmp<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        Self::sub(lazy, a, b)
    }

    #[inline(always)]
    pub fn and<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx() & b.zx());
        lazy.logic(r);
        r
    }

    #[inline(always)]
    pub fn test<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        Self::and(lazy, a, b)
    }

    #[inline(always)]
    pub fn or<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx() | b.zx());
        lazy.logic(r);
        r
    }

    #[inline(always)]
    pub fn xor<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
        let r = T::cut(a.zx() ^ b.zx());
        lazy.logic(r);
        r
    }
}

#[inline(always)]
pub(crate) fn inc<T: Word>(lazy: &mut Lazy, a: T) -> T {
    let before = *lazy;
    let r = Alu::add(lazy, a, T::cut(1));
    lazy.keep_carry(before);
    r
}

#[inline(always)]
pub(crate) fn dec<T: Word>(lazy: &mut Lazy, a: T) -> T {
    let before = *lazy;
    let r = Alu::sub(lazy, a, T::cut(1));
    lazy.keep_carry(before);
    r
}

/// SHL by 1 to BITS; the count is not zero.
#[inline(always)]
pub(crate) fn shl<T: Word>(lazy: &mut Lazy, a: T, count: u64) -> T {
    let r = T::cut(a.zx().checked_shl(narrow(count)).unwrap_or(0));
    let cf = count <= u64::from(T::BITS) && (a.zx() >> (u64::from(T::BITS) - count)) & 1 != 0;
    lazy.result_with(r, cf, (r.sx() >> 63 != 0) != cf);
    r
}

/// SHR by 1 or more.
#[inline(always)]
pub(crate) fn shr<T: Word>(lazy: &mut Lazy, a: T, count: u64) -> T {
    let r = T::cut(a.zx().checked_shr(narrow(count)).unwrap_or(0));
    let cf = (a.zx() >> (count - 1)) & 1 != 0;
    // OF is the operand's sign if the count is one, and undefined otherwise. Processors set it to the XOR of the
    // result's two top bits, which is the same for a count of one.
    let top = r.sx() ^ (T::cut(r.zx() << 1).sx());
    lazy.result_with(r, cf, top >> 63 != 0);
    r
}

/// SAR by 1 or more.
#[inline(always)]
pub(crate) fn sar<T: Word>(lazy: &mut Lazy, a: T, count: u64) -> T {
    let wide = a.sx().cast_signed();
    let r = T::cut((wide >> count.min(63)).cast_unsigned());
    let cf = (wide >> (count - 1).min(63)) & 1 != 0;
    lazy.result_with(r, cf, false);
    r
}

/// Two-operand IMUL. CF and OF are set if the product did not fit.
#[inline(always)]
pub(crate) fn imul<T: Word>(lazy: &mut Lazy, a: T, b: T) -> T {
    let (r, cut) = if T::BITS == 64 {
        let (product, overflow) = a.zx().cast_signed().overflowing_mul(b.zx().cast_signed());
        (T::cut(product.cast_unsigned()), overflow)
    } else {
        let product = a.sx().wrapping_mul(b.sx());
        let r = T::cut(product);
        (r, r.sx() != product)
    };
    lazy.result_with(r, cut, cut);
    r
}

#[allow(clippy::cast_possible_truncation)] // shift counts are below 64
#[inline(always)]
fn narrow(count: u64) -> u32 {
    count as u32
}
