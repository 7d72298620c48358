//! The decoded form of an instruction.
//!
//! An [`Op`] is 24 bytes: what to do, with which registers, on which memory operand. It names registers by index into one array
//! (the sixteen general registers, then a few of the interpreter's own), so that an effective address is always
//!
//! ```text
//! regs[base] + (regs[index] << scale) + disp + regs[seg]
//! ```
//!
//! with a register that is always zero standing in for what an operand does not have, and without a branch. RIP-relative
//! operands take the virtual address of the code page as their base, so the decoded form does not depend on where the
//! physical page is mapped. Nothing in it points anywhere: it could as well be translated to host code.

/// The register that always reads zero.
pub(crate) const ZERO: u8 = 16;
/// Virtual address of the page that is being executed.
pub(crate) const PAGE: u8 = 17;
/// Base of FS.
pub(crate) const FS_BASE: u8 = 18;
/// Base of GS.
pub(crate) const GS_BASE: u8 = 19;
/// Holds an effective address that needs more than the common form, see [`OpCode::Ea32`] and [`OpCode::EaWide`].
pub(crate) const SCRATCH: u8 = 20;
/// Set in a byte register's number for AH, CH, DH, BH.
pub(crate) const HIGH_BYTE: u8 = 0x20;
/// Length of the register array; a power of two.
pub(crate) const REGS: usize = 32;

/// A decoded instruction, or a step of the interpreter's own between instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    pub code: OpCode,
    /// Offset of the instruction in its page.
    pub off: u16,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// First register: the destination where there is one.
    pub a: u8,
    /// Second register.
    pub b: u8,
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    pub seg: u8,
    pub disp: i32,
    /// Immediate (sign-extended), or target of a direct branch relative to the page's start, or what the opcode says.
    pub imm: u64,
}

const _: () = assert!(size_of::<Op>() == 24);

impl Op {
    /// An operation without operands.
    pub fn new(code: OpCode, off: u16, len: u8) -> Self {
        Self {
            code,
            off,
            len,
            a: ZERO,
            b: ZERO,
            base: ZERO,
            index: ZERO,
            scale: 0,
            seg: ZERO,
            disp: 0,
            imm: 0,
        }
    }
}

/// What an [`Op`] does.
///
/// Naming: operation, form, size. Forms: `RR` register and register, `RI` register and immediate, `RM` register and memory
/// source, `MR` memory destination and register, `MI` memory and immediate. Sizes: `B` 8, `W` 16, `D` 32, `Q` 64 bits.
/// The families that a kernel executes most have an opcode for each form and size; the rest share `Misc` and `Cold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[rustfmt::skip]
pub(crate) enum OpCode {
    AddRRB, AddRRW, AddRRD, AddRRQ, AddRIB, AddRIW, AddRID, AddRIQ, AddRMB, AddRMW, AddRMD, AddRMQ, AddMRB,
    AddMRW, AddMRD, AddMRQ, AddMIB, AddMIW, AddMID, AddMIQ, OrRRB, OrRRW, OrRRD, OrRRQ, OrRIB, OrRIW,
    OrRID, OrRIQ, OrRMB, OrRMW, OrRMD, OrRMQ, OrMRB, OrMRW, OrMRD, OrMRQ, OrMIB, OrMIW, OrMID, OrMIQ,
    AdcRRB, AdcRRW, AdcRRD, AdcRRQ, AdcRIB, AdcRIW, AdcRID, AdcRIQ, AdcRMB, AdcRMW, AdcRMD, AdcRMQ, AdcMRB,
    AdcMRW, AdcMRD, AdcMRQ, AdcMIB, AdcMIW, AdcMID, AdcMIQ, SbbRRB, SbbRRW, SbbRRD, SbbRRQ, SbbRIB, SbbRIW,
    SbbRID, SbbRIQ, SbbRMB, SbbRMW, SbbRMD, SbbRMQ, SbbMRB, SbbMRW, SbbMRD, SbbMRQ, SbbMIB, SbbMIW, SbbMID,
    SbbMIQ, AndRRB, AndRRW, AndRRD, AndRRQ, AndRIB, AndRIW, AndRID, AndRIQ, AndRMB, AndRMW, AndRMD, AndRMQ,
    AndMRB, AndMRW, AndMRD, AndMRQ, AndMIB, AndMIW, AndMID, AndMIQ, SubRRB, SubRRW, SubRRD, SubRRQ, SubRIB,
    SubRIW, SubRID, SubRIQ, SubRMB, SubRMW, SubRMD, SubRMQ, SubMRB, SubMRW, SubMRD, SubMRQ, SubMIB, SubMIW,
    SubMID, SubMIQ, XorRRB, XorRRW, XorRRD, XorRRQ, XorRIB, XorRIW, XorRID, XorRIQ, XorRMB, XorRMW, XorRMD,
    XorRMQ, XorMRB, XorMRW, XorMRD, XorMRQ, XorMIB, XorMIW, XorMID, XorMIQ, CmpRRB, CmpRRW, CmpRRD, CmpRRQ,
    CmpRIB, CmpRIW, CmpRID, CmpRIQ, CmpRMB, CmpRMW, CmpRMD, CmpRMQ, CmpMRB, CmpMRW, CmpMRD, CmpMRQ, CmpMIB,
    CmpMIW, CmpMID, CmpMIQ, TestRRB, TestRRW, TestRRD, TestRRQ, TestRIB, TestRIW, TestRID, TestRIQ,
    TestMRB, TestMRW, TestMRD, TestMRQ, TestMIB, TestMIW, TestMID, TestMIQ, MovRRB, MovRRW, MovRRD, MovRRQ,
    MovRIB, MovRIW, MovRID, MovRIQ, MovRMB, MovRMW, MovRMD, MovRMQ, MovMRB, MovMRW, MovMRD, MovMRQ, MovMIB,
    MovMIW, MovMID, MovMIQ, LeaW, LeaD, LeaQ, ShlRID, ShlRIQ, ShrRID, ShrRIQ, SarRID, SarRIQ, IncRD, IncRQ,
    DecRD, DecRQ, MovzxBR, MovzxBM, MovzxWR, MovzxWM, MovsxBDR, MovsxBDM, MovsxBQR, MovsxBQM, MovsxWDR,
    MovsxWDM, MovsxWQR, MovsxWQM, MovsxDQR, MovsxDQM, JONear, JOFar, JNoNear, JNoFar, JBNear, JBFar,
    JNbNear, JNbFar, JZNear, JZFar, JNzNear, JNzFar, JBeNear, JBeFar, JNbeNear, JNbeFar, JSNear, JSFar,
    JNsNear, JNsFar, JPNear, JPFar, JNpNear, JNpFar, JLNear, JLFar, JNlNear, JNlFar, JLeNear, JLeFar,
    JNleNear, JNleFar, CmovDR, CmovDM, CmovQR, CmovQM, ImulDR, ImulDM, ImulDRI, ImulDMI, ImulQR, ImulQM,
    ImulQRI, ImulQMI,
    // Direct branches: `Near` stays in the page (imm = offset in it), `Far` leaves it.
    JmpNear, JmpFar, CallNear, CallFar, JmpR, JmpM, CallR, CallM, Ret, RetImm,
    PushR, PushI, PushM, PopR, Leave,
    // No operation at all: NOP, fences, prefetches, ENDBR.
    Nop,
    // Less frequent user-level instructions: `imm` or a register field says which, see `misc`.
    Misc,
    // String instructions, see `string`.
    String,
    // SSE and x87, see `sse`.
    Sse,
    // System and rare instructions: `a` says which, see `system`.
    Cold,
    // Raises #UD.
    Undefined,
    // A CPU should know this instruction and this one does not.
    Unknown,
    // Steps of the interpreter's own, which are not instructions and take no time:
    // regs[SCRATCH] = low 32 bits of the common form,
    Ea32,
    // regs[SCRATCH] = regs[base] + imm,
    EaWide,
    // go on at page offset imm of the same page, or of the next one,
    LinkNear, LinkFar,
    // the instruction here runs on into the next page.
    Crossing,
}
