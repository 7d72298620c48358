//! The serial port: a 16550 at COM1 (vm-superio) whose output is the guest's console.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::console::Console;

/// First I/O port of COM1.
pub const PORT: u16 = 0x3f8;
/// Number of its ports.
pub const PORTS: u8 = 8;
/// Its interrupt: pin of the I/O APIC.
pub const IRQ: u8 = 4;
/// Most bytes of input that wait for the guest.
const MAX_INPUT: usize = 64 * 1024;

/// Remembers that the 16550 raised its interrupt.
#[derive(Debug, Clone, Default)]
struct Interrupt(Arc<AtomicBool>);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The serial port.
#[derive(Debug)]
pub struct Uart {
    serial: Serial<Interrupt, NoEvents, Vec<u8>>,
    interrupt: Interrupt,
    input: VecDeque<u8>,
    /// Everything that was printed.
    pub console: Console,
}

impl Default for Uart {
    fn default() -> Self {
        let interrupt = Interrupt::default();
        Self {
            serial: Serial::new(interrupt.clone(), Vec::new()),
            interrupt,
            input: VecDeque::new(),
            console: Console::default(),
        }
    }
}

impl Uart {
    /// Reads register `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        let value = self.serial.read(offset);
        self.feed();
        value
    }

    /// Writes register `offset`.
    pub fn write(&mut self, offset: u8, value: u8) {
        // Neither the trigger nor the output can fail, and a full FIFO in loopback mode loses bytes as the chip does.
        let _ = self.serial.write(offset, value);
        let output = self.serial.writer_mut();
        self.console.write(output);
        output.clear();
    }

    /// Types for the guest; returns how many bytes were taken.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(MAX_INPUT - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.feed();
        taken
    }

    /// Whether the interrupt was raised since the last call.
    pub fn take_interrupt(&mut self) -> bool {
        self.interrupt.0.swap(false, Ordering::Relaxed)
    }

    /// The registers as bytes, for the state hash.
    #[must_use]
    pub fn state_bytes(&self) -> Vec<u8> {
        let state = self.serial.state();
        let mut bytes = vec![
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        bytes.extend(state.in_buffer);
        bytes.extend(&self.input);
        bytes
    }

    fn feed(&mut self) {
        let room = self.serial.fifo_capacity().min(self.input.len());
        if room == 0 {
            return;
        }
        let next: Vec<u8> = self.input.iter().take(room).copied().collect();
        let taken = self.serial.enqueue_raw_bytes(&next).unwrap_or(0);
        self.input.drain(..taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_goes_to_the_console() {
        let mut uart = Uart::default();
        for byte in *b"hello" {
            uart.write(0, byte);
        }
        assert_eq!(uart.console.text(), b"hello");
        assert!(!uart.take_interrupt(), "interrupts are off after reset");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole() {
        let mut uart = Uart::default();
        uart.write(1, 1); // receive interrupt
        let typed: Vec<u8> = (0..200).collect();
        assert_eq!(uart.type_in(&typed), 200);
        assert!(uart.take_interrupt());
        let mut got = Vec::new();
        while uart.read(5) & 1 == 1 {
            got.push(uart.read(0));
        }
        assert_eq!(got, typed);
        assert_eq!(uart.type_in(&vec![0; MAX_INPUT + 500]), MAX_INPUT);
    }
}
