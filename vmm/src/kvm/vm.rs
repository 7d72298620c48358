//! Creates the virtual machine: memory slots, interrupt controller, vCPUs.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::dirty::MemorySlot;
use super::error::KvmError;
use super::workarounds::{Workarounds, deadline};
use super::{cpuid, registers};
use crate::memory::GuestRam;
use crate::vcpu::Registers;

/// KVM keeps a task-state segment and a page table of its own here on Intel hosts. No RAM or device may be at these
/// addresses, so they are just below the 256 KiB at 4 GiB that firmware would have.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Number of pins of the I/O APIC, which is emulated in this process. KVM reports the end of interrupts for as many
/// routes.
const IOAPIC_PINS: u64 = crate::devices::ioapic::PINS as u64;

/// Creates a virtual machine without memory or vCPUs.
pub(super) fn create(kvm: &Kvm, workarounds: &Workarounds) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(KvmError::ioctl("KVM_CREATE_VM"))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(KvmError::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
    let mut cap = kvm_enable_cap {
        cap: Cap::SplitIrqchip as u32,
        ..Default::default()
    };
    cap.args[0] = IOAPIC_PINS;
    vm.enable_cap(&cap)
        .map_err(KvmError::ioctl("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
    if workarounds.emulated_kernel {
        deadline::intercept_writes(&vm)?;
    }
    Ok(vm)
}

/// Makes a memory slot of each region of guest RAM, with the dirty log on.
pub(super) fn add_memory(vm: &VmFd, ram: &GuestRam) -> Result<Vec<MemorySlot>, KvmError> {
    let mut slots = Vec::new();
    for (number, (start, host, length)) in (0..).zip(ram.host_regions()) {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: start,
            memory_size: length,
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a mapping of `ram`, which outlives the virtual machine, because every holder of the
        // machine holds the RAM too. This process accesses it through vm-memory's volatile accesses and softcpu's raw
        // pointers, so no Rust reference sees guest writes.
        #[allow(unsafe_code)]
        unsafe { vm.set_user_memory_region(region) }
            .map_err(KvmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        let bytes =
            usize::try_from(length).map_err(|_| KvmError::new("memory slot", "too large for this host"))?;
        slots.push(MemorySlot { number, start, bytes });
    }
    Ok(slots)
}

/// The CPUID leaves that KVM can give to a guest on this host.
pub(super) fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::ioctl("KVM_GET_SUPPORTED_CPUID"))
}

/// Creates a vCPU with the baseline's CPUID, as far as the host supports it. With `registers` it starts there; without,
/// it waits for INIT and SIPI.
pub(super) fn add_vcpu(
    supported: &CpuId,
    vm: &VmFd,
    index: u8,
    count: u8,
    start: Option<&Registers>,
    workarounds: &Workarounds,
) -> Result<VcpuFd, KvmError> {
    let mut vcpu = vm
        .create_vcpu(index.into())
        .map_err(KvmError::ioctl("KVM_CREATE_VCPU"))?;
    let leaves = cpuid::filter(supported, index, count, workarounds.emulated_kernel);
    let leaves =
        CpuId::from_entries(&leaves).map_err(|error| KvmError::new("CPUID leaves", format!("{error:?}")))?;
    vcpu.set_cpuid2(&leaves)
        .map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
    if let Some(start) = start {
        let mut sregs = vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
        registers::update_sregs(&mut sregs, start);
        vcpu.set_sregs(&sregs).map_err(KvmError::ioctl("KVM_SET_SREGS"))?;
        vcpu.set_regs(&registers::general_to_kvm(&start.gpr, start.rip, start.rflags))
            .map_err(KvmError::ioctl("KVM_SET_REGS"))?;
    }
    // The privilege level (CS.DPL) is needed after every exit, and kvm_run has it without another ioctl.
    vcpu.set_sync_valid_reg(kvm_ioctls::SyncReg::SystemRegister);
    Ok(vcpu)
}
