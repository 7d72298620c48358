//! The workarounds for hosts that emulate guest kernels: a guest for each one shows that it works and that only such
//! hosts need it.

use iced_x86::code_asm::*;

use super::code::{Code, UPPER};
use super::guest::{Guest, Run, to_the_end};
use super::{hosts, user};
use vmm::devices::lapic::{LVT_TIMER, MSR_TSC_DEADLINE};
use vmm::kvm::{Kvm, Workarounds};
use vmm::machine::Event;

/// A run on this host's KVM with these workarounds instead of those that it needs.
fn run_with(mut guest: Guest, workarounds: Workarounds) -> Run {
    guest.patience = Some(hosts::patience_with(&workarounds));
    let kvm = Kvm::open().unwrap().with_workarounds(workarounds);
    guest.run_on(&kvm, &to_the_end)
}

#[test]
fn syscall_is_finished_only_if_the_probe_found_it_broken() {
    let Some(kvm) = hosts::kvm() else { return };
    let works = kvm.measured().syscall_works;
    assert_eq!(kvm.workarounds().fix_syscall, !works);
    // Without the workaround the guest fails exactly if the probe says that SYSCALL is broken.
    let run = run_with(user::calling_guest(), Workarounds::default());
    assert_eq!(user::has_called(&run), works, "{:?}", run.events);
    if !works {
        // SYSCALL arrives at the entry point at privilege level 3, and the fetch faults.
        let (address, error) = user::last_fault(&run);
        assert!(address > UPPER, "{address:#x}");
        assert_eq!(error, 0x15);
    }
}

#[test]
fn the_workaround_for_syscall_does_no_harm_elsewhere() {
    let Some(kvm) = hosts::kvm() else { return };
    let fixed = Workarounds {
        fix_syscall: true,
        ..*kvm.workarounds()
    };
    assert!(user::has_called(&run_with(user::calling_guest(), fixed)));
}

/// Sets a deadline far in the future and reads its upper half back to R12.
fn far_deadline() -> Guest {
    Guest::new(|c: &mut Code| {
        c.tables()?;
        c.enable_apic()?;
        c.apic(LVT_TIMER, 0x51 | 2 << 17)?;
        c.write_msr(MSR_TSC_DEADLINE, 1 << 60)?;
        c.mov(edx, 0)?;
        c.rdmsr()?;
        c.mov(r12, rdx)?;
        c.power_off()
    })
}

#[test]
fn deadlines_are_kept_from_the_local_apic() {
    // The local APIC never gets an intercepted deadline. `interrupts` tests that the interrupt comes nevertheless.
    let Some(_) = hosts::kvm() else { return };
    // The fast path of kvm_intel for WRMSR, which it has with the preemption timer, does not ask the filter (Linux 6.1).
    let why = "KVM writes it without asking the filter";
    let filtered = !hosts::left_out_on_vmx("a deadline that is intercepted", why);
    for intercepted in [false].into_iter().chain(filtered.then_some(true)) {
        let workarounds = Workarounds {
            emulated_kernel: intercepted,
            ..Workarounds::default()
        };
        let run = run_with(far_deadline(), workarounds);
        let expected = if intercepted { 0 } else { 1 << 28 };
        assert_eq!(
            run.evidence.registers.gpr[12], expected,
            "intercepted: {intercepted}"
        );
    }
}

#[test]
fn the_features_of_leaf_seven_are_hidden_where_the_kernel_is_emulated() {
    let Some(_) = hosts::kvm() else { return };
    for emulated_kernel in [false, true] {
        let workarounds = Workarounds {
            emulated_kernel,
            ..Workarounds::default()
        };
        let guest = Guest::new(|c| {
            c.mov(eax, 0)?;
            c.cpuid()?;
            c.mov(r12, rax)?;
            c.power_off()
        });
        let run = run_with(guest, workarounds);
        let highest = run.evidence.registers.gpr[12];
        assert_eq!(highest < 7, emulated_kernel, "{highest}");
    }
}

#[test]
fn a_host_is_emulating_if_it_leaves_instructions_to_softcpu() {
    let Some(kvm) = hosts::kvm() else { return };
    let guest = Guest::new(|c| {
        c.popcnt(rcx, rax)?;
        c.power_off()
    });
    let run = guest.run_on(kvm, &to_the_end);
    assert_eq!(
        !run.machine.emulated().is_empty(),
        kvm.workarounds().emulated_kernel
    );
}

#[test]
fn the_number_of_instructions_on_softcpu_is_bounded() {
    let Some(kvm) = hosts::kvm() else { return };
    let guest = Guest::new(|c| {
        for _ in 0..5 {
            c.popcnt(rcx, rax)?;
        }
        c.power_off()
    });
    let bounded = Kvm::open().unwrap().with_emulation_limit(4);
    let run = guest.run_on(&bounded, &to_the_end);
    if !kvm.workarounds().emulated_kernel {
        assert_eq!(run.evidence.events, ["power off"]);
        return;
    }
    let [Event::UnknownInstruction { what, .. }] = &run.events[..] else {
        panic!("{:?}", run.events)
    };
    assert!(what.contains("more than 4 instructions"), "{what}");
    let enough = Kvm::open().unwrap().with_emulation_limit(5);
    assert_eq!(guest.run_on(&enough, &to_the_end).evidence.events, ["power off"]);
}
