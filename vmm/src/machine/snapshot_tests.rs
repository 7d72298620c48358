//! Machines that go on from snapshots, against machines that were never held.

use super::*;
use crate::boot::bzimage::tests::image;
use crate::devices::{lapic, uart};
use crate::machine::config::tests::config;
use crate::soft::Soft;

/// lea rsi, [rip + bytes]; out its bytes to the serial port, one every few thousand rounds of a loop that writes memory
fn chatter(text: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    for byte in text {
        let [low, high] = uart::PORT.to_le_bytes();
        // mov ecx, 5000; again: add [0x500000 + rcx*8], rcx; inc qword [rsp - 64]; dec ecx; jnz again
        code.extend([0xb9, 0x88, 0x13, 0, 0]);
        code.extend([0x48, 0x01, 0x0c, 0xcd, 0, 0, 0x50, 0]);
        code.extend([0x48, 0xff, 0x44, 0x24, 0xc0]);
        code.extend([0xff, 0xc9, 0x75, 0xef]);
        // mov dx, port; mov al, byte; out dx, al
        code.extend([0x66, 0xba, low, high, 0xb0, *byte, 0xee]);
        // mov eax, local APIC timer; mov dword [rax], 100000
        code.extend([0xb8]);
        code.extend((lapic::BASE_32 + 0x380).to_le_bytes());
        code.extend([0xc7, 0x00, 0xa0, 0x86, 1, 0]);
    }
    // mov dx, 0x600; mov al, 0x34; out dx, al
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    code
}

fn machine() -> Machine {
    let code = [vec![0x48, 0xc7, 0xc4, 0, 0, 0x60, 0], chatter(b"snapshot")].concat();
    let mut kernel = image(4096);
    kernel[1024 + 0x200..][..code.len()].copy_from_slice(&code);
    Machine::new(&config(kernel), &Soft::default()).unwrap()
}

fn ended(mut machine: Machine) -> (Event, u128, Vec<u8>, String) {
    let event = machine.run().unwrap();
    machine.finish().unwrap();
    let hash = machine.state_hash().unwrap();
    (
        event,
        hash,
        machine.console().text(),
        format!("{:?}", machine.provenance()),
    )
}

#[test]
fn a_branch_ends_as_the_run_it_was_taken_from() {
    let expected = ended(machine());
    assert_eq!(expected.2, b"snapshot");
    for time in (0..160_000).step_by(7_919) {
        let mut first = machine();
        assert_eq!(first.run_until(time).unwrap(), None, "{time}");
        let snapshot = first.snapshot().unwrap();
        let branches = [(); 2].map(|()| Machine::from_snapshot(&snapshot).unwrap());
        for mut branch in branches {
            assert_eq!(branch.state_hash().unwrap(), first.state_hash().unwrap());
            assert_eq!(ended(branch), expected, "{time}");
        }
        assert_eq!(ended(first), expected, "{time}");
    }
}

#[test]
fn snapshots_of_branches_hold_what_the_branch_wrote() {
    let expected = ended(machine());
    let mut machine = machine();
    for time in (0..160_000).step_by(20_011) {
        assert_eq!(machine.run_until(time).unwrap(), None);
        let snapshot = machine.snapshot().unwrap();
        machine = Machine::from_snapshot(&snapshot).unwrap();
    }
    assert_eq!(ended(machine), expected);
}

#[test]
fn a_state_survives_its_encoding() {
    let mut machine = machine();
    machine.run_until(50_000).unwrap();
    let snapshot = machine.snapshot().unwrap();
    let bytes = postcard::to_allocvec(&snapshot.state).unwrap();
    let state: MachineState = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(state, snapshot.state);
    assert_eq!(state.parts().unwrap(), snapshot.state.parts().unwrap());
}

#[test]
fn a_snapshot_that_no_machine_was_in_is_refused() {
    let snapshot = machine().snapshot().unwrap();
    let mut small = snapshot.clone();
    small.ram = Arc::new(crate::memory::RamImage::zero(1));
    assert!(matches!(
        Machine::from_snapshot(&small),
        Err(MachineError::Memory(_))
    ));
    let mut late = snapshot.clone();
    late.state.set_time(5);
    assert!(matches!(
        Machine::from_snapshot(&late),
        Err(MachineError::UnsoundState { .. })
    ));
}
