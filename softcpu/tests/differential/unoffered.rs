//! Instructions of extensions that CPUID does not offer: each must raise #UD, whatever follows its opcode.
//!
//! The host has most of them, so there is nothing to compare with. Random bytes behind every kind of opcode prefix reach forms
//! that no assembler is asked for.

use std::collections::BTreeSet;

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Mnemonic};

use crate::catalog;
use crate::generate::Case;
use crate::rng::Rng;
use crate::soft::{Ran, Soft};
use crate::state::{CODE, DATA, DATA_LEN, State};

/// Ways into the opcode maps: legacy two- and three-byte, 3DNow!, VEX, EVEX, XOP.
const STARTS: [&[u8]; 16] = [
    &[0x0f],
    &[0x66, 0x0f],
    &[0xf2, 0x0f],
    &[0xf3, 0x0f],
    &[0x0f, 0x38],
    &[0x66, 0x0f, 0x38],
    &[0xf2, 0x0f, 0x38],
    &[0xf3, 0x0f, 0x38],
    &[0x66, 0x0f, 0x3a],
    &[0x0f, 0x3a],
    &[0x0f, 0x01],
    &[0x0f, 0x0f],
    &[0xc4],
    &[0xc5],
    &[0x62],
    &[0x8f],
];

/// Instructions that a processor without their extension executes as something else, which is what software relies on.
fn has_older_meaning(code: Code) -> bool {
    let name = code.mnemonic();
    let hint = code.cpuid_features().iter().any(|f| {
        matches!(
            f,
            CpuidFeature::CET_IBT
                | CpuidFeature::CET_SS
                | CpuidFeature::MPX
                | CpuidFeature::CLDEMOTE
                | CpuidFeature::PREFETCHWT1
                | CpuidFeature::PREFETCHITI
        )
    });
    // NOP space; BSF, BSR; WBINVD; and what this crate does have without a CPUID bit of its own.
    hint || matches!(
        name,
        Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Tzcnt
            | Mnemonic::Lzcnt
            | Mnemonic::Wbnoinvd
            | Mnemonic::Rdtscp
            | Mnemonic::Rdtsc
            | Mnemonic::Rdpmc
            | Mnemonic::Cpuid
            | Mnemonic::Syscall
            | Mnemonic::Sysret
            | Mnemonic::Sysretq
    )
}

/// A state with all registers pointing into scratch memory.
fn state() -> State {
    let mut state = State::ZERO;
    state.gpr.fill(DATA + 0x800);
    state.rflags = 0x202;
    state.rip = CODE + 0x200;
    state.set_mxcsr(0x1f80);
    state.fx[..2].copy_from_slice(&0x037fu16.to_le_bytes());
    state
}

/// Runs `cases` such instructions; gives how many different ones there were, and those that did not raise #UD.
pub fn run(seed: u64, cases: u64) -> (usize, BTreeSet<String>) {
    let mut soft = Soft::new();
    let mut seen = BTreeSet::new();
    let mut wrong = BTreeSet::new();
    for number in 0..cases {
        let mut rng = Rng::for_case(seed, number);
        let mut bytes = rng.pick(&STARTS).to_vec();
        while bytes.len() < 15 {
            bytes.extend(rng.next().to_le_bytes());
        }
        bytes.truncate(15);
        let state = state();
        let insn = Decoder::with_ip(64, &bytes, state.rip, DecoderOptions::NONE).decode();
        let code = insn.code();
        if insn.is_invalid() || catalog::offered(code) || has_older_meaning(code) {
            continue;
        }
        seen.insert(code as u32);
        bytes.truncate(insn.len());
        let data = Box::new([0; DATA_LEN]);
        let case = Case {
            bytes,
            insn,
            state,
            data,
            taken: CODE,
            segment_bases: [0; 2],
        };
        let undefined = match soft.run(&case) {
            Ran::Done(outcome) => outcome.fault.is_some_and(|fault| fault.vector == 6),
            Ran::Odd(_) => false,
        };
        if !undefined {
            wrong.insert(format!("{code:?} ({:02x?})", case.bytes));
        }
    }
    (seen.len(), wrong)
}
