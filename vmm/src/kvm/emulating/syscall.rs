//! Finishing SYSCALL where KVM leaves the privilege level at 3.
//!
//! On such a host SYSCALL at user level loads RIP, RCX, R11 and the flags, but neither CS nor SS. The next fetch, from the kernel's entry
//! point at user level, faults: #PF with error code 0x15 (present, user, fetch). A breakpoint on the page-fault handler sees that,
//! and what SYSCALL should have done is done then: the fault has put the processor at privilege level 0 already.

use kvm_ioctls::VcpuFd;

use super::super::Refused;
use super::super::state;
use crate::memory::GuestRam;

const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;
const PAGE_FAULT: u64 = 14;
const GATE_BYTES: u64 = 16;
/// Error code: the page is present, the access a fetch from user level.
const USER_FETCH: u64 = 0x15;
/// RFLAGS: the bit that is always one, and the resume flag.
const FIXED: u64 = 2;
const RESUME: u64 = 1 << 16;

/// Where the guest's page-fault handler is; `None` while it has no usable interrupt descriptor table.
pub(in super::super) fn page_fault_handler(vcpu: &VcpuFd, ram: &GuestRam) -> Result<Option<u64>, Refused> {
    let sregs = vcpu.get_sregs().map_err(Refused::at("KVM_GET_SREGS"))?;
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

/// The vCPU stands at the page-fault handler's first instruction. Finishes a SYSCALL, if that is what led here; `false` is a fault
/// of its own.
pub(in super::super) fn finish(vcpu: &VcpuFd, ram: &GuestRam) -> Result<bool, Refused> {
    let (regs, sregs) = (
        vcpu.get_regs().map_err(Refused::at("KVM_GET_REGS"))?,
        vcpu.get_sregs().map_err(Refused::at("KVM_GET_SREGS"))?,
    );
    // error code, RIP, CS, RFLAGS, RSP
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
    let [lstar, mask] = state::msrs(vcpu, [MSR_LSTAR, MSR_FMASK])?;
    if rip != lstar {
        return Ok(false);
    }
    let mut gpr = state::gpr(&regs);
    gpr[4] = rsp;
    let rflags = rflags & !mask & !RESUME | FIXED;
    vcpu.set_regs(&state::regs(&gpr, lstar, rflags))
        .map_err(Refused::at("KVM_SET_REGS"))?;
    Ok(true)
}

/// Eight bytes at a linear address of the guest; `None` where it is not mapped to RAM.
fn word(vcpu: &VcpuFd, ram: &GuestRam, address: u64) -> Option<u64> {
    let translation = vcpu.translate_gva(address).ok()?;
    if translation.valid == 0 || translation.physical_address % 4096 > 4096 - 8 {
        return None;
    }
    ram.read_u64(translation.physical_address).ok()
}
