//! From bytes to operations.
//!
//! iced-x86 decodes; [`lower`] turns its instruction into an [`Op`]. Instructions of extensions that CPUID does not offer become
//! [`OpCode::Undefined`], those that it does offer but nobody lowers become [`OpCode::Unknown`].

mod choose;
mod features;
mod integer;
mod operands;
mod shared;
#[cfg(test)]
mod tests;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::op::{Op, OpCode};

/// Longest stretch decoded at once, in instructions; the rest waits until control gets there.
const MAX_STRETCH: usize = 64;

/// Without BMI1 and LZCNT, their prefixed forms execute as BSF and BSR; likewise WBNOINVD as WBINVD.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD;

/// Decodes a straight-line stretch of `page` from `start` on: up to an unconditional transfer of control, the page's end, or
/// an operation that `known` says is decoded already.
pub(crate) fn stretch(page: &[u8; 4096], start: u64, known: impl Fn(u64) -> bool, out: &mut Vec<Op>) {
    let bytes = page.get(index(start)..).unwrap_or(&[]);
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

/// Decodes one instruction that begins at page offset `start` and runs on into the next page; `bytes` holds what is left of
/// this page and the beginning of the next.
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

/// Whether the decoder takes the instruction for another than processors do: F3 REX.B 90 exchanges RAX with R8, and is no PAUSE.
fn mistaken(insn: &Instruction, bytes: &[u8]) -> bool {
    insn.code() == Code::Pause
        && bytes
            .get(insn.len() - 2)
            .is_some_and(|before| before & 0xf1 == 0x41)
}

fn link(code: OpCode, target: u64) -> Op {
    // A link stands where it leads: when the loop stops before it, that is the instruction to go on with.
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

/// Appends the operations for one instruction; `near` allows branches inside the page by offset.
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

/// A page offset as the operations keep it.
#[allow(clippy::cast_possible_truncation)] // at most 4096
fn offset(at: u64) -> u16 {
    at as u16
}

#[allow(clippy::cast_possible_truncation)] // a page offset
fn index(at: u64) -> usize {
    at as usize
}
