//! Lowers integer instructions and branches.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operands::{gpr, has_memory, size, size_index};
use super::tables::{ALU, Form, JCC_FAR, JCC_NEAR, MOV, TEST};
use crate::exec::misc::{MiscOp, pack};
use crate::exec::string::{Rep, StringOp, pack as pack_string};
use crate::op::{Op, OpCode};

/// Lowers `insn` if it is one of ours.
pub(super) fn lower(insn: &Instruction, near: bool, op: &mut Op) -> bool {
    branch(insn, near, op) || move_or_alu(insn, op) || misc(insn, op) || string(insn, op)
}

fn condition(insn: &Instruction) -> Option<usize> {
    // iced numbers conditions from 1 in the order of their encoding.
    (insn.condition_code() as usize).checked_sub(1)
}

fn branch(insn: &Instruction, near: bool, op: &mut Op) -> bool {
    let near_target = insn.op_count() > 0 && insn.op_kind(0) == OpKind::NearBranch64;
    let target = insn.near_branch64();
    let inside = near && target < 4096;
    let wide = |op: &mut Op, register: OpCode, memory: OpCode| {
        // Only 64-bit operands exist for indirect branches here (Intel ignores the operand-size prefix).
        op.a = gpr(insn.op_register(0));
        op.code = if has_memory(insn) { memory } else { register };
        has_memory(insn) == (insn.op_kind(0) == OpKind::Memory) && size(insn, 0) == 8
    };
    match insn.mnemonic() {
        M::Jmp if near_target => {
            op.imm = target;
            op.code = if inside { OpCode::JmpNear } else { OpCode::JmpFar };
            true
        }
        M::Call if near_target => {
            op.imm = target;
            op.code = if inside { OpCode::CallNear } else { OpCode::CallFar };
            true
        }
        M::Jmp => wide(op, OpCode::JmpR, OpCode::JmpM),
        M::Call => wide(op, OpCode::CallR, OpCode::CallM),
        M::Ret if insn.op_count() == 0 => {
            op.code = OpCode::Ret;
            true
        }
        M::Ret => {
            op.code = OpCode::RetImm;
            op.imm = u64::from(insn.immediate16());
            true
        }
        _ if insn.is_jcc_short_or_near() => {
            let Some(condition) = condition(insn) else {
                return false;
            };
            op.imm = target;
            op.code = if inside {
                JCC_NEAR[condition]
            } else {
                JCC_FAR[condition]
            };
            true
        }
        M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => {
            let kind = match insn.mnemonic() {
                M::Loop => MiscOp::Loop,
                M::Loope => MiscOp::Loope,
                M::Loopne => MiscOp::Loopne,
                _ => MiscOp::Jrcxz,
            };
            // RCX or, with an address-size prefix, ECX counts.
            let wide = insn.op_count() == 0 || !counts_ecx(insn);
            op.code = OpCode::Misc;
            op.disp = match i32::try_from(target.cast_signed()) {
                Ok(target) => target,
                Err(_) => return false,
            };
            op.imm = pack(kind, if wide { 3 } else { 2 }, false, 0);
            true
        }
        _ => false,
    }
}

fn counts_ecx(insn: &Instruction) -> bool {
    use iced_x86::Code;
    matches!(
        insn.code(),
        Code::Loop_rel8_64_ECX | Code::Loope_rel8_64_ECX | Code::Loopne_rel8_64_ECX | Code::Jecxz_rel8_64
    )
}

/// Form of a two-operand instruction, and log2 of the operand size in bytes.
fn form(insn: &Instruction, op: &mut Op) -> Option<(Form, usize)> {
    let immediate = |i: u32| !matches!(insn.op_kind(i), OpKind::Register | OpKind::Memory);
    let bytes = size_index(size(insn, 0))?;
    let form = match (insn.op_kind(0), insn.op_kind(1)) {
        (OpKind::Register, OpKind::Register) => Form::RegReg,
        (OpKind::Register, OpKind::Memory) => Form::RegMem,
        (OpKind::Memory, OpKind::Register) => Form::MemReg,
        (OpKind::Register, _) if immediate(1) => Form::RegImm,
        (OpKind::Memory, _) if immediate(1) => Form::MemImm,
        _ => return None,
    };
    match form {
        Form::RegReg => (op.a, op.b) = (gpr(insn.op_register(0)), gpr(insn.op_register(1))),
        Form::RegMem => op.a = gpr(insn.op_register(0)),
        Form::MemReg => op.b = gpr(insn.op_register(1)),
        Form::RegImm => (op.a, op.imm) = (gpr(insn.op_register(0)), insn.immediate(1)),
        Form::MemImm => op.imm = insn.immediate(1),
    }
    Some((form, bytes))
}

fn move_or_alu(insn: &Instruction, op: &mut Op) -> bool {
    let family = match insn.mnemonic() {
        M::Add => &ALU[0],
        M::Or => &ALU[1],
        M::Adc => &ALU[2],
        M::Sbb => &ALU[3],
        M::And => &ALU[4],
        M::Sub => &ALU[5],
        M::Xor => &ALU[6],
        M::Cmp => &ALU[7],
        M::Test => &TEST,
        M::Mov => &MOV,
        _ => return single(insn, op),
    };
    let general = (0..2).all(|i| insn.op_kind(i) != OpKind::Register || insn.op_register(i).is_gpr());
    if !general {
        return false;
    }
    let Some((form, bytes)) = form(insn, op) else {
        return false;
    };
    op.code = family[form as usize][bytes];
    true
}

/// Picks by size of the 32-bit and 64-bit opcodes; none for other sizes.
fn wide(bytes: Option<usize>, double: OpCode, quad: OpCode) -> Option<OpCode> {
    match bytes {
        Some(2) => Some(double),
        Some(3) => Some(quad),
        _ => None,
    }
}

fn single(insn: &Instruction, op: &mut Op) -> bool {
    use OpCode as C;
    let memory = has_memory(insn);
    let bytes = if insn.op_count() > 0 {
        size_index(size(insn, 0))
    } else {
        None
    };
    let source = if insn.op_count() > 1 {
        size_index(size(insn, 1))
    } else {
        None
    };
    let pick = |register: C, other: C| Some(if memory { other } else { register });
    op.a = gpr(insn.op_register(0));
    if insn.op_count() > 1 {
        op.b = gpr(insn.op_register(1));
    }
    let code = match insn.mnemonic() {
        M::Lea => match bytes {
            Some(1) => Some(C::LeaW),
            other => wide(other, C::LeaD, C::LeaQ),
        },
        M::Movzx if bytes >= Some(2) => match source {
            Some(0) => pick(C::MovzxBR, C::MovzxBM),
            _ => pick(C::MovzxWR, C::MovzxWM),
        },
        M::Movsx | M::Movsxd => match (source, bytes) {
            (Some(0), Some(2)) => pick(C::MovsxBDR, C::MovsxBDM),
            (Some(0), Some(3)) => pick(C::MovsxBQR, C::MovsxBQM),
            (Some(1), Some(2)) => pick(C::MovsxWDR, C::MovsxWDM),
            (Some(1), Some(3)) => pick(C::MovsxWQR, C::MovsxWQM),
            (Some(2), Some(3)) => pick(C::MovsxDQR, C::MovsxDQM),
            // MOVSXD with a 32-bit destination is a plain move.
            (Some(2), Some(2)) => pick(C::MovRRD, C::MovRMD),
            _ => None,
        },
        M::Inc if !memory => wide(bytes, C::IncRD, C::IncRQ),
        M::Dec if !memory => wide(bytes, C::DecRD, C::DecRQ),
        M::Shl | M::Sal | M::Shr | M::Sar if !memory && insn.op_kind(1) == OpKind::Immediate8 => {
            let Some(bytes @ (2 | 3)) = bytes else {
                return false;
            };
            op.imm = u64::from(insn.immediate8()) & if bytes == 3 { 63 } else { 31 };
            // A count of zero leaves the flags alone, which the fast form does not check.
            if op.imm == 0 {
                None
            } else {
                match insn.mnemonic() {
                    M::Shr => wide(Some(bytes), C::ShrRID, C::ShrRIQ),
                    M::Sar => wide(Some(bytes), C::SarRID, C::SarRIQ),
                    _ => wide(Some(bytes), C::ShlRID, C::ShlRIQ),
                }
            }
        }
        M::Imul if insn.op_count() >= 2 => {
            if insn.op_count() == 3 {
                op.imm = insn.immediate(2);
                if memory {
                    wide(bytes, C::ImulDMI, C::ImulQMI)
                } else {
                    wide(bytes, C::ImulDRI, C::ImulQRI)
                }
            } else if memory {
                wide(bytes, C::ImulDM, C::ImulQM)
            } else {
                wide(bytes, C::ImulDR, C::ImulQR)
            }
        }
        M::Push if insn.stack_pointer_increment() == -8 && !insn.op_register(0).is_segment_register() => {
            Some(match insn.op_kind(0) {
                OpKind::Register => C::PushR,
                OpKind::Memory => C::PushM,
                _ => {
                    op.imm = insn.immediate(0);
                    C::PushI
                }
            })
        }
        M::Pop if !memory && insn.stack_pointer_increment() == 8 && insn.op_register(0).is_gpr() => {
            Some(C::PopR)
        }
        M::Leave if insn.code() == iced_x86::Code::Leaveq => Some(C::Leave),
        _ if insn.is_cmov() => {
            op.imm = condition(insn).unwrap_or(0) as u64;
            match (bytes, memory) {
                (Some(2), false) => Some(C::CmovDR),
                (Some(2), true) => Some(C::CmovDM),
                (Some(3), false) => Some(C::CmovQR),
                (Some(3), true) => Some(C::CmovQM),
                _ => None,
            }
        }
        _ => None,
    };
    if let Some(code) = code {
        op.code = code;
    }
    code.is_some()
}

trait IsCmov {
    fn is_cmov(&self) -> bool;
    fn is_setcc(&self) -> bool;
}

impl IsCmov for Instruction {
    fn is_cmov(&self) -> bool {
        use iced_x86::ConditionCode;
        self.condition_code() != ConditionCode::None && self.op_count() == 2
    }
    fn is_setcc(&self) -> bool {
        use iced_x86::ConditionCode;
        self.condition_code() != ConditionCode::None
            && self.op_count() == 1
            && matches!(self.op_kind(0), OpKind::Register | OpKind::Memory)
    }
}

fn misc(insn: &Instruction, op: &mut Op) -> bool {
    let memory = has_memory(insn);
    let count = insn.op_count();
    let first = if count > 0 {
        size_index(size(insn, 0)).unwrap_or(0)
    } else {
        3
    };
    let last_is_cl = count > 0
        && insn.op_kind(count - 1) == OpKind::Register
        && insn.op_register(count - 1) == iced_x86::Register::CL;
    let immediate = |i: u32| (insn.op_kind(i) == OpKind::Immediate8).then(|| insn.immediate8());
    let mut extra = 0u8;
    if count > 0 {
        op.a = gpr(insn.op_register(0));
    }
    if count > 1 {
        op.b = gpr(insn.op_register(1));
    }
    let mut shift = |by_imm: MiscOp, by_cl: MiscOp| {
        if last_is_cl {
            by_cl
        } else {
            extra = immediate(count - 1).unwrap_or(1);
            by_imm
        }
    };
    use MiscOp as K;
    let kind = match insn.mnemonic() {
        M::Shl | M::Sal => shift(K::ShlImm, K::ShlCl),
        M::Shr => shift(K::ShrImm, K::ShrCl),
        M::Sar => shift(K::SarImm, K::SarCl),
        M::Rol => shift(K::RolImm, K::RolCl),
        M::Ror => shift(K::RorImm, K::RorCl),
        M::Rcl => shift(K::RclImm, K::RclCl),
        M::Rcr => shift(K::RcrImm, K::RcrCl),
        M::Shld => shift(K::ShldImm, K::ShldCl),
        M::Shrd => shift(K::ShrdImm, K::ShrdCl),
        M::Inc => K::Inc,
        M::Dec => K::Dec,
        M::Neg => K::Neg,
        M::Not => K::Not,
        M::Mul => K::Mul,
        M::Imul if count == 1 => K::Imul,
        M::Imul if count == 2 => K::Imul2,
        M::Imul => {
            let Ok(factor) = i32::try_from(insn.immediate(2).cast_signed()) else {
                return false;
            };
            op.imm = pack(K::Imul3, first, memory, 0) | (u64::from(factor.cast_unsigned()) << 32);
            op.code = OpCode::Misc;
            return true;
        }
        M::Div => K::Div,
        M::Idiv => K::Idiv,
        M::Xchg => K::Xchg,
        M::Cmpxchg => K::Cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => {
            op.imm = pack(
                K::CmpxchgWide,
                if insn.mnemonic() == M::Cmpxchg8b { 2 } else { 3 },
                true,
                0,
            );
            op.code = OpCode::Misc;
            return true;
        }
        M::Xadd => K::Xadd,
        M::Bt | M::Bts | M::Btr | M::Btc => {
            let by_imm = immediate(1);
            extra = by_imm.unwrap_or(0);
            match (insn.mnemonic(), by_imm.is_some()) {
                (M::Bt, true) => K::BtImm,
                (M::Bt, false) => K::BtReg,
                (M::Bts, true) => K::BtsImm,
                (M::Bts, false) => K::BtsReg,
                (M::Btr, true) => K::BtrImm,
                (M::Btr, false) => K::BtrReg,
                (_, true) => K::BtcImm,
                (_, false) => K::BtcReg,
            }
        }
        M::Bsf => K::Bsf,
        M::Bsr => K::Bsr,
        M::Popcnt => K::Popcnt,
        M::Bswap => K::Bswap,
        M::Movzx | M::Movsx if first == 1 && size(insn, 1) == 2 => K::MovsxdToWord,
        M::Movzx if first == 1 => K::MovzxToWord,
        M::Movsx if first == 1 => K::MovsxToWord,
        M::Movsxd if first == 1 => K::MovsxdToWord,
        M::Cbw => K::Cbw,
        M::Cwde => K::Cwde,
        M::Cdqe => K::Cdqe,
        M::Cwd => K::Cwd,
        M::Cdq => K::Cdq,
        M::Cqo => K::Cqo,
        M::Lahf => K::Lahf,
        M::Sahf => K::Sahf,
        M::Clc => K::Clc,
        M::Stc => K::Stc,
        M::Cmc => K::Cmc,
        M::Cld => K::Cld,
        M::Std => K::Std,
        M::Xlatb if insn.memory_base() == iced_x86::Register::EBX => K::Xlat32,
        M::Xlatb => K::Xlat,
        M::Clflush => K::Touch,
        M::Movnti => K::Movnti,
        M::Push if insn.stack_pointer_increment() == -2 && !insn.op_register(0).is_segment_register() => {
            if !matches!(insn.op_kind(0), OpKind::Register | OpKind::Memory) {
                op.imm = pack(K::PushWordImm, 1, false, 0) | ((insn.immediate(0) & 0xffff) << 32);
                op.code = OpCode::Misc;
                return true;
            }
            K::PushWord
        }
        M::Pop if !insn.op_register(0).is_segment_register() => {
            if insn.stack_pointer_increment() == 2 {
                K::PopWord
            } else {
                K::PopMemory
            }
        }
        M::Enter => {
            let size = if insn.code() == iced_x86::Code::Enterw_imm16_imm8 {
                1
            } else {
                3
            };
            op.imm =
                pack(K::Enter, size, false, insn.immediate8_2nd()) | (u64::from(insn.immediate16()) << 32);
            op.code = OpCode::Misc;
            return true;
        }
        M::Leave => K::LeaveWord,
        _ if insn.is_cmov() => {
            extra = u8::try_from(condition(insn).unwrap_or(0)).unwrap_or(0);
            K::Cmov
        }
        _ if insn.is_setcc() => {
            extra = u8::try_from(condition(insn).unwrap_or(0)).unwrap_or(0);
            K::Set
        }
        _ => return false,
    };
    op.imm = pack(kind, first, memory, extra);
    op.code = OpCode::Misc;
    true
}

fn string(insn: &Instruction, op: &mut Op) -> bool {
    let (kind, bytes) = match insn.mnemonic() {
        M::Movsb => (StringOp::Movs, 0),
        M::Movsw => (StringOp::Movs, 1),
        M::Movsd if insn.is_string_instruction() => (StringOp::Movs, 2),
        M::Movsq => (StringOp::Movs, 3),
        M::Stosb => (StringOp::Stos, 0),
        M::Stosw => (StringOp::Stos, 1),
        M::Stosd => (StringOp::Stos, 2),
        M::Stosq => (StringOp::Stos, 3),
        M::Lodsb => (StringOp::Lods, 0),
        M::Lodsw => (StringOp::Lods, 1),
        M::Lodsd => (StringOp::Lods, 2),
        M::Lodsq => (StringOp::Lods, 3),
        M::Scasb => (StringOp::Scas, 0),
        M::Scasw => (StringOp::Scas, 1),
        M::Scasd => (StringOp::Scas, 2),
        M::Scasq => (StringOp::Scas, 3),
        M::Cmpsb => (StringOp::Cmps, 0),
        M::Cmpsw => (StringOp::Cmps, 1),
        M::Cmpsd if insn.is_string_instruction() => (StringOp::Cmps, 2),
        M::Cmpsq => (StringOp::Cmps, 3),
        M::Insb => (StringOp::Ins, 0),
        M::Insw => (StringOp::Ins, 1),
        M::Insd => (StringOp::Ins, 2),
        M::Outsb => (StringOp::Outs, 0),
        M::Outsw => (StringOp::Outs, 1),
        M::Outsd => (StringOp::Outs, 2),
        _ => return false,
    };
    let rep = match (insn.has_rep_prefix(), insn.has_repne_prefix(), kind) {
        (false, false, _) => Rep::Once,
        (_, false, StringOp::Scas | StringOp::Cmps) => Rep::WhileEqual,
        (_, true, StringOp::Scas | StringOp::Cmps) => Rep::WhileNotEqual,
        _ => Rep::Count,
    };
    op.seg = super::operands::string_segment(insn);
    op.imm = pack_string(kind, bytes, rep, super::operands::string_is_narrow(insn));
    op.code = OpCode::String;
    true
}
