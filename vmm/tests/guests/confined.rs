//! A run on a thread that Landlock confines: what executes a guest opens no file, and the run is as any other.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use iced_x86::code_asm::al;

use super::code::Code;
use super::guest::{Guest, to_the_end};
use super::hosts;
use vmm::confine::{Confinement, in_confined_thread, offered};
use vmm::soft::Soft;

/// A port that no device has and no other test writes to.
const PORT: u16 = 0x98;

/// The error of each attempt to open a file; `None` if it was opened.
type Attempts = Arc<Mutex<Vec<Option<i32>>>>;

/// Opens a file of the host when a guest writes to [`PORT`], as a device with a bug might: the bus traces such writes.
struct Curious(Attempts);

impl tracing::Subscriber for Curious {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Port(bool);
        impl tracing::field::Visit for Port {
            fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
                self.0 |= field.name() == "port" && value == u64::from(PORT);
            }
            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
        }
        let mut port = Port(false);
        event.record(&mut port);
        if port.0 {
            let opened = std::fs::File::open("/proc/self/status").err();
            let error = opened.map(|error| error.raw_os_error().unwrap_or(0));
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(error);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn guest() -> Guest {
    Guest::new(|c: &mut Code| {
        c.print(b'x')?;
        c.out8(PORT, 0)?;
        c.out(0x80, al)?;
        c.print(b'y')?;
        c.power_off()
    })
}

/// Runs the guest on softcpu, and returns what came of opening a file.
fn run(attempts: Attempts) -> Vec<Option<i32>> {
    let run = tracing::subscriber::with_default(Curious(Arc::clone(&attempts)), || {
        guest().run_on(&Soft::default(), &to_the_end)
    });
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
        let run = guest().run_on(kvm, &to_the_end);
        (run.evidence.events, run.evidence.console)
    });
    assert_eq!(run.unwrap(), (vec!["power off".to_owned()], "xy".to_owned()));
}
