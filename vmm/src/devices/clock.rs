//! The wall clock of a PC: the time registers of an MC146818. A kernel reads them at boot even if ACPI says that there
//! is no clock, and waits one second if nothing answers.
//!
//! The clock shows [`EPOCH`] plus guest time, so that a run does not depend on the host's date.

use serde::{Deserialize, Serialize};

/// I/O port that selects a register.
pub const INDEX: u16 = 0x70;
/// I/O port of the selected register.
pub const DATA: u16 = 0x71;
/// Time of the clock at guest time 0, a Thursday.
pub const EPOCH: &str = "2026-01-01 00:00:00";

const EPOCH_YEAR: u8 = 26;
const EPOCH_CENTURY: u8 = 20;
/// Register B: binary values are off, 24-hour mode is on.
const STATUS_B: u8 = 1 << 1;
/// Register D: the time is valid.
const STATUS_D: u8 = 1 << 7;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// The clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    index: u8,
}

impl Clock {
    /// Selects a register (bit 7 of the index port masks NMIs and is not kept).
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// The selected register at guest time `now` in ns. The date never changes, because runs are far shorter than a
    /// day.
    #[must_use]
    pub fn read(&self, now: u64) -> u8 {
        let seconds = now / NS_PER_SECOND;
        match self.index {
            0x00 => bcd(seconds % 60),
            0x02 => bcd(seconds / 60 % 60),
            0x04 => bcd(seconds / 3600 % 24),
            0x06 => 5,
            0x07 | 0x08 => 1,
            0x09 => bcd(EPOCH_YEAR.into()),
            0x0b => STATUS_B,
            0x0d => STATUS_D,
            0x32 => bcd(EPOCH_CENTURY.into()),
            _ => 0,
        }
    }
}

/// Two decimal digits.
fn bcd(value: u64) -> u8 {
    (value / 10 % 10 * 16 + value % 10).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_from_the_epoch_on() {
        let mut clock = Clock::default();
        let mut at = |register, now| {
            clock.select(register);
            clock.read(now)
        };
        let now = (13 * 3600 + 45 * 60 + 59) * NS_PER_SECOND;
        assert_eq!([at(4, now), at(2, now), at(0, now)], [0x13, 0x45, 0x59]);
        assert_eq!([at(0x32, 0), at(9, 0), at(8, 0), at(7, 0)], [0x20, 0x26, 1, 1]);
        assert_eq!(at(0x0a, 0) & 0x80, 0, "no update is ever in progress");
    }
}
