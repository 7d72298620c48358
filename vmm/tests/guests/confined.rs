//! A run on a thread that Landlock confines: what executes a guest opens no file, and the run is as any other.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use iced_x86::code_asm::al;

use super::code::Code;
use super::guest::{Guest, to_the_end};
use super::hosts;
use super::on_port::on_port;
use vmm::confine::{Confinement, in_confined_thread, offered};
use vmm::soft::Soft;

/// A port that no device has and no other test writes to.
const PORT: u16 = 0x98;
/// Another, at which nothing is done.
const PORT_ON_KVM: u16 = 0x97;

/// The error of each attempt to open a file; `None` if it was opened.
type Attempts = Arc<Mutex<Vec<Option<i32>>>>;

fn guest(port: u16) -> Guest {
    Guest::new(|c: &mut Code| {
        c.print(b'x')?;
        c.out8(port, 0)?;
        c.out(0x80, al)?;
        c.print(b'y')?;
        c.power_off()
    })
}

/// Runs the guest on softcpu, and returns what came of opening a file.
fn run(attempts: Attempts) -> Vec<Option<i32>> {
    let kept = Arc::clone(&attempts);
    // As a device with a bug might.
    on_port(PORT, move || {
        let opened = std::fs::File::open("/proc/self/status").err();
        let error = opened.map(|error| error.raw_os_error().unwrap_or(0));
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    });
    let run = guest(PORT).run_on(&Soft::default(), &to_the_end);
    assert_eq!(
        (run.evidence.events, run.evidence.console),
        (vec!["power off".to_owned()], "xy".to_owned())
    );
    attempts.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[test]
fn what_executes_a_confined_guest_opens_no_file() {
    assert_eq!(run(Attempts::default()), [None], "this thread is not confined");
    let denied = in_confined_thread(|| run(Attempts::default())).unwrap();
    match offered().unwrap() {
        Confinement::Confines { .. } => assert_eq!(denied, [Some(libc::EACCES)]),
        found => {
            let here =
                std::env::var_os("CI").is_none() || std::env::var_os("BATON_KVM_TESTS_RUN_IN").is_some();
            assert!(here, "Landlock is needed in CI: {found:?}");
            // If standard error cannot be written, nobody reads it.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: a confined guest: Landlock is needed: {found:?}"
            );
        }
    }
}

#[test]
fn a_guest_on_kvm_runs_from_a_confined_thread_as_from_any() {
    let Some(kvm) = hosts::kvm() else { return };
    let run = in_confined_thread(|| {
        let run = guest(PORT_ON_KVM).run_on(kvm, &to_the_end);
        (run.evidence.events, run.evidence.console)
    });
    assert_eq!(run.unwrap(), (vec!["power off".to_owned()], "xy".to_owned()));
}
