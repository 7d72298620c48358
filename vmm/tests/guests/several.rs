//! More than one vCPU on KVM: how they are started, how they end the run together, and whether locked instructions are
//! atomic.

use iced_x86::code_asm::*;

use super::code::{Asm, Code, DATA, UPPER};
use super::guest::{Guest, Run, to_the_end};
use super::hosts;
use vmm::devices::lapic::{ICR_HIGH, ICR_LOW};
use vmm::kvm::{Kvm, Workarounds};
use vmm::machine::Machine;
use vmm::processors::Backend;

/// Where the second processor starts in real mode. The SIPI's vector is its page number.
const TRAMPOLINE: u64 = 0x8000;
/// A byte that the second processor sets.
const FLAG: u64 = TRAMPOLINE + 0x100;

/// mov ax, cs; mov ds, ax; mov dx, 0x3f8; mov al, '2'; out dx, al; mov byte [0x100], 1; cli; hlt
const REAL_MODE: [u8; 18] = [
    0x8c, 0xc8, 0x8e, 0xd8, 0xba, 0xf8, 0x03, 0xb0, b'2', 0xee, 0xc6, 0x06, 0x00, 0x01, 0x01, 0xfa, 0xf4,
    0x90,
];

fn start_second(c: &mut Code) -> Asm {
    c.enable_apic()?;
    c.apic(ICR_HIGH, 1 << 24)?;
    c.apic(ICR_LOW, 0x4500)?;
    c.apic(ICR_LOW, 0x4600 | u32::try_from(TRAMPOLINE >> 12).unwrap())
}

fn guest(write: impl FnOnce(&mut Code) -> Asm) -> Guest {
    let mut guest = Guest::new(write);
    guest.config.vcpus = 2;
    guest.memory.push((TRAMPOLINE, REAL_MODE.to_vec()));
    guest
}

/// A run with two processors. Hosts that need `fix_syscall` refuse a second one because user code would fault on it;
/// these guests have no user code, so the workaround is turned off.
fn run(guest: &Guest) -> Option<Run> {
    let kvm = hosts::kvm()?;
    let workarounds = Workarounds {
        fix_syscall: false,
        ..*kvm.workarounds()
    };
    let kvm = Kvm::open().unwrap().with_workarounds(workarounds);
    Some(guest.run_on(&kvm, &to_the_end))
}

#[test]
fn a_second_processor_is_started_by_init_and_sipi() {
    let guest = guest(|c| {
        start_second(c)?;
        wait_for_flag(c, 1)?;
        c.power_off()
    });
    let Some(run) = run(&guest) else { return };
    assert_eq!(run.evidence.events, ["power off"]);
    assert_eq!(run.evidence.console, "2");
    // Its writes count as a processor's.
    assert!(run.evidence.pages[0].1.contains(&(FLAG >> 12)));
}

/// Both processors increment one counter, the first by CMPXCHG16B. On a host that emulates guest kernels softcpu
/// executes that instruction, and increments are lost unless the second processor is stopped meanwhile.
#[test]
fn locked_instructions_are_atomic() {
    const COUNTER: u64 = TRAMPOLINE + 0x110;
    const ROUNDS: u16 = 2000;
    let [low, high] = ROUNDS.to_le_bytes();
    // mov ax, cs; mov ds, ax; mov byte [0x100], 1; mov cx, ROUNDS; 1: lock inc dword [0x110]; loop 1b; mov byte
    // [0x100], 2; cli; hlt
    let second = [
        0x8c, 0xc8, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0x01, 0x01, 0xb9, low, high, 0xf0, 0x66, 0xff, 0x06, 0x10,
        0x01, 0xe2, 0xf8, 0xc6, 0x06, 0x00, 0x01, 0x02, 0xfa, 0xf4,
    ];
    let mut guest = guest(|c| {
        start_second(c)?;
        wait_for_flag(c, 1)?;
        let mut again = c.create_label();
        let mut retry = c.create_label();
        c.mov(rsi, UPPER + COUNTER)?;
        c.mov(r12d, u32::from(ROUNDS))?;
        c.set_label(&mut again)?;
        c.mov(rax, qword_ptr(rsi))?;
        c.mov(rdx, qword_ptr(rsi + 8))?;
        c.set_label(&mut retry)?;
        c.lea(rbx, qword_ptr(rax + 1))?;
        c.mov(rcx, rdx)?;
        c.lock().cmpxchg16b(xmmword_ptr(rsi))?;
        c.jnz(retry)?;
        c.dec(r12d)?;
        c.jnz(again)?;
        wait_for_flag(c, 2)?;
        c.power_off()
    });
    guest.memory = vec![(TRAMPOLINE, second.to_vec())];
    let Some(run) = run(&guest) else { return };
    assert_eq!(run.evidence.events, ["power off"]);
    let counter = run.machine.ram().read_u64(COUNTER).unwrap();
    assert_eq!(counter, 2 * u64::from(ROUNDS));
}

/// Waits until the second processor has set its byte to `value`. Clobbers RAX.
fn wait_for_flag(c: &mut Code, value: i32) -> Asm {
    let mut again = c.create_label();
    c.mov(rax, UPPER + FLAG)?;
    c.set_label(&mut again)?;
    c.pause()?;
    c.cmp(byte_ptr(rax), value)?;
    c.jb(again)
}

#[test]
fn the_guest_is_dead_when_all_of_its_processors_are() {
    let halted = guest(|c| {
        start_second(c)?;
        c.cli()?;
        c.hlt()
    });
    let Some(run) = run(&halted) else { return };
    assert_eq!(run.evidence.events, ["dead halt, interruptible false"]);
    // A processor that was never started does not keep the guest alive.
    let alone = guest(|c| {
        c.sti()?;
        c.hlt()
    });
    let run = self::run(&alone).unwrap();
    assert_eq!(run.evidence.events, ["dead halt, interruptible true"]);
}

#[test]
fn a_triple_fault_of_one_ends_the_run_of_all() {
    let guest = guest(|c| {
        start_second(c)?;
        c.count(DATA)?;
        c.ud2()
    });
    let Some(run) = run(&guest) else { return };
    assert_eq!(run.evidence.events, ["triple fault"]);
}

#[test]
fn a_host_that_cannot_run_two_refuses() {
    let Some(kvm) = hosts::kvm() else { return };
    let mut config = guest(Code::power_off).config;
    config.vcpus = 2;
    let made = Machine::new(&config, kvm);
    if kvm.workarounds().fix_syscall {
        let error = made.unwrap_err().to_string();
        assert!(
            error.contains("2 processors") && error.contains("--backend soft"),
            "{error}"
        );
    } else {
        made.unwrap();
    }
    assert_eq!(kvm.name(), "kvm");
}
