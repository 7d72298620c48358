//! The seccomp filters of the machine's threads on KVM.

use iced_x86::code_asm::al;

use super::code::{Code, ENTRY};
use super::config::{bz_image, machine_config};
use super::hosts;
use vmm::boot::layout::ENTRY_64;
use vmm::machine::Machine;

/// A port that no device has and no other test writes to.
const PORT: u16 = 0x99;

/// Makes a forbidden call on the thread of the vCPU that writes to [`PORT`]: the bus traces such writes.
struct Trespasser;

impl tracing::Subscriber for Trespasser {
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
            let _ = std::net::UdpSocket::bind("127.0.0.1:0");
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_forbidden_call_ends_the_run() {
    let Some(kvm) = hosts::kvm() else { return };
    let code = Code::assemble(ENTRY, |c| {
        c.print(b'x')?;
        c.out(i32::from(PORT), al)?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.jmp(again)
    });
    let entry = usize::try_from(ENTRY_64).unwrap();
    let mut config = machine_config(bz_image(&[(entry, &code.bytes)]));
    config.progress_limit_ns = u64::MAX / 2;
    let mut machine = Machine::new(&config, kvm).unwrap();
    tracing::subscriber::set_global_default(Trespasser).unwrap();
    let error = machine.run().unwrap_err().to_string();
    assert!(error.contains("thread vcpu0 made system call 41,"), "{error}");
    assert_eq!(
        machine.console().text(),
        b"x",
        "what was printed before the error"
    );
}
