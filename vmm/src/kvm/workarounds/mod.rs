//! Workarounds for hosts whose KVM emulates guest kernel code.
//!
//! Some hosts offer /dev/kvm without VT-x or SVM. Guest user mode then runs natively, but guest kernel code goes
//! through KVM's instruction emulator, at about a million instructions per second. [`super::probe`] detects such hosts.
//! On all others no code in this module runs, but for the choice of the factor by which device time is slowed: a host
//! whose own processor is translated by software is slow, too, and otherwise in order.
//!
//! | problem | workaround | where |
//! | --- | --- | --- |
//! | SYSCALL leaves the privilege level at 3 | the host finishes it on the page fault that follows | [`syscall`] |
//! | handling a timer tick takes longer than the time between ticks | timer interrupts are delayed | [`deadline`] |
//! | byte forms of REP MOVS and STOS take eight times as long | leaf 7 (ERMS, FSRM and others) is hidden | CPUID |
//! | the emulator lacks XSAVE and SSSE3, and CPUID cannot hide them | the kernel must not use them | command line |
//! | kernel code is 100 times slower than devices expect | device time is slowed by the same factor | clock |

pub(super) mod deadline;
pub(super) mod syscall;

use super::probe::Measured;

/// A guest kernel slower than this is taken to be emulated; in instructions per second. Emulation reaches about 1e6,
/// hardware about 1e9, even under a hypervisor and on a busy host.
pub(super) const EMULATED_BELOW: f64 = 20e6;
/// softcpu's speed in instructions per second, for which the rates and limits of scenarios are chosen.
const REFERENCE_SPEED: f64 = 100e6;
/// Largest factor by which device time is slowed.
pub const MAX_SLOWDOWN: u32 = 1000;

/// Kernel parameters that turn off the instructions that the emulator lacks and CPUID cannot hide.
const COMMAND_LINE: &str = "noxsave clearcpuid=ssse3,pni,sse4_1,sse4_2,aes,pclmulqdq,rdrand,movbe,cx16";

/// The workarounds that a host needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workarounds {
    /// The host has to finish SYSCALL.
    pub fix_syscall: bool,
    /// Kernel code is emulated. So timer interrupts are delayed, CPUID leaf 7 is hidden, and the command line turns
    /// features off.
    pub emulated_kernel: bool,
    /// Host nanoseconds per nanosecond of device time; 0 and 1 mean real time.
    pub slowdown: u32,
}

impl Workarounds {
    /// The workarounds for a host with these measurements: none if it runs guest kernels natively.
    #[must_use]
    pub fn for_host(measured: &Measured) -> Self {
        let emulated_kernel = measured.kernel_speed < EMULATED_BELOW;
        let speed = if emulated_kernel {
            measured.kernel_speed
        } else {
            measured.cold_speed
        };
        let slowdown = (REFERENCE_SPEED / speed.max(1.0)).clamp(1.0, f64::from(MAX_SLOWDOWN));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
        Self {
            fix_syscall: !measured.syscall_works,
            emulated_kernel,
            slowdown: slowdown.round() as u32,
        }
    }

    /// Number of workarounds.
    #[must_use]
    pub fn count(&self) -> u32 {
        // An emulated kernel needs four: timer, CPUID, command line, clock.
        u32::from(self.fix_syscall) + if self.emulated_kernel { 4 } else { 0 }
    }

    /// What to append to the command line of guest kernels.
    #[must_use]
    pub fn command_line(&self) -> &'static str {
        if self.emulated_kernel { COMMAND_LINE } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_host_needs_none() {
        let native = Measured {
            kernel_speed: 1.5e9,
            cold_speed: 0.9e9,
            syscall_works: true,
        };
        let needs = Workarounds::for_host(&native);
        assert_eq!((needs.count(), needs.slowdown, needs.command_line()), (0, 1, ""));
    }

    #[test]
    fn a_translated_processor_is_slow_and_needs_no_workaround() {
        let translated = Measured {
            kernel_speed: 1.1e9,
            cold_speed: 4e6,
            syscall_works: true,
        };
        let needs = Workarounds::for_host(&translated);
        assert_eq!((needs.count(), needs.slowdown, needs.command_line()), (0, 25, ""));
    }

    #[test]
    fn an_emulating_host_needs_them_all() {
        let emulating = Measured {
            kernel_speed: 1.1e6,
            cold_speed: 0.4e6,
            syscall_works: false,
        };
        let needs = Workarounds::for_host(&emulating);
        assert_eq!((needs.count(), needs.slowdown), (5, 91));
        assert!(needs.command_line().contains("noxsave"));
        let slowest = Measured {
            kernel_speed: 0.0,
            cold_speed: 0.0,
            syscall_works: true,
        };
        assert_eq!(Workarounds::for_host(&slowest).slowdown, 1000);
    }
}
