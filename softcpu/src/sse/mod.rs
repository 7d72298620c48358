//! SSE, SSE2, MMX, FXSAVE, and the way to x87 instructions.
//!
//! Every instruction belongs to one *family*, which has a file and an enumeration of its own:
//!
//! | family | file | what |
//! | --- | --- | --- |
//! | lanes | [`lanes`] | integer, logical and shuffling operations on 128-bit vectors; no flags, no faults of their own |
//! | float | [`float`] | arithmetic and comparison, packed and scalar, with MXCSR |
//! | convert | [`convert`] | between integers and the two float formats, with MXCSR |
//! | moves | [`moves`] | everything that only moves bits, with the alignment rules |
//! | state | [`state`] | MXCSR, FXSAVE, FXRSTOR |
//! | MMX lanes | [`mmx`] | the operations of the family lanes on 64-bit vectors |
//! | MMX | [`mmx`] | moves and conversions with MMX registers, EMMS |
//! | x87 | [`crate::x87`] | x87 |
//!
//! [`lower`] packs family, operation and operand form into [`Op::imm`], see [`Form`].

mod convert;
mod float;
pub(crate) mod hosted;
mod lanes;
mod mmx;
mod moves;
pub(crate) mod softfloat;
pub(crate) mod state;

use iced_x86::{Instruction, OpKind, Register};

use crate::core::{Core, Ctx, Faulted};
use crate::op::Op;
use crate::x87::ops::X87Op;
use crate::x87::shape::Shape;
use convert::Convert;
use float::Float;
use lanes::Lanes;
use mmx::Mmx;
use moves::Move;
use state::State;

/// Number of a family in [`Form`].
mod number {
    pub const LANES: u8 = 0;
    pub const FLOAT: u8 = 1;
    pub const CONVERT: u8 = 2;
    pub const MOVE: u8 = 3;
    pub const STATE: u8 = 4;
    pub const X87: u8 = 5;
    pub const MMX_LANES: u8 = 6;
    pub const MMX: u8 = 7;
}

/// What [`Op::imm`] holds for an instruction of this module.
///
/// ```text
/// bits 7:0   immediate byte         bit 24  the source (or a store's destination) is memory
/// bits 15:8  operation in family    bit 25  general register operand of 64 bits
/// bits 23:16 family                 bit 26  32-bit address size (implicit RDI only)
/// ```
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form(u64);

impl Form {
    #[inline(always)]
    pub fn of(op: &Op) -> Self {
        Self(op.imm)
    }
    #[inline(always)]
    pub fn imm8(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
    #[inline(always)]
    fn operation(self) -> u8 {
        self.0.to_le_bytes()[1]
    }
    #[inline(always)]
    fn family(self) -> u8 {
        self.0.to_le_bytes()[2]
    }
    #[inline(always)]
    pub fn memory(self) -> bool {
        self.0 & (1 << 24) != 0
    }
    #[inline(always)]
    pub fn wide(self) -> bool {
        self.0 & (1 << 25) != 0
    }
    #[inline(always)]
    pub fn address32(self) -> bool {
        self.0 & (1 << 26) != 0
    }
}

/// Family and operation of an instruction.
fn classify(insn: &Instruction) -> Option<(u8, u8)> {
    let code = insn.code();
    if let Some(op) = Move::from_code(code) {
        return Some((number::MOVE, op as u8));
    }
    if let Some(op) = Lanes::from_code(code) {
        let family = if uses_mmx(insn) {
            number::MMX_LANES
        } else {
            number::LANES
        };
        return Some((family, op as u8));
    }
    if let Some(op) = Float::from_code(code) {
        return Some((number::FLOAT, op as u8));
    }
    if let Some(op) = Convert::from_code(code) {
        return Some((number::CONVERT, op as u8));
    }
    if let Some(op) = State::from_code(code) {
        return Some((number::STATE, op as u8));
    }
    if let Some(op) = Mmx::from_code(code) {
        return Some((number::MMX, op as u8));
    }
    X87Op::from_code(code).map(|op| (number::X87, op as u8))
}

fn uses_mmx(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_register(i).is_mm())
}

/// Lowers an instruction of this module into `op`, whose memory operand is already filled in. Returns false if the
/// instruction belongs to no family here.
pub(crate) fn lower(insn: &Instruction, op: &mut Op) -> bool {
    let Some((family, operation)) = classify(insn) else {
        return false;
    };
    let mut registers = [0u8; 2];
    let mut found = 0;
    let (mut imm8, mut memory, mut wide, mut address32) = (0, false, false, false);
    for index in 0..insn.op_count() {
        match insn.op_kind(index) {
            OpKind::Register => {
                let register = insn.op_register(index);
                wide |= register.is_gpr64();
                if let Some(place) = registers.get_mut(found) {
                    *place = register.number().to_le_bytes()[0];
                }
                found += 1;
            }
            OpKind::Immediate8 => imm8 = insn.immediate8(),
            kind @ (OpKind::MemorySegRDI | OpKind::MemorySegEDI) => {
                op.base = crate::registers::RDI;
                op.seg = match insn.memory_segment() {
                    Register::FS => crate::op::FS_BASE,
                    Register::GS => crate::op::GS_BASE,
                    _ => crate::op::ZERO,
                };
                address32 = kind == OpKind::MemorySegEDI;
            }
            _ => memory = true,
        }
    }
    if matches!(
        insn.code(),
        iced_x86::Code::Cvtsi2sd_xmm_rm64 | iced_x86::Code::Cvtsi2ss_xmm_rm64
    ) {
        wide = true;
    }
    if family == number::X87 {
        imm8 = Shape::of(insn).byte();
    }
    [op.a, op.b] = registers;
    op.imm = u64::from(imm8)
        | u64::from(operation) << 8
        | u64::from(family) << 16
        | u64::from(memory) << 24
        | u64::from(wide) << 25
        | u64::from(address32) << 26;
    true
}

/// Executes an instruction that [`lower`] accepted.
pub(crate) fn execute(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<(), Faulted> {
    let form = Form::of(op);
    let operation = form.operation();
    match form.family() {
        number::MOVE => {
            core.sse_available()?;
            moves::execute(core, cx, op, form, Move::from_number(operation))
        }
        number::LANES => {
            core.sse_available()?;
            lanes::execute(core, cx, op, form, Lanes::from_number(operation))
        }
        number::FLOAT => {
            core.sse_available()?;
            float::execute(core, cx, op, form, Float::from_number(operation))
        }
        number::CONVERT => {
            core.sse_available()?;
            convert::execute(core, cx, op, form, Convert::from_number(operation))
        }
        number::STATE => state::execute(core, cx, op, State::from_number(operation)),
        number::MMX_LANES => mmx::execute_lanes(core, cx, op, form, Lanes::from_number(operation)),
        number::MMX => mmx::execute(core, cx, op, form, Mmx::from_number(operation)),
        _ => crate::x87::ops::execute(core, cx, op, form, X87Op::from_number(operation)),
    }
}

/// Index of the XMM register that a register field names.
#[inline(always)]
pub(crate) fn slot(register: u8) -> usize {
    usize::from(register & 15)
}

impl Core {
    /// A 128-bit memory operand that must be aligned; #GP(0) if it is not.
    #[inline(always)]
    pub(crate) fn aligned_ea(&mut self, op: &Op) -> Result<u64, Faulted> {
        let va = self.ea(op);
        if !va.is_multiple_of(16) {
            Err(self.protection())
        } else {
            Ok(va)
        }
    }

    /// The 128-bit source: a register, or aligned memory.
    #[inline(always)]
    pub(crate) fn source128(&mut self, cx: &mut Ctx<'_>, op: &Op, form: Form) -> Result<u128, Faulted> {
        if !form.memory() {
            return Ok(self.xmm[slot(op.b)]);
        }
        let va = self.aligned_ea(op)?;
        self.read128(cx, va)
    }

    /// The low 64 bits of the source: a register, or memory of any alignment.
    #[inline(always)]
    pub(crate) fn source64(&mut self, cx: &mut Ctx<'_>, op: &Op, form: Form) -> Result<u64, Faulted> {
        if form.memory() {
            self.read(cx, self.ea(op))
        } else {
            Ok(softfloat::low64(self.xmm[slot(op.b)]))
        }
    }

    /// The low 32 bits of the source: a register, or memory of any alignment.
    #[inline(always)]
    pub(crate) fn source32(&mut self, cx: &mut Ctx<'_>, op: &Op, form: Form) -> Result<u32, Faulted> {
        if form.memory() {
            self.read(cx, self.ea(op))
        } else {
            Ok(low32(self.xmm[slot(op.b)]))
        }
    }

    /// Adds the flags of a computation to MXCSR. Raises #XM (#UD without CR4.OSXMMEXCPT) if one of them is unmasked.
    ///
    /// If an exception that is detected before the computation (invalid, denormal, zero divide) is unmasked, the
    /// flags that depend on the result are not set.
    pub(crate) fn simd_flags(&mut self, context: &softfloat::Context) -> Result<(), Faulted> {
        use softfloat::flag;
        let unmasked = context.raised & !context.masked;
        let before = flag::IE | flag::DE | flag::ZE;
        let raised = if unmasked & before != 0 {
            context.raised & before
        } else {
            context.raised
        };
        self.mxcsr |= raised;
        if unmasked == 0 {
            return Ok(());
        }
        if self.cr4 & crate::registers::CR4_OSXMMEXCPT == 0 {
            Err(self.undefined())
        } else {
            Err(self.raise(19, None))
        }
    }
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // the low lane
pub(crate) fn low32(value: u128) -> u32 {
    value as u32
}

/// Operations and iced codes of this module's lists that are not among `codes`.
#[cfg(test)]
pub(crate) fn unreached(codes: &[iced_x86::Code]) -> Vec<String> {
    let mut missing = Vec::new();
    macro_rules! look {
        ($($family:ident)*) => {$(
            let codes_missing = $family::CODES.iter().filter(|code| !codes.contains(code));
            missing.extend(codes_missing.map(|code| format!("{code:?}")));
            let reached: Vec<_> = codes.iter().filter_map(|code| $family::from_code(*code)).collect();
            let missing_here = $family::ALL.iter().filter(|op| !reached.contains(op));
            missing.extend(missing_here.map(|op| format!("{op:?}")));
        )*};
    }
    look!(Move Lanes Float Convert State Mmx X87Op);
    missing
}
