//! A vCPU's hardware breakpoints and single steps (KVM_SET_GUEST_DEBUG), which the guest does not see.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
    kvm_guest_debug_arch,
};
use kvm_ioctls::VcpuFd;

use super::Refused;
use super::kexec::{BREAKPOINTS, Expected, MAX_STEPS};

/// First address of the upper half.
const UPPER_HALF: u64 = 1 << 63;
/// DR7: bit 10 is always one.
const DR7_FIXED: u64 = 1 << 10;

/// What single steps are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// None are made.
    No,
    /// One, past a breakpoint that is armed again afterwards.
    Past,
    /// As many as it takes to see the jump into the lower half; how many are left.
    ToJump(u32),
}

/// What a debug exit was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing that anybody waits for; the vCPU goes on.
    Nothing,
    /// The page-fault handler's first instruction.
    PageFault,
    /// The old kernel jumped: the next instruction is in the lower half.
    Jump,
    /// The next kernel's entry point; `exact` when the jump was seen before.
    Entry {
        /// Whether the jump has been seen.
        jump_seen: bool,
    },
}

/// Breakpoints of one vCPU.
#[derive(Debug)]
pub(super) struct Debug {
    /// The page-fault handler, where it is watched.
    page_fault: Option<u64>,
    kexec: Option<Expected>,
    jumped: bool,
    step: Step,
    /// What KVM was last told.
    told: Option<(Vec<u64>, bool)>,
}

impl Debug {
    pub fn new() -> Self {
        Self {
            page_fault: None,
            kexec: None,
            jumped: false,
            step: Step::No,
            told: None,
        }
    }

    /// Watches the page-fault handler at this address.
    pub fn watch_page_faults(&mut self, handler: Option<u64>) {
        self.page_fault = handler;
    }

    /// Watches for this kexec, or for none.
    pub fn expect(&mut self, kexec: Option<Expected>) {
        self.kexec = kexec;
        self.jumped = false;
        if matches!(self.step, Step::ToJump(_)) {
            self.step = Step::No;
        }
    }

    /// The jump was concluded from something else.
    pub fn set_jumped(&mut self) {
        self.jumped = true;
    }

    /// Goes past the instruction that the vCPU stands at, even if a breakpoint is there.
    pub fn step_past(&mut self) {
        self.step = Step::Past;
    }

    /// What it means that the vCPU stopped at `pc`.
    pub fn stopped_at(&mut self, pc: u64, kernel_mode: bool) -> Sight {
        match self.step {
            Step::No => {}
            Step::Past => {
                self.step = Step::No;
                // A breakpoint at the next instruction is met again, now that it is armed.
                return Sight::Nothing;
            }
            Step::ToJump(_) if kernel_mode && pc < UPPER_HALF => {
                self.step = Step::No;
                self.jumped = true;
                return Sight::Jump;
            }
            Step::ToJump(left) => {
                self.step = left.checked_sub(1).map_or(Step::Past, Step::ToJump);
                return Sight::Nothing;
            }
        }
        if self.page_fault == Some(pc) {
            return Sight::PageFault;
        }
        if let Some(kexec) = self.kexec.as_ref().filter(|_| kernel_mode) {
            if kexec.machine_kexec == Some(pc) && !self.jumped {
                self.step = Step::ToJump(MAX_STEPS);
                return Sight::Nothing;
            }
            if kexec.entries.contains(&pc) {
                return Sight::Entry {
                    jump_seen: self.jumped,
                };
            }
        }
        self.step = Step::Past;
        Sight::Nothing
    }

    /// Tells KVM, if anything has changed since it was last told.
    pub fn apply(&mut self, vcpu: &VcpuFd) -> Result<(), Refused> {
        let stepping = self.step != Step::No;
        let addresses = if stepping { Vec::new() } else { self.addresses() };
        let wanted = (addresses, stepping);
        if self.told.as_ref() == Some(&wanted) || (self.told.is_none() && wanted.0.is_empty() && !stepping) {
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
            .map_err(Refused::at("KVM_SET_GUEST_DEBUG"))?;
        self.told = Some(wanted);
        Ok(())
    }

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

    fn debug() -> Debug {
        let mut debug = Debug::new();
        debug.expect(Some(Expected {
            machine_kexec: Some(KERNEL),
            entries: vec![0x100_0200],
        }));
        debug
    }

    #[test]
    fn the_jump_is_the_first_step_into_the_lower_half() {
        let mut debug = debug();
        assert_eq!(debug.stopped_at(KERNEL, true), Sight::Nothing);
        assert_eq!(debug.stopped_at(KERNEL + 4, true), Sight::Nothing);
        assert_eq!(debug.stopped_at(0x7000, true), Sight::Jump);
        assert_eq!(debug.addresses(), [0x100_0200]);
        assert_eq!(
            debug.stopped_at(0x100_0200, true),
            Sight::Entry { jump_seen: true }
        );
    }

    #[test]
    fn without_symbols_the_entry_alone_is_seen() {
        let mut debug = Debug::new();
        debug.expect(Some(Expected {
            machine_kexec: None,
            entries: vec![0x100_0200],
        }));
        assert_eq!(
            debug.stopped_at(0x100_0200, false),
            Sight::Nothing,
            "user code may be at that address"
        );
        assert_eq!(debug.stopped_at(0x100_0203, true), Sight::Nothing);
        assert_eq!(
            debug.stopped_at(0x100_0200, true),
            Sight::Entry { jump_seen: false }
        );
    }

    #[test]
    fn stepping_ends_even_if_no_jump_comes() {
        let mut debug = debug();
        debug.stopped_at(KERNEL, true);
        for step in 0..=u64::from(MAX_STEPS) {
            assert_eq!(debug.stopped_at(KERNEL + 1 + step, true), Sight::Nothing);
        }
        assert_eq!(debug.step, Step::Past);
    }
}
