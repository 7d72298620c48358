//! The architectural state of a processor as plain data, and the bits of its control registers.

use serde::{Deserialize, Serialize};

use crate::x87::X87;

/// CR0: protection enable.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: monitor coprocessor.
pub const CR0_MP: u64 = 1 << 1;
/// CR0: emulate x87.
pub const CR0_EM: u64 = 1 << 2;
/// CR0: task switched.
pub const CR0_TS: u64 = 1 << 3;
/// CR0: extension type, always one.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: numeric error.
pub const CR0_NE: u64 = 1 << 5;
/// CR0: supervisor writes honour read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: alignment mask.
pub const CR0_AM: u64 = 1 << 18;
/// CR0: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0: cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;

/// CR4: time stamp disable.
pub const CR4_TSD: u64 = 1 << 2;
/// CR4: debugging extensions.
pub const CR4_DE: u64 = 1 << 3;
/// CR4: page size extensions.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4: physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: machine check enable.
pub const CR4_MCE: u64 = 1 << 6;
/// CR4: global pages.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4: performance counter enable.
pub const CR4_PCE: u64 = 1 << 8;
/// CR4: FXSAVE and SSE.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// CR4: unmasked SIMD exceptions.
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// CR4: RDFSBASE and friends.
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// The CR4 bits that this processor has; setting any other is #GP(0).
pub const CR4_KNOWN: u64 = CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_MCE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_FSGSBASE;

/// EFER: SYSCALL enable.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: no-execute enable.
pub const EFER_NXE: u64 = 1 << 11;

/// A segment register. Long mode uses little of it: the base of FS and GS, the privilege level of CS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address; used for FS, GS, TR and LDTR only.
    pub base: u64,
    /// Limit in bytes, as loaded from the descriptor.
    pub limit: u32,
    /// Descriptor bits 55:40 (type, S, DPL, P, AVL, L, D/B, G), limit bits cleared.
    pub attributes: u16,
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit: the offset of the last byte.
    pub limit: u16,
}

/// Order of [`Registers::segments`].
pub const SEGMENT_NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
/// Index of ES.
pub const ES: usize = 0;
/// Index of CS.
pub const CS: usize = 1;
/// Index of SS.
pub const SS: usize = 2;
/// Index of DS.
pub const DS: usize = 3;
/// Index of FS.
pub const FS: usize = 4;
/// Index of GS.
pub const GS: usize = 5;

/// Index of RAX in the general registers.
pub const RAX: u8 = 0;
/// Index of RCX.
pub const RCX: u8 = 1;
/// Index of RDX.
pub const RDX: u8 = 2;
/// Index of RBX.
pub const RBX: u8 = 3;
/// Index of RSP.
pub const RSP: u8 = 4;
/// Index of RBP.
pub const RBP: u8 = 5;
/// Index of RSI.
pub const RSI: u8 = 6;
/// Index of RDI.
pub const RDI: u8 = 7;
/// Index of R11.
pub const R11: u8 = 11;

/// General, control and segment registers of a processor in long mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2: the last page fault's address.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: task priority.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// x87 state.
    pub fpu: X87,
}

/// Descriptor attributes of a flat 64-bit code segment of privilege level 0: present, code, readable, accessed, L.
pub const CODE64: u16 = 0xa09b;
/// Descriptor attributes of a flat data segment of privilege level 0.
pub const DATA: u16 = 0xc093;

impl Default for Registers {
    /// Long mode with paging on, as the 64-bit boot protocol wants it, but for the addresses: CR3, GDTR, RIP and RSI are the
    /// caller's to set.
    fn default() -> Self {
        let data = Segment {
            selector: 0x18,
            base: 0,
            limit: u32::MAX,
            attributes: DATA,
        };
        let code = Segment {
            selector: 0x10,
            base: 0,
            limit: u32::MAX,
            attributes: CODE64,
        };
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: crate::flags::FIXED,
            segments: [data, code, data, data, data, data],
            tr: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                attributes: 0x008b,
            },
            ldtr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG,
            cr2: 0,
            cr3: 0,
            cr4: CR4_PAE,
            cr8: 0,
            efer: EFER_LME | EFER_LMA,
            xmm: [0; 16],
            mxcsr: 0x1f80,
            fpu: X87::default(),
        }
    }
}
