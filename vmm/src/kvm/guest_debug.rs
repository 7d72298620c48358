//! A vCPU's hardware breakpoints and single steps (KVM_SET_GUEST_DEBUG), which are invisible to the guest.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
    kvm_guest_debug_arch,
};
use kvm_ioctls::VcpuFd;

use super::error::KvmError;
use super::kexec::{BREAKPOINTS, ExpectedKexec, MAX_STEPS};

/// First address of the upper half of the address space.
const UPPER_HALF: u64 = 1 << 63;
/// DR7: bit 10 is always one.
const DR7_FIXED: u64 = 1 << 10;

/// Why the vCPU is single-stepped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is not.
    No,
    /// One step over the current instruction, with all breakpoints off.
    Past,
    /// Until the old kernel jumps into the lower half, but at most this many more steps.
    ToJump(u32),
}

/// What a KVM_EXIT_DEBUG means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DebugExit {
    /// Nothing to report; the vCPU goes on.
    Resume,
    /// The vCPU is at the page-fault handler's first instruction.
    PageFaultHandler,
    /// The vCPU is about to execute kernel code in the lower half: the old kernel's jump, or the next kernel's entry
    /// point.
    LowHalf {
        /// Whether the jump itself was seen. If not, this is the entry point, and the jump was before it.
        jump_seen: bool,
    },
}

/// Breakpoints and single steps of one vCPU.
#[derive(Debug)]
pub(super) struct GuestDebug {
    /// Address of the page-fault handler, if it is watched.
    page_fault: Option<u64>,
    kexec: Option<ExpectedKexec>,
    /// The jump of `kexec` has been seen, or concluded from its entry.
    jumped: bool,
    step: Step,
    /// The last arguments of KVM_SET_GUEST_DEBUG: breakpoints, and whether to single-step. A new vCPU has none of both.
    applied: (Vec<u64>, bool),
}

impl GuestDebug {
    pub fn new() -> Self {
        Self {
            page_fault: None,
            kexec: None,
            jumped: false,
            step: Step::No,
            applied: (Vec::new(), false),
        }
    }

    /// Watches the page-fault handler at this address; `None` watches none.
    pub fn watch_page_faults(&mut self, handler: Option<u64>) {
        self.page_fault = handler;
    }

    /// Watches for this kexec; `None` watches for none.
    pub fn expect(&mut self, kexec: Option<ExpectedKexec>) {
        self.kexec = kexec;
        self.jumped = false;
        if matches!(self.step, Step::ToJump(_)) {
            self.step = Step::No;
        }
    }

    /// Another vCPU saw the jump or the entry.
    pub fn set_jumped(&mut self) {
        self.jumped = true;
    }

    /// Lets the vCPU execute its next instruction even if a breakpoint is there.
    pub fn step_past(&mut self) {
        self.step = Step::Past;
    }

    /// Interprets a debug exit at `pc`. `kernel_mode` is whether the vCPU is at privilege level 0.
    pub fn stopped_at(&mut self, pc: u64, kernel_mode: bool) -> DebugExit {
        match self.step {
            Step::No => {}
            Step::Past => {
                self.step = Step::No;
                // If the next instruction has a breakpoint, KVM_RUN exits there again, because breakpoints are now back
                // on.
                return DebugExit::Resume;
            }
            Step::ToJump(_) if kernel_mode && pc < UPPER_HALF => {
                self.step = Step::No;
                self.jumped = true;
                return DebugExit::LowHalf { jump_seen: true };
            }
            Step::ToJump(left) => {
                self.step = left.checked_sub(1).map_or(Step::Past, Step::ToJump);
                return DebugExit::Resume;
            }
        }
        if self.page_fault == Some(pc) {
            return DebugExit::PageFaultHandler;
        }
        if let Some(kexec) = self.kexec.as_ref().filter(|_| kernel_mode) {
            if kexec.machine_kexec == Some(pc) && !self.jumped {
                self.step = Step::ToJump(MAX_STEPS);
                return DebugExit::Resume;
            }
            if kexec.entries.contains(&pc) {
                return DebugExit::LowHalf {
                    jump_seen: self.jumped,
                };
            }
        }
        self.step = Step::Past;
        DebugExit::Resume
    }

    /// Calls KVM_SET_GUEST_DEBUG for a step, or if anything has changed since the last call.
    pub fn apply(&mut self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let stepping = self.step != Step::No;
        let addresses = if stepping { Vec::new() } else { self.addresses() };
        let wanted = (addresses, stepping);
        // KVM sets RFLAGS.TF for a step in this call alone, and an instruction may have cleared it since, as POPF in the
        // kernel's relocate_kernel does.
        if !stepping && self.applied == wanted {
            return Ok(());
        }
        let mut arch = kvm_guest_debug_arch::default();
        let mut control = 0;
        if stepping {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        if !wanted.0.is_empty() {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            arch.debugreg[7] = DR7_FIXED;
            for (index, address) in wanted.0.iter().enumerate() {
                arch.debugreg[index] = *address;
                // Global enable; length 1 and type "execution" are zero.
                arch.debugreg[7] |= 0b10 << (2 * index);
            }
        }
        let debug = kvm_guest_debug {
            control,
            pad: 0,
            arch,
        };
        vcpu.set_guest_debug(&debug)
            .map_err(KvmError::ioctl("KVM_SET_GUEST_DEBUG"))?;
        self.applied = wanted;
        Ok(())
    }

    /// The breakpoints that are on while the vCPU is not single-stepped.
    fn addresses(&self) -> Vec<u64> {
        let jump = self
            .kexec
            .as_ref()
            .and_then(|kexec| kexec.machine_kexec)
            .filter(|_| !self.jumped);
        let entries = self.kexec.iter().flat_map(|kexec| kexec.entries.iter().copied());
        let all = self.page_fault.into_iter().chain(jump).chain(entries);
        all.take(BREAKPOINTS).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_ffff_8100_0000;

    fn debug() -> GuestDebug {
        let mut debug = GuestDebug::new();
        debug.expect(Some(ExpectedKexec {
            machine_kexec: Some(KERNEL),
            entries: vec![0x100_0200],
        }));
        debug
    }

    #[test]
    fn the_jump_is_the_first_step_into_the_lower_half() {
        let mut debug = debug();
        assert_eq!(debug.stopped_at(KERNEL, true), DebugExit::Resume);
        assert_eq!(debug.stopped_at(KERNEL + 4, true), DebugExit::Resume);
        assert_eq!(
            debug.stopped_at(0x7000, true),
            DebugExit::LowHalf { jump_seen: true }
        );
        assert_eq!(debug.addresses(), [0x100_0200]);
        assert_eq!(
            debug.stopped_at(0x100_0200, true),
            DebugExit::LowHalf { jump_seen: true }
        );
    }

    #[test]
    fn without_symbols_the_entry_alone_is_seen() {
        let mut debug = GuestDebug::new();
        debug.expect(Some(ExpectedKexec {
            machine_kexec: None,
            entries: vec![0x100_0200],
        }));
        assert_eq!(
            debug.stopped_at(0x100_0200, false),
            DebugExit::Resume,
            "user code may be at that address"
        );
        assert_eq!(debug.stopped_at(0x100_0203, true), DebugExit::Resume);
        assert_eq!(
            debug.stopped_at(0x100_0200, true),
            DebugExit::LowHalf { jump_seen: false }
        );
    }

    #[test]
    fn stepping_ends_even_if_no_jump_comes() {
        let mut debug = debug();
        debug.stopped_at(KERNEL, true);
        for step in 0..=u64::from(MAX_STEPS) {
            assert_eq!(debug.stopped_at(KERNEL + 1 + step, true), DebugExit::Resume);
        }
        assert_eq!(debug.step, Step::Past);
    }
}
