//! Code that turns up in another page of RAM at the virtual address where it was: it is not decoded again if it is the
//! same, and it is if it is not.

mod common;

use common::busy::{DATA, pte};
use common::{CODE, Guest};
use iced_x86::code_asm::*;
use softcpu::{Exit, NoBus, Translation};

/// Where the second page lies.
const OTHER: u64 = DATA + 0x3000;

fn halts(guest: &mut Guest) {
    let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 100_000);
    assert_eq!(exit, Exit::Halted { interruptible: false });
}

/// Calls the function at DATA, maps OTHER there, which holds one that returns `value`, calls it, lets a third one
/// return 7 by a write to OTHER, and calls that. The results are in RSI, RDI and RAX.
fn remaps(value: u8, which: Translation, mut at_second: impl FnMut(&Guest)) -> Guest {
    let mut guest = Guest::new(|a| {
        a.mov(rcx, DATA).unwrap();
        a.call(rcx).unwrap();
        a.mov(rsi, rax).unwrap();
        a.xor(qword_ptr(pte(DATA)), 0x3000).unwrap();
        a.invlpg(byte_ptr(DATA)).unwrap();
        a.call(rcx).unwrap();
        a.mov(rdi, rax).unwrap();
        a.mov(byte_ptr(OTHER + 1), 7).unwrap();
        a.call(rcx).unwrap();
        a.hlt().unwrap();
    });
    guest.cpu.translate(which);
    for (page, value) in [(DATA, 1), (OTHER, value)] {
        assert!(guest.ram.write(page, &[0xb0, value, 0xc3])); // mov al, value; ret
    }
    // Up to the second return.
    assert_eq!(guest.cpu.run(&mut guest.ram, &mut NoBus, 9), Exit::Deadline);
    at_second(&guest);
    halts(&mut guest);
    guest
}

#[test]
fn the_same_code_is_taken_along() {
    for which in [Translation::Off, Translation::Hot, Translation::Eager] {
        let guest = remaps(1, which, |guest| {
            assert!(guest.cpu.has_code(&guest.ram, OTHER), "{which:?}");
            assert!(!guest.cpu.has_code(&guest.ram, DATA), "{which:?}: relocated");
        });
        let gpr = guest.cpu.registers().gpr;
        assert_eq!((gpr[6], gpr[7], gpr[0]), (1, 1, 7), "{which:?}");
    }
}

#[test]
fn other_code_is_decoded() {
    for which in [Translation::Off, Translation::Hot, Translation::Eager] {
        let guest = remaps(2, which, |guest| {
            assert!(guest.cpu.has_code(&guest.ram, OTHER), "{which:?}");
            assert!(
                guest.cpu.has_code(&guest.ram, DATA),
                "{which:?}: it may come back"
            );
        });
        let gpr = guest.cpu.registers().gpr;
        assert_eq!((gpr[6], gpr[7], gpr[0]), (1, 2, 7), "{which:?}");
    }
}

/// A guest that goes to and fro between two pages with the same code at one address gets on, and so does one whose
/// instruction crosses from a page into one that the same page is mapped at.
#[test]
fn two_pages_with_the_same_code_take_turns() {
    for which in [Translation::Off, Translation::Eager] {
        let mut guest = Guest::new(|a| {
            let mut again = a.create_label();
            a.mov(rcx, DATA).unwrap();
            a.mov(edx, 200).unwrap();
            a.set_label(&mut again).unwrap();
            a.call(rcx).unwrap();
            a.xor(qword_ptr(pte(DATA)), 0x3000).unwrap();
            a.invlpg(byte_ptr(DATA)).unwrap();
            a.dec(edx).unwrap();
            a.jne(again).unwrap();
            a.hlt().unwrap();
        });
        guest.cpu.translate(which);
        for page in [DATA, OTHER] {
            assert!(guest.ram.write(page, &[0xff, 0xc0, 0xc3])); // inc eax; ret
        }
        halts(&mut guest);
        assert_eq!(guest.cpu.registers().gpr[0], 200, "{which:?}");
        assert!(guest.cpu.has_code(&guest.ram, CODE));
        let both = [DATA, OTHER].map(|page| guest.cpu.has_code(&guest.ram, page));
        assert_eq!(both, [true, true], "{which:?}: at last both are decoded");
    }
}
