//! The arithmetic flags between two stretches of translated code: sixteen bits that the host makes and takes in two
//! instructions each.
//!
//! ```text
//! bits 15:8  AH as LAHF leaves it: SF, ZF, AF, PF, CF at the places that they have in RFLAGS
//! bits 7:0   bit 0: OF
//!            any of bits 7 and 1: AF is clear, whatever bits 15:8 say
//! ```
//! Adding [`TO_OVERFLOW`] to the low byte makes the host's OF of it, and SAHF the rest. Manuals leave AF undefined
//! after logic instructions and shifts: there the low byte says what the interpreter says.

use crate::flags::{AF, CF, FIXED, Lazy, OF, PF, SF, ZF};

/// The low byte where OF is clear and AF is to read as zero.
pub(super) const NO_OVERFLOW: u8 = 0x80;
/// The low byte where OF is set and AF is to read as zero.
pub(super) const OVERFLOW: u8 = 3;
/// Added to the low byte, it overflows exactly if OF is set.
pub(super) const TO_OVERFLOW: u8 = 0x7f;
/// Bits of the low byte that say that AF is clear.
pub(super) const AF_CLEAR: u8 = 0x82;

const LOW: u64 = SF | ZF | AF | PF | CF;

/// The sixteen bits for these flags.
pub(super) fn pack(lazy: Lazy) -> u64 {
    let image = lazy.image();
    (image & LOW | FIXED) << 8 | u64::from(image & OF != 0)
}

/// The flags that sixteen bits say.
pub(super) fn unpack(word: u64) -> Lazy {
    let [low, high, ..] = word.to_le_bytes();
    let mut image = u64::from(high) & LOW;
    if low & AF_CLEAR != 0 {
        image &= !AF;
    }
    if low & 1 != 0 {
        image |= OF;
    }
    Lazy::from_image(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::ARITHMETIC;

    #[test]
    fn flags_survive() {
        for bits in 0..1u64 << 12 {
            let image = bits & ARITHMETIC;
            assert_eq!(unpack(pack(Lazy::from_image(image))).image(), image);
        }
    }

    #[test]
    fn the_low_byte_says_what_the_head_of_the_module_says() {
        let image = |word: u64| unpack(word).image();
        let all = LOW << 8;
        assert_eq!(image(all | u64::from(NO_OVERFLOW)), LOW & !AF);
        assert_eq!(image(all | u64::from(OVERFLOW)), LOW & !AF | OF);
        for low in [0, 1, NO_OVERFLOW, OVERFLOW] {
            let (_, overflows) = low.cast_signed().overflowing_add(TO_OVERFLOW.cast_signed());
            assert_eq!(overflows, image(u64::from(low)) & OF != 0, "{low:#x}");
        }
    }
}
