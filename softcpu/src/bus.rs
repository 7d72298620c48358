//! The processor's way to the rest of the machine.

/// What is outside the processor: memory-mapped and port I/O, and the MSRs that belong to other units.
///
/// After an instruction that used the bus, [`crate::Cpu::run`] returns [`crate::Exit::Bus`], so that the machine can
/// look at its interrupt lines and deadlines before time goes on. `now` is the guest time at which the instruction
/// began, in ticks.
pub trait Bus {
    /// Reads `size` (1, 2, 4 or 8) bytes at a guest physical address that is not RAM; all ones where nothing answers.
    fn mmio_read(&mut self, now: u64, gpa: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`.
    fn mmio_write(&mut self, now: u64, gpa: u64, size: u8, value: u64);
    /// Reads `size` (1, 2 or 4) bytes from an I/O port.
    fn port_read(&mut self, now: u64, port: u16, size: u8) -> u32;
    /// Writes the low `size` bytes of `value` to an I/O port.
    fn port_write(&mut self, now: u64, port: u16, size: u8, value: u32);
    /// The guest wrote the TSC, which reads `offset` more than guest time from now on. For the local APIC, whose
    /// deadline is a value of the TSC.
    fn tsc_written(&mut self, _now: u64, _offset: u64) {}
    /// Reads an MSR that the processor core does not have itself; `None` raises #GP(0).
    fn msr_read(&mut self, now: u64, index: u32) -> Option<u64>;
    /// Writes such an MSR; false raises #GP(0).
    fn msr_write(&mut self, now: u64, index: u32, value: u64) -> bool;
}

/// A bus with nothing on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBus;

impl Bus for NoBus {
    fn mmio_read(&mut self, _: u64, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&mut self, _: u64, _: u64, _: u8, _: u64) {}
    fn port_read(&mut self, _: u64, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: u64, _: u16, _: u8, _: u32) {}
    fn msr_read(&mut self, _: u64, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _: u64, _: u32, _: u64) -> bool {
        false
    }
}
