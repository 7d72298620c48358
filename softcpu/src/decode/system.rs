//! Lowers system instructions and the rarest user-level ones.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::operands::{gpr, has_memory, size, size_index};
use crate::exec::system::{SystemOp, pack};
use crate::op::{Op, OpCode};

pub(super) fn lower(insn: &Instruction, op: &mut Op) -> bool {
    use SystemOp as K;
    let memory = has_memory(insn);
    let bytes = if insn.op_count() > 0 {
        size_index(size(insn, 0)).unwrap_or(3)
    } else {
        3
    };
    let mut extra = 0u8;
    let (first, second) = (insn.op_register(0), insn.op_register(1));
    if insn.op_count() > 0 {
        op.a = gpr(first);
    }
    if insn.op_count() > 1 {
        op.b = gpr(second);
    }
    let kind = match insn.mnemonic() {
        M::Mov if first.is_segment_register() => {
            extra = segment(first);
            op.a = gpr(second);
            K::LoadSegment
        }
        M::Mov if second.is_segment_register() => {
            extra = segment(second);
            K::StoreSegment
        }
        M::Mov if first.is_cr() => {
            extra = number(first, Register::CR0);
            K::WriteCr
        }
        M::Mov if second.is_cr() => {
            extra = number(second, Register::CR0);
            K::ReadCr
        }
        M::Mov if first.is_dr() => {
            extra = number(first, Register::DR0);
            K::WriteDr
        }
        M::Mov if second.is_dr() => {
            extra = number(second, Register::DR0);
            K::ReadDr
        }
        M::Push if first.is_segment_register() && insn.stack_pointer_increment() == -8 => {
            extra = segment(first);
            K::PushSegment
        }
        M::Push if first.is_segment_register() => {
            extra = segment(first);
            K::PushSegmentWord
        }
        M::Pop if first.is_segment_register() => {
            extra = segment(first);
            if insn.stack_pointer_increment() == 8 {
                K::PopSegment
            } else {
                K::PopSegmentWord
            }
        }
        M::Pushfq => K::Pushf,
        M::Popfq => K::Popf,
        M::Pushf => K::PushfWord,
        M::Popf => K::PopfWord,
        M::Cli => K::Cli,
        M::Sti => K::Sti,
        M::Hlt => K::Hlt,
        M::Pause => K::Pause,
        M::Clts => K::Clts,
        M::Cpuid => K::Cpuid,
        M::Rdtsc => K::Rdtsc,
        M::Rdtscp => K::Rdtscp,
        M::Rdmsr => K::Rdmsr,
        M::Wrmsr => K::Wrmsr,
        M::Rdpmc => K::Rdpmc,
        M::Lgdt => K::Lgdt,
        M::Lidt => K::Lidt,
        M::Sgdt => K::Sgdt,
        M::Sidt => K::Sidt,
        M::Lldt => K::Lldt,
        M::Ltr => K::Ltr,
        M::Sldt => K::Sldt,
        M::Str => K::Str,
        M::Lmsw => K::Lmsw,
        M::Smsw => K::Smsw,
        M::Lar => K::Lar,
        M::Lsl => K::Lsl,
        M::Verr => K::Verr,
        M::Verw => K::Verw,
        M::Invlpg => K::Invlpg,
        M::Wbinvd | M::Invd => K::Wbinvd,
        M::Swapgs => K::Swapgs,
        M::Rdfsbase => K::Rdfsbase,
        M::Rdgsbase => K::Rdgsbase,
        M::Wrfsbase => K::Wrfsbase,
        M::Wrgsbase => K::Wrgsbase,
        M::Syscall => K::Syscall,
        M::Sysretq => K::Sysret,
        M::Iretq => K::Iret,
        M::Retf if insn.code() == iced_x86::Code::Retfq => K::Retf,
        M::Retf if insn.code() == iced_x86::Code::Retfd => K::Retfd,
        M::Jmp if insn.op_kind(0) == OpKind::Memory && size(insn, 0) == 10 => K::JmpFar,
        M::Jmp if insn.code() == iced_x86::Code::Jmp_m1632 => K::JmpFar32,
        M::Int3 => K::Int3,
        M::Int1 => K::Int1,
        M::Int => {
            extra = insn.immediate8();
            K::Int
        }
        M::In => {
            if insn.op_kind(1) == OpKind::Immediate8 {
                extra = insn.immediate8();
                K::InImm
            } else {
                K::In
            }
        }
        M::Out => {
            let port_is_immediate = insn.op_kind(0) == OpKind::Immediate8;
            let size = size_index(size(insn, 1)).unwrap_or(0);
            extra = if port_is_immediate { insn.immediate8() } else { 0 };
            op.imm = pack(
                if port_is_immediate { K::OutImm } else { K::Out },
                size,
                false,
                extra,
            );
            op.code = OpCode::Cold;
            return true;
        }
        _ => return false,
    };
    op.imm = pack(kind, bytes, memory, extra);
    op.code = OpCode::Cold;
    true
}

fn segment(register: Register) -> u8 {
    number(register, Register::ES)
}

fn number(register: Register, first: Register) -> u8 {
    (register as u32).wrapping_sub(first as u32).to_le_bytes()[0]
}
