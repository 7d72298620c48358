//! Registers between KVM's structures and [`crate::vcpu::Registers`].

use kvm_bindings::{Msrs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::error::KvmError;
use crate::vcpu::{Registers, Segment, TableRegister};

/// The general registers, in the order of their numbers in instructions.
pub(super) fn gpr(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

/// The structure for KVM_SET_REGS.
pub(super) fn general_to_kvm(gpr: &[u64; 16], rip: u64, rflags: u64) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = *gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

/// A segment register from KVM's structure.
pub(super) fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: u16::from(segment.type_ & 0xf)
            | bit(segment.s, 4)
            | u16::from(segment.dpl & 3) << 5
            | bit(segment.present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15),
    }
}

/// A segment register as KVM's structure.
fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    let bit = |at: u32| (segment.attributes >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.attributes & 0xf) as u8,
        present: bit(7),
        dpl: (segment.attributes >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> TableRegister {
    TableRegister {
        base: table.base,
        limit: table.limit,
    }
}

fn table_to_kvm(table: &TableRegister) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

/// The registers in what KVM_GET_REGS and KVM_GET_SREGS gave.
pub(super) fn from_kvm(regs: &kvm_regs, sregs: &kvm_sregs) -> Registers {
    Registers {
        gpr: gpr(regs),
        rip: regs.rip,
        rflags: regs.rflags,
        segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment_from_kvm),
        tr: segment_from_kvm(&sregs.tr),
        gdtr: table_from_kvm(&sregs.gdt),
        idtr: table_from_kvm(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
    }
}

/// Sets the registers in `sregs`, which came from KVM_GET_SREGS, to `registers`. What `Registers` does not have stays
/// as it is.
pub(super) fn update_sregs(sregs: &mut kvm_sregs, registers: &Registers) {
    let [es, cs, ss, ds, fs, gs] = registers.segments.each_ref().map(segment_to_kvm);
    (sregs.es, sregs.cs, sregs.ss) = (es, cs, ss);
    (sregs.ds, sregs.fs, sregs.gs) = (ds, fs, gs);
    sregs.tr = segment_to_kvm(&registers.tr);
    sregs.gdt = table_to_kvm(&registers.gdtr);
    sregs.idt = table_to_kvm(&registers.idtr);
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) =
        (registers.cr0, registers.cr2, registers.cr3, registers.cr4);
    sregs.efer = registers.efer;
}

/// A 32-bit register of the local APIC, by its offset.
pub(super) fn lapic_register(lapic: &kvm_lapic_state, offset: u64) -> u32 {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let bytes = lapic.regs.iter().skip(at).take(4);
    bytes
        .rev()
        .fold(0, |value, byte| value << 8 | u32::from(byte.to_le_bytes()[0]))
}

/// Values of model-specific registers.
pub(super) fn msrs<const N: usize>(vcpu: &VcpuFd, indices: [u32; N]) -> Result<[u64; N], KvmError> {
    let entries = indices.map(|index| kvm_msr_entry {
        index,
        ..Default::default()
    });
    let mut list =
        Msrs::from_entries(&entries).map_err(|error| KvmError::new("MSR list", format!("{error:?}")))?;
    let read = vcpu
        .get_msrs(&mut list)
        .map_err(KvmError::ioctl("KVM_GET_MSRS"))?;
    if read != N {
        return Err(KvmError::new(
            "KVM_GET_MSRS",
            format!("read {read} of {N} registers, from {:#x} on", indices[0]),
        ));
    }
    let mut values = [0; N];
    for (value, entry) in values.iter_mut().zip(list.as_slice()) {
        *value = entry.data;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn registers_survive_the_way_to_kvm_and_back(
            gpr_in in any::<[u64; 16]>(), rip in any::<u64>(), attributes in any::<u16>(), base in any::<u64>(),
            limit in any::<u16>()
        ) {
            let segment = Segment { selector: 0x10, base, limit: 0xffff, attributes: attributes & 0xf0ff };
            let table = TableRegister { base, limit };
            let registers = Registers {
                gpr: gpr_in, rip, rflags: 2, segments: [segment; 6], tr: segment, gdtr: table, idtr: table,
                cr0: 1, cr2: 2, cr3: 3, cr4: 4, efer: 5,
            };
            let mut sregs = kvm_sregs::default();
            update_sregs(&mut sregs, &registers);
            prop_assert_eq!(from_kvm(&general_to_kvm(&gpr_in, rip, 2), &sregs), registers);
        }
    }
}
