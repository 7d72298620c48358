//! Making the virtual machine: memory slots, interrupt controller, vCPUs.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::dirty::Slot;
use super::emulating::{Workarounds, tick};
use super::{Refused, cpuid, state};
use crate::memory::GuestRam;
use crate::vcpu::Registers;

/// Where KVM may keep a task-state segment and page table of its own on Intel hosts: just below the firmware's 256 KiB at 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Pins of the I/O APIC, which is this process's; KVM has to know them to tell of the ends of their interrupts.
const IOAPIC_PINS: u64 = crate::devices::ioapic::PINS as u64;

/// A virtual machine without processors.
pub(super) fn create(kvm: &Kvm, workarounds: &Workarounds) -> Result<VmFd, Refused> {
    let vm = kvm.create_vm().map_err(Refused::at("KVM_CREATE_VM"))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(Refused::at("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(Refused::at("KVM_SET_TSS_ADDR"))?;
    let mut cap = kvm_enable_cap {
        cap: Cap::SplitIrqchip as u32,
        ..Default::default()
    };
    cap.args[0] = IOAPIC_PINS;
    vm.enable_cap(&cap)
        .map_err(Refused::at("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
    if workarounds.emulated_kernel {
        tick::divert(&vm)?;
    }
    Ok(vm)
}

/// Gives guest RAM to the virtual machine, with the dirty log on.
pub(super) fn add_memory(vm: &VmFd, ram: &GuestRam) -> Result<Vec<Slot>, Refused> {
    let mut slots = Vec::new();
    for (number, (start, host, length)) in (0..).zip(ram.host_regions()) {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: start,
            memory_size: length,
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a mapping of `ram`, which outlives the virtual machine: whoever holds the one holds the other. Host code accesses it
        // through vm-memory's volatile accesses and softcpu's raw ones only, so a guest that writes meanwhile breaks no reference.
        #[allow(unsafe_code)]
        unsafe { vm.set_user_memory_region(region) }.map_err(Refused::at("KVM_SET_USER_MEMORY_REGION"))?;
        let bytes =
            usize::try_from(length).map_err(|_| Refused::text("memory slot", "too large for this host"))?;
        slots.push(Slot { number, start, bytes });
    }
    Ok(slots)
}

/// What the host can offer.
pub(super) fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, Refused> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Refused::at("KVM_GET_SUPPORTED_CPUID"))
}

/// A vCPU with the baseline's CPUID, so far as the host supports it. The first one gets `registers`; the others wait for INIT and SIPI.
pub(super) fn add_vcpu(
    supported: &CpuId,
    vm: &VmFd,
    index: u8,
    count: u8,
    registers: Option<&Registers>,
    workarounds: &Workarounds,
) -> Result<VcpuFd, Refused> {
    let mut vcpu = vm
        .create_vcpu(index.into())
        .map_err(Refused::at("KVM_CREATE_VCPU"))?;
    let leaves = cpuid::filter(supported, index, count, workarounds.emulated_kernel);
    let leaves =
        CpuId::from_entries(&leaves).map_err(|error| Refused::text("CPUID leaves", &format!("{error:?}")))?;
    vcpu.set_cpuid2(&leaves).map_err(Refused::at("KVM_SET_CPUID2"))?;
    if let Some(registers) = registers {
        let mut sregs = vcpu.get_sregs().map_err(Refused::at("KVM_GET_SREGS"))?;
        state::put_special(registers, &mut sregs);
        vcpu.set_sregs(&sregs).map_err(Refused::at("KVM_SET_SREGS"))?;
        vcpu.set_regs(&state::regs(&registers.gpr, registers.rip, registers.rflags))
            .map_err(Refused::at("KVM_SET_REGS"))?;
    }
    // With every exit: which privilege level it came from.
    vcpu.set_sync_valid_reg(kvm_ioctls::SyncReg::SystemRegister);
    Ok(vcpu)
}
