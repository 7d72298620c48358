//! Hosts whose KVM emulates guest kernel code.
//!
//! Some hosts offer /dev/kvm without VT-x or SVM under it: guest user mode runs natively, guest kernel code goes through KVM's
//! instruction emulator at about a million instructions a second. Such a KVM needs what is in this module and nowhere else; a host
//! whose probe finds nothing amiss never enters it.
//!
//! | what is amiss | what is done | where |
//! | --- | --- | --- |
//! | SYSCALL leaves the privilege level at 3 | finished by the host, on the page fault that follows | [`syscall`] |
//! | a tick in real time takes more than the time between ticks | timer interrupts wait until the guest had its share | [`tick`] |
//! | byte forms of REP MOVS and STOS take eight times as long | leaf 7 (ERMS, FSRM, SMAP, SMEP, FSGSBASE) is hidden | CPUID |
//! | XSAVE and SSSE3 and up cannot be emulated, nor hidden from CPUID | the kernel is told not to use them | command line |
//! | kernel code is 100 times slower than device time | devices' time is slowed by as much | clock |

pub(super) mod syscall;
pub(super) mod tick;

use super::probe::Measured;

/// Speed of a guest kernel, in instructions per second, below which it is taken to be emulated. Hardware does a thousand times as
/// much, even under a hypervisor and on a busy host.
const EMULATED_BELOW: f64 = 20e6;
/// Speed that scenarios' rates and limits are made for: softcpu's.
const REFERENCE_SPEED: f64 = 100e6;
/// Most that devices are slowed by.
const MAX_SLOWDOWN: f64 = 1000.0;

/// What keeps a kernel from instructions that the emulator lacks and CPUID cannot hide.
const COMMAND_LINE: &str = "noxsave clearcpuid=ssse3,pni,sse4_1,sse4_2,aes,pclmulqdq,rdrand,movbe,cx16";

/// What a host needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workarounds {
    /// SYSCALL has to be finished by the host.
    pub fix_syscall: bool,
    /// Kernel code is emulated, with all that follows from that: timer interrupts wait, leaf 7 is hidden, kernels are told what
    /// not to use.
    pub emulated_kernel: bool,
    /// Host nanoseconds to a nanosecond of device time; 0 and 1 are real time.
    pub slowdown: u32,
}

impl Workarounds {
    /// What a host with these findings needs: nothing, if it is sound.
    #[must_use]
    pub fn for_host(measured: &Measured) -> Self {
        let emulated_kernel = measured.kernel_speed < EMULATED_BELOW;
        let slowdown = if emulated_kernel {
            (REFERENCE_SPEED / measured.kernel_speed.max(1.0)).clamp(1.0, MAX_SLOWDOWN)
        } else {
            1.0
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
        Self {
            fix_syscall: !measured.syscall_works,
            emulated_kernel,
            slowdown: slowdown.round() as u32,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        // The kernel's own: tick, CPUID, command line, clock.
        u32::from(self.fix_syscall) + if self.emulated_kernel { 4 } else { 0 }
    }

    /// What guest kernels have to be told.
    #[must_use]
    pub fn command_line(&self) -> &'static str {
        if self.emulated_kernel { COMMAND_LINE } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_host_needs_nothing() {
        let sound = Measured {
            kernel_speed: 1.5e9,
            syscall_works: true,
        };
        let needs = Workarounds::for_host(&sound);
        assert_eq!((needs.count(), needs.slowdown, needs.command_line()), (0, 1, ""));
    }

    #[test]
    fn an_emulating_host_needs_them_all() {
        let emulating = Measured {
            kernel_speed: 1.1e6,
            syscall_works: false,
        };
        let needs = Workarounds::for_host(&emulating);
        assert_eq!((needs.count(), needs.slowdown), (5, 91));
        assert!(needs.command_line().contains("noxsave"));
        let dead = Measured {
            kernel_speed: 0.0,
            syscall_works: true,
        };
        assert_eq!(Workarounds::for_host(&dead).slowdown, 1000);
    }
}
