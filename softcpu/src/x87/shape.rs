//! What an x87 instruction's operand in memory is, and how often it pops.
//!
//! One operation is executed for all encodings of an instruction. What tells them apart besides the registers is packed
//! into a byte when the instruction is decoded.

use iced_x86::{Instruction, MemorySize, Mnemonic};

/// Type of the operand in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such operand, or it is no number.
    None,
    Single,
    Double,
    Extended,
    Integer16,
    Integer32,
    Integer64,
    Decimal,
}

const KINDS: [Kind; 8] = [
    Kind::None,
    Kind::Single,
    Kind::Double,
    Kind::Extended,
    Kind::Integer16,
    Kind::Integer32,
    Kind::Integer64,
    Kind::Decimal,
];

impl Kind {
    /// Length in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Integer16 => 2,
            Self::Single | Self::Integer32 => 4,
            Self::Double | Self::Integer64 => 8,
            Self::Extended | Self::Decimal => 10,
        }
    }
}

/// The byte: bits 2:0 the kind, bits 4:3 how many registers are popped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape(u8);

impl Shape {
    /// The shape of an x87 instruction.
    pub fn of(insn: &Instruction) -> Self {
        let kind = match insn.memory_size() {
            MemorySize::Float32 => Kind::Single,
            MemorySize::Float64 => Kind::Double,
            MemorySize::Float80 => Kind::Extended,
            MemorySize::Int16 => Kind::Integer16,
            MemorySize::Int32 => Kind::Integer32,
            MemorySize::Int64 => Kind::Integer64,
            MemorySize::Bcd => Kind::Decimal,
            _ => Kind::None,
        };
        let number = KINDS.iter().position(|other| *other == kind).unwrap_or(0);
        Self(number.to_le_bytes()[0] | pops(insn.mnemonic()) << 3)
    }

    pub fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    pub fn byte(self) -> u8 {
        self.0
    }

    pub(super) fn kind(self) -> Kind {
        KINDS[usize::from(self.0 & 7)]
    }

    /// Number of registers that the instruction pops when it is done.
    pub(super) fn pops(self) -> u8 {
        self.0 >> 3 & 3
    }
}

fn pops(mnemonic: Mnemonic) -> u8 {
    use Mnemonic as M;
    match mnemonic {
        M::Fcompp | M::Fucompp => 2,
        M::Faddp | M::Fmulp | M::Fsubp | M::Fsubrp | M::Fdivp | M::Fdivrp => 1,
        M::Fstp | M::Fstpnce | M::Fistp | M::Fbstp | M::Ffreep => 1,
        M::Fcomp | M::Fucomp | M::Ficomp | M::Fcomip | M::Fucomip => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn shapes_are_told_by_the_encoding() {
        let shape = |bytes: &[u8]| {
            let shape = Shape::of(&Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode());
            (shape.kind(), shape.pops())
        };
        assert_eq!(shape(&[0xd8, 0x00]), (Kind::Single, 0), "FADD m32fp");
        assert_eq!(shape(&[0xde, 0xc1]), (Kind::None, 1), "FADDP");
        assert_eq!(shape(&[0xde, 0xd9]), (Kind::None, 2), "FCOMPP");
        assert_eq!(shape(&[0xdf, 0x30]), (Kind::Decimal, 1), "FBSTP");
        assert_eq!(shape(&[0xdf, 0x28]), (Kind::Integer64, 0), "FILD m64int");
        assert_eq!(shape(&[0xdb, 0x38]), (Kind::Extended, 1), "FSTP m80fp");
        assert_eq!(shape(&[0xd9, 0x30]), (Kind::None, 0), "FNSTENV");
    }

    #[test]
    fn every_kind_has_its_number() {
        for (number, kind) in (0u8..).zip(KINDS) {
            assert_eq!(Shape::from_byte(number | 2 << 3).kind(), kind);
        }
    }
}
