//! The decoded form of an instruction.
//!
//! An [`Op`] is 24 bytes: an opcode, registers and a memory operand. Registers are indices into one array: the sixteen
//! general registers, then a few of the interpreter's own. Every effective address is
//!
//! ```text
//! regs[base] + (regs[index] << scale) + disp + regs[seg]
//! ```
//!
//! and is computed without a branch: a part that an operand does not have is the register [`ZERO`]. RIP-relative
//! operands use the virtual address of the code page as their base, so the decoded form does not depend on where the
//! physical page is mapped. An `Op` holds no pointers.

pub(crate) mod family;
pub(crate) mod table;

pub(crate) use family::family;
pub(crate) use table::operations;

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
    /// Immediate (sign-extended), target of a direct branch relative to the page's start, or a word whose layout the
    /// opcode defines.
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

macro_rules! define_opcode {
    (
        two_operands { $($family:ident { $($form:ident: $b:ident $w:ident $d:ident $q:ident;)* })* }
        register_or_memory { $($r:ident $m:ident = $rm:ident<$($rm_type:ty),+>: $($rm_code:ident)+;)* }
        one_form { $($one:ident $when:ident = $f:ident<$($type:ty),+>: $($code:ident)+;)* }
        conditional_branches { $($near:ident $far:ident = $condition:ident: $($branch_code:ident)+;)* }
        branches { $($always_near:ident $always_far:ident = $before:ident: $($always_code:ident)+;)* }
        indirect_branches { $($to_r:ident $to_m:ident = $target:ident: $($to_code:ident)+;)* }
        returns { $($ret:ident = $return:ident: $($ret_code:ident)+;)* }
        special { $($(#[$special_doc:meta])* $special:ident;)* }
        steps { $($(#[$step_doc:meta])* $step:ident;)* }
    ) => {
        /// What an [`Op`] does. [`table`] says what each name means.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub(crate) enum OpCode {
            $($($b, $w, $d, $q,)*)*
            $($r, $m,)*
            $($one,)*
            $($near, $far,)*
            $($always_near, $always_far,)*
            $($to_r, $to_m,)*
            $($ret,)*
            $($(#[$special_doc])* $special,)*
            $($(#[$step_doc])* $step,)*
        }
    };
}
operations!(define_opcode);
