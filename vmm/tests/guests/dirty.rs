//! The pages that the processor wrote in each phase. They are the same on both backends; only softcpu knows the exact
//! writes.

use std::collections::BTreeSet;

use iced_x86::code_asm::*;

use super::code::{Asm, Code, DATA, GDT, STACK, UPPER, UPPER_ENTRY};
use super::guest::{Guest, LEAF, TABLE, to_the_end};
use super::hosts;
use vmm::boot::layout::PDPT;
use vmm::machine::{Event, Machine};
use vmm::memory::PAGE_SIZE;
use vmm::phase::Phase;

const PAGE: u64 = DATA >> 12;

/// Physical address of data page `index`.
fn page(index: u64) -> u64 {
    DATA + index * PAGE_SIZE
}

/// Writes one word to each of these data pages.
fn touch(c: &mut Code, pages: &[u64]) -> Asm {
    pages
        .iter()
        .try_for_each(|index| c.store32(page(*index) + 8 * index, 1))
}

fn set(pages: &[u64]) -> BTreeSet<u64> {
    pages.iter().map(|index| PAGE + index).collect()
}

#[test]
fn every_kind_of_write_counts_and_reads_do_not() {
    let mut guest = Guest::new(|c| {
        c.mov(rbx, UPPER + DATA)?;
        c.mov(rax, qword_ptr(rbx))?;
        c.test(qword_ptr(rbx), rax)?;
        c.cmp(byte_ptr(rbx), 0)?;
        // The same value again is a write.
        c.mov(rax, UPPER + page(1))?;
        c.mov(rcx, qword_ptr(rax))?;
        c.mov(qword_ptr(rax), rcx)?;
        // Across a boundary: both pages.
        c.mov(rax, UPPER + page(3) - 4)?;
        c.mov(qword_ptr(rax), rcx)?;
        c.mov(rax, UPPER + page(4))?;
        c.lock().add(dword_ptr(rax), 1)?;
        c.mov(rax, UPPER + page(5))?;
        c.xchg(qword_ptr(rax), rcx)?;
        // A compare and exchange that does not exchange writes the old value back.
        c.mov(rdx, UPPER + page(6))?;
        c.mov(eax, 77)?;
        c.lock().cmpxchg(qword_ptr(rdx), rcx)?;
        c.mov(rdi, UPPER + page(7))?;
        c.mov(ecx, 1024)?;
        c.rep().stosq()?;
        c.mov(rsi, UPPER + DATA)?;
        c.mov(ecx, 512)?;
        c.rep().movsq()?;
        c.mov(ecx, 0)?;
        c.mov(rdi, UPPER + page(11))?;
        c.rep().stosb()?;
        c.mov(rsp, UPPER + page(13))?;
        c.push(rax)?;
        let mut there = c.create_label();
        c.mov(rsp, UPPER + page(15))?;
        c.call(there)?;
        c.set_label(&mut there)?;
        c.mov(rax, UPPER + page(16))?;
        c.bts(qword_ptr(rax), 3)?;
        c.mov(rax, UPPER + page(17))?;
        c.setc(byte_ptr(rax))?;
        c.mov(rax, UPPER + page(18))?;
        c.sgdt(qword_ptr(rax))?;
        c.mov(rax, UPPER + page(19))?;
        c.mov(word_ptr(rax), ds)?;
        c.mov(rsp, UPPER + page(21))?;
        c.pushfq()?;
        c.pop(rax)?;
        c.cmp(qword_ptr(rbx), 1)?;
        c.mov(rax, UPPER + page(22))?;
        c.bt(qword_ptr(rax), 3)?;
        c.mov(rax, UPPER + page(23))?;
        c.prefetchw(byte_ptr(rax))?;
        c.power_off()
    });
    guest.memory.push((page(2), vec![1; 0x100]));
    for run in guest.completed() {
        assert_eq!(
            run.evidence.pages_in(Phase::BootOld),
            set(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 16, 17, 18, 19, 20]),
            "{}",
            run.backend
        );
    }
}

/// KVM's dirty log may have a page that was only read, if that was the first access to it (see
/// [`hosts::reads_may_count`]). Later reads do not add it again.
#[test]
fn a_read_counts_at_most_once() {
    let mut guest = Guest::new(|c| {
        c.mov(rbx, UPPER + DATA)?;
        for _ in 0..2 {
            c.mov(al, byte_ptr(rbx))?;
            c.ring(0)?;
        }
        c.mov(al, byte_ptr(rbx))?;
        c.ring(0)?;
        c.power_off()
    });
    guest.memory.push((DATA, vec![1]));
    for run in guest.compare(in_phases) {
        let writes = run.machine.provenance().phases().iter().skip(1);
        let later = writes
            .flat_map(|phase| &phase.writes)
            .filter(|write| write.pfn() == PAGE);
        assert_eq!(later.count(), 0, "{}", run.backend);
    }
}

/// Answers each message and begins the next phase.
fn in_phases(machine: &mut Machine) -> Vec<Event> {
    let mut events = Vec::new();
    for phase in [Phase::Prepare, Phase::Armed, Phase::Handover] {
        events.push(machine.run().unwrap());
        machine.enter_phase(phase).unwrap();
        machine.reply(&[]).unwrap();
    }
    events.push(machine.run().unwrap());
    events
}

#[test]
fn writes_belong_to_their_phase() {
    let guest = Guest::new(|c| {
        touch(c, &[0, 1])?;
        c.ring(0)?;
        touch(c, &[1, 2])?;
        c.ring(0)?;
        // No write in this phase.
        c.mov(rax, UPPER + DATA)?;
        c.mov(rax, qword_ptr(rax))?;
        c.ring(0)?;
        touch(c, &[0, 1, 2, 3])?;
        c.power_off()
    });
    for run in guest.compare(in_phases) {
        let found = [Phase::BootOld, Phase::Prepare, Phase::Armed, Phase::Handover]
            .map(|phase| run.evidence.pages_in(phase));
        assert_eq!(
            found,
            [set(&[0, 1]), set(&[1, 2]), set(&[]), set(&[0, 1, 2, 3])],
            "{}",
            run.backend
        );
    }
}

#[test]
fn writes_are_recorded_in_mid_phase() {
    // `split_page_writes` records what was written before it, and what is written again after it.
    let guest = Guest::new(|c| {
        touch(c, &[0])?;
        c.ring(0)?;
        touch(c, &[0, 1])?;
        c.power_off()
    });
    for run in guest.compare(|machine| {
        let message = machine.run().unwrap();
        machine.split_page_writes().unwrap();
        machine.reply(&[]).unwrap();
        vec![message, machine.run().unwrap()]
    }) {
        let writes = &run.machine.provenance().phases()[0].writes;
        let of_first = writes.iter().filter(|write| write.pfn() == PAGE).count();
        assert_eq!(of_first, 2, "{}", run.backend);
        assert_eq!(run.evidence.pages_in(Phase::BootOld), set(&[0, 1]));
    }
}

#[test]
fn writes_of_host_and_loader_do_not_count() {
    let guest = Guest::new(|c| {
        c.ring(0)?;
        touch(c, &[1])?;
        c.power_off()
    });
    for run in guest.compare(|machine| {
        let message = machine.run().unwrap();
        machine.ram().write(page(0), b"written by the host").unwrap();
        machine.ram().write(page(1), b"written by the host").unwrap();
        machine.reply(&[]).unwrap();
        vec![message, machine.run().unwrap()]
    }) {
        assert_eq!(
            run.evidence.pages_in(Phase::BootOld),
            set(&[1]),
            "{}",
            run.backend
        );
    }
}

#[test]
fn implicit_writes_count() {
    // Accessed and dirty bits of page tables, the accessed bit of a descriptor, the busy bit of a TSS, an exception
    // frame.
    const TABLES: u64 = 0x70_0000;
    let (top, middle, bottom) = (TABLES, TABLES + 0x1000, TABLES + 0x2000);
    let mut guest = Guest::new(|c| {
        c.tables()?;
        c.mov(rax, top)?;
        c.mov(cr3, rax)?;
        // With the new page tables, page 0 is read and page 1 is written.
        c.mov(rax, DATA)?;
        c.mov(rcx, qword_ptr(rax))?;
        c.mov(qword_ptr(rax + 0x1000), rcx)?;
        c.int(0x80)?;
        c.power_off()?;
        c.handler(0x80)?;
        c.iretq()
    });
    let fresh = |entry: u64| (entry & !0x60).to_le_bytes().to_vec();
    guest.memory.extend([
        (top, fresh(middle | TABLE)),
        (top + UPPER_ENTRY, (PDPT | TABLE).to_le_bytes().to_vec()),
        (middle, fresh(bottom | TABLE)),
        (bottom + 2 * 8, fresh(2 << 21 | LEAF)),
    ]);
    for backend in hosts::backends() {
        let run = guest.run_on(backend, &to_the_end);
        let mut expected = set(&[1]);
        expected.extend([GDT, STACK - 1, top, middle, bottom].map(|address| address >> 12));
        let found = run.evidence.pages_in(Phase::BootOld);
        assert!(found.is_superset(&expected), "{}: {found:x?}", run.backend);
        assert!(
            found == expected || hosts::reads_may_count(),
            "{}: {found:x?}",
            run.backend
        );
        let entry = run.machine.ram().read_u64(bottom + 2 * 8).unwrap();
        assert_eq!(entry & 0x60, 0x60, "{}: accessed and dirty", run.backend);
    }
}

#[test]
fn softcpu_knows_the_instruction_and_kvm_the_page() {
    let guest = Guest::new(|c| {
        touch(c, &[2])?;
        c.power_off()
    });
    for run in guest.completed() {
        let writes = &run.machine.provenance().phases()[0].writes;
        let write = writes.iter().find(|write| write.pfn() == PAGE + 2).unwrap();
        let expected = if run.backend == "soft" {
            (page(2) + 16, true)
        } else {
            (page(2), false)
        };
        assert_eq!((write.address(), write.rip != 0), expected, "{}", run.backend);
        assert!(!write.by_user());
    }
}
