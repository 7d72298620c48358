//! The seccomp filters of the machine's threads on KVM.

use super::code::{Code, ENTRY};
use super::config::{bz_image, machine_config};
use super::hosts;
use vmm::boot::layout::ENTRY_64;
use vmm::machine::Machine;

#[test]
fn a_forbidden_call_ends_the_run() {
    let Some(kvm) = hosts::kvm() else { return };
    let code = Code::assemble(ENTRY, |c| {
        c.print(b'x')?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.jmp(again)
    });
    let entry = usize::try_from(ENTRY_64).unwrap();
    let mut config = machine_config(bz_image(&[(entry, &code.bytes)]));
    config.progress_limit_ns = u64::MAX / 2;
    let mut machine = Machine::new(&config, kvm).unwrap();
    // The vCPU's thread hands the guest's output to the sink, so the sink's system calls are that thread's.
    machine.set_console_sink(Box::new(|_| {
        let _ = std::net::UdpSocket::bind("127.0.0.1:0");
    }));
    let error = machine.run().unwrap_err().to_string();
    assert!(error.contains("thread vcpu0 made system call 41,"), "{error}");
    assert_eq!(
        machine.console().text(),
        b"x",
        "what was printed before the error"
    );
}
