//! The x87 floating-point unit: its state, and its instructions.
//!
//! | what | where |
//! | --- | --- |
//! | the instructions, and their operands in memory | `ops`, with what the decoder notes of them in `shape` |
//! | checks of the stack, and what an instruction changes | `compute`, `stack` |
//! | values: the format, rounding to it, arithmetic | `f80`, `round`, `arithmetic`, `remainder`, `decimal` |
//! | functions | `transcendental`, computed by `series` |
//! | images of the whole state | `env` |
//!
//! All is computed in integers, with the rounding of [`crate::sse::softfloat`], so results are the same on every host.

mod arithmetic;
mod compute;
mod decimal;
mod env;
mod f80;
pub(crate) mod ops;
mod remainder;
mod round;
mod series;
pub(crate) mod shape;
mod stack;
mod transcendental;

use crate::sse::softfloat::{flag, low64};
pub(crate) use f80::F80;
use serde::{Deserialize, Serialize};

/// Status word bits.
pub(crate) mod status {
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Error summary: an exception is pending that the control word does not mask.
    pub const ES: u16 = 1 << 7;
    /// Condition code 0.
    pub const C0: u16 = 1 << 8;
    /// Condition code 1: stack overflow rather than underflow, or rounded up.
    pub const C1: u16 = 1 << 9;
    /// Condition code 2.
    pub const C2: u16 = 1 << 10;
    /// Condition code 3.
    pub const C3: u16 = 1 << 14;
    /// Lowest bit of TOP.
    pub const TOP_SHIFT: u32 = 11;
    /// The TOP field.
    pub const TOP: u16 = 7 << TOP_SHIFT;
    /// Busy: the same as ES.
    pub const BUSY: u16 = 1 << 15;
}

/// Exception flags in the width of the status word.
fn low16(flags: u32) -> u16 {
    u16::try_from(flags & flag::ALL).unwrap_or(0)
}

/// Control word after FNINIT: everything masked, 64-bit precision, round to nearest.
const INITIAL_CONTROL: u16 = 0x037f;

/// The x87 state of a processor.
///
/// The last-instruction pointers hold what FXRSTOR, FRSTOR or FLDENV loaded; executing an instruction does not change
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87 {
    /// R0 to R7 (not ST0 to ST7): bits 63:0 significand, 78:64 exponent, 79 sign.
    pub registers: [u128; 8],
    /// Control word.
    pub control: u16,
    /// Status word, TOP included.
    pub status: u16,
    /// Bit i: Ri is not empty.
    pub full: u8,
    /// Last instruction's opcode (11 bits).
    pub opcode: u16,
    /// Last instruction's address.
    pub instruction: u64,
    /// Last memory operand's address.
    pub data: u64,
}

impl Default for X87 {
    /// The state after FNINIT.
    fn default() -> Self {
        Self {
            registers: [0; 8],
            control: INITIAL_CONTROL,
            status: 0,
            full: 0,
            opcode: 0,
            instruction: 0,
            data: 0,
        }
    }
}

impl X87 {
    /// Index of the register that is the top of the stack.
    fn top(&self) -> u8 {
        u8::try_from((self.status & status::TOP) >> status::TOP_SHIFT).unwrap_or(0)
    }

    fn set_top(&mut self, top: u8) {
        self.status = self.status & !status::TOP | u16::from(top & 7) << status::TOP_SHIFT;
    }

    /// Number of the register that ST(i) is.
    fn physical(&self, i: u8) -> u8 {
        (self.top() + i) & 7
    }

    /// ST(i) as 80 bits.
    #[must_use]
    pub fn st(&self, i: u8) -> u128 {
        self.registers[usize::from(self.physical(i))]
    }

    /// Sets ST(i) without marking it full or empty.
    pub fn set_st(&mut self, i: u8, value: u128) {
        self.registers[usize::from(self.physical(i))] = value & ((1 << 80) - 1);
    }

    fn is_full(&self, i: u8) -> bool {
        self.full >> self.physical(i) & 1 != 0
    }

    fn set_full(&mut self, i: u8, full: bool) {
        let bit = 1 << self.physical(i);
        self.full = if full { self.full | bit } else { self.full & !bit };
    }

    /// Makes derived bits agree with the rest: the fixed control bit, ES and B.
    pub(crate) fn normalise(&mut self) {
        self.control = self.control & 0x1f3f | 0x40;
        let pending = self.status & !self.control & 0x3f != 0;
        self.status &= !(status::ES | status::BUSY);
        if pending {
            self.status |= status::ES | status::BUSY;
        }
    }

    /// Sets exception flags (bits 5:0, and SF). Returns true if one of them is unmasked.
    fn signal(&mut self, flags: u16) -> bool {
        self.status |= flags;
        self.normalise();
        flags & !self.control & 0x3f != 0
    }

    fn set_c1(&mut self, on: bool) {
        self.status = if on {
            self.status | status::C1
        } else {
            self.status & !status::C1
        };
    }

    /// MMi: the significand of Ri.
    pub(crate) fn mm(&self, i: u8) -> u64 {
        low64(self.registers[usize::from(i & 7)])
    }

    /// Sets MMi; exponent and sign of Ri become ones.
    pub(crate) fn set_mm(&mut self, i: u8, value: u64) {
        self.registers[usize::from(i & 7)] = 0xffff << 64 | u128::from(value);
    }

    /// What every MMX instruction does besides its own work.
    pub(crate) fn enter_mmx(&mut self) {
        self.set_top(0);
        self.full = 0xff;
    }

    /// EMMS.
    pub(crate) fn leave_mmx(&mut self) {
        self.set_top(0);
        self.full = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_turns_with_top() {
        let mut fpu = X87::default();
        fpu.set_top(6);
        fpu.set_st(3, 42);
        fpu.set_full(3, true);
        assert_eq!(fpu.registers[1], 42);
        assert_eq!(fpu.full, 1 << 1);
        assert!(fpu.is_full(3) && !fpu.is_full(0));
    }

    #[test]
    fn the_registers_are_those_of_the_x87_by_number() {
        let mut fpu = X87::default();
        fpu.set_top(5);
        fpu.set_mm(2, 42);
        fpu.enter_mmx();
        assert_eq!((fpu.mm(2), fpu.st(2), fpu.full), (42, 0xffff << 64 | 42, 0xff));
        fpu.leave_mmx();
        assert_eq!((fpu.mm(2), fpu.full), (42, 0));
    }

    #[test]
    fn an_unmasked_flag_shows_in_the_summary() {
        let mut fpu = X87::default();
        assert!(!fpu.signal(1));
        assert_eq!(fpu.status, 1);
        fpu.control &= !1;
        fpu.normalise();
        assert_eq!(fpu.status, 1 | status::ES | status::BUSY);
    }
}
