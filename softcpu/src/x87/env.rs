//! The environment and state images of FNSTENV, FLDENV, FNSAVE and FRSTOR, in their 32-bit protected-mode layout (SDM
//! volume 1, figure 8-9), which 64-bit mode uses.

use super::f80::{Class, F80};
use super::{X87, status};
use crate::sse::softfloat::Kind;

/// Bytes of an environment.
pub(crate) const ENVIRONMENT: usize = 28;
/// Bytes of a whole state: environment and eight registers of ten bytes.
pub(crate) const STATE: usize = ENVIRONMENT + REGISTERS;
/// The same with an operand-size prefix: the 16-bit layout (SDM volume 1, figure 8-11).
pub(crate) const SHORT_ENVIRONMENT: usize = 14;
pub(crate) const SHORT_STATE: usize = SHORT_ENVIRONMENT + REGISTERS;
/// Bytes of the registers in a whole state.
const REGISTERS: usize = 80;

impl X87 {
    /// The two tag bits of each register: valid, zero, special, empty.
    fn tags(&self) -> u16 {
        (0..8u8).fold(0, |tags, r| {
            let tag = if self.full >> r & 1 == 0 {
                3
            } else {
                let value = F80(self.registers[usize::from(r)]);
                match value.classify() {
                    Class::Number(number) if number.kind == Kind::Zero => 1,
                    Class::Number(number) if number.kind != Kind::Infinity && value.biased() != 0 => 0,
                    _ => 2,
                }
            };
            tags | tag << (2 * r)
        })
    }

    /// The image that FNSTENV stores.
    pub(crate) fn environment(&self) -> [u8; ENVIRONMENT] {
        let low = |pointer: u64| pointer & 0xffff_ffff;
        let fields = [
            u64::from(self.control) | 0xffff_0000,
            u64::from(self.status) | 0xffff_0000,
            u64::from(self.tags()) | 0xffff_0000,
            low(self.instruction),
            u64::from(self.opcode) << 16,
            low(self.data),
            0xffff_0000,
        ];
        let mut image = [0; ENVIRONMENT];
        for (place, field) in image.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes()[..4]);
        }
        image
    }

    /// Loads such an image, as FLDENV does.
    pub(crate) fn set_environment(&mut self, image: &[u8; ENVIRONMENT]) {
        let half = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 2)) << 16;
        self.control = half(0);
        self.status = half(4);
        let tags = half(8);
        self.full = (0..8).fold(0, |full, r| full | u8::from(tags >> (2 * r) & 3 != 3) << r);
        self.instruction = word(12);
        self.opcode = half(18) & 0x7ff;
        self.data = word(20);
        self.normalise();
    }

    /// The 16-bit environment: the same words without their upper halves, and no opcode.
    pub(crate) fn short_environment(&self) -> [u8; SHORT_ENVIRONMENT] {
        let long = self.environment();
        let mut image = [0; SHORT_ENVIRONMENT];
        for (place, field) in image.chunks_exact_mut(2).zip(long.chunks_exact(4)) {
            place.copy_from_slice(&field[..2]);
        }
        // The selectors, which are zero here.
        image[8..10].fill(0);
        image[12..14].fill(0);
        image
    }

    /// Loads such an image.
    pub(crate) fn set_short_environment(&mut self, image: &[u8; SHORT_ENVIRONMENT]) {
        let mut long = [0; ENVIRONMENT];
        for (place, field) in long.chunks_exact_mut(4).zip(image.chunks_exact(2)) {
            place[..2].copy_from_slice(field);
        }
        // The word with a selector of the code has no opcode above it.
        long[16..20].fill(0);
        self.set_environment(&long);
    }

    /// The image that FNSAVE stores.
    pub(crate) fn whole_state(&self) -> [u8; STATE] {
        let mut image = [0; STATE];
        image[..ENVIRONMENT].copy_from_slice(&self.environment());
        for (i, place) in (0u8..).zip(image[ENVIRONMENT..].chunks_exact_mut(10)) {
            place.copy_from_slice(&self.st(i).to_le_bytes()[..10]);
        }
        image
    }

    /// Loads such an image, as FRSTOR does.
    pub(crate) fn set_whole_state(&mut self, image: &[u8; STATE]) {
        let mut environment = [0; ENVIRONMENT];
        environment.copy_from_slice(&image[..ENVIRONMENT]);
        self.set_environment(&environment);
        self.set_stack(&image[ENVIRONMENT..]);
    }

    /// The image that FNSAVE stores with an operand-size prefix.
    pub(crate) fn whole_short_state(&self) -> [u8; SHORT_STATE] {
        let mut image = [0; SHORT_STATE];
        image[..SHORT_ENVIRONMENT].copy_from_slice(&self.short_environment());
        image[SHORT_ENVIRONMENT..].copy_from_slice(&self.whole_state()[ENVIRONMENT..]);
        image
    }

    /// Loads such an image.
    pub(crate) fn set_whole_short_state(&mut self, image: &[u8; SHORT_STATE]) {
        let mut environment = [0; SHORT_ENVIRONMENT];
        environment.copy_from_slice(&image[..SHORT_ENVIRONMENT]);
        self.set_short_environment(&environment);
        self.set_stack(&image[SHORT_ENVIRONMENT..]);
    }

    /// Loads the registers, ST(0) first.
    fn set_stack(&mut self, image: &[u8]) {
        for (i, bytes) in (0u8..).zip(image.chunks_exact(10)) {
            self.set_st(
                i,
                bytes
                    .iter()
                    .rev()
                    .fold(0, |value, byte| value << 8 | u128::from(*byte)),
            );
        }
    }

    /// FNINIT; the registers keep their bits.
    pub(crate) fn initialise(&mut self) {
        *self = Self {
            registers: self.registers,
            ..Self::default()
        };
    }

    /// FNCLEX.
    pub(crate) fn clear_exceptions(&mut self) {
        self.status &= !(0x3f | status::SF | status::ES | status::BUSY);
    }

    /// Masks all exceptions, as FNSTENV does after storing.
    pub(crate) fn mask_all(&mut self) {
        self.control |= 0x3f;
        self.normalise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_image_restores_what_it_saved() {
        let mut fpu = X87 {
            status: 5 << 11 | 0x20,
            full: 0b1010_0000,
            opcode: 0x123,
            instruction: 7,
            data: 9,
            ..X87::default()
        };
        fpu.set_st(0, F80::ONE.0);
        fpu.set_st(2, F80::DEFAULT_NAN.0);
        let mut other = X87::default();
        other.set_whole_state(&fpu.whole_state());
        assert_eq!(other, fpu);
        assert_eq!(fpu.tags() >> 10 & 3, 0, "R5 holds one");
        assert_eq!(fpu.tags() >> 14, 2, "R7 holds a NaN");
        let mut short = X87::default();
        short.set_whole_short_state(&fpu.whole_short_state());
        assert_eq!(short, X87 { opcode: 0, ..fpu }, "the 16-bit layout has no opcode");
    }
}
