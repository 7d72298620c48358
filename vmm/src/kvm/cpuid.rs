//! The CPUID leaves of a guest on KVM.
//!
//! A guest gets the features that softcpu has and the host offers. So guests make the same choices on both backends,
//! and softcpu can execute what KVM's emulator cannot. softcpu has x86-64 with SSE2, and CMPXCHG16B, POPCNT, the TSC
//! deadline timer, FSGSBASE, ERMS, FSRM, LAHF in 64-bit mode, 1 GiB pages, RDTSCP and invariant TSC. In addition, leaf
//! 0x40000000 names KVM and offers kvm-clock, from which a guest learns the frequency of its TSC.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use softcpu::CpuModel;

/// Leaf 1, ECX: features that KVM provides on any host, namely TSC deadline and hypervisor.
const PROVIDED_1C: u32 = 1 << 24 | 1 << 31;
/// Leaf 0x40000001, EAX (Documentation/virt/kvm/x86/cpuid.rst): KVM_FEATURE_CLOCKSOURCE2 and
/// KVM_FEATURE_CLOCKSOURCE_STABLE_BIT.
const FEATURES_KVM: u32 = 1 << 3 | 1 << 24;
/// The leaves of the processor with this local APIC ID. `host` is the result of KVM_GET_SUPPORTED_CPUID. `hide_leaf_7`
/// removes leaf 7.
pub(super) fn filter(host: &CpuId, apic_id: u8, processors: u8, hide_leaf_7: bool) -> Vec<kvm_cpuid_entry2> {
    let mut leaves: Vec<kvm_cpuid_entry2> = Vec::new();
    for entry in host.as_slice() {
        let mut leaf = *entry;
        let baseline = CpuModel::default().cpuid(leaf.function, leaf.index);
        match leaf.function {
            0 if hide_leaf_7 => leaf.eax = leaf.eax.min(6),
            0 => {}
            1 => {
                leaf.ebx = u32::from(apic_id) << 24 | u32::from(processors) << 16 | 8 << 8;
                leaf.ecx = leaf.ecx & baseline[2] | PROVIDED_1C;
                leaf.edx &= baseline[3];
            }
            6 => [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] = baseline,
            7 if leaf.index == 0 && !hide_leaf_7 => {
                (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) =
                    (0, leaf.ebx & baseline[1], 0, leaf.edx & baseline[3]);
            }
            0x4000_0000 => leaf.eax = 0x4000_0001,
            0x4000_0001 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & FEATURES_KVM, 0, 0, 0),
            0x8000_0000 => leaf.eax = leaf.eax.min(0x8000_0008),
            0x8000_0001 => {
                leaf.ecx &= baseline[2];
                leaf.edx &= baseline[3];
            }
            0x8000_0002..=0x8000_0006 => {}
            0x8000_0007 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, leaf.edx & baseline[3]),
            0x8000_0008 => (leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0),
            _ => continue,
        }
        leaves.push(leaf);
    }
    leaves.extend((0..2).map(|level| topology(level, apic_id, processors)));
    leaves
}

/// Whether the host offers 1 GiB pages.
pub(super) fn has_gigabyte_pages(host: &CpuId) -> bool {
    let mut leaves = host.as_slice().iter();
    leaves.any(|leaf| leaf.function == 0x8000_0001 && leaf.edx & 1 << 26 != 0)
}

/// Leaf 0xb: one thread per core; the core level has all processors.
fn topology(level: u32, apic_id: u8, processors: u8) -> kvm_cpuid_entry2 {
    let shift = u32::BITS - u32::from(processors.saturating_sub(1)).leading_zeros();
    let (eax, ebx, kind) = if level == 0 {
        (0, 1, 0x100)
    } else {
        (shift, processors.into(), 0x201)
    };
    kvm_cpuid_entry2 {
        function: 0xb,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind,
        edx: apic_id.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let all = [
            leaf(0, 0),
            leaf(1, 0),
            leaf(7, 0),
            leaf(7, 1),
            leaf(0xd, 0),
            leaf(0x4000_0001, 0),
            leaf(0x8000_0001, 0),
        ];
        CpuId::from_entries(&all).unwrap()
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        leaves
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index))
    }

    #[test]
    fn no_more_than_the_baseline_is_offered() {
        let leaves = filter(&host(), 3, 4, false);
        let one = find(&leaves, 1, 0).unwrap();
        assert_eq!(
            one.ecx & (1 | 1 << 9 | 1 << 19 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30),
            0,
            "no SSE3 and up"
        );
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (3, 4));
        assert_eq!(find(&leaves, 7, 0).unwrap().ebx, 1 | 1 << 9, "FSGSBASE, ERMS");
        assert!(find(&leaves, 7, 1).is_none() && find(&leaves, 0xd, 0).is_none());
        let cores = find(&leaves, 0xb, 1).unwrap();
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 4, 3));
    }

    #[test]
    fn leaf_seven_can_be_hidden() {
        let leaves = filter(&host(), 0, 1, true);
        assert!(find(&leaves, 7, 0).is_none());
        assert_eq!(find(&leaves, 0, 0).unwrap().eax, 6);
    }

    #[test]
    fn features_that_the_host_lacks_are_not_offered() {
        let poor = CpuId::from_entries(&[kvm_cpuid_entry2 {
            function: 1,
            ..Default::default()
        }])
        .unwrap();
        let leaves = filter(&poor, 0, 1, false);
        let one = find(&leaves, 1, 0).unwrap();
        assert_eq!((one.ecx, one.edx), (PROVIDED_1C, 0));
    }
}
