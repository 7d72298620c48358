//! Timer interrupts on a host that emulates guest kernels.
//!
//! There a tick takes longer than the time to the next one, and the guest would do nothing else. So the guest's writes to
//! IA32_TSC_DEADLINE do not reach the local APIC. The interrupt comes when the deadline has passed and the vCPU has had its share of
//! processor time since the last one, or at once when it sleeps in HLT.

use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_FILTER_WRITE, KVMIO, kvm_enable_cap,
    kvm_msr_filter, kvm_msr_filter_range,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::super::{Refused, state};
use crate::devices::lapic::MSR_TSC_DEADLINE;
use crate::interrupt::{Message, Msi};

const MSR_TSC: u32 = 0x10;
/// Processor time that a vCPU gets between two timer interrupts.
const SHARE: Duration = Duration::from_millis(150);
/// A vCPU that took less processor time than this between two looks sleeps.
const ASLEEP: Duration = Duration::from_micros(100);
/// Time between two looks at a vCPU whose deadline has passed.
pub(in super::super) const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Timer entry of the local vector table.
const LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;

ioctl_iow_nr!(KVM_X86_SET_MSR_FILTER, KVMIO, 0xc6, kvm_msr_filter);

/// Makes the guest's writes to IA32_TSC_DEADLINE exit to this process.
pub(in super::super) fn divert(vm: &VmFd) -> Result<(), Refused> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    cap.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
    vm.enable_cap(&cap)
        .map_err(Refused::at("KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)"))?;
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
        return Err(Refused::at("KVM_X86_SET_MSR_FILTER")(
            vmm_sys_util::errno::Error::last(),
        ));
    }
    Ok(())
}

/// The timer of one vCPU.
#[derive(Debug, Default)]
pub(in super::super) struct Tick {
    armed: Option<Armed>,
    /// Processor time of the vCPU's thread when it last had an interrupt.
    served: Option<u64>,
    /// The same when it was last looked at.
    seen: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    due: Instant,
    vector: u8,
}

impl Tick {
    /// The guest wrote `deadline`, in ticks of its TSC.
    pub fn write(&mut self, vcpu: &VcpuFd, deadline: u64) -> Result<(), Refused> {
        self.armed = None;
        let lapic = vcpu.get_lapic().map_err(Refused::at("KVM_GET_LAPIC"))?;
        let byte = |at: usize| u32::from(lapic.regs[LVT_TIMER + at].to_le_bytes()[0]);
        let entry = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
        if deadline == 0 || entry & LVT_MASKED != 0 {
            return Ok(());
        }
        let [now] = state::msrs(vcpu, [MSR_TSC])?;
        let khz = vcpu.get_tsc_khz().map_err(Refused::at("KVM_GET_TSC_KHZ"))?.max(1);
        let ticks = u128::from(deadline.saturating_sub(now));
        let nanoseconds = u64::try_from(ticks * 1_000_000 / u128::from(khz)).unwrap_or(u64::MAX);
        // A deadline beyond all reason is one that never comes.
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

    /// How long nothing will happen here; `None` is for ever.
    pub fn wait(&self) -> Option<Duration> {
        let armed = self.armed?;
        Some(
            armed
                .due
                .saturating_duration_since(Instant::now())
                .max(LOOK_EVERY),
        )
    }

    /// The interrupt for the local APIC of identity `apic_id`, if its time has come. `spent` is the processor time that the
    /// vCPU's thread has taken so far.
    pub fn take(&mut self, apic_id: u8, spent: u64) -> Option<Msi> {
        let armed = self.armed.filter(|armed| armed.due <= Instant::now())?;
        let since = |then: Option<u64>| Duration::from_nanos(spent.saturating_sub(then.unwrap_or(0)));
        let had_its_share = self.served.is_none() || since(self.served) >= SHARE;
        let asleep = self.seen.is_some() && since(self.seen) < ASLEEP;
        self.seen = Some(spent);
        if !had_its_share && !asleep {
            return None;
        }
        (self.armed, self.served) = (None, Some(spent));
        let message = Message {
            vector: armed.vector,
            destination: apic_id,
            logical: false,
            mode: 0,
            level: false,
        };
        Some(message.into())
    }

    /// The threads begin anew, and with them their processor time.
    pub fn restart(&mut self) {
        (self.served, self.seen) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(vector: u8) -> Tick {
        Tick {
            armed: Some(Armed {
                due: Instant::now(),
                vector,
            }),
            ..Tick::default()
        }
    }

    #[test]
    fn a_busy_processor_gets_its_share_between_interrupts() {
        let share = u64::try_from(SHARE.as_nanos()).unwrap();
        let mut tick = armed(0xec);
        let first = tick.take(1, 5).unwrap();
        assert_eq!((first.address, first.data), (0xfee0_1000, 0xec));
        assert_eq!(tick.take(1, 5), None, "not armed again");
        tick.armed = armed(0xec).armed;
        assert_eq!(tick.take(1, 5 + share / 2), None);
        assert!(tick.take(1, 5 + share).is_some());
    }

    #[test]
    fn a_sleeping_processor_is_woken_at_once() {
        let mut tick = armed(0xec);
        assert!(tick.take(0, 100).is_some());
        tick.armed = armed(0xec).armed;
        assert_eq!(tick.take(0, 1_000_000), None);
        assert!(
            tick.take(0, 1_000_100).is_some(),
            "it took next to no time since the last look"
        );
    }
}
