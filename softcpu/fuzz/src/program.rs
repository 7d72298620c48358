//! Any bytes as a program in kernel mode, interpreted and translated.
//!
//! The first eight bytes of an input choose registers and where the run is cut. The rest fills the page of code over and
//! over, so that jumps land in it, in the middle of instructions too. Stores may change the program while it runs.

use softcpu::{Exit, NoBus, Translation};

use crate::common::busy::assert_same;
use crate::common::{CODE, Guest, STACK};
use crate::rng::Rng;

/// Ticks that a program runs at most.
const END: u64 = 3000;
/// Where RBX, RSI and RDI point: data, the page of code, and the edge of a page.
const PLACES: [u64; 3] = [0x9_0000, CODE + 0x400, 0x9_0ffc];

/// Runs an input in every way and compares. Gives how many instructions were executed and how many translated.
///
/// # Panics
/// When two runs differ.
pub fn run(input: &[u8]) -> Option<(u64, u64)> {
    let (numbers, program) = input.split_first_chunk::<8>()?;
    if program.is_empty() {
        return None;
    }
    let page: Vec<u8> = program.iter().copied().cycle().take(4096).collect();
    let seed = u64::from_le_bytes(*numbers);
    let (plain, ends) = once(&page, seed, Translation::Off, false);
    let mut translated = 0;
    for way in [Translation::Hot, Translation::Eager, Translation::Single] {
        for cut in [false, true] {
            let (guest, other) = once(&page, seed, way, cut);
            let what = format!("{way:?}, cut {cut}, seed {seed:#x}, {program:02x?}");
            assert_eq!(ends, other, "{what}");
            assert_same(&plain, &guest, &what);
            translated = guest.cpu.translated().max(translated);
        }
    }
    Some((plain.cpu.now(), translated))
}

/// The guest afterwards, and why and when it stopped.
fn once(page: &[u8], seed: u64, way: Translation, cut: bool) -> (Guest, (Exit, u64)) {
    let mut guest = Guest::with_code(page);
    guest.cpu.translate(way);
    let mut rng = Rng::for_case(seed, 0);
    guest.set(|state| {
        state.gpr.fill_with(|| rng.integer());
        state.gpr[4] = STACK;
        for (register, place) in [3, 6, 7].into_iter().zip(PLACES) {
            state.gpr[register] = place;
        }
        state.rflags = rng.next() & 0x8d5 | 2;
    });
    loop {
        let step = if cut { 1 + rng.below(90) } else { END };
        let until = (guest.cpu.now() + step).min(END);
        let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, until);
        let now = guest.cpu.now();
        match exit {
            Exit::Deadline if now < END => {}
            Exit::Bus | Exit::Pause { .. } if now < END => {}
            exit => return (guest, (exit, now)),
        }
    }
}
