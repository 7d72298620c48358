//! Arithmetic flags, kept lazily.
//!
//! An instruction that sets flags stores three words, which it computes without a branch. The flags are derived from
//! the words when an instruction reads them, which happens less often:
//!
//! ```text
//! result  the result, sign-extended to 64 bits       ZF = (result == 0)     SF = bit 63 of (result ^ extra)
//! carry   carries out of each bit, operand's top     CF = bit 63            OF = bit 63 ^ bit 62
//!         bit moved up to bit 63
//! extra   bit 4: AF; bits 15:8: PF correction;       PF = parity of the low byte of (result ^ extra >> 8)
//!         bit 63: SF correction
//! ```
//! The corrections are zero after an arithmetic instruction; POPF and SAHF use them to set combinations of flags that
//! no result has.

use crate::word::Word;

/// Carry flag.
pub const CF: u64 = 1 << 0;
/// Bit 1 of RFLAGS, which always reads as one.
pub const FIXED: u64 = 1 << 1;
/// Parity flag.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry flag.
pub const AF: u64 = 1 << 4;
/// Zero flag.
pub const ZF: u64 = 1 << 6;
/// Sign flag.
pub const SF: u64 = 1 << 7;
/// Trap flag.
pub const TF: u64 = 1 << 8;
/// Interrupt enable flag.
pub const IF: u64 = 1 << 9;
/// Direction flag.
pub const DF: u64 = 1 << 10;
/// Overflow flag.
pub const OF: u64 = 1 << 11;
/// I/O privilege level.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume flag.
pub const RF: u64 = 1 << 16;
/// Alignment check.
pub const AC: u64 = 1 << 18;
/// Whether software can toggle this bit tells whether CPUID exists.
pub const ID: u64 = 1 << 21;
/// The six flags that arithmetic sets.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// The three words from which the flags are derived.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lazy {
    pub result: u64,
    pub carry: u64,
    pub extra: u64,
}

impl Lazy {
    /// Sets the flags of `r = a + b (+ carry in)`.
    #[inline(always)]
    pub fn add<T: Word>(&mut self, a: T, b: T, r: T) {
        let (a, b, r) = (a.zx(), b.zx(), r.sx());
        let carries = (a & b) | ((a | b) & !r);
        *self = Self {
            result: r,
            carry: carries << (64 - T::BITS),
            extra: (a ^ b ^ r) & AF,
        };
    }

    /// Sets the flags of `r = a - b (- borrow in)`.
    #[inline(always)]
    pub fn sub<T: Word>(&mut self, a: T, b: T, r: T) {
        let (a, b, r) = (a.zx(), b.zx(), r.sx());
        let borrows = (!a & b) | ((!a | b) & r);
        *self = Self {
            result: r,
            carry: borrows << (64 - T::BITS),
            extra: (a ^ b ^ r) & AF,
        };
    }

    /// Sets the flags of a logic operation with result `r`: CF = OF = 0. AF is undefined by the architecture and zero
    /// here.
    #[inline(always)]
    pub fn logic<T: Word>(&mut self, r: T) {
        *self = Self {
            result: r.sx(),
            carry: 0,
            extra: 0,
        };
    }

    /// Sets ZF, SF and PF from the result, CF and OF as given, and clears AF.
    #[inline(always)]
    pub fn result_with<T: Word>(&mut self, r: T, cf: bool, of: bool) {
        *self = Self {
            result: r.sx(),
            carry: carry_word(cf, of),
            extra: 0,
        };
    }

    /// Restores CF from `before`, the flags before an INC or DEC that was computed as an addition or subtraction of
    /// one.
    #[inline(always)]
    pub fn keep_carry(&mut self, before: Self) {
        let of = self.of();
        self.carry = carry_word(before.cf(), of);
    }

    #[inline(always)]
    pub fn cf(self) -> bool {
        self.carry >> 63 != 0
    }
    #[inline(always)]
    pub fn of(self) -> bool {
        (self.carry ^ (self.carry << 1)) >> 63 != 0
    }
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.result == 0
    }
    #[inline(always)]
    pub fn sf(self) -> bool {
        (self.result ^ self.extra) >> 63 != 0
    }
    #[inline(always)]
    pub fn pf(self) -> bool {
        ((self.result ^ (self.extra >> 8)) & 0xff).count_ones() & 1 == 0
    }
    #[inline(always)]
    pub fn af(self) -> bool {
        self.extra & AF != 0
    }

    /// The six flags at their places in RFLAGS.
    pub fn image(self) -> u64 {
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        bit(self.cf(), CF)
            | bit(self.pf(), PF)
            | bit(self.af(), AF)
            | bit(self.zf(), ZF)
            | bit(self.sf(), SF)
            | bit(self.of(), OF)
    }

    /// The words from which the six flags of the RFLAGS image are derived.
    pub fn from_image(image: u64) -> Self {
        let on = |mask: u64| image & mask != 0;
        let result = u64::from(!on(ZF));
        let natural_pf = result == 0;
        Self {
            result,
            carry: carry_word(on(CF), on(OF)),
            extra: (image & AF) | (u64::from(on(PF) != natural_pf) << 8) | (u64::from(on(SF)) << 63),
        }
    }

    pub fn set_cf(&mut self, cf: bool) {
        self.carry = carry_word(cf, self.of());
    }
}

#[inline(always)]
fn carry_word(cf: bool, of: bool) -> u64 {
    (u64::from(cf) << 63) | (u64::from(cf ^ of) << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_survives_the_round_trip() {
        for bits in 0..64u64 {
            let image = [CF, PF, AF, ZF, SF, OF]
                .iter()
                .enumerate()
                .map(|(i, m)| if bits >> i & 1 == 1 { *m } else { 0 })
                .sum();
            assert_eq!(Lazy::from_image(image).image(), image);
        }
    }

    #[test]
    fn bytes_add_and_subtract_exhaustively() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let mut lazy = Lazy::default();
                let (sum, carry) = a.overflowing_add(b);
                lazy.add(a, b, sum);
                let (_, overflow) = a.cast_signed().overflowing_add(b.cast_signed());
                assert_eq!((lazy.cf(), lazy.of()), (carry, overflow), "{a}+{b}");
                assert_eq!((lazy.zf(), lazy.sf()), (sum == 0, sum > 127));
                assert_eq!(lazy.af(), (a & 15) + (b & 15) > 15);
                assert_eq!(lazy.pf(), sum.count_ones() % 2 == 0);
                let (difference, borrow) = a.overflowing_sub(b);
                lazy.sub(a, b, difference);
                let (_, overflow) = a.cast_signed().overflowing_sub(b.cast_signed());
                assert_eq!((lazy.cf(), lazy.of()), (borrow, overflow), "{a}-{b}");
                assert_eq!(lazy.af(), (a & 15) < (b & 15));
            }
        }
    }
}
