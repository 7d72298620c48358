//! What hosts that emulate guest kernels need, and that they need it: each workaround with a guest that shows it.

use iced_x86::code_asm::*;

use super::code::{Code, UPPER};
use super::guest::{Guest, Run, to_the_end};
use super::{hosts, user};
use crate::kvm::{Kvm, Workarounds};
use crate::machine::Event;

/// A run on this host's KVM with these workarounds, whatever it needs.
fn with(guest: &Guest, workarounds: Workarounds) -> Run {
    let kvm = Kvm::open_with(workarounds, u64::MAX).unwrap();
    guest.run_on(&kvm, &to_the_end)
}

#[test]
fn syscall_is_finished_where_the_probe_found_it_broken_and_nowhere_else() {
    let Some(kvm) = hosts::kvm() else { return };
    let works = kvm.measured().syscall_works;
    assert_eq!(kvm.workarounds().fix_syscall, !works);
    // Without the workaround the guest goes wrong just where the probe says so.
    let run = with(&user::calling_guest(), Workarounds::default());
    assert_eq!(user::has_called(&run), works, "{:?}", run.events);
    if !works {
        // SYSCALL arrives at the entry point at privilege level 3, and the fetch faults.
        let (address, error) = user::last_fault(&run);
        assert!(address > UPPER, "{address:#x}");
        assert_eq!(error, 0x15);
    }
}

#[test]
fn the_workaround_for_syscall_harms_no_sound_host() {
    let Some(kvm) = hosts::kvm() else { return };
    let fixed = Workarounds {
        fix_syscall: true,
        ..*kvm.workarounds()
    };
    assert!(user::has_called(&with(&user::calling_guest(), fixed)));
}

/// Sets a deadline an hour away and reads it back to RAX.
fn far_deadline() -> Guest {
    Guest::new(|c: &mut Code| {
        c.tables()?;
        c.enable_apic()?;
        c.apic(0x320, 0x51 | 2 << 17)?;
        c.write_msr(0x6e0, 1 << 60)?;
        c.mov(edx, 0)?;
        c.rdmsr()?;
        c.mov(r12, rdx)?;
        c.power_off()
    })
}

#[test]
fn deadlines_are_diverted_from_the_local_apic() {
    // The local APIC of a diverted guest never gets to know. That they are delivered all the same is the timer's own test.
    let Some(_) = hosts::kvm() else { return };
    for diverted in [false, true] {
        let workarounds = Workarounds {
            emulated_kernel: diverted,
            ..Workarounds::default()
        };
        let run = with(&far_deadline(), workarounds);
        let expected = if diverted { 0 } else { 1 << 28 };
        assert_eq!(run.evidence.registers.gpr[12], expected, "diverted: {diverted}");
    }
}

#[test]
fn the_features_of_leaf_seven_are_hidden_where_the_kernel_is_emulated() {
    let Some(_) = hosts::kvm() else { return };
    let guest = Guest::new(|c| {
        c.mov(eax, 0)?;
        c.cpuid()?;
        c.mov(r12, rax)?;
        c.power_off()
    });
    for emulated_kernel in [false, true] {
        let workarounds = Workarounds {
            emulated_kernel,
            ..Workarounds::default()
        };
        let run = with(&guest, workarounds);
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
    let bounded = Kvm::open_with(*kvm.workarounds(), 4).unwrap();
    let run = guest.run_on(&bounded, &to_the_end);
    if !kvm.workarounds().emulated_kernel {
        assert_eq!(run.evidence.events, ["power off"]);
        return;
    }
    let [Event::UnknownInstruction { what, .. }] = &run.events[..] else {
        panic!("{:?}", run.events)
    };
    assert!(what.contains("more than 4 instructions"), "{what}");
    let enough = Kvm::open_with(*kvm.workarounds(), 5).unwrap();
    assert_eq!(guest.run_on(&enough, &to_the_end).evidence.events, ["power off"]);
}
