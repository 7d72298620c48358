//! The serial port: a 16550 at COM1 (vm-superio) whose output is the guest's console.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};

use crate::console::Console;

/// First I/O port of COM1.
pub const PORT: u16 = 0x3f8;
/// Number of its ports.
pub const PORTS: u8 = 8;
/// Its interrupt: pin of the I/O APIC.
pub const IRQ: u8 = 4;
/// Most bytes of input that the guest has not read yet.
const MAX_INPUT: usize = 64 * 1024;
/// IER, bit 0: received data raise the interrupt.
const RECEIVE_INTERRUPT: u8 = 1 << 0;

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
    /// All output.
    pub console: Console,
}

/// The serial port as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    /// Divisor latch low and high, IER, IIR, LCR, LSR, MCR, MSR, scratch.
    registers: [u8; 9],
    /// Bytes received and not yet read.
    received: Vec<u8>,
    input: VecDeque<u8>,
    interrupt: bool,
    console: Console,
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
        // The only possible error is a full FIFO in loopback mode, in which the chip loses bytes, too.
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

    /// Whether the driver has switched on the receive interrupt and has read all that was typed.
    #[must_use]
    pub fn takes_input(&self) -> bool {
        let state = self.serial.state();
        state.interrupt_enable & RECEIVE_INTERRUPT != 0 && state.in_buffer.is_empty() && self.input.is_empty()
    }

    /// Whether the interrupt was raised since the last call.
    pub fn take_interrupt(&mut self) -> bool {
        self.interrupt.0.swap(false, Ordering::Relaxed)
    }

    /// Its whole state.
    #[must_use]
    pub fn state(&self) -> UartState {
        let Self {
            serial,
            interrupt,
            input,
            console,
        } = self;
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = serial.state();
        UartState {
            registers: [
                baud_divisor_low,
                baud_divisor_high,
                interrupt_enable,
                interrupt_identification,
                line_control,
                line_status,
                modem_control,
                modem_status,
                scratch,
            ],
            received: in_buffer,
            input: input.clone(),
            interrupt: interrupt.0.load(Ordering::Relaxed),
            console: console.clone(),
        }
    }

    /// A serial port restored from `state`; `None` if the state is impossible.
    #[must_use]
    pub fn from_state(state: &UartState) -> Option<Self> {
        let UartState {
            registers,
            received,
            input,
            interrupt,
            console,
        } = state;
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = *registers;
        let serial = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received.clone(),
        };
        if input.len() > MAX_INPUT || !console.is_sound() {
            return None;
        }
        let trigger = Interrupt::default();
        let serial = Serial::from_state(&serial, trigger.clone(), NoEvents, Vec::new()).ok()?;
        // Restoring the 16550 may raise the interrupt again.
        trigger.0.store(*interrupt, Ordering::Relaxed);
        Some(Self {
            serial,
            interrupt: trigger,
            input: input.clone(),
            console: console.clone(),
        })
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

    #[test]
    fn input_is_taken_when_the_driver_waits_for_it_and_has_read_all() {
        let mut uart = Uart::default();
        assert!(!uart.takes_input(), "the interrupt is off");
        uart.write(1, 1);
        assert!(uart.takes_input());
        uart.type_in(b"ab");
        uart.read(0);
        assert!(!uart.takes_input(), "one byte is left");
        uart.read(0);
        assert!(uart.takes_input());
        uart.write(1, 2); // transmitter empty alone
        assert!(!uart.takes_input());
    }

    #[test]
    fn a_state_goes_on_where_it_was_taken() {
        let mut uart = Uart::default();
        uart.write(1, 1);
        uart.write(0, b'x');
        uart.write(7, 0x5a);
        assert_eq!(uart.type_in(&[7; 100]), 100);
        let state = uart.state();
        let mut again = Uart::from_state(&state).unwrap();
        assert_eq!(again.state(), state);
        let read = |uart: &mut Uart| (0..120).map(|_| (uart.read(5), uart.read(0))).collect::<Vec<_>>();
        assert_eq!(read(&mut again), read(&mut uart));
        assert_eq!(again.take_interrupt(), uart.take_interrupt());
        assert_eq!(again.console.text(), b"x");
    }

    #[test]
    fn a_state_that_cannot_be_is_refused() {
        let state = Uart::default().state();
        let mut flooded = state.clone();
        flooded.input = vec![0; MAX_INPUT + 1].into();
        let mut overfull = state.clone();
        overfull.received = vec![0; 1000];
        assert!(Uart::from_state(&state).is_some());
        assert!(Uart::from_state(&flooded).is_none());
        assert!(Uart::from_state(&overfull).is_none());
    }
}
