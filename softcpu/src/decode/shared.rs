//! Lowers the instructions that share the operations `Misc`, `Cold` and `String`.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::operands::{
    condition, gpr, has_memory, is_near_branch, size, size_index, string_is_narrow, string_segment,
};
use crate::exec::misc::MiscOp;
use crate::exec::packed::Packed;
use crate::exec::string::{self, Rep, StringOp};
use crate::exec::system::SystemOp;
use crate::op::{Op, OpCode};

/// Lowers `insn` if it belongs to one of the three families.
pub(super) fn lower(insn: &Instruction, op: &mut Op) -> bool {
    let code = insn.code();
    if let Some(kind) = MiscOp::from_code(code) {
        op.code = OpCode::Misc;
        packed(insn, kind as u8, op)
    } else if let Some(kind) = SystemOp::from_code(code) {
        op.code = OpCode::Cold;
        packed(insn, kind as u8, op)
    } else if let Some(kind) = StringOp::from_code(code) {
        op.code = OpCode::String;
        string(insn, kind, op);
    } else {
        return false;
    }
    true
}

fn packed(insn: &Instruction, number: u8, op: &mut Op) {
    op.a = gpr(insn.op_register(0));
    op.b = gpr(insn.op_register(1));
    if is_near_branch(insn) {
        // The target of LOOP or JRCXZ, which has no place in the immediate word; it is at most 128 bytes from the page.
        // (For other instructions iced's `near_branch64` is the displacement of the memory operand.)
        op.disp = i32::try_from(insn.near_branch64().cast_signed()).unwrap_or(0);
    }
    op.imm = Packed::new(
        number,
        size_index(operand_bytes(insn)).unwrap_or(3),
        has_memory(insn),
        extra(insn),
        wide(insn),
    )
    .bits();
}

/// The operand size in bytes that the instruction's function is executed with.
fn operand_bytes(insn: &Instruction) -> usize {
    match insn.mnemonic() {
        // The size of the counter: ECX with an address-size prefix.
        M::Jecxz => 4,
        M::Loop | M::Loope | M::Loopne if counts_ecx(insn) => 4,
        M::Loop | M::Loope | M::Loopne | M::Jrcxz => 8,
        // Half of the memory operand.
        M::Cmpxchg8b => 4,
        M::Cmpxchg16b => 8,
        // The port comes first.
        M::Out => size(insn, 1),
        _ => size(insn, 0),
    }
}

fn counts_ecx(insn: &Instruction) -> bool {
    use iced_x86::Code;
    matches!(
        insn.code(),
        Code::Loop_rel8_64_ECX | Code::Loope_rel8_64_ECX | Code::Loopne_rel8_64_ECX
    )
}

/// The 8-bit immediate, or the number of a condition or of a segment, control or debug register.
fn extra(insn: &Instruction) -> u8 {
    if let Some(condition) = condition(insn) {
        return condition;
    }
    if insn.mnemonic() == M::Xlatb {
        return u8::from(insn.memory_base() == Register::EBX);
    }
    let operand = |i| match insn.op_kind(i) {
        OpKind::Immediate8 => Some(insn.immediate8()),
        OpKind::Immediate8_2nd => Some(insn.immediate8_2nd()),
        OpKind::Register => register_number(insn.op_register(i)),
        _ => None,
    };
    (0..insn.op_count()).find_map(operand).unwrap_or(0)
}

/// An immediate of more than 8 bits, cut to 32 (none of these families has a longer one).
#[allow(clippy::cast_possible_truncation)]
fn wide(insn: &Instruction) -> u32 {
    let operand = |i| match insn.op_kind(i) {
        OpKind::Immediate8 | OpKind::Immediate8_2nd => None,
        _ => insn.try_immediate(i).ok(),
    };
    (0..insn.op_count()).find_map(operand).unwrap_or(0) as u32
}

fn register_number(register: Register) -> Option<u8> {
    let first = if register.is_segment_register() {
        Register::ES
    } else if register.is_cr() {
        Register::CR0
    } else if register.is_dr() {
        Register::DR0
    } else {
        return None;
    };
    u8::try_from(register as u32 - first as u32).ok()
}

fn string(insn: &Instruction, kind: StringOp, op: &mut Op) {
    let rep = match (insn.has_rep_prefix(), insn.has_repne_prefix(), kind) {
        (false, false, _) => Rep::Once,
        (_, false, StringOp::Scas | StringOp::Cmps) => Rep::WhileEqual,
        (_, true, StringOp::Scas | StringOp::Cmps) => Rep::WhileNotEqual,
        _ => Rep::Count,
    };
    let bytes = size_index(insn.memory_size().size()).unwrap_or(0);
    op.seg = string_segment(insn);
    op.imm = string::pack(kind, bytes, rep, string_is_narrow(insn));
}
