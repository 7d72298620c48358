//! Causes, from evidence of a good run that was changed in one way.

use super::*;
use crate::evidence::{Outcome, Phase};
use crate::testing;
use kho_core::Region;

/// Evidence of a run that ended in this way, with the last generation's greeting changed.
fn ended(kind: OutcomeKind, generation: u32, change: impl FnOnce(&mut Evidence)) -> Option<String> {
    let mut evidence = testing::good();
    evidence.outcome = Outcome {
        kind,
        generation,
        phase: if generation == 0 {
            Phase::Prepare
        } else {
            Phase::Restore
        },
        text: "it ended".into(),
    };
    change(&mut evidence);
    cause(&evidence)
}

/// A kernel of this release without /dev/liveupdate, which does not know these parameters and was given this line.
fn without(release: &str, unknown: &[&str], line: &str) -> String {
    let cause = ended(OutcomeKind::SetupFailed, 0, |evidence| {
        let hello = evidence.kernels[0].hello.as_mut().unwrap();
        hello.liveupdate = false;
        hello.release = release.into();
        hello.unknown_parameters = unknown.iter().map(ToString::to_string).collect();
        hello.command_line = line.into();
    });
    cause.unwrap_or_default()
}

fn failing(call: &str, errno: i32, line: &str) -> Option<String> {
    ended(OutcomeKind::SetupFailed, 0, |evidence| {
        evidence.kernels[0].command_line = line.into();
        evidence.failures.push(AgentFailure {
            generation: 0,
            phase: Phase::Prepare,
            request: "load the next kernel".into(),
            call: call.into(),
            errno,
            detail: String::new(),
        });
    })
}

#[test]
fn a_kernel_without_live_update_says_which_part_it_lacks() {
    let on = "kho=on liveupdate=on";
    for (release, unknown, line, expected) in [
        (
            "6.17.8",
            &["liveupdate"][..],
            on,
            "Linux 6.17.8 has no Live Update Orchestrator (6.19 and later, CONFIG_LIVEUPDATE)",
        ),
        (
            "6.1.0-50-amd64",
            &["kho", "liveupdate"],
            on,
            "Linux 6.1.0-50-amd64 has no Kexec HandOver (6.16 and later, CONFIG_KEXEC_HANDOVER)",
        ),
        (
            "7.3.4+deb13-amd64",
            &["kho", "liveupdate"],
            on,
            "Linux 7.3.4+deb13-amd64 was built without CONFIG_KEXEC_HANDOVER",
        ),
        (
            "7.3.4",
            &["liveupdate"],
            on,
            "Linux 7.3.4 was built without CONFIG_LIVEUPDATE",
        ),
        (
            "7.3.4",
            &[],
            "kho=on liveupdate=on kho=off",
            "kho=off is on the kernel's command line",
        ),
        (
            "7.3.4",
            &[],
            "liveupdate=off kho=on",
            "liveupdate=off is on the kernel's command line",
        ),
        // Nothing that was seen explains it.
        ("7.3.4", &[], on, ""),
        ("unknown", &[], on, ""),
    ] {
        assert_eq!(without(release, unknown, line), expected, "{release} {line}");
    }
}

#[test]
fn scratch_that_was_not_reserved_is_told_in_the_kernels_words() {
    let line = "[    0.000000] KHO: Failed to reserve scratch area, disabling kexec handover\n";
    let told = |console: &str| {
        ended(OutcomeKind::SetupFailed, 0, |evidence| {
            evidence.kernels[0].hello.as_mut().unwrap().liveupdate = false;
            evidence.console = console.into();
        })
    };
    assert_eq!(
        told(line).as_deref(),
        Some("scratch could not be reserved: KHO: Failed to reserve scratch area, disabling kexec handover")
    );
    assert_eq!(told("[    0.000000] KHO: all is well\n"), None);
}

#[test]
fn a_kernel_that_is_not_loaded_says_why_if_errno_does() {
    let call = "kexec_file_load(/next/kernel, /sys/firmware/initrd, 100 bytes)";
    assert_eq!(
        failing(call, EADDRNOTAVAIL, "kho_scratch=1M,1M,1M").as_deref(),
        Some("scratch is too small for this image (kho_scratch=1M,1M,1M)")
    );
    let usual = failing(call, EADDRNOTAVAIL, "quiet").unwrap();
    assert!(usual.contains("kho_scratch="), "{usual}");
    assert!(failing(call, ENOSYS, "").unwrap().contains("CONFIG_KEXEC_FILE"));
    assert_eq!(failing(call, 12, ""), None);
    assert_eq!(failing("open(/next/kernel)", EADDRNOTAVAIL, ""), None);
}

#[test]
fn an_agent_without_pci_cannot_be_reached() {
    let told = |line: &str, text: &str| {
        ended(OutcomeKind::SetupFailed, 0, |evidence| {
            evidence.kernels[0].hello = None;
            evidence.kernels[0].command_line = line.into();
            evidence.outcome.text = text.into();
        })
    };
    let text = "the agent gave up: no mailbox: open(/sys/bus/pci/devices): errno 2";
    assert!(told("", text).unwrap().contains("no PCI device"));
    assert!(told("pci=off", text).unwrap().starts_with("pci=off"));
    assert_eq!(told("", "something else"), None);
}

#[test]
fn a_handover_that_was_not_taken_is_told() {
    let lost = |change: &dyn Fn(&mut Evidence)| ended(OutcomeKind::SessionLost, 1, change);
    assert_eq!(lost(&|_| {}), None, "debugfs says nothing");
    let never = lost(&|evidence| evidence.kernels[1].hello.as_mut().unwrap().kho_debugfs = true);
    assert_eq!(never.as_deref(), Some("the new kernel never took the handover"));
    let taken = lost(&|evidence| {
        let hello = evidence.kernels[1].hello.as_mut().unwrap();
        (hello.kho_debugfs, hello.kho_incoming) = (true, true);
    });
    assert_eq!(taken, None);
    let nothing = lost(&|evidence| evidence.blobs[0].kho = None);
    assert!(nothing.unwrap().contains("handed nothing over"));
    let refused = lost(&|evidence| {
        evidence.console =
            "[    0.0] KHO: setup: handover FDT (0x1000) is incompatible with 'kho-v1': 1\n".into();
    });
    assert_eq!(
        refused.as_deref(),
        Some(
            "the new kernel refused the handover: KHO: setup: handover FDT (0x1000) is incompatible with 'kho-v1': 1"
        )
    );
}

#[test]
fn a_handover_above_the_new_kernels_memory_is_told() {
    let died = |line: &str, scratch: u64, phase: Phase| {
        ended(OutcomeKind::GuestPanic, 1, |evidence| {
            evidence.outcome.phase = phase;
            evidence.kernels[1].command_line = line.into();
            evidence.blobs[0].kho.as_mut().unwrap().scratch = Region::new(scratch, 48);
        })
    };
    let above = died("mem=100M", 0x7ff_0000, Phase::BootNew).unwrap();
    assert_eq!(
        above,
        "the list of scratch areas lies at 0x7ff0000, above the memory that the new kernel was given (mem=100M)"
    );
    assert_eq!(died("mem=100M", 0x7ff_0000, Phase::Restore), None);
    assert_eq!(died("mem=100M", 0x100_0000, Phase::BootNew), None);
    assert_eq!(died("quiet", 0x7ff_0000, Phase::BootNew), None);
    // The list is in memory, an area is not.
    let area = ended(OutcomeKind::GuestPanic, 1, |evidence| {
        evidence.outcome.phase = Phase::BootNew;
        evidence.kernels[1].command_line = "mem=100M".into();
        let blob = &mut evidence.blobs[0];
        blob.kho.as_mut().unwrap().scratch = Region::new(0x100_0000, 32);
        let mut page = vec![0; 4096];
        page[..16].copy_from_slice(&[&0x20_0000u64.to_le_bytes()[..], &4096u64.to_le_bytes()].concat());
        page[16..32].copy_from_slice(&[&0x700_0000u64.to_le_bytes()[..], &4096u64.to_le_bytes()].concat());
        blob.pages.insert(0x1000, page);
    });
    assert!(area.unwrap().starts_with("a scratch area lies at 0x7000000"));
}

#[test]
fn a_completed_run_has_no_cause() {
    assert_eq!(cause(&testing::good()), None);
}

#[test]
fn lines_of_the_subsystems_are_kept_and_no_others() {
    let console = "[    0.0] KHO: one\r\n\
                   [    0.0] Kernel command line: kho=on\n\
                   [    0.1] luo: two\n\
                   [    0.2] kexec_core: Starting new kernel\n\
                   [    0.3] PCI: three\n\
                   memfd_luo: four\n\
                   [    0.4] kho\n";
    let lines: Vec<_> = kernel_lines(console).collect();
    assert_eq!(
        lines,
        [
            "[    0.0] KHO: one",
            "[    0.1] luo: two",
            "[    0.2] kexec_core: Starting new kernel",
            "memfd_luo: four"
        ]
    );
}

proptest::proptest! {
    #[test]
    fn any_console_and_command_line_are_survived(console in "(.|\n){0,200}", line in ".{0,80}") {
        let _ = (kernel_lines(&console).count(), version(&line), value(&line, "mem"), message(&line));
        let _ = handover::size(&line);
    }
}
