//! A guest that accesses the registers of all devices with pseudo-random values: it ends in a regular way or with a clear
//! error, and changes no memory but by its own writes and those in the ledger.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use iced_x86::code_asm::*;

use super::code::{Code, DATA, DMA, MAILBOX, MSIX, UPPER};
use super::guest::Guest;
use super::hosts;
use vmm::devices::{clock, ioapic, lapic, pci, power, uart};
use vmm::machine::{Event, Machine};
use vmm::memory::{GuestRam, PAGE_BYTES, PAGE_SIZE};
use vmm::processors::Backend;

/// Accesses of a guest that nothing ends before.
const ACCESSES: u32 = 3000;
/// Guests on softcpu, and on KVM, where each access is an exit.
const SEEDS: u64 = 8;
const SEEDS_ON_KVM: u64 = 2;
/// Where a guest has the places that it accesses: 32 ports, and addresses in the upper half.
const PLACES: u64 = DATA + 0x8000;
const PORT_END: i32 = 0x1_0000;
/// Bits of the random number: read, 64 or 8 bits wide, 16 bits wide, a value that is a page's address.
const READS: u32 = 40;
const WIDE: u32 = 41;
const HALF: u32 = 42;
const PAGE_ADDRESS: u32 = 43;

/// The places that a guest accesses. One of an odd number spares those that end a run: the doorbell and what resets.
fn places(seed: u64) -> Vec<u8> {
    let spares = spares(seed);
    let ports = [
        uart::PORT,
        clock::INDEX,
        pci::ADDRESS_PORT,
        pci::DATA_PORT,
        pci::ADDRESS_PORT,
        pci::DATA_PORT,
        if spares { 0x80 } else { power::SLEEP_CONTROL },
        0x20,
    ];
    let window = MAILBOX + 0x1000;
    let pages = [
        lapic::BASE,
        ioapic::BASE,
        if spares { window } else { MAILBOX },
        window,
        DMA,
        DMA,
        DMA,
        MSIX,
    ];
    let ports = ports.into_iter().map(u64::from);
    let places = ports.chain(pages.map(|page| UPPER + page));
    places.flat_map(u64::to_le_bytes).collect()
}

fn spares(seed: u64) -> bool {
    seed % 2 == 1
}

/// A guest with random numbers from `seed`, which is not 0.
fn guest(seed: u64) -> Guest {
    let mut guest = Guest::new(|c| {
        c.tables()?;
        c.mov(rbx, seed)?;
        c.mov(r12d, ACCESSES)?;
        c.mov(r13, UPPER + PLACES)?;
        let mut again = c.create_label();
        let (mut port, mut next) = (c.create_label(), c.create_label());
        c.set_label(&mut again)?;
        // Xorshift.
        for (left, bits) in [(true, 13), (false, 7), (true, 17)] {
            c.mov(rax, rbx)?;
            if left {
                c.shl(rax, bits)?
            } else {
                c.shr(rax, bits)?
            }
            c.xor(rbx, rax)?;
        }
        c.mov(rcx, rbx)?;
        c.shr(rcx, 20)?;
        let mut whole = c.create_label();
        c.bt(rbx, PAGE_ADDRESS)?;
        c.jnc(whole)?;
        c.and(rcx, 0x1ff_f000)?;
        c.set_label(&mut whole)?;
        c.mov(rdx, rbx)?;
        c.shr(rdx, 8)?;
        c.mov(eax, ebx)?;
        c.and(eax, 15)?;
        c.mov(rsi, qword_ptr(r13 + rax * 8))?;
        c.cmp(rsi, PORT_END)?;
        c.jb(port)?;
        memory(c, next)?;
        c.set_label(&mut port)?;
        ports(c, next, spares(seed))?;
        c.set_label(&mut next)?;
        c.dec(r12d)?;
        c.jnz(again)?;
        c.power_off()?;
        // An NMI that the guest sends to itself.
        c.handler(2)?;
        c.iretq()
    });
    guest.memory.push((PLACES, places(seed)));
    guest
}

/// Accesses the page at RSI, mostly one of its first registers.
fn memory(c: &mut Code, next: CodeLabel) -> super::code::Asm {
    let (mut first, mut reads, mut wide, mut wide_read) = (
        c.create_label(),
        c.create_label(),
        c.create_label(),
        c.create_label(),
    );
    c.and(edx, 0xffc)?;
    c.bt(rbx, HALF)?;
    c.jnc(first)?;
    c.and(edx, 0x5c)?;
    c.set_label(&mut first)?;
    c.add(rsi, rdx)?;
    c.bt(rbx, READS)?;
    c.jc(reads)?;
    c.bt(rbx, WIDE)?;
    c.jc(wide)?;
    c.mov(dword_ptr(rsi), ecx)?;
    c.jmp(next)?;
    c.set_label(&mut wide)?;
    c.and(rsi, -8)?;
    c.mov(qword_ptr(rsi), rcx)?;
    c.jmp(next)?;
    c.set_label(&mut reads)?;
    c.bt(rbx, WIDE)?;
    c.jc(wide_read)?;
    c.mov(eax, dword_ptr(rsi))?;
    c.jmp(next)?;
    c.set_label(&mut wide_read)?;
    c.and(rsi, -8)?;
    c.mov(rax, qword_ptr(rsi))?;
    c.jmp(next)
}

/// Accesses one of four ports from the one in RSI on.
fn ports(c: &mut Code, next: CodeLabel, spares: bool) -> super::code::Asm {
    let (mut reads, mut byte, mut word) = (c.create_label(), c.create_label(), c.create_label());
    c.and(edx, 3)?;
    if spares {
        // The port after the address register's first resets.
        let mut other = c.create_label();
        c.cmp(esi, i32::from(pci::ADDRESS_PORT))?;
        c.jne(other)?;
        c.xor(edx, edx)?;
        c.set_label(&mut other)?;
    }
    c.add(edx, esi)?;
    c.mov(eax, ecx)?;
    c.bt(rbx, READS)?;
    c.jc(reads)?;
    c.bt(rbx, WIDE)?;
    c.jc(byte)?;
    c.bt(rbx, HALF)?;
    c.jc(word)?;
    c.out(dx, eax)?;
    c.jmp(next)?;
    c.set_label(&mut byte)?;
    c.out(dx, al)?;
    c.jmp(next)?;
    c.set_label(&mut word)?;
    c.out(dx, ax)?;
    c.jmp(next)?;
    c.set_label(&mut reads)?;
    c.in_(eax, dx)?;
    c.in_(al, dx)?;
    c.jmp(next)
}

/// All of RAM.
fn content(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ram.bytes()).unwrap()];
    ram.read(0, &mut bytes).unwrap();
    bytes
}

/// Page frames that differ from `before`.
fn changed(before: &[u8], ram: &GuestRam) -> BTreeSet<u64> {
    let after = content(ram);
    let pages = before.chunks(PAGE_BYTES).zip(after.chunks(PAGE_BYTES));
    (0..)
        .zip(pages)
        .filter(|(_, (before, after))| before != after)
        .map(|(pfn, _)| pfn)
        .collect()
}

/// Runs a guest; returns how it ended. `meddle` is called at the end.
fn end(seed: u64, backend: &dyn Backend, meddle: fn(&GuestRam)) -> String {
    let (before, error) = (RefCell::new(Vec::new()), RefCell::new(None));
    let run = guest(seed).run_on(backend, &|machine: &mut Machine| {
        before.replace(content(machine.ram()));
        let mut events = Vec::new();
        while events.last().is_none_or(|event: &Event| !event.is_final()) {
            match machine.run() {
                Ok(event) => {
                    if let Event::Message(_) = event {
                        machine.reply(b"ok").unwrap();
                    }
                    events.push(event);
                }
                Err(found) => {
                    error.replace(Some(found.to_string()));
                    break;
                }
            }
        }
        meddle(machine.ram());
        events
    });
    let mut written: BTreeSet<u64> = run
        .evidence
        .pages
        .iter()
        .flat_map(|(_, pages)| pages)
        .copied()
        .collect();
    for entry in run.machine.ledger().entries() {
        let last = entry.address + u64::from(entry.length.max(1)) - 1;
        written.extend(entry.address / PAGE_SIZE..=last / PAGE_SIZE);
    }
    let silently: Vec<u64> = changed(&before.borrow(), run.machine.ram())
        .difference(&written)
        .copied()
        .collect();
    assert!(
        silently.is_empty(),
        "seed {seed} on {}: pages {silently:x?} changed, and nobody wrote them",
        run.backend
    );
    let ended = error
        .take()
        .unwrap_or_else(|| run.evidence.events.last().cloned().unwrap_or_default());
    assert!(!ended.is_empty(), "seed {seed} on {}", run.backend);
    ended
}

fn ends(backend: &dyn Backend, seeds: u64) {
    let all: BTreeMap<u64, String> = (1..=seeds)
        .map(|seed| (seed, end(seed, backend, |_| ())))
        .collect();
    println!("on {}: {all:?}", backend.name());
    let whole = |(seed, end): (&u64, &String)| spares(*seed) && end == "power off";
    assert!(all.iter().any(whole), "none made all of its accesses: {all:?}");
}

#[test]
fn garbage_in_every_register_ends_in_a_regular_way_on_soft() {
    ends(hosts::backends()[0], SEEDS);
}

#[test]
fn garbage_in_every_register_ends_in_a_regular_way_on_kvm() {
    let Some(kvm) = hosts::kvm() else { return };
    ends(kvm, SEEDS_ON_KVM);
}

#[test]
#[should_panic(expected = "nobody wrote them")]
fn memory_that_changes_silently_is_found() {
    end(1, hosts::backends()[0], |ram| {
        ram.write(0x1c0_0000, &[1]).unwrap()
    });
}
