//! Lowers the instructions that the loop has operations of their own for.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};

use super::choose::{self, Form};
use super::operands::{condition, gpr, has_memory, is_near_branch, size, size_index};
use crate::op::{Op, OpCode};

/// Lowers `insn` if there is an operation for it. `near`: branches may be to an offset in the same page.
pub(super) fn lower(insn: &Instruction, near: bool, op: &mut Op) -> bool {
    let Some(code) = two_operands(insn).or_else(|| other(insn, near)) else {
        return false;
    };
    op.code = code;
    op.a = gpr(insn.op_register(0));
    op.b = gpr(insn.op_register(1));
    op.imm = if is_near_branch(insn) {
        insn.near_branch64()
    } else if let Some(condition) = condition(insn) {
        u64::from(condition)
    } else if is_shift(insn) {
        shift_count(insn)
    } else {
        immediate(insn).unwrap_or(0)
    };
    true
}

fn two_operands(insn: &Instruction) -> Option<OpCode> {
    let general = |i| insn.op_register(i).is_gpr();
    let form = match (insn.op_kind(0), insn.op_kind(1)) {
        (OpKind::Register, OpKind::Register) if general(0) && general(1) => Form::rr,
        (OpKind::Register, OpKind::Memory) if general(0) => Form::rm,
        (OpKind::Register, _) if general(0) && immediate(insn).is_some() => Form::ri,
        (OpKind::Memory, OpKind::Register) if general(1) => Form::mr,
        (OpKind::Memory, _) if immediate(insn).is_some() => Form::mi,
        _ => return None,
    };
    let sizes = choose::two_operands(insn.mnemonic(), form)?;
    Some(sizes[size_index(size(insn, 0))?])
}

fn other(insn: &Instruction, near: bool) -> Option<OpCode> {
    let memory = has_memory(insn);
    match insn.code() {
        // The same as a 32-bit MOV.
        Code::Movsxd_r32_rm32 => Some(if memory { OpCode::MovRMD } else { OpCode::MovRRD }),
        // A count of zero changes no flags, and the loop's shifts do not check for it. Such a shift is one of `Misc`.
        _ if is_shift(insn) && shift_count(insn) == 0 => None,
        code => choose::other(code, memory, near && insn.near_branch64() < 4096),
    }
}

fn is_shift(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar)
}

/// The count of a shift by an immediate, modulo 64 or 32 as the processor takes it; 0 for a shift by CL.
fn shift_count(insn: &Instruction) -> u64 {
    immediate(insn).unwrap_or(0) & if size(insn, 0) == 8 { 63 } else { 31 }
}

/// The immediate operand, sign-extended if the instruction does so.
fn immediate(insn: &Instruction) -> Option<u64> {
    (0..insn.op_count()).find_map(|i| insn.try_immediate(i).ok())
}
