//! What can be learned of accesses to memory: first writes, last writers, first accesses.

mod common;

use common::{CODE, Guest, PT, STACK};
use iced_x86::code_asm::*;
use softcpu::{Exit, NoBus};

fn run(guest: &mut Guest) {
    guest.cpu.run(&mut guest.ram, &mut NoBus, 100_000);
}

#[test]
fn the_first_access_to_a_watched_page_is_remembered() {
    let mut guest = Guest::new(|a| {
        // Known to the processor before anybody watches.
        a.mov(rax, qword_ptr(0x9_0000)).unwrap();
        a.hlt().unwrap();
        a.nop().unwrap();
        a.mov(rax, qword_ptr(0x9_0008)).unwrap();
        a.mov(qword_ptr(0x9_1000), 1).unwrap();
        a.mov(rax, qword_ptr(0x9_0010)).unwrap();
        a.hlt().unwrap();
    });
    run(&mut guest);
    for page in [0x9_0000, 0x9_1000, 0x9_2000] {
        guest.cpu.watch_first_access(&guest.ram, page);
        assert_eq!(guest.cpu.first_access(&guest.ram, page), None);
    }
    let begin = guest.cpu.now();
    run(&mut guest);
    let first = |page| guest.cpu.first_access(&guest.ram, page).map(|time| time - begin);
    assert_eq!(first(0x9_0000), Some(1), "a read, of what was known before");
    assert_eq!(first(0x9_1000), Some(2), "a write");
    assert_eq!((first(0x9_2000), first(0x9_3000)), (None, None));
}

#[test]
fn writes_are_logged_once_an_epoch_and_watched_pages_know_their_last_writer() {
    let mut guest = Guest::new(|a| {
        a.mov(qword_ptr(0x9_0000), 1).unwrap();
        a.mov(qword_ptr(0x9_0008), 2).unwrap();
        a.mov(byte_ptr(0x9_0008), 3).unwrap();
        a.hlt().unwrap();
    });
    guest.cpu.watch_writes(&guest.ram, 0x9_0000, true);
    guest.cpu.begin_write_epoch(&guest.ram);
    run(&mut guest);
    // Walks set bits in the page tables, which are below the data.
    let first = |guest: &Guest| -> Vec<_> {
        let writes = guest.cpu.epoch_writes().iter();
        let data = writes.filter(|w| w.gpa >= 0x9_0000);
        data.map(|w| (w.gpa, w.len, w.time)).collect()
    };
    assert_eq!(first(&guest), [(0x9_0000, 8, 0)]);
    let last = guest.cpu.last_write(&guest.ram, 0x9_0008).unwrap();
    assert_eq!((last.len, last.time), (1, 2));
    assert!(last.rip > CODE && !last.user);
    guest.cpu.begin_write_epoch(&guest.ram);
    guest.set(|state| state.rip = CODE);
    run(&mut guest);
    assert_eq!(first(&guest).len(), 1, "each epoch logs anew");
}

#[test]
fn an_unwatched_page_is_logged_with_the_exact_instruction() {
    let mut guest = Guest::new(|a| {
        a.nop().unwrap();
        a.push(rax).unwrap();
        a.hlt().unwrap();
    });
    guest.cpu.begin_write_epoch(&guest.ram);
    run(&mut guest);
    let mut writes = guest.cpu.epoch_writes().iter();
    let record = writes
        .find(|w| w.gpa >= PT + 0x1000)
        .expect("a write besides the page tables'");
    assert_eq!((record.gpa, record.rip, record.time), (STACK - 8, CODE + 1, 1));
}

/// Runs until an awaited address or the end; the addresses, and when.
fn awaited(guest: &mut Guest) -> Vec<(u64, u64)> {
    let mut seen = Vec::new();
    loop {
        match guest.cpu.run(&mut guest.ram, &mut NoBus, 100_000) {
            Exit::WatchAddress { rip } => seen.push((rip - CODE, guest.cpu.now())),
            Exit::Halted { .. } => return seen,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_processor_stops_before_each_awaited_instruction_and_nothing_else_changes() {
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 3).unwrap(); // 0
        a.set_label(&mut again).unwrap();
        a.nop().unwrap(); // 5
        a.dec(ecx).unwrap(); // 6
        a.jne(again).unwrap();
        a.hlt().unwrap();
    };
    let mut free = Guest::new(program);
    assert_eq!(awaited(&mut free), []);
    let mut guest = Guest::new(program);
    guest.cpu.await_addresses(&[CODE + 5, CODE + 0x2000], u64::MAX);
    assert_eq!(awaited(&mut guest), [(5, 1), (5, 4), (5, 7)]);
    assert_eq!(guest.cpu.now(), free.cpu.now());
    assert_eq!(guest.cpu.registers(), free.cpu.registers());
    // Only some bits count.
    guest.set(|state| state.rip = CODE);
    guest.cpu.await_addresses(&[CODE + 5 + (1 << 30)], (1 << 30) - 1);
    assert_eq!(awaited(&mut guest).len(), 3);
    guest.set(|state| state.rip = CODE);
    guest.cpu.await_addresses(&[CODE + 5 + (1 << 30)], u64::MAX);
    assert_eq!(awaited(&mut guest), []);
    guest.set(|state| state.rip = CODE);
    guest.cpu.await_addresses(&[], u64::MAX);
    assert_eq!(awaited(&mut guest), []);
}
