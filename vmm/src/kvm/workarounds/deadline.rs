//! Delays timer interrupts on a host that emulates guest kernels.
//!
//! There a guest takes longer to handle a timer tick than the time to the next one, so it would do nothing else. The
//! guest's writes to IA32_TSC_DEADLINE are therefore intercepted and do not reach the local APIC. This process sends
//! the interrupt once the deadline has passed and the vCPU has had [`SHARE`] of processor time since the last one. If
//! the vCPU is halted, it is sent at the deadline.

use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_FILTER_WRITE, KVMIO, kvm_enable_cap,
    kvm_msr_filter, kvm_msr_filter_range,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::super::error::KvmError;
use super::super::registers;
use super::super::x86::IA32_TSC;
use crate::devices::lapic::{LVT_MASKED, LVT_TIMER, MSR_TSC_DEADLINE};
use crate::interrupt::{Message, Msi};

/// Processor time that a running vCPU gets between two timer interrupts.
const SHARE: Duration = Duration::from_millis(150);
/// A vCPU that used less processor time than this between two polls is taken to be halted.
const HALTED_BELOW: Duration = Duration::from_micros(100);
/// Time between two polls of a vCPU whose deadline has passed.
pub(in super::super) const POLL_INTERVAL: Duration = Duration::from_millis(1);

ioctl_iow_nr!(KVM_X86_SET_MSR_FILTER, KVMIO, 0xc6, kvm_msr_filter);

/// Makes the guest's writes to IA32_TSC_DEADLINE exit to this process (KVM_EXIT_X86_WRMSR).
pub(in super::super) fn intercept_writes(vm: &VmFd) -> Result<(), KvmError> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    cap.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
    vm.enable_cap(&cap)
        .map_err(KvmError::ioctl("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)"))?;
    // A clear bit denies the access.
    let mut bitmap = [0_u8; 8];
    let mut filter = kvm_msr_filter::default();
    filter.ranges[0] = kvm_msr_filter_range {
        flags: KVM_MSR_FILTER_WRITE,
        nmsrs: 1,
        base: MSR_TSC_DEADLINE,
        bitmap: bitmap.as_mut_ptr(),
    };
    // SAFETY: the structure and the bitmap that it points to live through the call; KVM copies both and writes neither.
    #[allow(unsafe_code)]
    let result = unsafe { ioctl_with_ref(vm, KVM_X86_SET_MSR_FILTER(), &filter) };
    if result < 0 {
        return Err(KvmError::ioctl("KVM_X86_SET_MSR_FILTER")(
            vmm_sys_util::errno::Error::last(),
        ));
    }
    Ok(())
}

/// The timer of one vCPU.
#[derive(Debug, Default)]
pub(in super::super) struct DeadlineTimer {
    armed: Option<Armed>,
    /// Processor time of the vCPU's thread at the last interrupt, in nanoseconds.
    at_interrupt: Option<u64>,
    /// The same at the last poll.
    at_poll: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    due: Instant,
    vector: u8,
}

impl DeadlineTimer {
    /// The guest wrote `deadline` to IA32_TSC_DEADLINE, in ticks of its TSC; 0 disarms the timer.
    pub fn write(&mut self, vcpu: &VcpuFd, deadline: u64) -> Result<(), KvmError> {
        self.armed = None;
        let lapic = vcpu.get_lapic().map_err(KvmError::ioctl("KVM_GET_LAPIC"))?;
        let entry = registers::lapic_register(&lapic, LVT_TIMER);
        if deadline == 0 || entry & LVT_MASKED != 0 {
            return Ok(());
        }
        let [now] = registers::msrs(vcpu, [IA32_TSC])?;
        let khz = vcpu
            .get_tsc_khz()
            .map_err(KvmError::ioctl("KVM_GET_TSC_KHZ"))?
            .max(1);
        let ticks = u128::from(deadline.saturating_sub(now));
        let nanoseconds = u64::try_from(ticks * 1_000_000 / u128::from(khz)).unwrap_or(u64::MAX);
        // `Instant` cannot hold every deadline. No run lasts an hour, so a later one never comes.
        let wait = Duration::from_nanos(nanoseconds).min(Duration::from_secs(3600));
        self.armed = Some(Armed {
            due: Instant::now() + wait,
            vector: entry.to_le_bytes()[0],
        });
        Ok(())
    }

    /// Whether the guest waits for an interrupt.
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Time to the next poll, at least [`POLL_INTERVAL`]; `None` if the timer is not armed.
    pub fn wait(&self) -> Option<Duration> {
        let armed = self.armed?;
        Some(
            armed
                .due
                .saturating_duration_since(Instant::now())
                .max(POLL_INTERVAL),
        )
    }

    /// Polls the timer. Returns the interrupt for the local APIC with ID `apic_id` if it is to be sent now, and disarms
    /// the timer. `spent` is the processor time of the vCPU's thread so far, in nanoseconds.
    pub fn take(&mut self, apic_id: u8, spent: u64) -> Option<Msi> {
        let armed = self.armed.filter(|armed| armed.due <= Instant::now())?;
        let since = |then: Option<u64>| Duration::from_nanos(spent.saturating_sub(then.unwrap_or(0)));
        let had_its_share = self.at_interrupt.is_none() || since(self.at_interrupt) >= SHARE;
        let halted = self.at_poll.is_some() && since(self.at_poll) < HALTED_BELOW;
        self.at_poll = Some(spent);
        if !had_its_share && !halted {
            return None;
        }
        (self.armed, self.at_interrupt) = (None, Some(spent));
        let message = Message {
            vector: armed.vector,
            destination: apic_id,
            logical: false,
            mode: 0,
            level: false,
        };
        Some(message.into())
    }

    /// Call when a new thread runs the vCPU: its processor time begins at zero.
    pub fn restart(&mut self) {
        (self.at_interrupt, self.at_poll) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(vector: u8) -> DeadlineTimer {
        DeadlineTimer {
            armed: Some(Armed {
                due: Instant::now(),
                vector,
            }),
            ..DeadlineTimer::default()
        }
    }

    #[test]
    fn a_running_vcpu_gets_its_share_between_interrupts() {
        let share = u64::try_from(SHARE.as_nanos()).unwrap();
        let mut timer = armed(0xec);
        let first = timer.take(1, 5).unwrap();
        assert_eq!((first.address, first.data), (0xfee0_1000, 0xec));
        assert_eq!(timer.take(1, 5), None, "not armed again");
        timer.armed = armed(0xec).armed;
        assert_eq!(timer.take(1, 5 + share / 2), None);
        assert!(timer.take(1, 5 + share).is_some());
    }

    #[test]
    fn a_halted_vcpu_is_interrupted_at_the_deadline() {
        let mut timer = armed(0xec);
        assert!(timer.take(0, 100).is_some());
        timer.armed = armed(0xec).armed;
        assert_eq!(timer.take(0, 1_000_000), None);
        assert!(
            timer.take(0, 1_000_100).is_some(),
            "it used next to no processor time since the last poll"
        );
    }
}
