//! Host instructions as bytes: the few dozen forms that translated code is made of.
//!
//! Encodings are those of the Intel SDM, volume 2. The tests decode each form with iced and compare its text.

#[cfg(test)]
mod tests;

/// A host register, by its number in the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reg(pub u8);

impl Reg {
    pub const RAX: Self = Self(0);
    pub const RCX: Self = Self(1);
    pub const RDX: Self = Self(2);
    pub const RBX: Self = Self(3);
    pub const RBP: Self = Self(5);
    pub const RSI: Self = Self(6);
    pub const RDI: Self = Self(7);
    pub const R8: Self = Self(8);
    pub const R9: Self = Self(9);
    pub const R10: Self = Self(10);
    pub const R11: Self = Self(11);
    pub const R12: Self = Self(12);
    pub const R13: Self = Self(13);
    pub const R14: Self = Self(14);
    pub const R15: Self = Self(15);

    const fn low(self) -> u8 {
        self.0 & 7
    }

    const fn high(self) -> u8 {
        self.0 >> 3
    }
}

/// A memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mem {
    pub base: Option<Reg>,
    /// Index register and log2 of its factor; not RSP.
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
}

impl Mem {
    pub const fn at(base: Reg, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            disp,
        }
    }

    pub const fn indexed(base: Reg, index: Reg, scale: u8, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: Some((index, scale)),
            disp,
        }
    }
}

/// An operand that is a register or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rm {
    Reg(Reg),
    Mem(Mem),
}

impl From<Reg> for Rm {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<Mem> for Rm {
    fn from(mem: Mem) -> Self {
        Self::Mem(mem)
    }
}

/// Operand size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    B,
    W,
    D,
    Q,
}

impl Size {
    pub const fn bits(self) -> u8 {
        match self {
            Self::B => 8,
            Self::W => 16,
            Self::D => 32,
            Self::Q => 64,
        }
    }

    pub const fn bytes(self) -> u64 {
        match self {
            Self::B => 1,
            Self::W => 2,
            Self::D => 4,
            Self::Q => 8,
        }
    }
}

/// Two-operand instructions, by the number that is in their encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alu {
    Add = 0,
    Or = 1,
    Adc = 2,
    Sbb = 3,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotates, by the number in their encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shift {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// Instructions of the group F6/F7, by the number in their encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Not = 2,
    Neg = 3,
    Mul = 4,
    Imul = 5,
    Div = 6,
}

/// Bit tests, by the number in the encoding with an immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bit {
    Bt = 4,
    Bts = 5,
    Btr = 6,
    Btc = 7,
}

/// The condition of a branch, by its encoding: see `branch::holds`.
pub(super) type Condition = u8;

/// Where a 32-bit branch displacement lies in the code, to be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Hole(pub usize);

/// Code under construction.
#[derive(Debug, Default)]
pub(super) struct Emitter {
    pub bytes: Vec<u8>,
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)] // encodings cut values
impl Emitter {
    pub fn here(&self) -> usize {
        self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Prefixes, opcode and operands of an instruction. `byte` says which of the operands are 8-bit registers: `reg`
    /// and the register of `rm`.
    fn op(&mut self, size: Size, opcode: &[u8], reg: u8, rm: Rm, byte: (bool, bool)) {
        if size == Size::W {
            self.put(&[0x66]);
        }
        let (index, base, rm_register) = match rm {
            Rm::Reg(reg) => (0, reg.high(), Some(reg.0)),
            Rm::Mem(mem) => (
                mem.index.map_or(0, |(index, _)| index.high()),
                mem.base.map_or(0, Reg::high),
                None,
            ),
        };
        let rex = u8::from(size == Size::Q) << 3 | (reg >> 3) << 2 | index << 1 | base;
        // Without a REX prefix the numbers 4 to 7 of an 8-bit register mean AH to BH.
        let plain = |number: u8| (4..8).contains(&number);
        let forced = byte.0 && plain(reg) || byte.1 && rm_register.is_some_and(plain);
        if rex != 0 || forced {
            self.put(&[0x40 | rex]);
        }
        self.put(opcode);
        self.modrm(reg & 7, rm);
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let mem = match rm {
            Rm::Reg(rm) => return self.put(&[0xc0 | reg << 3 | rm.low()]),
            Rm::Mem(mem) => mem,
        };
        let Some(base) = mem.base else {
            // No base: SIB with base 5 and mod 0, always with 32 bits of displacement.
            let (index, scale) = mem.index.map_or((4, 0), |(index, scale)| (index.low(), scale));
            self.put(&[reg << 3 | 4, scale << 6 | index << 3 | 5]);
            return self.put(&mem.disp.to_le_bytes());
        };
        // RBP and R13 as a base always have a displacement.
        let (mode, short) = match i8::try_from(mem.disp) {
            Ok(0) if base.low() != 5 => (0, None),
            Ok(disp) => (1, Some(disp)),
            Err(_) => (2, None),
        };
        match mem.index {
            None if base.low() != 4 => self.put(&[mode << 6 | reg << 3 | base.low()]),
            index => {
                let (index, scale) = index.map_or((4, 0), |(index, scale)| (index.low(), scale));
                self.put(&[mode << 6 | reg << 3 | 4, scale << 6 | index << 3 | base.low()]);
            }
        }
        match (mode, short) {
            (1, Some(disp)) => self.put(&disp.to_le_bytes()),
            (2, _) => self.put(&mem.disp.to_le_bytes()),
            _ => {}
        }
    }

    /// An instruction whose opcode has a form for 8 bits and, one above, one for the other sizes.
    fn sized(&mut self, size: Size, opcode: u8, reg: u8, rm: Rm, reg_is_operand: bool) {
        let byte = size == Size::B;
        self.op(
            size,
            &[opcode | u8::from(!byte)],
            reg,
            rm,
            (byte && reg_is_operand, byte),
        );
    }

    /// `alu rm, reg`.
    pub fn alu_mr(&mut self, alu: Alu, size: Size, rm: impl Into<Rm>, reg: Reg) {
        self.sized(size, (alu as u8) << 3, reg.0, rm.into(), true);
    }

    /// `alu reg, rm`.
    pub fn alu_rm(&mut self, alu: Alu, size: Size, reg: Reg, rm: impl Into<Rm>) {
        self.sized(size, (alu as u8) << 3 | 2, reg.0, rm.into(), true);
    }

    /// `alu rm, imm`; the immediate is sign-extended to 64 bits.
    pub fn alu_imm(&mut self, alu: Alu, size: Size, rm: impl Into<Rm>, imm: i32) {
        let rm = rm.into();
        match (size, i8::try_from(imm)) {
            (Size::B, _) => {
                self.sized(size, 0x80, alu as u8, rm, false);
                self.put(&[imm as u8]);
            }
            (_, Ok(short)) => {
                self.op(size, &[0x83], alu as u8, rm, (false, false));
                self.put(&short.to_le_bytes());
            }
            _ => {
                self.sized(size, 0x80, alu as u8, rm, false);
                self.imm(size, imm);
            }
        }
    }

    fn imm(&mut self, size: Size, imm: i32) {
        match size {
            Size::B => self.put(&[imm as u8]),
            Size::W => self.put(&(imm as u16).to_le_bytes()),
            _ => self.put(&imm.to_le_bytes()),
        }
    }

    /// `test rm, reg`.
    pub fn test_mr(&mut self, size: Size, rm: impl Into<Rm>, reg: Reg) {
        self.sized(size, 0x84, reg.0, rm.into(), true);
    }

    /// `test rm, imm`.
    pub fn test_imm(&mut self, size: Size, rm: impl Into<Rm>, imm: i32) {
        self.sized(size, 0xf6, 0, rm.into(), false);
        self.imm(size, imm);
    }

    /// `mov rm, reg`.
    pub fn mov_mr(&mut self, size: Size, rm: impl Into<Rm>, reg: Reg) {
        self.sized(size, 0x88, reg.0, rm.into(), true);
    }

    /// `mov reg, rm`.
    pub fn mov_rm(&mut self, size: Size, reg: Reg, rm: impl Into<Rm>) {
        self.sized(size, 0x8a, reg.0, rm.into(), true);
    }

    /// `mov rm, imm`; the immediate is sign-extended to 64 bits.
    pub fn mov_imm(&mut self, size: Size, rm: impl Into<Rm>, imm: i32) {
        self.sized(size, 0xc6, 0, rm.into(), false);
        self.imm(size, imm);
    }

    /// Loads a constant into a 64-bit register, by the shortest form.
    pub fn constant(&mut self, reg: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if reg.high() != 0 {
                self.put(&[0x41]);
            }
            self.put(&[0xb8 | reg.low()]);
            self.put(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value.cast_signed()) {
            self.mov_imm(Size::Q, reg, value);
        } else {
            self.put(&[0x48 | reg.high(), 0xb8 | reg.low()]);
            self.put(&value.to_le_bytes());
        }
    }

    /// `mov r8, imm8`.
    pub fn mov_byte(&mut self, reg: Reg, value: u8) {
        if reg.0 >= 4 {
            self.put(&[0x40 | reg.high()]);
        }
        self.put(&[0xb0 | reg.low(), value]);
    }

    /// `lea reg, mem`.
    pub fn lea(&mut self, size: Size, reg: Reg, mem: Mem) {
        self.op(size, &[0x8d], reg.0, mem.into(), (false, false));
    }

    /// `movzx reg, rm` from `from` bits to 32, which clears the rest.
    pub fn movzx(&mut self, from: Size, reg: Reg, rm: impl Into<Rm>) {
        let opcode = if from == Size::B { 0xb6 } else { 0xb7 };
        self.op(
            Size::D,
            &[0x0f, opcode],
            reg.0,
            rm.into(),
            (false, from == Size::B),
        );
    }

    /// `movsx reg, rm` (MOVSXD for 32 bits).
    pub fn movsx(&mut self, from: Size, to: Size, reg: Reg, rm: impl Into<Rm>) {
        let rm = rm.into();
        match from {
            Size::B => self.op(to, &[0x0f, 0xbe], reg.0, rm, (false, true)),
            Size::W => self.op(to, &[0x0f, 0xbf], reg.0, rm, (false, false)),
            _ => self.op(to, &[0x63], reg.0, rm, (false, false)),
        }
    }

    /// A shift or rotate by an immediate.
    pub fn shift_imm(&mut self, shift: Shift, size: Size, rm: impl Into<Rm>, count: u8) {
        self.sized(size, 0xc0, shift as u8, rm.into(), false);
        self.put(&[count]);
    }

    /// A shift or rotate by CL.
    pub fn shift_cl(&mut self, shift: Shift, size: Size, rm: impl Into<Rm>) {
        self.sized(size, 0xd2, shift as u8, rm.into(), false);
    }

    /// An instruction of the group F6/F7.
    pub fn unary(&mut self, unary: Unary, size: Size, rm: impl Into<Rm>) {
        self.sized(size, 0xf6, unary as u8, rm.into(), false);
    }

    /// INC (`down` false) or DEC.
    pub fn step(&mut self, down: bool, size: Size, rm: impl Into<Rm>) {
        self.sized(size, 0xfe, u8::from(down), rm.into(), false);
    }

    /// `imul reg, rm`.
    pub fn imul(&mut self, size: Size, reg: Reg, rm: impl Into<Rm>) {
        self.op(size, &[0x0f, 0xaf], reg.0, rm.into(), (false, false));
    }

    /// `imul reg, rm, imm`.
    pub fn imul_imm(&mut self, size: Size, reg: Reg, rm: impl Into<Rm>, imm: i32) {
        self.op(size, &[0x69], reg.0, rm.into(), (false, false));
        self.imm(size, imm);
    }

    /// `cmovcc reg, rm`.
    pub fn cmov(&mut self, condition: Condition, size: Size, reg: Reg, rm: impl Into<Rm>) {
        self.op(size, &[0x0f, 0x40 | condition], reg.0, rm.into(), (false, false));
    }

    /// `setcc rm`.
    pub fn set(&mut self, condition: Condition, rm: impl Into<Rm>) {
        self.op(Size::B, &[0x0f, 0x90 | condition], 0, rm.into(), (false, true));
    }

    /// A bit test by an immediate.
    pub fn bit_imm(&mut self, bit: Bit, size: Size, rm: impl Into<Rm>, number: u8) {
        self.op(size, &[0x0f, 0xba], bit as u8, rm.into(), (false, false));
        self.put(&[number]);
    }

    /// A bit test of a register by a register.
    pub fn bit(&mut self, bit: Bit, size: Size, register: Reg, number: Reg) {
        let opcode = 0x83 | (bit as u8) << 3;
        self.op(size, &[0x0f, opcode], number.0, Rm::Reg(register), (false, false));
    }

    /// BSF or BSR (`reverse`).
    pub fn scan(&mut self, reverse: bool, size: Size, reg: Reg, rm: impl Into<Rm>) {
        let opcode = 0xbc | u8::from(reverse);
        self.op(size, &[0x0f, opcode], reg.0, rm.into(), (false, false));
    }

    /// `bswap reg`, 32 or 64 bits.
    pub fn bswap(&mut self, size: Size, reg: Reg) {
        let rex = u8::from(size == Size::Q) << 3 | reg.high();
        if rex != 0 {
            self.put(&[0x40 | rex]);
        }
        self.put(&[0x0f, 0xc8 | reg.low()]);
    }

    /// `rep movs`.
    pub fn rep_movs(&mut self, size: Size) {
        self.repeat(size, 0xa4);
    }

    /// `rep stos`.
    pub fn rep_stos(&mut self, size: Size) {
        self.repeat(size, 0xaa);
    }

    fn repeat(&mut self, size: Size, opcode: u8) {
        match size {
            Size::B => self.put(&[0xf3, opcode]),
            Size::W => self.put(&[0x66, 0xf3, opcode | 1]),
            Size::D => self.put(&[0xf3, opcode | 1]),
            Size::Q => self.put(&[0xf3, 0x48, opcode | 1]),
        }
    }

    /// `cmpxchg rm, reg`.
    pub fn cmpxchg(&mut self, size: Size, rm: impl Into<Rm>, reg: Reg) {
        let byte = size == Size::B;
        self.op(
            size,
            &[0x0f, 0xb0 | u8::from(!byte)],
            reg.0,
            rm.into(),
            (byte, byte),
        );
    }

    /// `xadd rm, reg`.
    pub fn xadd(&mut self, size: Size, rm: impl Into<Rm>, reg: Reg) {
        let byte = size == Size::B;
        self.op(
            size,
            &[0x0f, 0xc0 | u8::from(!byte)],
            reg.0,
            rm.into(),
            (byte, byte),
        );
    }

    /// `push reg`.
    pub fn push(&mut self, reg: Reg) {
        if reg.high() != 0 {
            self.put(&[0x41]);
        }
        self.put(&[0x50 | reg.low()]);
    }

    /// `pop reg`.
    pub fn pop(&mut self, reg: Reg) {
        if reg.high() != 0 {
            self.put(&[0x41]);
        }
        self.put(&[0x58 | reg.low()]);
    }

    /// MOVDQU: `opcode` 6F loads XMM register `xmm` from `mem`, 7F stores it.
    pub fn vector_unaligned(&mut self, opcode: u8, xmm: u8, mem: Mem) {
        self.put(&[0xf3]);
        self.op(Size::D, &[0x0f, opcode], xmm, mem.into(), (false, false));
    }

    /// An instruction `66 0F opcode` on two XMM registers below 8.
    pub fn vector(&mut self, opcode: u8, first: u8, second: u8, immediate: Option<u8>) {
        self.put(&[0x66, 0x0f, opcode, 0xc0 | first << 3 | second]);
        if let Some(immediate) = immediate {
            self.put(&[immediate]);
        }
    }

    /// `lahf`: SF, ZF, AF, PF and CF to AH.
    pub fn lahf(&mut self) {
        self.put(&[0x9f]);
    }

    /// `sahf`.
    pub fn sahf(&mut self) {
        self.put(&[0x9e]);
    }

    /// `cdq` or `cqo`: the sign of EAX or RAX in all bits of EDX or RDX.
    pub fn sign_to_rdx(&mut self, size: Size) {
        if size == Size::Q {
            self.put(&[0x48]);
        }
        self.put(&[0x99]);
    }

    /// `add al, imm8`.
    pub fn add_al(&mut self, imm: u8) {
        self.put(&[0x04, imm]);
    }

    /// `test al, imm8`.
    pub fn test_al(&mut self, imm: u8) {
        self.put(&[0xa8, imm]);
    }

    /// `and ah, imm8`.
    pub fn and_ah(&mut self, imm: u8) {
        self.put(&[0x80, 0xe4, imm]);
    }

    /// `or ah, al`.
    pub fn or_ah_al(&mut self) {
        self.put(&[0x08, 0xc4]);
    }

    /// `jcc` over a short stretch; give the hole to [`Self::land`].
    pub fn skip(&mut self, condition: Condition) -> Hole {
        self.put(&[0x70 | condition, 0]);
        Hole(self.here() - 1)
    }

    /// Makes a [`Self::skip`] lead here.
    pub fn land(&mut self, hole: Hole) {
        let Hole(at) = hole;
        self.bytes[at] = (self.here() - at - 1) as u8;
    }

    /// `jcc rel32` to where the hole is filled in with.
    pub fn jcc(&mut self, condition: Condition) -> Hole {
        self.put(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Hole(self.here() - 4)
    }

    /// `jmp rel32`.
    pub fn jmp(&mut self) -> Hole {
        self.put(&[0xe9, 0, 0, 0, 0]);
        Hole(self.here() - 4)
    }

    /// Makes a branch lead to `target`, an offset in this code.
    pub fn fill(&mut self, hole: Hole, target: usize) {
        let Hole(at) = hole;
        let distance = (target as i64 - (at as i64 + 4)) as i32;
        self.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// `jmp rm`.
    pub fn jmp_rm(&mut self, rm: impl Into<Rm>) {
        self.op(Size::D, &[0xff], 4, rm.into(), (false, false));
    }

    /// `ret`.
    pub fn ret(&mut self) {
        self.put(&[0xc3]);
    }
}
