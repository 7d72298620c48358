//! Operands: registers by number, memory by the common form of an effective address.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::op::{FS_BASE, GS_BASE, HIGH_BYTE, Op, OpCode, PAGE, SCRATCH, ZERO};

/// Number of a general register of any size.
pub(super) fn gpr(register: Register) -> u8 {
    match register {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        _ if register.is_gpr() => {
            let number = register.full_register() as u32 - Register::RAX as u32;
            number.to_le_bytes()[0] & 15
        }
        _ => ZERO,
    }
}

/// Log2 of an operand's size in bytes: 0 to 3.
pub(super) fn size_index(bytes: usize) -> Option<usize> {
    match bytes {
        1 => Some(0),
        2 => Some(1),
        4 => Some(2),
        8 => Some(3),
        _ => None,
    }
}

/// Size in bytes of operand `i` (a register or memory).
pub(super) fn size(insn: &Instruction, i: u32) -> usize {
    match insn.op_kind(i) {
        OpKind::Register => insn.op_register(i).size(),
        OpKind::Memory => insn.memory_size().size(),
        _ => 0,
    }
}

/// Whether any operand is a memory operand of the ModRM kind or an absolute offset.
pub(super) fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

/// Whether the first operand is the target of a direct branch.
pub(super) fn is_near_branch(insn: &Instruction) -> bool {
    insn.op_count() > 0 && insn.op_kind(0) == OpKind::NearBranch64
}

/// Encoding of the condition of Jcc, SETcc or CMOVcc.
pub(super) fn condition(insn: &Instruction) -> Option<u8> {
    // iced numbers conditions from 1 in the order of their encoding.
    (insn.condition_code() as u8).checked_sub(1)
}

fn segment(register: Register) -> u8 {
    match register {
        Register::FS => FS_BASE,
        Register::GS => GS_BASE,
        _ => ZERO,
    }
}

/// Fills in the memory operand. Returns the operation that has to come first if the address does not have the common
/// form.
pub(super) fn memory(insn: &Instruction, op: &mut Op) -> Option<Op> {
    if !has_memory(insn) {
        return None;
    }
    if insn.mnemonic() == Mnemonic::Xlatb {
        // RBX + AL does not have the common form; the instruction's function adds them.
        op.seg = segment(insn.memory_segment());
        return None;
    }
    let (base, index) = (insn.memory_base(), insn.memory_index());
    // LEA computes an offset, without the segment's base.
    op.seg = if insn.mnemonic() == Mnemonic::Lea {
        ZERO
    } else {
        segment(insn.memory_segment())
    };
    let displacement = insn.memory_displacement64();
    let narrow = base.size() == 4
        || index.size() == 4
        || insn.memory_displ_size() == 4
            && base == Register::None
            && index == Register::None
            && is_addr32(insn);
    op.base = match base {
        Register::RIP | Register::EIP => PAGE,
        Register::None => ZERO,
        _ => gpr(base),
    };
    op.index = if index == Register::None { ZERO } else { gpr(index) };
    op.scale = match insn.memory_index_scale() {
        2 => 1,
        4 => 2,
        8 => 3,
        _ => 0,
    };
    let mut setup = Op {
        code: OpCode::Ea32,
        ..*op
    };
    setup.seg = ZERO;
    if narrow {
        setup.disp = low_signed(displacement);
        // POP addresses memory with the incremented stack pointer, but this operation comes before the increment.
        if insn.mnemonic() == Mnemonic::Pop && base == Register::ESP {
            setup.disp = setup.disp.wrapping_add(insn.stack_pointer_increment());
        }
    } else if let Ok(disp) = i32::try_from(displacement.cast_signed()) {
        op.disp = disp;
        return None;
    } else {
        // An absolute 64-bit address, or a RIP-relative one that lies more than 2 GiB from the page's start.
        setup.code = OpCode::EaWide;
        setup.imm = displacement;
    }
    *op = Op {
        base: SCRATCH,
        index: ZERO,
        scale: 0,
        disp: 0,
        ..*op
    };
    Some(setup)
}

/// With neither base nor index, only the displacement's size tells a 32-bit address from a sign-extended 64-bit one: a
/// 32-bit one is never sign-extended.
fn is_addr32(insn: &Instruction) -> bool {
    insn.memory_displacement64() <= u64::from(u32::MAX)
        && insn.memory_displacement64() > u64::from(u32::MAX >> 1)
}

/// The low 32 bits, as a signed number.
#[allow(clippy::cast_possible_truncation)]
fn low_signed(value: u64) -> i32 {
    value as i32
}

/// Segment base of a string instruction's source.
pub(super) fn string_segment(insn: &Instruction) -> u8 {
    segment(insn.segment_prefix())
}

/// Whether a string instruction takes ESI, EDI and ECX.
pub(super) fn string_is_narrow(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| {
        matches!(
            insn.op_kind(i),
            OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI
        )
    })
}
