//! Guests of a few instructions on the software processor, from power-on to their end.

use super::Soft;
use crate::boot::bzimage::tests::image;
use crate::devices::pci;
use crate::devices::power::PowerRequest;
use crate::injection::{Act, Deed, Delay, Injection, Occurrence, Repeat, Trigger};
use crate::machine::config::tests::config;
use crate::machine::{Event, Machine, MachineConfig};
use crate::phase::Phase;

/// mov dx, port; mov al, value; out dx, al
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// mov dword [address], value
fn store(address: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xc7, 0x04, 0x25];
    code.extend(address.to_le_bytes());
    code.extend(value.to_le_bytes());
    code
}

/// mov eax, address; mov dword [rax], value
fn store_mmio(address: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(address.to_le_bytes());
    code.extend([0xc7, 0x00]);
    code.extend(value.to_le_bytes());
    code
}

fn machine(parts: &[Vec<u8>]) -> Machine {
    let mut kernel = image(4096);
    let code = parts.concat();
    kernel[1024 + 0x200..][..code.len()].copy_from_slice(&code);
    Machine::new(&config(kernel), &Soft::default()).unwrap()
}

const POWER_OFF: (u16, u8) = (crate::devices::power::SLEEP_CONTROL, 0x34);

#[test]
fn a_guest_prints_and_switches_off() {
    let mut machine = machine(&[out(0x3f8, b'h'), out(0x3f8, b'i'), out(POWER_OFF.0, POWER_OFF.1)]);
    let event = machine.run().unwrap();
    assert!(
        matches!(event, Event::PowerOff { at, .. } if at.retired == Some(9)),
        "{event}"
    );
    assert_eq!(machine.console().text(), b"hi");
}

#[test]
fn the_processors_writes_are_known() {
    let mut machine = machine(&[store(0x50_0010, 7), out(POWER_OFF.0, POWER_OFF.1)]);
    machine.watch([0x500]);
    machine.run().unwrap();
    let (last, stamp) = machine.last_write(0x50_0010).unwrap();
    assert_eq!(
        (last.rip, last.time, stamp.phase),
        (0x100_0200, 0, Phase::BootOld)
    );
    assert_eq!(machine.last_write(0x50_0000), None);
    machine.finish().unwrap();
    let first = machine.provenance().phases()[0]
        .writes
        .iter()
        .find(|write| write.pfn() == 0x500)
        .unwrap();
    assert_eq!(
        (first.address(), first.rip, first.by_user()),
        (0x50_0010, 0x100_0200, false)
    );
    assert!(machine.ram().touched_pages().contains(&0x500));
}

#[test]
fn equal_machines_have_equal_hashes() {
    let hash = |value, seed| {
        let mut kernel = image(4096);
        let code = [store(0x50_0000, value), out(POWER_OFF.0, POWER_OFF.1)].concat();
        kernel[1024 + 0x200..][..code.len()].copy_from_slice(&code);
        let mut machine = Machine::new(
            &MachineConfig {
                seed,
                ..config(kernel)
            },
            &Soft::default(),
        )
        .unwrap();
        machine.run().unwrap();
        machine.state_hash().unwrap()
    };
    assert_eq!(hash(1, 1), hash(1, 1));
    assert_ne!(hash(1, 1), hash(2, 1));
    assert_ne!(hash(1, 1), hash(1, 2), "the seed reaches the guest");
}

#[test]
fn a_doorbell_stands_the_guest_until_the_answer() {
    let doorbell = pci::WINDOW_START + u32::try_from(guest_agent::device::mailbox::DOORBELL).unwrap();
    let mut machine = machine(&[store_mmio(doorbell, 3), out(POWER_OFF.0, POWER_OFF.1)]);
    assert_eq!(machine.run().unwrap(), Event::Message(vec![0; 3]));
    let before = machine.moment();
    machine.reply(b"go on").unwrap();
    assert_eq!(machine.moment(), before, "answering takes no time");
    // After a greeting, kernel code in the lower half of the address space is taken for the kexec jump: this guest's
    // all is.
    assert_eq!(machine.run().unwrap(), Event::Jump { time: before.time });
    assert_eq!(machine.moment().stamp.phase, Phase::Jump);
    assert!(matches!(machine.run().unwrap(), Event::PowerOff { .. }));
}

/// mov ecx, msr; mov eax, value; xor edx, edx; wrmsr
fn write_msr(msr: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(msr.to_le_bytes());
    code.push(0xb8);
    code.extend(value.to_le_bytes());
    code.extend([0x31, 0xd2, 0x0f, 0x30]);
    code
}

#[test]
fn a_tsc_deadline_follows_the_tsc_that_the_guest_wrote() {
    // The interrupt that ends HLT is a triple fault, because there is no interrupt descriptor table.
    let waiting = |before: &[u8]| {
        let arm = [
            store_mmio(0xfee0_00f0, 0x1ff),
            store_mmio(0xfee0_0320, 2 << 17 | 0xec),
            before.to_vec(),
            write_msr(0x6e0, 500_500),
            vec![0xfb, 0xf4],
        ];
        let mut machine = machine(&arm);
        let event = machine.run().unwrap();
        assert!(matches!(event, Event::TripleFault { .. }), "{event}");
        machine.moment().time
    };
    assert_eq!(waiting(&[]), 500_500);
    // The eighth instruction, at 7 ns, writes 500,000.
    assert_eq!(waiting(&write_msr(0x10, 500_000)), 507);
}

#[test]
fn deaths_are_told_apart() {
    let end = |code: &[u8]| machine(&[code.to_vec()]).run().unwrap();
    assert!(matches!(
        end(&[0xfa, 0xf4]),
        Event::DeadHalt {
            interruptible: false,
            ..
        }
    )); // cli; hlt
    assert!(matches!(
        end(&[0xfb, 0xf4]),
        Event::DeadHalt {
            interruptible: true,
            ..
        }
    )); // sti; hlt
    assert!(matches!(end(&[0xeb, 0xfe]), Event::NoProgress { .. })); // jmp .
    let fault = end(&[0x0f, 0x0b]); // ud2 without an IDT
    assert!(
        matches!(&fault, Event::TripleFault { reason, .. } if reason.contains("exceptions 6")),
        "{fault}"
    );
    let wild = end(&[0x48, 0x31, 0xc0, 0x48, 0xff, 0xc8, 0xff, 0xe0]); // xor rax,rax; dec rax; jmp rax
    assert!(matches!(wild, Event::TripleFault { .. }), "{wild}");
}

/// An injection that is due at once.
fn now(act: Act) -> Injection {
    Injection {
        trigger: Trigger {
            since: None,
            on: Occurrence::Begin,
            nth: 1,
            delay: Delay::Time(0),
        },
        deed: Deed::Act(act),
        repeat: Repeat::ONCE,
    }
}

/// rdtsc; mov [address], eax
fn store_tsc(address: u32) -> Vec<u8> {
    let mut code = vec![0x0f, 0x31, 0x89, 0x04, 0x25];
    code.extend(address.to_le_bytes());
    code
}

#[test]
fn time_stamp_counters_jump_at_once_also_over_a_snapshot() {
    let doorbell = pci::WINDOW_START + u32::try_from(guest_agent::device::mailbox::DOORBELL).unwrap();
    let guest = || {
        let mut machine = machine(&[
            store_mmio(doorbell, 3),
            store_tsc(0x50_0000),
            out(POWER_OFF.0, POWER_OFF.1),
        ]);
        assert!(matches!(machine.run().unwrap(), Event::Message(_)));
        machine.reply(b"").unwrap();
        machine
    };
    let tsc = |mut machine: Machine| {
        while !matches!(machine.run().unwrap(), Event::PowerOff { .. }) {}
        machine.ram().read_u64(0x50_0000).unwrap()
    };
    let usual = tsc(guest());
    for by in [1_000_000, -2] {
        let mut shifted = guest();
        shifted.add_injections(&[now(Act::ShiftTsc { by })]).unwrap();
        let held = shifted.snapshot().unwrap();
        assert_eq!(tsc(shifted), usual.wrapping_add_signed(by));
        let restored = Machine::from_snapshot(&held).unwrap();
        assert_eq!(tsc(restored), usual.wrapping_add_signed(by), "from the snapshot");
    }
}

#[test]
fn a_slow_access_lets_time_pass_and_no_instruction_retire() {
    let bar = pci::WINDOW_START + u32::try_from(guest_agent::device::mailbox::BAR0_SIZE).unwrap();
    let end = |injections: &[Injection]| {
        let mut machine = machine(&[
            store_mmio(bar + 0x10, 1),
            store_mmio(bar + 0x10, 1),
            out(POWER_OFF.0, POWER_OFF.1),
        ]);
        machine.add_injections(injections).unwrap();
        let Event::PowerOff { at, .. } = machine.run().unwrap() else {
            panic!("the guest switches the machine off")
        };
        (at.time, at.retired)
    };
    let (time, retired) = end(&[]);
    let slow = now(Act::SlowAccesses { by: 700, ns: 10_000 });
    assert_eq!(end(&[slow]), (time + 1_400, retired));
}

#[test]
fn an_injection_resets_the_machine_and_is_named() {
    let mut machine = machine(&[store(0x50_0010, 7), out(POWER_OFF.0, POWER_OFF.1)]);
    machine
        .add_injections(&[now(Act::Power(PowerRequest::Reset))])
        .unwrap();
    let event = machine.run().unwrap();
    assert!(matches!(event, Event::Reset { by: Some(0), .. }), "{event}");
    assert!(
        event.to_string().starts_with("injection 0 reset the machine"),
        "{event}"
    );
    let absent = machine.add_injections(&[now(Act::Nmi { processor: 1 })]);
    assert!(absent.unwrap_err().to_string().contains("no processor 1"));
}
