//! The fuzz target `program` of `fuzz/` on random inputs: any bytes, interpreted and translated.
//!
//! `BATON_FUZZ_INPUTS` (default 400) changes how many.

mod common;
#[path = "../fuzz/src/program.rs"]
mod program;
#[path = "differential/rng.rs"]
#[allow(dead_code)] // the differential test uses more of it
mod rng;

use rng::Rng;

/// Bytes that make instructions which mostly do not fault: arithmetic on registers, short jumps, moves to and from
/// where RBX, RSI and RDI point.
const LIKELY: &[&[u8]] = &[
    &[0x01, 0xc8],
    &[0x48, 0x29, 0xd1],
    &[0x31, 0xd2],
    &[0x39, 0xc8],
    &[0x85, 0xc0],
    &[0xff, 0xc1],
    &[0x48, 0xff, 0xc9],
    &[0xc1, 0xe0, 0x05],
    &[0xd3, 0xea],
    &[0xc1, 0xc8, 0x07],
    &[0x4d, 0x89, 0xf7],
    &[0x8b, 0x03],
    &[0x89, 0x43, 0x08],
    &[0x48, 0x03, 0x5b, 0x10],
    &[0x88, 0x06],
    &[0x01, 0x07],
    &[0x50],
    &[0x58],
    &[0x0f, 0xaf, 0xc1],
    &[0x0f, 0x94, 0xc0],
    &[0x0f, 0x4c, 0xc2],
    &[0x11, 0xd0],
    // CALL, RET, and both through registers.
    &[0xe8, 0x05, 0x00, 0x00, 0x00],
    &[0xc3],
    &[0xff, 0xd6],
    &[0xff, 0xe6],
    // AND AH, imm8 and MOV BL, AH.
    &[0x80, 0xe4, 0x3f],
    &[0x88, 0xe3],
    &[0x90],
];

fn input(number: u64) -> Vec<u8> {
    let mut rng = Rng::for_case(0x7072_6f67, number);
    let mut bytes = rng.next().to_le_bytes().to_vec();
    for _ in 0..1 + rng.below(24) {
        match rng.below(8) {
            // Any byte at all.
            0 => bytes.push(rng.next().to_le_bytes()[0]),
            // A short jump, conditional or not, that may lead into the middle of an instruction.
            1 | 2 => {
                let [condition, distance, ..] = rng.next().to_le_bytes();
                let opcode = if condition & 0x10 != 0 {
                    0xeb
                } else {
                    0x70 | condition & 15
                };
                bytes.extend([opcode, distance & 0x8f]);
            }
            _ => bytes.extend(rng.pick(LIKELY)),
        }
    }
    bytes
}

#[test]
fn any_program_does_the_same_translated() {
    let inputs = std::env::var("BATON_FUZZ_INPUTS").map_or(400, |text| text.parse().expect("a number"));
    assert!(program::run(&[]).is_none() && program::run(&[0; 8]).is_none());
    let (mut executed, mut translated) = (0, 0);
    for number in 0..inputs {
        let (ran, native) = program::run(&input(number)).expect("an input with a program");
        executed += ran;
        translated += native;
    }
    println!("{translated} of {executed} instructions translated");
    assert!(
        translated > executed / 4,
        "{translated} of {executed} instructions translated"
    );
}
