//! [`Op::imm`] of the operations `Misc` and `Cold`.

use crate::op::Op;

/// An instruction's number in its family, and what of its operands has no field in [`Op`].
///
/// ```text
/// bits 7:0    number of the instruction: MiscOp or SystemOp
/// bits 9:8    log2 of the operand size in bytes
/// bit  10     the operand that can be a register or memory is memory
/// bits 23:16  an 8-bit immediate: shift count, bit number, condition, port, segment or control register
/// bits 63:32  a 32-bit immediate
/// ```
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed(u64);

impl Packed {
    /// Packs; `size` is log2 of the operand size in bytes.
    pub fn new(number: u8, size: usize, memory: bool, extra: u8, wide: u32) -> Self {
        Self(
            u64::from(number)
                | (size as u64 & 3) << 8
                | u64::from(memory) << 10
                | u64::from(extra) << 16
                | u64::from(wide) << 32,
        )
    }

    #[inline(always)]
    pub fn of(op: &Op) -> Self {
        Self(op.imm)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub fn number(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Log2 of the operand size in bytes.
    #[inline(always)]
    pub fn size(self) -> u64 {
        self.0 >> 8 & 3
    }

    #[inline(always)]
    pub fn memory(self) -> bool {
        self.0 >> 10 & 1 != 0
    }

    /// The 8-bit immediate.
    #[inline(always)]
    pub fn extra(self) -> u8 {
        self.0.to_le_bytes()[2]
    }

    /// The 32-bit immediate.
    #[inline(always)]
    pub fn wide(self) -> u64 {
        self.0 >> 32
    }
}
