//! Makes a random case of one instruction form: encoding first, then a state in which its memory operands lie in
//! scratch memory.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind,
    Register,
};

use crate::rng::Rng;
use crate::state::{CODE, DATA, DATA_LEN, PAGE, READ_ONLY, State, UNMAPPED, fx};

/// Room for the jump behind an instruction and at a branch's target, in bytes.
const STUB: u64 = 14;

/// One instruction and what it starts from.
pub struct Case {
    /// The instruction.
    pub bytes: Vec<u8>,
    /// The same, decoded (without the check for invalid LOCK prefixes).
    pub insn: Instruction,
    /// Registers to begin with.
    pub state: State,
    /// Scratch memory to begin with.
    pub data: Box<[u8; DATA_LEN]>,
    /// Where a taken branch lands.
    pub taken: u64,
    /// Bases of FS and GS.
    pub segment_bases: [u64; 2],
}

const GPR64: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const GPR8_HIGH: [Register; 4] = [Register::AH, Register::CH, Register::DH, Register::BH];
/// Prefixes that are sometimes put in front of a finished instruction: ignored ones, and ones that make it another.
const STRAY_PREFIXES: [u8; 10] = [0x26, 0x2e, 0x36, 0x3e, 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0xf0];

/// The register of a class (by its first member) with number `n`.
fn register(first: Register, n: u64) -> Register {
    first + u32::try_from(n).expect("a register number")
}

/// A case for `code`, or `None` when the operands chosen cannot be encoded.
pub fn case(code: Code, rng: &mut Rng, fs_base: u64, gs_base: u64) -> Option<Case> {
    let rip = CODE + 0x200 + rng.below(0x400);
    let distance = STUB + 2 + rng.below(90);
    // Far enough from the instruction and from the jump behind it, near enough for an 8-bit displacement.
    let taken = if rng.one_in(2) {
        rip + 15 + distance
    } else {
        rip - distance
    };
    let insn = instruction(code, rng, taken)?;
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, rip).ok()?;
    let mut bytes = encoder.take_buffer();
    if rng.one_in(12) {
        let prefix = rng.pick(&STRAY_PREFIXES);
        if !stray_prefix_is_portable(code, prefix) {
            return None;
        }
        bytes.insert(0, prefix);
        if bytes.len() > 15 {
            return None;
        }
    }
    let insn = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NO_INVALID_CHECK).decode();
    if insn.is_invalid() || insn.len() != bytes.len() {
        return None;
    }
    let mut taken = taken;
    if insn.op_count() == 1 && insn.op0_kind() == OpKind::NearBranch64 {
        // A stray prefix has moved it.
        taken = insn.near_branch64();
        let end = rip + bytes.len() as u64 + STUB;
        if taken + STUB > rip && taken < end {
            return None;
        }
    }
    let mut case = Case {
        bytes,
        insn,
        state: state(rng, rip),
        data: data(rng),
        taken,
        segment_bases: [fs_base, gs_base],
    };
    crate::fixup::place_operands(&mut case, rng)?;
    Some(case)
}

/// Whether processors agree on what the prefix does to the instruction; these are left out:
///
/// - 0x66 on a near branch: AMD truncates RIP to 16 bits, Intel (and softcpu) ignores it;
/// - 0xf2 and 0xf3 on LOOPE and LOOPNE: AMD takes the condition from the prefix;
/// - LOCK on VERR and VERW (AMD ignores it) and on MOV CR (AMD reaches CR8 so);
/// - 0xf3 on XCHG R8 to RAX, which the decoder takes for PAUSE (and softcpu refuses).
fn stray_prefix_is_portable(code: Code, prefix: u8) -> bool {
    let branch = !matches!(code.flow_control(), FlowControl::Next | FlowControl::Exception);
    let looping = matches!(code.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne);
    match prefix {
        0x66 => !branch,
        0xf2 | 0xf3 if looping => false,
        0xf3 => !matches!(code, Code::Xchg_r64_RAX | Code::Xchg_r32_EAX | Code::Xchg_r16_AX),
        0xf0 => !matches!(code.mnemonic(), Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Mov),
        _ => true,
    }
}

/// Random registers.
fn state(rng: &mut Rng, rip: u64) -> State {
    let mut state = State::ZERO;
    state.gpr.fill_with(|| rng.integer());
    if rng.one_in(8) {
        // Equal operands.
        let value = rng.integer();
        state.gpr.fill(value);
    }
    state.rip = rip;
    // CF PF AF ZF SF OF, DF and ID at random; IF and bit 1 set.
    state.rflags = rng.next() & 0x0020_0cd5 | 0x202;
    let control: u16 = match rng.below(8) {
        0 => 0x0040 | u16::try_from(rng.next() & 0x1f3f).expect("13 bits"),
        1 => 0x007f | u16::try_from(rng.below(16) << 8).expect("12 bits"),
        _ => 0x037f,
    };
    state.fx[fx::FCW..fx::FCW + 2].copy_from_slice(&control.to_le_bytes());
    let mut status = u16::try_from(rng.next() & 0x7f7f).expect("15 bits");
    if rng.below(4) != 0 {
        // Nothing is pending whatever is masked.
        status &= 0x7f40;
    }
    state.fx[2..4].copy_from_slice(&status.to_le_bytes());
    state.fx[4] = match rng.below(4) {
        0 => u8::try_from(rng.next() & 0xff).expect("8 bits"),
        1 => 0xff,
        // All but ST(7), so that there is room for a push.
        _ => !1u8.rotate_left(u32::from(status >> 11) + 7),
    };
    for st in 0..8 {
        let at = fx::ST + 16 * st;
        let value = rng.extended().to_le_bytes();
        state.fx[at..at + 10].copy_from_slice(&value[..10]);
    }
    if rng.one_in(4) {
        // ST(1) near ST(0).
        let change = u8::try_from(rng.below(4)).expect("small");
        state.fx.copy_within(fx::ST..fx::ST + 10, fx::ST + 16);
        state.fx[fx::ST + 16] ^= change;
        state.fx[fx::ST + 24] ^= change >> 1;
        state.fx[fx::ST + 25] ^= change << 7;
    }
    for xmm in 0..16 {
        state.set_xmm(xmm, rng.vector());
    }
    let mxcsr = match rng.below(4) {
        0 => u32::try_from(rng.next() & 0xffff).expect("16 bits"),
        1 => 0x1f80 | u32::try_from(rng.next() & 0xe07f).expect("16 bits"),
        _ => 0x1f80,
    };
    state.set_mxcsr(mxcsr);
    state
}

/// Scratch memory: noise, vectors, or few different bytes (so that string comparisons find equal ones).
fn data(rng: &mut Rng) -> Box<[u8; DATA_LEN]> {
    let mut data = Box::new([0u8; DATA_LEN]);
    match rng.below(4) {
        0 => {
            let pattern = rng.integer().to_le_bytes()[0];
            data.fill(pattern);
            for _ in 0..rng.below(64) {
                let at = usize::try_from(rng.below(DATA_LEN as u64)).expect("an index");
                data[at] = pattern ^ 1;
            }
        }
        1 => {
            // Making vectors is dear: few of them, again and again.
            let vectors: [u128; 31] = std::array::from_fn(|_| rng.vector());
            for (place, vector) in data.chunks_exact_mut(16).zip(vectors.iter().cycle()) {
                place.copy_from_slice(&vector.to_le_bytes());
            }
        }
        _ => data
            .chunks_exact_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&rng.next().to_le_bytes())),
    }
    data
}

/// An instruction of form `code` with random operands; memory operands have their shape, not yet their registers'
/// values.
fn instruction(code: Code, rng: &mut Rng, taken: u64) -> Option<Instruction> {
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let narrow = if info.address_size() == 0 {
        rng.one_in(8)
    } else {
        info.address_size() == 32
    };
    let mut has_memory = false;
    for (index, &kind) in info.op_kinds().iter().enumerate() {
        let index = u32::try_from(index).expect("five operands at most");
        has_memory |= operand(&mut insn, index, kind, rng, narrow, taken)?;
    }
    if has_memory && rng.one_in(8) {
        insn.set_segment_prefix(rng.pick(&[
            Register::FS,
            Register::GS,
            Register::GS,
            Register::DS,
            Register::CS,
        ]));
    }
    if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && rng.one_in(3) {
        insn.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && rng.below(4) != 0 {
        insn.set_has_rep_prefix(true);
    } else if info.can_use_repne_prefix() && rng.one_in(2) {
        insn.set_has_repne_prefix(true);
    }
    Some(insn)
}

/// Sets one operand; true when it is memory.
fn operand(
    insn: &mut Instruction,
    index: u32,
    kind: OpCodeOperandKind,
    rng: &mut Rng,
    narrow: bool,
    taken: u64,
) -> Option<bool> {
    use OpCodeOperandKind as K;
    let set_register = |insn: &mut Instruction, register| {
        insn.set_op_kind(index, OpKind::Register);
        insn.set_op_register(index, register);
        Some(false)
    };
    let n = rng.below(16);
    let in_memory = rng.below(5) < 3;
    match kind {
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem | K::mm_or_mem
            if in_memory =>
        {
            memory(insn, index, rng, narrow);
            Some(true)
        }
        K::mem => {
            memory(insn, index, rng, narrow);
            Some(true)
        }
        K::mem_offs => {
            insn.set_op_kind(index, OpKind::Memory);
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            insn.set_memory_displacement64(anywhere(rng));
            Some(true)
        }
        K::r8_or_mem | K::r8_reg | K::r8_opcode => {
            let register = if rng.one_in(3) {
                rng.pick(&GPR8_HIGH)
            } else {
                rng.pick(&[
                    Register::AL,
                    Register::CL,
                    Register::DL,
                    Register::BL,
                    Register::SPL,
                    Register::BPL,
                    Register::SIL,
                    Register::DIL,
                    Register::R8L,
                    Register::R9L,
                    Register::R12L,
                    Register::R13L,
                    Register::R15L,
                ])
            };
            set_register(insn, register)
        }
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => {
            set_register(insn, register(Register::AX, n))
        }
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode => {
            set_register(insn, register(Register::EAX, n))
        }
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode => {
            set_register(insn, register(Register::RAX, n))
        }
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm => set_register(insn, register(Register::XMM0, n)),
        K::mm_or_mem | K::mm_reg | K::mm_rm => set_register(insn, register(Register::MM0, n & 7)),
        K::sti_opcode => set_register(insn, register(Register::ST0, n & 7)),
        K::st0 => set_register(insn, Register::ST0),
        // FS and GS belong to the host thread: they are only read.
        K::seg_reg if index == 0 => set_register(insn, register(Register::ES, n % 4)),
        K::seg_reg => set_register(insn, register(Register::ES, n % 6)),
        K::cr_reg => set_register(
            insn,
            rng.pick(&[
                Register::CR0,
                Register::CR2,
                Register::CR3,
                Register::CR4,
                Register::CR8,
            ]),
        ),
        K::dr_reg => set_register(
            insn,
            rng.pick(&[Register::DR0, Register::DR3, Register::DR6, Register::DR7]),
        ),
        K::fs => set_register(insn, Register::FS),
        K::gs => set_register(insn, Register::GS),
        K::al => set_register(insn, Register::AL),
        K::cl => set_register(insn, Register::CL),
        K::ax => set_register(insn, Register::AX),
        K::dx => set_register(insn, Register::DX),
        K::eax => set_register(insn, Register::EAX),
        K::rax => set_register(insn, Register::RAX),
        K::imm8
        | K::imm16
        | K::imm32
        | K::imm64
        | K::imm8_const_1
        | K::imm8sex16
        | K::imm8sex32
        | K::imm8sex64
        | K::imm32sex64 => {
            immediate(insn, index, kind, rng);
            Some(false)
        }
        K::seg_rSI | K::es_rDI | K::seg_rDI => {
            insn.set_op_kind(
                index,
                match (kind, narrow) {
                    (K::seg_rSI, false) => OpKind::MemorySegRSI,
                    (K::seg_rSI, true) => OpKind::MemorySegESI,
                    (K::es_rDI, false) => OpKind::MemoryESRDI,
                    (K::es_rDI, true) => OpKind::MemoryESEDI,
                    (_, false) => OpKind::MemorySegRDI,
                    (_, true) => OpKind::MemorySegEDI,
                },
            );
            Some(kind != K::es_rDI)
        }
        K::seg_rBX_al => {
            insn.set_op_kind(index, OpKind::Memory);
            insn.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
            insn.set_memory_index(Register::AL);
            Some(true)
        }
        K::br64_1 | K::br64_4 => {
            insn.set_op_kind(index, OpKind::NearBranch64);
            insn.set_near_branch64(taken);
            Some(false)
        }
        _ => None,
    }
}

fn immediate(insn: &mut Instruction, index: u32, kind: OpCodeOperandKind, rng: &mut Rng) {
    use OpCodeOperandKind as K;
    let (kind, bits) = match kind {
        K::imm8 | K::imm8_const_1 => {
            // ENTER has a second immediate.
            let second = insn.op_count() > 0 && index == 1 && insn.code().op_code().op0_kind() == K::imm16;
            (
                if second {
                    OpKind::Immediate8_2nd
                } else {
                    OpKind::Immediate8
                },
                8,
            )
        }
        K::imm16 => (OpKind::Immediate16, 16),
        K::imm32 => (OpKind::Immediate32, 32),
        K::imm64 => (OpKind::Immediate64, 64),
        K::imm8sex16 => (OpKind::Immediate8to16, 8),
        K::imm8sex32 => (OpKind::Immediate8to32, 8),
        K::imm8sex64 => (OpKind::Immediate8to64, 8),
        _ => (OpKind::Immediate32to64, 32),
    };
    let constant = insn.code().op_code().op_kinds().get(index as usize) == Some(&K::imm8_const_1);
    let raw = if constant { 1 } else { rng.integer() };
    let value = match insn.mnemonic() {
        // A frame that stays in scratch memory: ENTER touches its far end.
        Mnemonic::Enter if index == 0 => raw % 0x300,
        Mnemonic::Ret if index == 0 => raw & 0xffff,
        _ => raw,
    };
    insn.set_op_kind(index, kind);
    let sign_extended = (value << (64 - bits)).cast_signed() >> (64 - bits);
    let zero_extended = value << (64 - bits) >> (64 - bits);
    match kind {
        OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => {
            insn.set_immediate_i64(index, sign_extended);
        }
        _ => insn.set_immediate_u64(index, zero_extended),
    }
}

/// An address in scratch memory, now and then at one of its edges or behind them.
pub fn anywhere(rng: &mut Rng) -> u64 {
    let near = |edge: u64, rng: &mut Rng| edge - 24 + rng.below(40);
    match rng.below(64) {
        0 => near(UNMAPPED, rng),
        1 => near(READ_ONLY, rng),
        2..6 => near(DATA + PAGE, rng),
        n => {
            let address = DATA + 0x400 + rng.below(DATA_LEN as u64 - 0x800);
            if n < 40 { address & !15 } else { address }
        }
    }
}

/// Gives a memory operand its shape: base, index, scale, displacement.
fn memory(insn: &mut Instruction, index: u32, rng: &mut Rng, narrow: bool) {
    insn.set_op_kind(index, OpKind::Memory);
    let class = if narrow { Register::EAX } else { Register::RAX };
    let any = |rng: &mut Rng| register(class, rng.below(16));
    let target = anywhere(rng);
    let displacement = match rng.below(3) {
        0 => {
            insn.set_memory_displ_size(0);
            0
        }
        1 => {
            insn.set_memory_displ_size(1);
            (rng.below(256).cast_signed() - 128).cast_unsigned()
        }
        _ => {
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            (rng.integer() << 32)
                .cast_signed()
                .wrapping_shr(32)
                .cast_unsigned()
        }
    };
    let displacement = if narrow {
        displacement & 0xffff_ffff
    } else {
        displacement
    };
    insn.set_memory_displacement64(displacement);
    match rng.below(10) {
        0 => {
            // Relative to RIP; iced takes the address itself.
            insn.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            insn.set_memory_displacement64(target);
        }
        1 => {
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            insn.set_memory_displacement64(target);
        }
        2 => {
            let index = any(rng);
            if index != Register::RSP && index != Register::ESP {
                insn.set_memory_index(index);
                insn.set_memory_index_scale(1 << rng.below(4));
                insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            } else {
                insn.set_memory_base(index);
            }
        }
        3..7 => insn.set_memory_base(any(rng)),
        _ => {
            insn.set_memory_base(any(rng));
            let index = any(rng);
            if index != Register::RSP && index != Register::ESP {
                insn.set_memory_index(index);
                insn.set_memory_index_scale(1 << rng.below(4));
            }
        }
    }
}

/// The register number (0 to 15) of a 32- or 64-bit general register.
pub fn number(register: Register) -> Option<usize> {
    GPR64.iter().position(|&full| full == register.full_register())
}
