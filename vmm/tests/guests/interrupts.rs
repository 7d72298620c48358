//! Interrupts from the local APIC, from the I/O APIC and by message, and what delays or masks them.

use guest_agent::device::{DMA_SLOT, dma};
use iced_x86::code_asm::*;

use super::code::{Asm, Code, DATA, DMA, MSIX, STACK, UPPER};
use super::guest::Guest;
use vmm::devices::lapic::{
    ICR_HIGH, ICR_LOW, LVT_MASKED, LVT_TIMER, MSR_TSC_DEADLINE, TIMER_DIVIDE, TIMER_INITIAL, TPR,
};
use vmm::devices::{ioapic, uart};
use vmm::machine::{Event, Machine};
use vmm::memory::GuestRam;

const VECTOR: u8 = 0x51;
const OTHER: u8 = 0x62;
/// The counters of the two handlers.
const FIRST: u64 = DATA;
const SECOND: u64 = DATA + 8;
/// Where the handler stores the I/O APIC's entry.
const PIN: u64 = DATA + 0x1000;
/// I/O APIC entry: level-triggered; the last interrupt has not been ended.
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

fn count(ram: &GuestRam, counter: u64) -> u64 {
    ram.read_u64(counter).unwrap()
}

/// A guest that is interrupted at any point. What the interrupt leaves on the stack is not compared.
fn interrupted(write: impl FnOnce(&mut Code) -> Asm) -> Guest {
    let mut guest = Guest::new(write);
    guest.moving.insert((STACK - 1) >> 12);
    guest
}

/// Checks that on every backend the counters have these values and the guest switches itself off.
fn counts(guest: &Guest, drive: impl Fn(&mut Machine) -> Vec<Event>, expected: [u64; 2]) {
    for run in guest.compare(drive) {
        assert!(
            matches!(run.events.last(), Some(Event::PowerOff { .. })),
            "{}: {:?}",
            run.backend,
            run.events
        );
        let ram = run.machine.ram();
        assert_eq!(
            [count(ram, FIRST), count(ram, SECOND)],
            expected,
            "{}",
            run.backend
        );
    }
}

fn to_the_end(machine: &mut Machine) -> Vec<Event> {
    super::guest::to_the_end(machine)
}

/// Halts until the counter has this value. Interrupts are off while it is compared, so none is missed.
fn sleep_for(c: &mut Code, counter: u64, value: i32) -> Asm {
    let mut again = c.create_label();
    let mut done = c.create_label();
    c.mov(rbx, UPPER + counter)?;
    c.set_label(&mut again)?;
    c.cli()?;
    c.cmp(qword_ptr(rbx), value)?;
    c.jae(done)?;
    c.sti()?;
    c.hlt()?;
    c.jmp(again)?;
    c.set_label(&mut done)?;
    c.sti()
}

fn prologue(c: &mut Code) -> Asm {
    c.tables()?;
    c.enable_apic()
}

/// Clears what depends on timing, and switches off.
fn epilogue(c: &mut Code) -> Asm {
    c.cli()?;
    c.mov(ecx, 0)?;
    c.power_off()
}

#[test]
fn the_one_shot_timer_fires_once() {
    let guest = interrupted(|c| {
        prologue(c)?;
        c.apic(TIMER_DIVIDE, 0b1011)?;
        c.apic(LVT_TIMER, VECTOR.into())?;
        c.apic(TIMER_INITIAL, 1000)?;
        sleep_for(c, FIRST, 1)?;
        c.apic(TIMER_INITIAL, 1000)?;
        c.wait_for(FIRST, 2)?;
        epilogue(c)?;
        c.counting_handler(VECTOR, FIRST)
    });
    counts(&guest, to_the_end, [2, 0]);
}

#[test]
fn the_timer_repeats() {
    let guest = interrupted(|c| {
        prologue(c)?;
        c.apic(TIMER_DIVIDE, 0b1011)?;
        c.apic(LVT_TIMER, u32::from(VECTOR) | 1 << 17)?;
        c.apic(TIMER_INITIAL, 2_000_000)?;
        sleep_for(c, FIRST, 2)?;
        // It is masked, so no interrupt follows.
        c.cli()?;
        c.apic(LVT_TIMER, u32::from(VECTOR) | LVT_MASKED | 1 << 17)?;
        // On a busy host there may have been more than two.
        c.store32(FIRST, 2)?;
        epilogue(c)?;
        c.counting_handler(VECTOR, FIRST)
    });
    counts(&guest, to_the_end, [2, 0]);
}

/// Sets the timer to `ticks` of the TSC from now on.
fn deadline(c: &mut Code, ticks: i32) -> Asm {
    c.rdtsc()?;
    c.shl(rdx, 32)?;
    c.or(rax, rdx)?;
    c.add(rax, ticks)?;
    c.mov(rdx, rax)?;
    c.shr(rdx, 32)?;
    c.mov(ecx, MSR_TSC_DEADLINE)?;
    c.wrmsr()
}

#[test]
fn the_timer_keeps_a_deadline() {
    let guest = interrupted(|c| {
        prologue(c)?;
        c.apic(LVT_TIMER, u32::from(VECTOR) | 2 << 17)?;
        c.sti()?;
        deadline(c, 200_000)?;
        sleep_for(c, FIRST, 1)?;
        // A deadline that has passed.
        deadline(c, -1)?;
        sleep_for(c, FIRST, 2)?;
        // A deadline that is cancelled.
        deadline(c, i32::MAX)?;
        c.write_msr(MSR_TSC_DEADLINE, 0)?;
        deadline(c, 100_000)?;
        c.wait_for(FIRST, 3)?;
        epilogue(c)?;
        c.counting_handler(VECTOR, FIRST)
    });
    counts(&guest, to_the_end, [3, 0]);
}

#[test]
fn a_processor_interrupts_itself() {
    let guest = interrupted(|c| {
        prologue(c)?;
        c.sti()?;
        // By the shorthand "self", and by its own APIC ID.
        c.apic(ICR_LOW, u32::from(VECTOR) | 1 << 18 | 1 << 14)?;
        c.wait_for(FIRST, 1)?;
        c.apic(ICR_HIGH, 0)?;
        c.apic(ICR_LOW, u32::from(OTHER) | 1 << 14)?;
        c.wait_for(SECOND, 1)?;
        // To an APIC ID that no processor has.
        c.apic(ICR_HIGH, 5 << 24)?;
        c.apic(ICR_LOW, u32::from(OTHER) | 1 << 14)?;
        c.nop()?;
        epilogue(c)?;
        c.counting_handler(VECTOR, FIRST)?;
        c.counting_handler(OTHER, SECOND)
    });
    counts(&guest, to_the_end, [1, 1]);
}

#[test]
fn task_priority_delays_interrupts() {
    // Set by CR8, and by the local APIC's register.
    let guest = interrupted(|c| {
        prologue(c)?;
        c.sti()?;
        c.mov(ecx, 5)?;
        c.mov(cr8, rcx)?;
        c.apic(ICR_LOW, u32::from(VECTOR) | 1 << 18 | 1 << 14)?;
        c.apic(ICR_LOW, u32::from(OTHER) | 1 << 18 | 1 << 14)?;
        c.wait_for(SECOND, 1)?;
        c.mov(rax, UPPER + FIRST)?;
        c.mov(r12, qword_ptr(rax))?;
        c.mov(r13, cr8)?;
        c.mov(ecx, 4)?;
        c.mov(cr8, rcx)?;
        c.wait_for(FIRST, 1)?;
        c.apic(TPR, 0xf0)?;
        c.apic(ICR_LOW, u32::from(OTHER) | 1 << 18 | 1 << 14)?;
        c.nop()?;
        c.mov(rax, UPPER + SECOND)?;
        c.mov(r15, qword_ptr(rax))?;
        c.apic(TPR, 0)?;
        c.wait_for(SECOND, 2)?;
        epilogue(c)?;
        c.counting_handler(VECTOR, FIRST)?;
        c.counting_handler(OTHER, SECOND)
    });
    for run in guest.completed() {
        let gpr = run.evidence.registers.gpr;
        assert_eq!(gpr[12..], [0, 5, 0, 1], "{}", run.backend);
        assert_eq!(count(run.machine.ram(), SECOND), 2);
    }
}

/// A handler that shifts the UART's byte into R12. With `look_at_pin`, the first interrupt stores the pin's entry.
fn uart_handler(c: &mut Code, look_at_pin: bool) -> Asm {
    c.handler(VECTOR)?;
    c.push(rax)?;
    c.push(rdx)?;
    if look_at_pin {
        let mut seen = c.create_label();
        c.test(r12, r12)?;
        c.jnz(seen)?;
        c.store32(ioapic::BASE, 0x10 + 2 * u32::from(uart::IRQ))?;
        c.mov(rax, UPPER + ioapic::BASE + 0x10)?;
        c.mov(edx, dword_ptr(rax))?;
        c.mov(rax, UPPER + PIN)?;
        c.mov(dword_ptr(rax), edx)?;
        c.set_label(&mut seen)?;
    }
    c.mov(edx, u32::from(uart::PORT))?;
    c.in_(al, dx)?;
    c.shl(r12, 8)?;
    c.movzx(eax, al)?;
    c.or(r12, rax)?;
    c.count(FIRST)?;
    c.end_of_interrupt()?;
    c.pop(rdx)?;
    c.pop(rax)?;
    c.iretq()
}

/// Types one byte after each of two messages.
fn typing(machine: &mut Machine) -> Vec<Event> {
    let mut events = Vec::new();
    for byte in b"ab" {
        events.push(machine.run().unwrap());
        assert_eq!(machine.type_in(&[*byte]), 1);
        machine.reply(&[]).unwrap();
    }
    events.push(machine.run().unwrap());
    events
}

fn typed_to(flags: u32) -> Guest {
    interrupted(|c| {
        prologue(c)?;
        c.io_apic(uart::IRQ, VECTOR, flags)?;
        c.out8(uart::PORT + 1, 1)?;
        c.sti()?;
        c.ring(0)?;
        sleep_for(c, FIRST, 1)?;
        c.ring(0)?;
        c.wait_for(FIRST, 2)?;
        c.cli()?;
        c.store32(ioapic::BASE, 0x10 + 2 * u32::from(uart::IRQ))?;
        c.mov(rax, UPPER + ioapic::BASE + 0x10)?;
        c.mov(r14d, dword_ptr(rax))?;
        epilogue(c)?;
        uart_handler(c, true)
    })
}

#[test]
fn typing_interrupts_through_the_io_apic() {
    let guest = typed_to(0);
    for run in guest.compare(typing) {
        let gpr = run.evidence.registers.gpr;
        assert_eq!(gpr[12], 0x6162, "{}", run.backend);
        let found = count(run.machine.ram(), PIN);
        assert_eq!((found & REMOTE_IRR, gpr[14] & REMOTE_IRR), (0, 0));
    }
}

#[test]
fn a_level_triggered_interrupt_is_ended_at_the_io_apic() {
    let mut guest = typed_to(LEVEL);
    // A KVM that emulates guest kernels reports the end of the interrupt when it delivers it, before the handler runs.
    guest.moving.insert(PIN >> 12);
    for run in guest.compare(typing) {
        let gpr = run.evidence.registers.gpr;
        assert_eq!(gpr[12], 0x6162, "{}", run.backend);
        let found = count(run.machine.ram(), PIN) & REMOTE_IRR;
        assert!(found == REMOTE_IRR || run.is_emulated(), "{}", run.backend);
        assert_eq!(gpr[14] & REMOTE_IRR, 0, "{}", run.backend);
    }
}

#[test]
fn a_masked_pin_does_not_interrupt() {
    let guest = interrupted(|c| {
        prologue(c)?;
        c.io_apic(uart::IRQ, VECTOR, 1 << 16)?;
        c.out8(uart::PORT + 1, 1)?;
        c.sti()?;
        c.ring(0)?;
        c.ring(0)?;
        epilogue(c)?;
        uart_handler(c, false)
    });
    counts(&guest, typing, [0, 0]);
}

#[test]
fn the_engine_interrupts_by_message() {
    const RING: u64 = DATA + 0x1000;
    const BUFFER: u64 = DATA + 0x2000;
    const DONE: u64 = DATA + 0x3000;
    const LIST: u64 = DATA + 0x4000;
    let mut guest = interrupted(|c| {
        prologue(c)?;
        // Turns on memory space, bus master and MSI-X, and directs vector 0 to this processor, unmasked.
        c.config(DMA_SLOT, 0x04, 0x6)?;
        c.config(DMA_SLOT, 0x40, 1 << 31)?;
        c.store32(MSIX, 0xfee0_0000)?;
        c.store32(MSIX + 4, 0)?;
        c.store32(MSIX + 8, VECTOR.into())?;
        c.store32(MSIX + 12, 0)?;
        c.store64(DMA + dma::RING_PAGES, LIST)?;
        c.store32(DMA + dma::RING_ENTRIES, 1)?;
        c.store64(DMA + dma::COMPLETION_ADDRESS, DONE)?;
        c.store32(DMA + dma::CONTROL, dma::CONTROL_ENABLE | dma::CONTROL_INTERRUPT)?;
        // After one block the ring is full until the guest gives the block back.
        sleep_for(c, FIRST, 1)?;
        c.store64(DMA + dma::CONSUMED, 1)?;
        c.wait_for(FIRST, 2)?;
        c.mov(rax, UPPER + DONE)?;
        c.mov(r12, qword_ptr(rax))?;
        // The interrupt of the next block is masked, and pending until it is unmasked.
        c.cli()?;
        c.store32(MSIX + 12, 1)?;
        c.store64(DMA + dma::CONSUMED, 2)?;
        c.wait_for(DONE, 3)?;
        c.sti()?;
        c.nop()?;
        c.mov(rax, UPPER + FIRST)?;
        c.mov(r13, qword_ptr(rax))?;
        c.mov(rax, UPPER + MSIX + dma::MSIX_PBA)?;
        c.mov(r14, qword_ptr(rax))?;
        c.store32(MSIX + 12, 0)?;
        c.wait_for(FIRST, 3)?;
        epilogue(c)?;
        c.counting_handler(VECTOR, FIRST)
    });
    guest.memory.push((LIST, RING.to_le_bytes().to_vec()));
    let descriptors = [BUFFER, 64];
    guest.memory.push((
        RING,
        descriptors.iter().flat_map(|word| word.to_le_bytes()).collect(),
    ));
    for run in guest.completed() {
        let gpr = run.evidence.registers.gpr;
        assert_eq!(gpr[12..15], [2, 2, 1], "{}", run.backend);
        assert_eq!(count(run.machine.ram(), FIRST), 3);
        // Device writes do not count as a processor's.
        let pages = &run.evidence.pages[0].1;
        assert!(
            !pages.contains(&(BUFFER >> 12)) && !pages.contains(&(DONE >> 12)),
            "{}: {pages:x?}",
            run.backend
        );
        assert!(run.evidence.ledger.contains(&BUFFER) && run.evidence.ledger.contains(&0xfee0_0000));
    }
}
