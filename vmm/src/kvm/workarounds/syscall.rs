//! Finishes SYSCALL on hosts whose KVM leaves the privilege level at 3.
//!
//! There SYSCALL loads RIP, RCX, R11 and the flags, but neither CS nor SS. The fetch of the kernel's first instruction
//! is then made at level 3 and faults: #PF with error code 0x15 (present, user, fetch). A breakpoint on the page-fault
//! handler catches this. The fault has brought the vCPU to level 0, so only the general registers are left to set.

use kvm_ioctls::VcpuFd;

use super::super::error::KvmError;
use super::super::registers;
use super::super::x86::{IA32_FMASK, IA32_LSTAR};
use crate::memory::GuestRam;
use softcpu::flags::{FIXED, RF};

/// Vector of #PF.
const PAGE_FAULT: u64 = 14;
/// Bytes of a gate in the interrupt descriptor table.
const GATE_BYTES: u64 = 16;
/// Page-fault error code: the page is present, and it was a fetch at level 3.
const USER_FETCH: u64 = 0x15;

/// Address of the guest's page-fault handler; `None` while the guest has no usable interrupt descriptor table.
pub(in super::super) fn page_fault_handler(vcpu: &VcpuFd, ram: &GuestRam) -> Result<Option<u64>, KvmError> {
    let sregs = vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
    let gate = PAGE_FAULT * GATE_BYTES;
    if u64::from(sregs.idt.limit) < gate + GATE_BYTES - 1 {
        return Ok(None);
    }
    let at = sregs.idt.base.wrapping_add(gate);
    let (Some(low), Some(high)) = (word(vcpu, ram, at), word(vcpu, ram, at.wrapping_add(8))) else {
        return Ok(None);
    };
    let present = low >> 47 & 1 == 1;
    let handler = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    Ok((present && handler != 0).then_some(handler))
}

/// Call when the vCPU is at the page-fault handler's first instruction. Finishes a SYSCALL if one caused the fault;
/// returns `false` if the fault has another cause.
pub(in super::super) fn finish(vcpu: &VcpuFd, ram: &GuestRam) -> Result<bool, KvmError> {
    let (regs, sregs) = (
        vcpu.get_regs().map_err(KvmError::ioctl("KVM_GET_REGS"))?,
        vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?,
    );
    // The exception frame: error code, RIP, CS, RFLAGS, RSP.
    let mut frame = [0; 5];
    for (index, value) in (0..).zip(&mut frame) {
        let Some(found) = word(vcpu, ram, regs.rsp.wrapping_add(8 * index)) else {
            return Ok(false);
        };
        *value = found;
    }
    let [error, rip, cs, rflags, rsp] = frame;
    if error != USER_FETCH || sregs.cr2 != rip || cs & 3 != 3 {
        return Ok(false);
    }
    let [lstar, mask] = registers::msrs(vcpu, [IA32_LSTAR, IA32_FMASK])?;
    if rip != lstar {
        return Ok(false);
    }
    let mut gpr = registers::gpr(&regs);
    gpr[4] = rsp;
    let rflags = rflags & !mask & !RF | FIXED;
    vcpu.set_regs(&registers::general_to_kvm(&gpr, lstar, rflags))
        .map_err(KvmError::ioctl("KVM_SET_REGS"))?;
    Ok(true)
}

/// Eight bytes at a linear address of the guest; `None` if it is not mapped to RAM or they cross a page.
fn word(vcpu: &VcpuFd, ram: &GuestRam, address: u64) -> Option<u64> {
    let translation = vcpu.translate_gva(address).ok()?;
    if translation.valid == 0 || translation.physical_address % 4096 > 4096 - 8 {
        return None;
    }
    ram.read_u64(translation.physical_address).ok()
}
