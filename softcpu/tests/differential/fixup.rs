//! Gives registers and memory the values with which an instruction can run in the test: pointers into scratch memory,
//! branch targets that somebody waits at, counts that end.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

use crate::generate::{Case, anywhere, number};
use crate::rng::Rng;
use crate::state::{DATA, DATA_LEN, PAGE, READ_ONLY, UNMAPPED, fx};

const RAX: usize = 0;
pub const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
pub const RSP: usize = 4;
const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

/// Selectors that mean the same on both sides: null ones, the flat user segments of Linux, and ones beyond the table.
const SELECTORS: [u64; 10] = [0, 1, 2, 3, 0x23, 0x2b, 0x33, 0x2b, 0xfff3, 0x800];

/// Sets up `case.state` and `case.data` for `case.insn`; `None` when this instruction cannot be made safe to run.
pub fn place_operands(case: &mut Case, rng: &mut Rng) -> Option<()> {
    let insn = case.insn;
    special_registers(case, &insn, rng);
    if insn.is_stack_instruction() {
        let bottom = DATA + 0x400 + rng.below(DATA_LEN as u64 - 0x800);
        case.state.gpr[RSP] = match rng.below(48) {
            0 => READ_ONLY + rng.below(24) - 8,
            1 => UNMAPPED + rng.below(24) - 8,
            n if n < 40 => bottom & !7,
            _ => bottom,
        };
        if matches!(insn.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
            case.state.gpr[RBP] = anywhere(rng);
        }
    }
    for index in 0..insn.op_count() {
        match insn.op_kind(index) {
            OpKind::Memory => explicit_memory(case, &insn, rng)?,
            OpKind::MemorySegRSI | OpKind::MemorySegESI => string_pointer(case, &insn, RSI, rng)?,
            OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemoryESRDI | OpKind::MemoryESEDI => {
                string_pointer(case, &insn, RDI, rng)?;
            }
            _ => {}
        }
    }
    contents(case, &insn, rng);
    Some(())
}

/// Registers with a meaning of their own, before any of them becomes part of an address.
fn special_registers(case: &mut Case, insn: &Instruction, rng: &mut Rng) {
    let gpr = &mut case.state.gpr;
    if insn.is_string_instruction() {
        let count = if rng.one_in(24) {
            200 + rng.below(400)
        } else {
            rng.below(12)
        };
        // With a 32-bit address size only ECX counts.
        let noise = if narrow(insn) && rng.one_in(2) {
            rng.next() << 32
        } else {
            0
        };
        gpr[RCX] = count | noise;
    }
    match insn.mnemonic() {
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz | Mnemonic::Jecxz => {
            let low = rng.below(4);
            gpr[RCX] = if rng.one_in(4) {
                rng.integer()
            } else {
                low | if rng.one_in(2) { rng.next() << 32 } else { 0 }
            };
        }
        Mnemonic::Div | Mnemonic::Idiv if rng.below(8) != 0 => {
            // Quotients that fit, mostly.
            gpr[RDX] = if insn.mnemonic() == Mnemonic::Idiv && rng.one_in(2) {
                (gpr[RAX].cast_signed() >> 63).cast_unsigned()
            } else {
                rng.below(3)
            };
            if insn.op0_kind() == OpKind::Register && insn.op0_register().size() == 1
                || insn.memory_size().size() == 1
            {
                gpr[RAX] =
                    (gpr[RAX] & !0xffff) | (gpr[RAX].cast_signed() << 52 >> 52).cast_unsigned() & 0xffff;
            }
        }
        _ => {}
    }
    if !matches!(
        insn.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) {
        return;
    }
    if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register {
        // The bit offset moves the address: keep it within a few hundred bytes, the sign included.
        let register = insn.op1_register();
        if let Some(n) = number(register) {
            let bits = (rng.below(4096).cast_signed() - 2048).cast_unsigned();
            let size = u32::try_from(register.size() * 8).expect("64 at most");
            let low = u64::MAX >> (64 - size);
            gpr[n] = bits & low | if size < 64 { rng.next() & !low } else { 0 };
        }
    }
}

/// Whether addresses have 32 bits.
pub fn narrow(insn: &Instruction) -> bool {
    let by_operand = (0..insn.op_count()).any(|i| {
        matches!(
            insn.op_kind(i),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI
        )
    });
    let address = [insn.memory_base(), insn.memory_index()];
    by_operand
        || address.iter().any(|r| r.is_gpr32() || *r == Register::EIP)
        || (address == [Register::None; 2] && insn.memory_displ_size() == 4)
}

/// The base of the segment that memory operand addressing uses.
fn segment_base(case: &Case, insn: &Instruction) -> u64 {
    match insn.memory_segment() {
        Register::FS => case.segment_bases[0],
        Register::GS => case.segment_bases[1],
        _ => 0,
    }
}

/// Keeps low 32 bits of an address register and fills the rest with noise, which a 32-bit address size must ignore.
fn address_value(value: u64, narrow: bool, rng: &mut Rng) -> u64 {
    if !narrow {
        return value;
    }
    let noise = if rng.one_in(2) { rng.next() << 32 } else { 0 };
    value & 0xffff_ffff | noise
}

/// Chooses base and index so that the operand of a ModRM byte (or XLAT, or a moffs) lies in scratch memory.
fn explicit_memory(case: &mut Case, insn: &Instruction, rng: &mut Rng) -> Option<()> {
    let narrow = narrow(insn);
    let segment = segment_base(case, insn);
    if narrow && segment >> 32 != 0 {
        return None;
    }
    let mut target = anywhere(rng);
    if insn.mnemonic() == Mnemonic::Fxsave || insn.mnemonic() == Mnemonic::Fxrstor {
        target &= !15;
    }
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let scale = u64::from(insn.memory_index_scale());
    let displacement = insn.memory_displacement64();
    if base == Register::RIP || base == Register::EIP {
        return reachable(displacement.wrapping_add(segment)).then_some(());
    }
    if index == Register::AL {
        let value = target
            .wrapping_sub(segment)
            .wrapping_sub(case.state.gpr[RAX] & 0xff);
        case.state.gpr[RBX] = address_value(value, narrow, rng);
        return Some(());
    }
    let bit_offset = match insn.op1_kind() {
        OpKind::Register
            if matches!(
                insn.mnemonic(),
                Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            ) =>
        {
            number(insn.op1_register())
        }
        _ => None,
    };
    let stack = insn.is_stack_instruction().then_some(RSP);
    let taken = |n: usize| Some(n) == bit_offset || Some(n) == stack;
    let want = target.wrapping_sub(segment).wrapping_sub(displacement);
    match (number(base), number(index)) {
        (None, None) => {}
        (Some(b), None) => {
            if !taken(b) {
                case.state.gpr[b] = address_value(want, narrow, rng);
            }
        }
        (None, Some(i)) => {
            if !taken(i) {
                let want = if narrow { want & 0xffff_ffff } else { want };
                case.state.gpr[i] = address_value(want / scale, narrow, rng);
            }
        }
        (Some(b), Some(i)) if b == i => {
            if !taken(b) {
                let want = if narrow { want & 0xffff_ffff } else { want };
                case.state.gpr[b] = address_value(want / (scale + 1), narrow, rng);
            }
        }
        (Some(b), Some(i)) => {
            if !taken(b) {
                let value = want.wrapping_sub(case.state.gpr[i].wrapping_mul(scale));
                case.state.gpr[b] = address_value(value, narrow, rng);
            }
        }
    }
    reachable(linear(case, insn)).then_some(())
}

/// The linear address of the explicit memory operand.
pub fn linear(case: &Case, insn: &Instruction) -> u64 {
    let value = |register: Register| match register {
        Register::None => 0,
        Register::AL => case.state.gpr[RAX] & 0xff,
        _ => number(register).map_or(0, |n| case.state.gpr[n]),
    };
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let scaled = value(index).wrapping_mul(u64::from(insn.memory_index_scale()));
    let mut offset = value(base)
        .wrapping_add(scaled)
        .wrapping_add(insn.memory_displacement64());
    if narrow(insn) {
        offset &= 0xffff_ffff;
    }
    offset.wrapping_add(segment_base(case, insn))
}

/// Whether an access around `address` is the test's own business on the host: scratch memory, or what is known to be
/// unmapped.
fn reachable(address: u64) -> bool {
    (DATA - 0x800..UNMAPPED + 0x800).contains(&address)
}

/// Points RSI or RDI into scratch memory, with room for the whole count.
fn string_pointer(case: &mut Case, insn: &Instruction, register: usize, rng: &mut Rng) -> Option<()> {
    let narrow = narrow(insn);
    let segment = match insn.op0_kind() {
        _ if register == RDI && insn.is_string_instruction() => 0,
        _ => segment_base(case, insn),
    };
    if narrow && segment >> 32 != 0 {
        return None;
    }
    let size = string_element(insn);
    let span = if insn.is_string_instruction() {
        (case.state.gpr[RCX] & 0xffff) * size
    } else {
        16
    };
    let room = (READ_ONLY - DATA)
        .checked_sub(2 * span + 64)
        .filter(|room| *room > 0)?;
    let mut target = DATA + span + 32 + rng.below(room);
    match rng.below(32) {
        0 => target = READ_ONLY - 16 + rng.below(32),
        1 => target = UNMAPPED - 32 + rng.below(32),
        2..6 => target = DATA + PAGE - 16 + rng.below(32),
        6..16 => target &= !15,
        // Both operands close together: overlapping copies.
        16..20 if register == RDI => {
            target = case.state.gpr[RSI].wrapping_add(rng.below(32)).wrapping_sub(16)
        }
        _ => {}
    }
    // Whether MASKMOVDQU and MASKMOVQ fault for bytes that the mask leaves out is the processor's choice: they get no
    // page that faults.
    if !reachable(target) || (masked(insn) && target + 16 > READ_ONLY) {
        return None;
    }
    case.state.gpr[register] = address_value(target.wrapping_sub(segment), narrow, rng);
    Some(())
}

fn masked(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq)
}

/// Bytes per element of a string instruction.
fn string_element(insn: &Instruction) -> u64 {
    insn.memory_size().size() as u64
}

/// Memory contents and registers that decide what the instruction does.
fn contents(case: &mut Case, insn: &Instruction, rng: &mut Rng) {
    let taken = case.taken.to_le_bytes();
    let rsp = case.state.gpr[RSP];
    let memory = insn.op0_kind() == OpKind::Memory;
    match insn.mnemonic() {
        Mnemonic::Ret => poke(case, rsp, &taken),
        Mnemonic::Jmp | Mnemonic::Call if memory => poke(case, linear(case, insn), &taken),
        Mnemonic::Jmp | Mnemonic::Call if insn.op0_kind() == OpKind::Register => {
            if let Some(n) = number(insn.op0_register()) {
                case.state.gpr[n] = case.taken;
            }
        }
        // TF would trap behind the instruction and AC would fault the test's own stub.
        Mnemonic::Popf | Mnemonic::Popfq => poke(case, rsp, &(rng.next() & !0x4_0100).to_le_bytes()),
        Mnemonic::Cmpxchg if rng.one_in(2) => {
            let value = case.state.gpr[RAX];
            if memory {
                let size = insn.memory_size().size();
                poke(case, linear(case, insn), &value.to_le_bytes()[..size]);
            } else if let Some(n) = number(insn.op0_register()) {
                case.state.gpr[n] = value;
            }
        }
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => {
            let half = insn.memory_size().size() / 2;
            let address = linear(case, insn);
            if insn.mnemonic() == Mnemonic::Cmpxchg16b && !address.is_multiple_of(16) && rng.below(8) != 0 {
                return;
            }
            if rng.below(3) != 0 {
                let (low, high) = (case.state.gpr[RAX], case.state.gpr[RDX]);
                poke(case, address, &low.to_le_bytes()[..half]);
                poke(case, address + half as u64, &high.to_le_bytes()[..half]);
            }
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq if rng.one_in(2) => {
            // Look for something that is there.
            let at = usize::try_from(rng.below(DATA_LEN as u64 - 8)).expect("an index");
            case.state.gpr[RAX] = u64::from_le_bytes(case.data[at..at + 8].try_into().expect("8 bytes"));
        }
        Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Mov => {
            selector(case, insn, rng)
        }
        Mnemonic::Fxrstor => image(case, insn, rng),
        Mnemonic::Ldmxcsr if rng.below(8) != 0 => {
            let value = u32::try_from(rng.next() & 0xffff).expect("16 bits");
            poke(case, linear(case, insn), &value.to_le_bytes());
        }
        _ => {
            floats(case, insn, rng);
            arguments(case, insn, rng);
        }
    }
}

/// Gives instructions that take a selector one that both sides know.
fn selector(case: &mut Case, insn: &Instruction, rng: &mut Rng) {
    let source = match insn.mnemonic() {
        Mnemonic::Verr | Mnemonic::Verw => 0,
        Mnemonic::Mov if !insn.op0_register().is_segment_register() => return,
        _ => 1,
    };
    let value = rng.pick(&SELECTORS);
    match insn.op_kind(source) {
        OpKind::Register => {
            if let Some(n) = number(insn.op_register(source)) {
                case.state.gpr[n] = case.state.gpr[n] & !0xffff | value;
            }
        }
        _ => poke(case, linear(case, insn), &value.to_le_bytes()[..2]),
    }
}

/// An image that FXRSTOR accepts, mostly: reserved MXCSR bits clear, x87 exceptions masked.
fn image(case: &mut Case, insn: &Instruction, rng: &mut Rng) {
    let address = linear(case, insn);
    let mut image = case.state.fx;
    image[24..26].copy_from_slice(&rng.next().to_le_bytes()[..2]);
    for byte in &mut image[fx::XMM..fx::END] {
        *byte = rng.next().to_le_bytes()[0];
    }
    if rng.one_in(16) {
        image[26] = 4;
    }
    poke(case, address, &image);
}

/// Floating-point operands in memory: interesting ones instead of noise.
fn floats(case: &mut Case, insn: &Instruction, rng: &mut Rng) {
    let reads_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    let decimal = insn.memory_size() == MemorySize::Bcd;
    // Digits above nine are undefined, so noise is no packed decimal.
    if !reads_memory || !decimal && !rng.one_in(2) {
        return;
    }
    let size = insn.memory_size().size();
    if size == 0 || size > 16 {
        return;
    }
    let value = match insn.memory_size() {
        MemorySize::Bcd => rng.decimal(),
        MemorySize::Float32 => u128::from(rng.float32()),
        MemorySize::Float64 => u128::from(rng.float64()),
        MemorySize::Float80 => rng.extended(),
        _ => rng.vector(),
    };
    poke(case, linear(case, insn), &value.to_le_bytes()[..size]);
}

/// Operands for which a function is defined, mostly.
fn arguments(case: &mut Case, insn: &Instruction, rng: &mut Rng) {
    let largest = match insn.mnemonic() {
        Mnemonic::F2xm1 => 0x3fff,
        Mnemonic::Fyl2xp1 => 0x3ffd,
        Mnemonic::Fsin | Mnemonic::Fcos | Mnemonic::Fsincos | Mnemonic::Fptan => 0x403d,
        Mnemonic::Fyl2x => {
            case.state.fx[fx::ST + 9] &= 0x7f;
            return;
        }
        _ => return,
    };
    let at = fx::ST + 8;
    let word = u16::from_le_bytes([case.state.fx[at], case.state.fx[at + 1]]);
    if word & 0x7fff > largest && rng.below(8) != 0 {
        let below = u16::try_from(rng.below(80)).expect("small");
        let exponent = word & 0x8000 | (largest - below);
        case.state.fx[at..at + 2].copy_from_slice(&exponent.to_le_bytes());
        case.state.fx[at - 1] |= 0x80;
    }
    // The sine of the smallest normal number is next to a tiny one, so that its error decides about an underflow.
    case.state.fx[fx::ST] |= 2;
}

/// Writes into the initial scratch memory what of `bytes` falls into it.
fn poke(case: &mut Case, address: u64, bytes: &[u8]) {
    for (offset, byte) in (0u64..).zip(bytes) {
        let at = address.wrapping_add(offset).wrapping_sub(DATA);
        if let Some(slot) = usize::try_from(at).ok().and_then(|at| case.data.get_mut(at)) {
            *slot = *byte;
        }
    }
}
