//! An I/O APIC with 24 pins (82093AA data sheet, plus the EOI register of version 0x20).

use serde::{Deserialize, Serialize};

use crate::interrupt::Message;

/// Guest physical address of the registers.
pub const BASE: u64 = BASE_32 as u64;
/// The same as a 32-bit number, for the MADT.
pub const BASE_32: u32 = 0xfec0_0000;
/// Bytes of the register page.
pub const SIZE: u64 = 0x1000;
/// Number of pins.
pub const PINS: u8 = 24;
/// Identity of the I/O APIC, also in the MADT.
pub const ID: u8 = 0;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Offset of the EOI register.
pub const EOI: u64 = 0x40;
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_TABLE: u8 = 0x10;

const VERSION_VALUE: u32 = (PINS as u32 - 1) << 16 | 0x20;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
/// Bits that software cannot write.
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;

/// An I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    select: u8,
    id: u32,
    table: [u64; PINS as usize],
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            select: 0,
            id: u32::from(ID) << 24,
            table: [MASKED; PINS as usize],
            lines: 0,
        }
    }
}

impl IoApic {
    /// Reads the register at `offset` into the page.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => match self.select {
                REG_ID | REG_ARBITRATION => self.id,
                REG_VERSION => VERSION_VALUE,
                register => match self.entry(register) {
                    Some((pin, false)) => (self.table[pin] & 0xffff_ffff) as u32,
                    Some((pin, true)) => (self.table[pin] >> 32) as u32,
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    /// Writes a register; returns the interrupts that this sends.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match offset {
            SELECT => self.select = value.to_le_bytes()[0],
            WINDOW if self.select == REG_ID => self.id = value & 0x0f00_0000,
            WINDOW => {
                if let Some((pin, high)) = self.entry(self.select) {
                    return self.write_entry(pin, high, value);
                }
            }
            EOI => return self.end_of_interrupt(value.to_le_bytes()[0]),
            _ => {}
        }
        None
    }

    /// Sets the level of a pin's line; returns the interrupt that this sends.
    pub fn set_line(&mut self, pin: u8, high: bool) -> Option<Message> {
        let bit = 1_u32.checked_shl(pin.into()).filter(|_| pin < PINS)?;
        let rising = high && self.lines & bit == 0;
        if high {
            self.lines |= bit
        } else {
            self.lines &= !bit
        }
        let level = self.table[usize::from(pin)] & LEVEL != 0;
        if level || rising {
            self.service(usize::from(pin))
        } else {
            None
        }
    }

    /// A short pulse on a pin's line, as an edge-triggered source gives.
    pub fn pulse(&mut self, pin: u8) -> Option<Message> {
        let message = self.set_line(pin, true);
        self.set_line(pin, false);
        message
    }

    /// A local APIC ended a level-triggered interrupt; if its line is still high it is sent again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Option<Message> {
        let mut again = None;
        for pin in 0..usize::from(PINS) {
            let entry = self.table[pin];
            if entry & LEVEL != 0 && entry.to_le_bytes()[0] == vector {
                self.table[pin] &= !REMOTE_IRR;
                again = self.service_level(pin).or(again);
            }
        }
        again
    }

    /// Pin and half of a redirection table register.
    fn entry(&self, register: u8) -> Option<(usize, bool)> {
        let index = register
            .checked_sub(REG_TABLE)
            .filter(|&index| index < 2 * PINS)?;
        Some((usize::from(index / 2), index % 2 == 1))
    }

    fn write_entry(&mut self, pin: usize, high: bool, value: u32) -> Option<Message> {
        let old = self.table[pin];
        let mut new = if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        new = new & !READ_ONLY | old & READ_ONLY;
        if new & LEVEL == 0 {
            // Edge-triggered entries have no remote IRR. Older kernels clear remote IRR by switching to edge and back.
            new &= !REMOTE_IRR;
        }
        self.table[pin] = new;
        self.service_level(pin)
    }

    fn service_level(&mut self, pin: usize) -> Option<Message> {
        if self.table[pin] & LEVEL != 0 {
            self.service(pin)
        } else {
            None
        }
    }

    fn service(&mut self, pin: usize) -> Option<Message> {
        let entry = self.table[pin];
        let level = entry & LEVEL != 0;
        let asserted = self.lines >> pin & 1 == 1;
        if entry & MASKED != 0 || level && (entry & REMOTE_IRR != 0 || !asserted) {
            return None;
        }
        if level {
            self.table[pin] |= REMOTE_IRR;
        }
        Some(Message {
            vector: entry.to_le_bytes()[0],
            destination: entry.to_le_bytes()[7],
            logical: entry & 1 << 11 != 0,
            mode: (entry >> 8 & 0b111) as u8,
            level,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(ioapic: &mut IoApic, pin: u8, low: u32, high: u32) -> Option<Message> {
        ioapic.write(SELECT, u32::from(REG_TABLE + 2 * pin + 1));
        ioapic.write(WINDOW, high);
        ioapic.write(SELECT, u32::from(REG_TABLE + 2 * pin));
        ioapic.write(WINDOW, low)
    }

    #[test]
    fn an_edge_is_sent_once() {
        let mut ioapic = IoApic::default();
        assert_eq!(ioapic.pulse(4), None, "masked after reset");
        program(&mut ioapic, 4, 0x31, 0x0100_0000);
        let message = ioapic.set_line(4, true).unwrap();
        assert_eq!(
            (message.vector, message.destination, message.level),
            (0x31, 1, false)
        );
        assert_eq!(ioapic.set_line(4, true), None);
        ioapic.set_line(4, false);
        assert!(ioapic.pulse(4).is_some());
        assert_eq!(ioapic.pulse(24), None);
        assert_eq!(ioapic.pulse(200), None);
    }

    #[test]
    fn a_level_is_sent_again_until_it_falls() {
        let mut ioapic = IoApic::default();
        program(&mut ioapic, 9, 0x8000 | 0x42, 0);
        assert!(ioapic.set_line(9, true).is_some_and(|message| message.level));
        assert_eq!(ioapic.set_line(9, true), None, "remote IRR holds it back");
        assert_ne!(ioapic.read(WINDOW) & 1 << 14, 0);
        assert!(ioapic.end_of_interrupt(0x42).is_some(), "the line is still high");
        ioapic.set_line(9, false);
        assert_eq!(ioapic.end_of_interrupt(0x42), None);
        assert_eq!(ioapic.write(EOI, 0x42), None);
    }

    #[test]
    fn unmasking_a_high_level_sends_it() {
        let mut ioapic = IoApic::default();
        program(&mut ioapic, 9, 0x1_8042, 0);
        assert_eq!(ioapic.set_line(9, true), None);
        assert!(program(&mut ioapic, 9, 0x8042, 0).is_some());
    }

    #[test]
    fn registers_read_back() {
        let mut ioapic = IoApic::default();
        ioapic.write(SELECT, 1);
        assert_eq!(ioapic.read(WINDOW), 23 << 16 | 0x20);
        program(&mut ioapic, 23, 0x1_0055, 0x0200_0000);
        assert_eq!(ioapic.read(WINDOW), 0x1_0055);
        ioapic.write(SELECT, 0xff);
        assert_eq!(ioapic.write(WINDOW, 0), None);
        assert_eq!(ioapic.read(WINDOW), 0);
    }
}
