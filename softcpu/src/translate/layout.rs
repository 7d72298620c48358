//! Where things lie while translated code runs: registers of the host, and fields of the Core.

use std::mem::offset_of;

use super::Native;
use super::emit::{Mem, Reg};
use crate::core::Core;
use crate::msr::Msrs;
use crate::op::GS_BASE;

/// Holds the address of the Core.
pub(super) const CORE: Reg = Reg::R13;
/// Two registers that are free within an instruction. The first one is where LAHF and CMPXCHG want it.
pub(super) const FREE: Reg = Reg::RAX;
pub(super) const FREE2: Reg = Reg::R15;
/// The guest's RAX and RSP.
pub(super) const GUEST_RAX: Reg = Reg::R14;
pub(super) const GUEST_RSP: Reg = Reg::R12;

/// Host registers of the guest's first twelve.
pub(super) const HOST: [Reg; 12] = [
    GUEST_RAX,
    Reg::RCX,
    Reg::RDX,
    Reg::RBX,
    GUEST_RSP,
    Reg::RBP,
    Reg::RSI,
    Reg::RDI,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
];

/// A field of the Core.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // a Core is smaller than 2 GiB
pub(super) const fn field(offset: usize) -> Mem {
    Mem::at(CORE, offset as i32)
}

/// A register of the Core's array.
pub(super) const fn in_core(register: u8) -> Mem {
    field(offset_of!(Core, regs) + 8 * register as usize)
}

/// A field of the entry that `Writer::find_entry` has found; `offset` is that of the field of the first entry.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // a Core is smaller than 2 GiB
pub(super) const fn found(offset: usize) -> Mem {
    Mem::indexed(CORE, FREE, 0, offset as i32)
}

/// An XMM register.
pub(super) const fn vector_in_core(register: usize) -> Mem {
    field(offset_of!(Core, xmm) + 16 * (register & 15))
}

pub(super) const BUDGET: Mem = field(offset_of!(Core, budget));
pub(super) const UNTIL: Mem = field(offset_of!(Core, until));
pub(super) const SYSTEM_FLAGS: Mem = field(offset_of!(Core, flags));
pub(super) const SHADOW_UNTIL: Mem = field(offset_of!(Core, shadow_until));
pub(super) const WINDOW_WANTED: Mem = field(offset_of!(Core, window_wanted));
pub(super) const GS: Mem = in_core(GS_BASE);
pub(super) const KERNEL_GS: Mem = field(offset_of!(Core, msrs) + offset_of!(Msrs, kernel_gs_base));
pub(super) const CR0: Mem = field(offset_of!(Core, cr0));
pub(super) const CR4: Mem = field(offset_of!(Core, cr4));
pub(super) const RIP: Mem = field(offset_of!(Core, rip));
pub(super) const FLAGS: Mem = field(offset_of!(Core, native) + offset_of!(Native, flags));
pub(super) const TARGET: Mem = field(offset_of!(Core, native) + offset_of!(Native, target));
pub(super) const CODE_BASE: Mem = field(offset_of!(Core, native) + offset_of!(Native, base));
pub(super) const TLB: usize = offset_of!(Core, tlb);
pub(super) const CODES: usize = offset_of!(Core, code_tlb);

/// Bit of the stored flags that is CF.
pub(super) const CARRY_BIT: u8 = 8;

/// Conditions by their encoding.
pub(super) mod condition {
    pub const NO_OVERFLOW: u8 = 1;
    pub const CARRY: u8 = 2;
    pub const NO_CARRY: u8 = 3;
    pub const ZERO: u8 = 4;
    pub const NOT_ZERO: u8 = 5;
    pub const ABOVE: u8 = 7;
    pub const NO_PARITY: u8 = 11;
    pub const OVERFLOW: u8 = 0;
}
