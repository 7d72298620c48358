//! Decodes instructions into operations.
//!
//! iced-x86 decodes the bytes, and [`lower`] turns each instruction into an [`Op`]. An instruction of an extension
//! that CPUID does not offer becomes [`OpCode::Undefined`]. One that CPUID offers and that has no operation becomes
//! [`OpCode::Unknown`].

mod choose;
mod features;
mod integer;
mod operands;
mod shared;
#[cfg(test)]
mod tests;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::op::{Op, OpCode};

/// Length limit of a stretch, in instructions. The code after it is decoded when control reaches it.
const MAX_STRETCH: usize = 64;

/// A processor without BMI1, LZCNT and WBNOINVD ignores the prefixes of TZCNT, LZCNT and WBNOINVD and executes BSF,
/// BSR and WBINVD.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD;

/// Bytes that a stretch has at most: its instructions, and enough to see that the next one is whole.
pub(crate) const STRETCH_BYTES: usize = (MAX_STRETCH + 1) * 15;

/// Decodes a straight-line stretch that begins at page offset `start` and appends it to `out`. `bytes` is the rest of
/// the page, or [`STRETCH_BYTES`] of it. The stretch ends at an unconditional transfer of control, at the page's end, or at an offset for which `known` returns true (it is
/// decoded already).
pub(crate) fn stretch(bytes: &[u8], start: u64, known: impl Fn(u64) -> bool, out: &mut Vec<Op>) {
    let mut decoder = Decoder::with_ip(64, bytes, start, OPTIONS);
    let mut insn = Instruction::default();
    let mut count = 0;
    loop {
        let at = decoder.ip();
        if at >= 4096 {
            out.push(link(OpCode::LinkFar, at));
            return;
        }
        if count > 0 && known(at) {
            out.push(link(OpCode::LinkNear, at));
            return;
        }
        if count == MAX_STRETCH {
            out.push(link(OpCode::LinkNear, at));
            return;
        }
        decoder.decode_out(&mut insn);
        if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            out.push(Op::new(OpCode::Crossing, offset(at), 0));
            return;
        }
        count += 1;
        if mistaken(&insn, bytes.get(index(at - start)..).unwrap_or(&[])) {
            out.push(Op::new(OpCode::Unknown, offset(at), insn.len().to_le_bytes()[0]));
        } else {
            lower(&insn, at, true, out);
        }
        if ends_stretch(&insn) {
            return;
        }
    }
}

/// Decodes one instruction that begins at page offset `start` and crosses into the next page. `bytes` is the rest of
/// this page, followed by the beginning of the next.
pub(crate) fn crossing(bytes: &[u8], start: u64, out: &mut Vec<Op>) {
    let mut decoder = Decoder::with_ip(64, bytes, start, OPTIONS);
    let insn = decoder.decode();
    if mistaken(&insn, bytes) {
        out.push(Op::new(
            OpCode::Unknown,
            offset(start),
            insn.len().to_le_bytes()[0],
        ));
    } else {
        lower(&insn, start, false, out);
    }
    out.push(link(OpCode::LinkFar, decoder.ip()));
}

/// Whether iced decodes the bytes differently from processors: F3 REX.B 90 is XCHG of R8 and RAX, but iced makes
/// PAUSE of it.
fn mistaken(insn: &Instruction, bytes: &[u8]) -> bool {
    insn.code() == Code::Pause
        && bytes
            .get(insn.len() - 2)
            .is_some_and(|before| before & 0xf1 == 0x41)
}

fn link(code: OpCode, target: u64) -> Op {
    // The offset of a link is its target's, because the loop can stop before the link and then continues at the target.
    let mut op = Op::new(code, offset(target), 0);
    op.imm = target;
    op
}

fn ends_stretch(insn: &Instruction) -> bool {
    !matches!(
        insn.flow_control(),
        FlowControl::Next | FlowControl::ConditionalBranch
    ) || insn.is_invalid()
}

/// Appends the operations for one instruction. `near`: branches may be to an offset in the same page.
fn lower(insn: &Instruction, at: u64, near: bool, out: &mut Vec<Op>) {
    let len = insn.len().to_le_bytes()[0];
    let mut op = Op::new(OpCode::Unknown, offset(at), len);
    if insn.code() == Code::INVALID || features::undefined(insn) {
        op.code = OpCode::Undefined;
        out.push(op);
        return;
    }
    if features::no_operation(insn) {
        op.code = OpCode::Nop;
        out.push(op);
        return;
    }
    let setup = operands::memory(insn, &mut op);
    if !(integer::lower(insn, near, &mut op) || shared::lower(insn, &mut op))
        && crate::sse::lower(insn, &mut op)
    {
        op.code = OpCode::Sse;
    }
    out.extend(setup);
    out.push(op);
}

/// A page offset in the width of [`Op::off`].
#[allow(clippy::cast_possible_truncation)] // at most 4096
fn offset(at: u64) -> u16 {
    at as u16
}

#[allow(clippy::cast_possible_truncation)] // a page offset
fn index(at: u64) -> usize {
    at as usize
}
