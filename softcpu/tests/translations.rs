//! A guest sees what the TLBs hold when it changes its page tables without INVLPG. It sees the same whatever is
//! watched and whether or not the processor was saved and restored in between.

mod common;

use common::busy::{DATA, assert_same, pte, replace};
use common::{CODE, Guest};
use iced_x86::code_asm::*;
use softcpu::{CodeChange, Exit, NoBus, Watches};

const ACCESSED_DIRTY: u64 = 0x60;

fn halts(guest: &mut Guest) {
    let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 100_000);
    assert_eq!(exit, Exit::Halted { interruptible: false });
}

/// Forgets what was watched, to compare the rest.
fn unwatch(guest: &mut Guest) {
    let mut state = guest.cpu.state(&guest.ram);
    state.watches = Watches::default();
    guest.cpu = softcpu::Cpu::from_state(&state, &guest.ram).unwrap();
}

/// Writes to a page, clears its accessed and dirty bits, and writes there again.
fn clears_bits() -> Guest {
    Guest::new(|a| {
        a.mov(qword_ptr(DATA), 1).unwrap();
        a.mov(qword_ptr(DATA + 8), 2).unwrap();
        a.and(qword_ptr(pte(DATA)), !0x60).unwrap();
        a.nop().unwrap();
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA + 16), 3).unwrap();
        a.add(qword_ptr(DATA), 4).unwrap();
        a.mov(rbx, qword_ptr(pte(DATA))).unwrap();
        a.hlt().unwrap();
    })
}

#[test]
fn cleared_accessed_and_dirty_bits_stay_clear_whatever_is_watched() {
    type Watch = fn(&mut Guest);
    let watches: [(&str, Watch); 5] = [
        ("written", |g| g.cpu.watch_writes(&g.ram, DATA, true)),
        ("code of another processor", |g| {
            let change = CodeChange::Marked {
                page: DATA,
                granules: u64::MAX,
            };
            g.cpu.follow(&g.ram, &[change]);
        }),
        ("a new epoch", |g| g.cpu.begin_write_epoch(&g.ram)),
        ("executed", |g| g.cpu.watch_execution(&g.ram, DATA, true)),
        ("low code", |g| g.cpu.stop_on_low_supervisor_fetch(false)),
    ];
    let mut plain = clears_bits();
    halts(&mut plain);
    assert_eq!(
        plain.cpu.registers().gpr[3] & ACCESSED_DIRTY,
        0,
        "the cached translation was used"
    );
    unwatch(&mut plain);
    for (name, watch) in watches {
        for early in [true, false] {
            let mut guest = clears_bits();
            if early {
                watch(&mut guest);
            }
            // Up to where the bits have been cleared.
            assert_eq!(guest.cpu.run(&mut guest.ram, &mut NoBus, 3), Exit::Deadline);
            watch(&mut guest);
            halts(&mut guest);
            unwatch(&mut guest);
            assert_same(&plain, &guest, name);
        }
    }
}

#[test]
fn the_comparison_notices_a_translation_that_is_gone() {
    let mut plain = clears_bits();
    halts(&mut plain);
    let mut guest = clears_bits();
    guest.cpu.run(&mut guest.ram, &mut NoBus, 3);
    // This flushes.
    guest.set(|_| {});
    halts(&mut guest);
    assert_eq!(guest.cpu.registers().gpr[3] & ACCESSED_DIRTY, ACCESSED_DIRTY);
}

#[test]
fn code_on_the_page_of_data_does_not_show() {
    let program = |calls: bool| {
        let mut guest = Guest::new(move |a| {
            a.mov(qword_ptr(DATA), 0xc3).unwrap(); // a RET
            a.mov(rcx, if calls { DATA } else { DATA + 0x1000 }).unwrap();
            a.call(rcx).unwrap();
            a.and(qword_ptr(pte(DATA)), !0x60).unwrap();
            a.mov(qword_ptr(DATA + 8), 1).unwrap();
            a.mov(qword_ptr(DATA), 0xc3).unwrap();
            a.mov(rbx, qword_ptr(pte(DATA))).unwrap();
            a.hlt().unwrap();
        });
        assert!(guest.ram.write(DATA + 0x1000, &[0xc3]));
        halts(&mut guest);
        guest
    };
    let (there, elsewhere) = (program(true), program(false));
    assert_eq!(there.cpu.registers().gpr[3], elsewhere.cpu.registers().gpr[3]);
    assert_eq!(there.cpu.registers().gpr[3] & ACCESSED_DIRTY, 0);
}

/// Code at one virtual page that is remapped while its old translation is cached; then `between`, then runs there
/// again.
fn remaps(between: impl FnOnce(&mut Guest)) -> Guest {
    let mut guest = Guest::new(|a| {
        a.mov(rcx, DATA).unwrap();
        a.call(rcx).unwrap();
        a.mov(rsi, qword_ptr(DATA + 8)).unwrap();
        a.mov(qword_ptr(DATA + 16), 5).unwrap();
        a.xor(qword_ptr(pte(DATA)), 0x3000).unwrap(); // 0x90 to 0x93
        a.nop().unwrap();
        a.call(rcx).unwrap();
        a.mov(rdi, qword_ptr(DATA + 8)).unwrap();
        a.mov(qword_ptr(DATA + 24), 6).unwrap();
        a.hlt().unwrap();
    });
    for (page, value) in [(DATA, 1), (DATA + 0x3000, 2)] {
        assert!(guest.ram.write(page, &[0xb0, value, 0xc3])); // mov al, value; ret
        guest.put(page + 8, value.into());
    }
    // To behind the XOR: five instructions and the two that are called.
    assert_eq!(guest.cpu.run(&mut guest.ram, &mut NoBus, 7), Exit::Deadline);
    between(&mut guest);
    halts(&mut guest);
    guest
}

#[test]
fn stale_translations_survive_saving_and_dropped_code() {
    type Between = fn(&mut Guest);
    let betweens: [(&str, Between); 5] = [
        ("nothing", |_| {}),
        ("saved", replace),
        ("code dropped", |g| g.cpu.memory_written(&g.ram, 0, 2 << 20)),
        ("execution watched", |g| {
            g.cpu.watch_execution(&g.ram, CODE, true);
            g.cpu.watch_execution(&g.ram, CODE, false);
        }),
        ("low code", |g| g.cpu.stop_on_low_supervisor_fetch(false)),
    ];
    let plain = remaps(|_| {});
    for (name, between) in betweens {
        let guest = remaps(between);
        let gpr = guest.cpu.registers().gpr;
        assert_eq!((gpr[0], gpr[6], gpr[7]), (1, 1, 1), "{name}: old code, old data");
        assert_eq!(
            (guest.word(DATA + 24), guest.word(DATA + 0x3018)),
            (6, 0),
            "{name}: written to the old page"
        );
        assert_same(&plain, &guest, name);
    }
    // And it is the translations that do it.
    let flushed = remaps(|guest| guest.set(|_| {}));
    let gpr = flushed.cpu.registers().gpr;
    assert_eq!((gpr[0], gpr[7]), (2, 2));
}

#[test]
fn a_page_table_that_holds_code_is_decoded_anew_when_a_walk_sets_bits_in_it() {
    // The entry of DATA as code: 0x67 (an address size prefix) and zeroes once the bits are set; 0x07 (undefined)
    // before.
    let mut guest = Guest::new(|a| {
        a.mov(rcx, pte(DATA)).unwrap();
        a.jmp(rcx).unwrap();
    });
    assert!(guest.ram.write(pte(DATA), &(DATA | 7).to_le_bytes()));
    halts(&mut guest);
    assert_eq!(guest.halted_in(), Some(6));
    guest.set(|state| {
        state.rip = CODE;
        state.gpr[6] = DATA;
    });
    // Sets the bits: mov [rsi], rsi
    guest.put(CODE, 0x9090_9090_9036_8948);
    guest.set(|state| state.rip = CODE);
    assert_eq!(
        guest.cpu.run(&mut guest.ram, &mut NoBus, guest.cpu.now() + 1),
        Exit::Deadline
    );
    assert_eq!(guest.word(pte(DATA)) & ACCESSED_DIRTY, ACCESSED_DIRTY);
    assert!(
        !guest.cpu.has_code(&guest.ram, pte(DATA)),
        "what was decoded there is gone"
    );
}

#[test]
fn a_fetch_leaves_the_translations_of_data_alone() {
    // A page is written, remapped without INVLPG, executed in its new place and written again.
    let mut guest = Guest::new(|a| {
        a.mov(qword_ptr(DATA + 8), 1).unwrap();
        a.mov(qword_ptr(DATA + 8), 1).unwrap();
        a.xor(qword_ptr(pte(DATA)), 0x3000).unwrap();
        a.mov(rcx, DATA).unwrap();
        a.call(rcx).unwrap();
        a.mov(qword_ptr(DATA + 16), 2).unwrap();
        a.hlt().unwrap();
    });
    assert!(guest.ram.write(DATA + 0x3000, &[0xc3]));
    halts(&mut guest);
    assert_eq!(
        (guest.word(DATA + 16), guest.word(DATA + 0x3010)),
        (2, 0),
        "reads and writes go on as before"
    );
}

/// What a guest does between clearing the accessed bit of a global page and using the page again.
#[derive(Debug, Clone, Copy)]
enum Between {
    Nothing,
    LoadCr3,
    Invlpg,
    ClearPge,
}

/// The accessed bit of a page after a guest that had used it has cleared the bit, done `between` and used it again: it
/// is set if the translation was gone. `saved`: the processor was saved and restored in between.
fn is_walked_again(global: bool, pge: bool, large: bool, between: Between, saved: bool) -> bool {
    const PGE: u64 = 1 << 7;
    const PD: u64 = 0x3000;
    let (page, entry) = if large {
        (0x20_0000u64, PD + 8)
    } else {
        (DATA, pte(DATA))
    };
    let mut guest = Guest::new(|a| {
        a.mov(rax, cr4).unwrap();
        a.or(rax, i32::try_from(PGE).unwrap()).unwrap();
        if pge {
            a.mov(cr4, rax).unwrap();
        }
        a.mov(rsi, qword_ptr(page)).unwrap();
        a.and(qword_ptr(entry), !0x20).unwrap();
        a.nop().unwrap();
        match between {
            Between::Nothing => {}
            Between::LoadCr3 => {
                a.mov(rcx, cr3).unwrap();
                a.mov(cr3, rcx).unwrap();
            }
            Between::Invlpg => a.invlpg(ptr(page + 8)).unwrap(),
            Between::ClearPge => {
                a.and(rax, !i32::try_from(PGE).unwrap()).unwrap();
                a.mov(cr4, rax).unwrap();
            }
        }
        a.mov(rsi, qword_ptr(page)).unwrap();
        a.mov(rbx, qword_ptr(entry)).unwrap();
        a.hlt().unwrap();
    });
    let kind = if large { 0x83 } else { page | 3 };
    guest.put(entry, kind | if global { 1 << 8 } else { 0 });
    if saved {
        let before = if pge { 6 } else { 5 };
        assert_eq!(guest.cpu.run(&mut guest.ram, &mut NoBus, before), Exit::Deadline);
        let state = guest.cpu.state(&guest.ram);
        guest.cpu = softcpu::Cpu::from_state(&state, &guest.ram).unwrap();
    }
    halts(&mut guest);
    guest.cpu.registers().gpr[3] & 0x20 != 0
}

#[test]
fn loading_cr3_keeps_global_pages_and_nothing_else() {
    use Between::{ClearPge, Invlpg, LoadCr3, Nothing};
    for large in [false, true] {
        for saved in [false, true] {
            let walked = |global, pge, between| is_walked_again(global, pge, large, between, saved);
            let what = format!("large {large}, saved {saved}");
            assert!(!walked(true, true, Nothing), "{what}");
            assert!(!walked(true, true, LoadCr3), "{what}");
            for between in [Invlpg, ClearPge] {
                assert!(walked(true, true, between), "{what}: {between:?}");
            }
            assert!(walked(false, true, LoadCr3), "{what}: not global");
            assert!(walked(true, false, LoadCr3), "{what}: CR4.PGE is clear");
        }
    }
}
