//! Random straight-line instructions for privilege level 0 with a defined result. Memory operands lie in a window, and
//! flags that an instruction leaves undefined are set before anything reads them.

use iced_x86::code_asm::*;
use iced_x86::{
    Code as Form, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register,
};

use super::code::Asm;

/// Half the size of the window for memory operands. R15 points to its middle.
pub const REACH: u64 = 0x1000;
/// General registers that instructions may use: all but RSP, the stack pointer, and R15, the window's base.
pub const REGISTERS: [AsmRegister64; 14] =
    [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14];
/// Number of vector registers that instructions may use.
pub const VECTORS: u32 = 8;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// A small number, one near a power of two, or a uniformly random one.
    pub fn integer(&mut self) -> u64 {
        let raw = self.next();
        let edge = 1_u64 << self.below(64);
        match self.below(6) {
            0 => raw & 0xff,
            1 => (raw & 0xff).wrapping_neg(),
            2 => edge.wrapping_sub(raw & 1),
            3 => edge.wrapping_neg(),
            _ => raw,
        }
    }
}

/// Forms with one or two operands in general registers and memory.
pub fn integer_forms() -> Vec<Form> {
    use Mnemonic as M;
    let wanted = |mnemonic| {
        let name = format!("{mnemonic:?}");
        let family = name.starts_with("Cmov") || name.starts_with("Set") && !name.starts_with("Setss");
        family
            || matches!(
                mnemonic,
                M::Adc
                    | M::Add
                    | M::And
                    | M::Bsf
                    | M::Bsr
                    | M::Bswap
                    | M::Bt
                    | M::Btc
                    | M::Btr
                    | M::Bts
                    | M::Cbw
                    | M::Cdq
                    | M::Cdqe
                    | M::Clc
                    | M::Cmc
                    | M::Cmp
                    | M::Cmpxchg
                    | M::Cmpxchg8b
                    | M::Cmpxchg16b
                    | M::Cqo
                    | M::Cwd
                    | M::Cwde
                    | M::Dec
                    | M::Imul
                    | M::Inc
                    | M::Lahf
                    | M::Lea
                    | M::Mov
                    | M::Movsx
                    | M::Movsxd
                    | M::Movzx
                    | M::Mul
                    | M::Neg
                    | M::Nop
                    | M::Not
                    | M::Or
                    | M::Popcnt
                    | M::Rcl
                    | M::Rcr
                    | M::Rol
                    | M::Ror
                    | M::Sahf
                    | M::Sal
                    | M::Sar
                    | M::Sbb
                    | M::Shl
                    | M::Shld
                    | M::Shr
                    | M::Shrd
                    | M::Stc
                    | M::Sub
                    | M::Test
                    | M::Xadd
                    | M::Xchg
                    | M::Xor
            )
    };
    forms(|form| wanted(form.mnemonic()))
}

/// Forms of SSE and SSE2.
pub fn vector_forms() -> Vec<Form> {
    forms(|form| {
        let features = form.cpuid_features();
        let vector = features
            .iter()
            .any(|feature| matches!(feature, CpuidFeature::SSE | CpuidFeature::SSE2));
        let name = format!("{:?}", form.mnemonic());
        // MASKMOVDQU has an implicit memory operand outside the window. Prefetches and fences change nothing.
        vector && !name.starts_with("Mask") && form.op_code().op_count() > 1
    })
}

fn forms(wanted: impl Fn(Form) -> bool) -> Vec<Form> {
    let usable = |form: &Form| {
        let info = form.op_code();
        info.mode64()
            && info.is_instruction()
            && info.encoding() == EncodingKind::Legacy
            && info.op_kinds().iter().all(|kind| is_usable(*kind))
            && !is_undefined(*form)
            && wanted(*form)
    };
    Form::values().filter(usable).collect()
}

fn is_usable(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    is_memory(kind)
        || is_immediate(kind)
        || general(kind).is_some()
        || matches!(
            kind,
            K::xmm_reg | K::xmm_rm | K::al | K::cl | K::ax | K::eax | K::rax
        )
}

/// Whether the form's result may be undefined or differ between processors.
fn is_undefined(form: Form) -> bool {
    use Mnemonic as M;
    let narrow = format!("{form:?}").contains("16");
    match form.mnemonic() {
        M::Shld | M::Shrd | M::Bswap | M::Movsxd => narrow,
        _ => false,
    }
}

fn is_memory(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::mem | K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem
    )
}

fn is_immediate(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::imm8
            | K::imm8_const_1
            | K::imm16
            | K::imm32
            | K::imm64
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm32sex64
    )
}

/// Width in bits of a general register operand.
fn general(kind: OpCodeOperandKind) -> Option<u32> {
    use OpCodeOperandKind as K;
    match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => Some(8),
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => Some(16),
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode => Some(32),
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode => Some(64),
        _ => None,
    }
}

/// Writes one instruction of this form, and others before and after it so that its result is defined.
pub fn one(c: &mut CodeAssembler, form: Form, rng: &mut Rng) -> Asm {
    let vector = VECTOR_OPERANDS
        .iter()
        .any(|kind| form.op_code().op_kinds().contains(kind));
    let mut insn = Instruction::default();
    insn.set_code(form);
    for (index, kind) in (0..).zip(form.op_code().op_kinds()) {
        operand(c, &mut insn, index, *kind, vector, rng)?;
    }
    if form.op_code().can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && rng.below(3) == 0 {
        insn.set_has_lock_prefix(true);
    }
    prepare(c, &insn, rng)?;
    c.add_instruction(insn)?;
    if insn.rflags_undefined() != 0 {
        c.cmp(rng.pick(&REGISTERS), rng.pick(&REGISTERS))?;
    }
    Ok(())
}

const VECTOR_OPERANDS: [OpCodeOperandKind; 3] = [
    OpCodeOperandKind::xmm_reg,
    OpCodeOperandKind::xmm_rm,
    OpCodeOperandKind::xmm_or_mem,
];

/// Makes the source of BSF and BSR non-zero, and keeps bit offsets within the window.
fn prepare(c: &mut CodeAssembler, insn: &Instruction, rng: &mut Rng) -> Asm {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Bsf | M::Bsr => {
            let mut set = *insn;
            // ORs the source with a byte that is not zero.
            set.set_code(Form::Or_rm8_imm8);
            if insn.op1_kind() == OpKind::Memory {
                set.set_op0_kind(OpKind::Memory);
            } else {
                set.set_op0_register(low_byte(insn.op1_register()));
                set.set_op0_kind(OpKind::Register);
            }
            set.set_op1_kind(OpKind::Immediate8);
            set.set_immediate8(1 << rng.below(8));
            c.add_instruction(set)
        }
        M::Bt | M::Btc | M::Btr | M::Bts
            if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
        {
            let offset = insn.op1_register().full_register();
            let whole = get_gpr64(offset).unwrap();
            if offset == insn.memory_index().full_register() {
                // The register is both index and bit offset, so it is at most 7.
                return c.and(whole, 7);
            }
            c.and(whole, 0x3ff)
        }
        _ => Ok(()),
    }
}

fn low_byte(register: Register) -> Register {
    let number = u32::try_from(register.number()).unwrap();
    // The encoder adds the REX prefix that SPL to R15B need.
    let bytes = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::SPL,
        Register::BPL,
        Register::SIL,
        Register::DIL,
    ];
    bytes
        .get(number as usize)
        .copied()
        .unwrap_or(Register::R8L + number.saturating_sub(8))
}

fn operand(
    c: &mut CodeAssembler,
    insn: &mut Instruction,
    index: u32,
    kind: OpCodeOperandKind,
    vector: bool,
    rng: &mut Rng,
) -> Asm {
    use OpCodeOperandKind as K;
    // With a register destination, KVM's emulator clears its upper half even if the comparison fails. Processors do
    // not.
    let in_memory_only = insn.code() == Form::Cmpxchg_rm32_r32;
    if kind == K::mem || is_memory(kind) && (in_memory_only || rng.below(2) == 0) {
        return memory(c, insn, index, vector, rng);
    }
    let register = match kind {
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::xmm_reg | K::xmm_rm | K::xmm_or_mem => {
            Register::XMM0 + u32::try_from(rng.below(VECTORS.into())).unwrap()
        }
        _ => match general(kind) {
            Some(bits) => {
                let full: Register = rng.pick(&REGISTERS).into();
                match bits {
                    8 => low_byte(full),
                    16 => Register::AX + u32::try_from(full.number()).unwrap(),
                    32 => Register::EAX + u32::try_from(full.number()).unwrap(),
                    _ => full,
                }
            }
            None => return immediate(insn, index, kind, rng),
        },
    };
    insn.set_op_kind(index, OpKind::Register);
    insn.set_op_register(index, register);
    Ok(())
}

/// A memory operand in the window, aligned to 16 bytes if the instruction needs that.
fn memory(c: &mut CodeAssembler, insn: &mut Instruction, index: u32, vector: bool, rng: &mut Rng) -> Asm {
    let aligned = vector || insn.code().mnemonic() == Mnemonic::Cmpxchg16b;
    let half = REACH / 2;
    let place = rng.below(half) / if aligned { 16 } else { 1 } * if aligned { 16 } else { 1 };
    insn.set_op_kind(index, OpKind::Memory);
    insn.set_memory_base(Register::R15);
    insn.set_memory_displacement64(place.wrapping_sub(half / 2));
    insn.set_memory_displ_size(8);
    if !aligned && rng.below(3) == 0 {
        let number = rng.pick(&REGISTERS);
        c.and(number, 0x7f)?;
        insn.set_memory_index(number.into());
        insn.set_memory_index_scale(1 << rng.below(4));
    }
    Ok(())
}

fn immediate(insn: &mut Instruction, index: u32, kind: OpCodeOperandKind, rng: &mut Rng) -> Asm {
    use OpCodeOperandKind as K;
    let value = if kind == K::imm8_const_1 { 1 } else { rng.integer() };
    let (op_kind, bits) = match kind {
        K::imm8 | K::imm8_const_1 => (OpKind::Immediate8, 8),
        K::imm16 => (OpKind::Immediate16, 16),
        K::imm32 => (OpKind::Immediate32, 32),
        K::imm64 => (OpKind::Immediate64, 64),
        K::imm8sex16 => (OpKind::Immediate8to16, 8),
        K::imm8sex32 => (OpKind::Immediate8to32, 8),
        K::imm8sex64 => (OpKind::Immediate8to64, 8),
        _ => (OpKind::Immediate32to64, 32),
    };
    insn.set_op_kind(index, op_kind);
    let shifted = value << (64 - bits);
    if matches!(
        op_kind,
        OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32to64
    ) {
        insn.set_immediate_i64(index, shifted.cast_signed() >> (64 - bits));
    } else {
        insn.set_immediate_u64(index, shifted >> (64 - bits));
    }
    Ok(())
}
