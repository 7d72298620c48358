//! The seccomp filters of the machine's threads on KVM.

use iced_x86::code_asm::al;

use super::code::{Code, ENTRY};
use super::config::{bz_image, machine_config};
use super::hosts;
use super::on_port::on_port;
use vmm::boot::layout::ENTRY_64;
use vmm::machine::Machine;

/// A port that no device has and no other test writes to.
const PORT: u16 = 0x99;

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
    // On the thread of the vCPU, which writes to the port.
    on_port(PORT, || drop(std::net::UdpSocket::bind("127.0.0.1:0")));
    let error = machine.run().unwrap_err().to_string();
    assert!(error.contains("thread vcpu0 made system call 41,"), "{error}");
    assert_eq!(
        machine.console().text(),
        b"x",
        "what was printed before the error"
    );
}
