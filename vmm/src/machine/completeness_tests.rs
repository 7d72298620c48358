//! Each part of a machine's state matters: a machine that goes on without one of them is refused, or what becomes of it
//! is something else.
//!
//! The machine has everything in use: two processors, one of them halted; an interrupt pending and a timer running; the
//! DMA engine writing, with MSI-X; input that nobody has read; a message that nobody has answered; a jump behind it.

use guest_agent::device::{DMA_SLOT, dma, mailbox};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::state::each_part;
use super::*;
use crate::boot::bzimage::tests::image;
use crate::boot::layout::{BOOT_PARAMS, ENTRY_64};
use crate::boot::wakeup::MAILBOX as WAKEUP_MAILBOX;
use crate::devices::{clock, ioapic, lapic, pci, power, uart};
use crate::machine::config::tests::config;
use crate::soft::Soft;

const STACK: u64 = 0x60_0000;
const SECOND: u64 = 0x50_0000;
const HANDLER: u64 = 0x52_0000;
const INTERRUPTS: u64 = 0x61_0000;
const WOKEN: u64 = 0x61_1000;
const IDT: u64 = 0x62_0000;
const IDT_OPERAND: u64 = 0x63_0000;
const RING: u64 = 0x70_0000;
const COMPLETION: u64 = 0x71_0000;
const LIST: u64 = 0x72_0000;
const BUFFERS: u64 = 0x80_0000;
const COUNTED: u64 = 0x90_0000;
const MESSAGES: u64 = pci::WINDOW_START as u64;
const ENGINE: u64 = MESSAGES + mailbox::BAR0_SIZE;
const ENGINE_TABLE: u64 = ENGINE + dma::BAR0_SIZE;
/// The next kernel, an endless loop.
const NEXT_ENTRY: u64 = (20 << 20) + ENTRY_64;
/// An answer after which the guest goes there, and one after which it does not.
const ENTER: &[u8] = b"go";
const STAY: &[u8] = b"no";
const VECTORS: [u32; 4] = [0x40, 0x41, 0x42, 0x43];

type Asm = Result<(), IcedError>;

/// mov dword [address], value
fn put(c: &mut CodeAssembler, address: u64, value: u32) -> Asm {
    c.mov(rax, address)?;
    c.mov(dword_ptr(rax), value)
}

/// mov qword [address], value
fn put_long(c: &mut CodeAssembler, address: u64, value: u64) -> Asm {
    c.mov(rax, address)?;
    c.mov(rcx, value)?;
    c.mov(qword_ptr(rax), rcx)
}

fn get(c: &mut CodeAssembler, address: u64) -> Asm {
    c.mov(rax, address)?;
    c.mov(eax, dword_ptr(rax))
}

fn output(c: &mut CodeAssembler, port: u16, value: u8) -> Asm {
    c.mov(dx, u32::from(port))?;
    c.mov(al, u32::from(value))?;
    c.out(dx, al)
}

fn input(c: &mut CodeAssembler, port: u16) -> Asm {
    c.mov(dx, u32::from(port))?;
    c.in_(al, dx)
}

fn select_config(c: &mut CodeAssembler, slot: u8, offset: u8) -> Asm {
    c.mov(eax, 0x8000_0000 | u32::from(slot) << 11 | u32::from(offset))?;
    c.mov(dx, u32::from(pci::ADDRESS_PORT))?;
    c.out(dx, eax)?;
    c.mov(dx, u32::from(pci::DATA_PORT))
}

fn configure(c: &mut CodeAssembler, slot: u8, offset: u8, value: u32) -> Asm {
    select_config(c, slot, offset)?;
    c.mov(eax, value)?;
    c.out(dx, eax)
}

fn ring_doorbell(c: &mut CodeAssembler) -> Asm {
    put(c, MESSAGES + mailbox::WINDOW, u32::from_le_bytes(*b"held"))?;
    put(c, MESSAGES + mailbox::DOORBELL, 4)
}

fn count_down(c: &mut CodeAssembler, from: u32) -> Asm {
    let mut again = c.create_label();
    c.mov(ecx, from)?;
    c.set_label(&mut again)?;
    c.add(qword_ptr(COUNTED + rcx * 8), rcx)?;
    c.dec(ecx)?;
    c.jnz(again)
}

fn first_processor(c: &mut CodeAssembler) -> Asm {
    c.mov(rsp, STACK)?;
    c.lidt(fword_ptr(IDT_OPERAND))?;
    // Interrupts of the timer, the serial port and the engine, which all stay pending for now.
    put(c, lapic::BASE + 0xf0, 0x1ff)?;
    put(c, lapic::BASE + 0x3e0, 0b1011)?;
    put(c, lapic::BASE + 0x320, 1 << 17 | VECTORS[1])?;
    put(c, lapic::BASE + 0x380, 500)?;
    put(c, ioapic::BASE, 0x10 + 2 * u32::from(uart::IRQ))?;
    put(c, ioapic::BASE + 0x10, VECTORS[2])?;
    output(c, uart::PORT + 1, 1)?;
    // The second processor: it halts until it is called.
    put(c, WAKEUP_MAILBOX + 4, 1)?;
    put_long(c, WAKEUP_MAILBOX + 8, SECOND)?;
    put(c, WAKEUP_MAILBOX, 1)?;
    count_down(c, 20_000)?;
    // The engine.
    configure(c, DMA_SLOT, 4, 0b110)?;
    put(c, ENGINE_TABLE, lapic::BASE_32)?;
    put(c, ENGINE_TABLE + 8, VECTORS[3])?;
    put(c, ENGINE_TABLE + 12, 0)?;
    configure(c, DMA_SLOT, 0x40, 1 << 31)?;
    put_long(c, ENGINE + dma::RING_PAGES, LIST)?;
    put(c, ENGINE + dma::RING_ENTRIES, 4)?;
    put_long(c, ENGINE + dma::COMPLETION_ADDRESS, COMPLETION)?;
    let control = dma::CONTROL_ENABLE | dma::CONTROL_FREE_RUN | dma::CONTROL_INTERRUPT;
    put(c, ENGINE + dma::CONTROL, control)?;
    ring_doorbell(c)?;
    count_down(c, 20_000)?;
    // Registers that only a read tells of.
    output(c, clock::INDEX, 0x0d)?;
    configure(c, 0, 4, 0b110)?;
    c.mov(ecx, 0xc000_0082_u32)?;
    c.mov(eax, 0x1234_u32)?;
    c.xor(edx, edx)?;
    c.wrmsr()?;
    ring_doorbell(c)?;

    // The machine is held here.
    get(c, MESSAGES + mailbox::REPLY_LENGTH)?;
    get(c, MESSAGES + mailbox::WINDOW)?;
    c.mov(r8d, eax)?;
    input(c, clock::DATA)?;
    c.mov(dx, u32::from(pci::ADDRESS_PORT))?;
    c.in_(eax, dx)?;
    select_config(c, 0, 4)?;
    c.in_(eax, dx)?;
    input(c, uart::PORT)?;
    get(c, ioapic::BASE + 0x10)?;
    get(c, lapic::BASE + 0x390)?;
    c.sti()?;
    // The second processor has some turns, in which it must not wake.
    count_down(c, 20_000)?;
    put(c, lapic::BASE + lapic::ICR_HIGH, 1 << 24)?;
    put(c, lapic::BASE + lapic::ICR_LOW, VECTORS[0])?;
    count_down(c, 50_000)?;
    // The next kernel, if the host said so; otherwise nothing more.
    let mut stuck = c.create_label();
    c.cmp(r8b, i32::from(ENTER[0]))?;
    c.mov(rsi, BOOT_PARAMS)?;
    c.mov(rax, NEXT_ENTRY)?;
    c.jne(stuck)?;
    c.jmp(rax)?;
    c.set_label(&mut stuck)?;
    c.jmp(stuck)
}

fn second_processor(c: &mut CodeAssembler) -> Asm {
    c.mov(rsp, STACK - 0x1000)?;
    c.lidt(fword_ptr(IDT_OPERAND))?;
    put(c, lapic::BASE + 0xf0, 0x1ff)?;
    c.sti()?;
    c.hlt()?;
    put(c, WOKEN, 1)?;
    c.cli()?;
    c.hlt()
}

/// Counts interrupts.
fn handler(c: &mut CodeAssembler) -> Asm {
    c.push(rax)?;
    c.lock().inc(qword_ptr(INTERRUPTS))?;
    put(c, lapic::BASE + 0xb0, 0)?;
    c.pop(rax)?;
    c.iretq()
}

fn assembled(at: u64, write: fn(&mut CodeAssembler) -> Asm) -> Vec<u8> {
    let mut code = CodeAssembler::new(64).unwrap();
    write(&mut code).unwrap();
    code.assemble(at).unwrap()
}

fn powered_on() -> Machine {
    let mut kernel = image(4096);
    let code = assembled(0, first_processor);
    kernel[1024 + 0x200..][..code.len()].copy_from_slice(&code);
    let config = MachineConfig {
        vcpus: 2,
        ..config(kernel)
    };
    let machine = Machine::new(&config, &Soft::default()).unwrap();
    let ram = machine.ram();
    let write = |address: u64, bytes: &[u8]| ram.write(address, bytes).unwrap();
    write(SECOND, &assembled(SECOND, second_processor));
    write(HANDLER, &assembled(HANDLER, handler));
    write(NEXT_ENTRY, &[0xeb, 0xfe]);
    let [a, b, c, d, ..] = HANDLER.to_le_bytes();
    for vector in VECTORS {
        let gate = [a, b, 0x10, 0, 0, 0x8e, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
        write(IDT + 16 * u64::from(vector), &gate);
    }
    write(
        IDT_OPERAND,
        &[&0xfff_u16.to_le_bytes()[..], &IDT.to_le_bytes()].concat(),
    );
    write(LIST, &RING.to_le_bytes());
    for index in 0..4 {
        let descriptor = [BUFFERS + index * 4096, 4096].map(u64::to_le_bytes);
        write(RING + index * 16, descriptor.as_flattened());
    }
    machine
}

fn held() -> Snapshot {
    let mut machine = powered_on();
    assert!(matches!(machine.run().unwrap(), Event::Message(_)));
    machine.enter_phase(Phase::Handover).unwrap();
    assert_eq!(machine.pass(1_000).unwrap(), None);
    machine.reply(b"on").unwrap();
    assert!(matches!(machine.run().unwrap(), Event::Jump { .. }));
    machine.type_in(b"typed");
    assert!(matches!(machine.run().unwrap(), Event::Message(_)));
    machine.stop_before(&[HANDLER]);
    let held = machine.snapshot().unwrap();
    let state = format!("{:?}", held.state);
    assert!(
        state.contains("activities: [Running, Halted { interruptible: true }]"),
        "{state:.300}"
    );
    held
}

/// What becomes of a machine after this answer, as far as anybody sees it: the state itself is left out.
fn fate(snapshot: &Snapshot, answer: &[u8]) -> Result<String, MachineError> {
    let mut machine = Machine::from_snapshot(snapshot)?;
    machine.reply(answer)?;
    let mut event = machine.run()?;
    let mut reached = 0;
    while matches!(event, Event::KernelEntry { .. } | Event::Reached { .. }) {
        reached += u32::from(matches!(event, Event::Reached { .. }));
        event = machine.run()?;
    }
    machine.finish()?;
    let ram = machine.ram();
    let mut page = [0; crate::memory::PAGE_BYTES];
    let mut content = xxhash_rust::xxh3::Xxh3::new();
    for pfn in ram.touched_pages() {
        ram.read(pfn * crate::memory::PAGE_SIZE, &mut page)?;
        content.update(&page);
    }
    Ok(format!(
        "{event:?} {reached} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:x}",
        machine.phases(),
        machine.blackouts(),
        machine.provenance(),
        machine.causes(),
        machine.console().text(),
        machine.trace(),
        machine.ledger().to_record(),
        machine.instructions_at(machine.moment().time),
        content.digest128(),
    ))
}

#[test]
fn a_machine_without_one_part_of_its_state_is_another_machine() {
    let held = held();
    let fates = |snapshot: &Snapshot| [STAY, ENTER].map(|answer| fate(snapshot, answer).ok());
    let expected = fates(&held);
    let [stayed, entered] = expected.each_ref().map(|fate| fate.as_ref().unwrap());
    assert!(stayed.starts_with("NoProgress") && !stayed.contains("generation: 1, phase: BootNew"));
    assert!(entered.starts_with("NoProgress") && entered.contains("generation: 1, phase: BootNew"));
    assert_eq!(fates(&held), expected);
    let fresh = powered_on().state();
    let mut silent = Vec::new();
    for (part, state) in each_part(&held.state, &fresh) {
        let other = Snapshot {
            ram: Arc::clone(&held.ram),
            state,
        };
        if fates(&other) == expected {
            silent.push(part);
        }
    }
    assert_eq!(silent, ENDS_ONLY, "parts without which nothing changes");
}

/// Parts that say how a run has ended, which this one has not.
const ENDS_ONLY: [&str; 2] = ["power", "ended"];

#[test]
fn nor_is_one_that_has_ended_the_same_without_its_end() {
    let mut kernel = image(4096);
    let code = assembled(0, |c| output(c, power::SLEEP_CONTROL, 0x34));
    kernel[1024 + 0x200..][..code.len()].copy_from_slice(&code);
    let machine = || Machine::new(&config(kernel.clone()), &Soft::default()).unwrap();
    let mut ended = machine();
    assert!(matches!(ended.run().unwrap(), Event::PowerOff { .. }));
    let (held, hash) = (ended.snapshot().unwrap(), ended.state_hash().unwrap());
    let hash_of = |state: MachineState| {
        let ram = Arc::clone(&held.ram);
        let mut machine = Machine::from_snapshot(&Snapshot { ram, state }).unwrap();
        machine.state_hash().unwrap()
    };
    assert_eq!(hash_of(held.state.clone()), hash);
    for (part, state) in each_part(&held.state, &machine().state()) {
        if ENDS_ONLY.contains(&part) {
            assert_ne!(hash_of(state), hash, "{part}");
        }
    }
}
