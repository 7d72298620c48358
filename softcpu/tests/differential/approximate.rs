//! The x87's transcendental functions: what the manuals promise of them is an error below one unit in the last place.
//!
//! softcpu rounds correctly. So the two results may be one unit apart, and C1, which says which way a result was
//! rounded, may differ. The trigonometric functions of processors reduce their argument with 66 bits of pi, so their
//! error grows with the argument; softcpu takes as many bits as it needs.

use iced_x86::Mnemonic;

use crate::generate::Case;
use crate::state::fx;

/// The functions.
pub const MNEMONICS: [Mnemonic; 8] = [
    Mnemonic::F2xm1,
    Mnemonic::Fyl2x,
    Mnemonic::Fyl2xp1,
    Mnemonic::Fpatan,
    Mnemonic::Fptan,
    Mnemonic::Fsin,
    Mnemonic::Fcos,
    Mnemonic::Fsincos,
];

/// The bit of the status word.
const C1: u16 = 1 << 9;

fn is_function(case: &Case) -> bool {
    MNEMONICS.contains(&case.insn.mnemonic())
}

fn st(case: &Case, st: usize) -> u128 {
    let at = fx::ST + 16 * st;
    u128::from_le_bytes(case.state.fx[at..at + 16].try_into().expect("16 bytes"))
}

/// Exponent of a value, as if all were normal.
fn exponent(value: u128) -> i32 {
    i32::try_from(value >> 64 & 0x7fff).expect("15 bits") - 0x3fff
}

/// Whether the manuals leave the result undefined, so that x87 state is not compared: F2XM1 of more than one, FYL2XP1
/// of more than 1 - sqrt(1/2).
pub fn is_undefined(case: &Case) -> bool {
    let magnitude = st(case, 0) & !(1 << 79);
    let finite = magnitude >> 64 < 0x7fff;
    match case.insn.mnemonic() {
        Mnemonic::F2xm1 => finite && magnitude > 0x3fff_8000_0000_0000_0000,
        Mnemonic::Fyl2xp1 => finite && magnitude > 0x3ffd_95f6_1998_0c43_36f7,
        _ => false,
    }
}

/// Bits of the status word that are not compared after this case.
pub fn ignored_status(case: &Case) -> u16 {
    if is_function(case) { C1 } else { 0 }
}

/// Whether two results in ST(`i`) are as near as the manuals promise.
pub fn near(case: &Case, i: usize, native: u128, soft: u128) -> bool {
    if !is_function(case) || i > 1 {
        return false;
    }
    // As integers, numbers of one sign are in the order of their values, and neighbours are one apart.
    let order = |value: u128| (value >> 64 & 0x7fff) << 63 | value & (u128::from(u64::MAX) >> 1);
    if native >> 79 == soft >> 79 && order(native).abs_diff(order(soft)) <= 1 {
        return true;
    }
    // |x| * 2^-66, in units of the result's last place.
    let argument = exponent(st(case, 0)) - 66 - (exponent(soft) - 63);
    let reduction = match case.insn.mnemonic() {
        Mnemonic::Fsin | Mnemonic::Fcos | Mnemonic::Fsincos => argument,
        // The tangent changes by one and its square times as much as the angle.
        Mnemonic::Fptan => argument + 2 * exponent(soft).max(0) + 1,
        _ => return false,
    };
    match reduction {
        ..-2 => false,
        -2..60 => {
            native >> 79 == soft >> 79
                && order(native).abs_diff(order(soft)) <= 2 + (1 << (reduction + 2).unsigned_abs())
        }
        // Nothing is left of the result.
        _ => exponent(st(case, 0)) < 63,
    }
}
