//! What an instruction starts from and what it leaves, the same for both sides.

/// Where the code page lies in both address spaces: low enough for 32-bit addresses and displacements.
pub const CODE: u64 = 0x2000_0000;
/// Where the scratch memory begins: [`DATA_PAGES`] writable pages, then a read-only one, then nothing.
pub const DATA: u64 = 0x2010_0000;
/// Number of writable scratch pages.
pub const DATA_PAGES: u64 = 2;
/// First byte of the read-only page behind the writable ones.
pub const READ_ONLY: u64 = DATA + DATA_PAGES * PAGE;
/// First byte that is not mapped.
pub const UNMAPPED: u64 = READ_ONLY + PAGE;
/// Page size.
pub const PAGE: u64 = 4096;
/// The same, as a length.
pub const PAGE_LEN: usize = 4096;
/// Length of the writable scratch memory.
pub const DATA_LEN: usize = 2 * PAGE_LEN;
const _: () = assert!(DATA_LEN as u64 == DATA_PAGES * PAGE);
/// Base address that GS has on both sides.
pub const GS_BASE: u64 = 0x1234_5000;

/// What the read-only page holds: POPF may read it, and must not set TF or AC in the middle of the test.
pub fn read_only_page() -> [u8; PAGE_LEN] {
    std::array::from_fn(|i| u8::try_from(i % 31 * 8).expect("below 248"))
}

/// Offsets in an FXSAVE image (SDM volume 1, table 10-2).
pub mod fx {
    /// x87 control word.
    pub const FCW: usize = 0;
    /// x87 status word.
    pub const FSW: usize = 2;
    /// Abridged x87 tag word.
    pub const FTW: usize = 4;
    /// MXCSR.
    pub const MXCSR: usize = 24;
    /// MXCSR_MASK.
    pub const MXCSR_MASK: usize = 28;
    /// ST0, 16 bytes each.
    pub const ST: usize = 32;
    /// XMM0, 16 bytes each.
    pub const XMM: usize = 160;
    /// First byte behind XMM15.
    pub const END: usize = 416;
}

/// Registers of one side: what FXSAVE knows and the integer ones.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// Where to begin, or where it ended.
    pub rip: u64,
    /// An FXSAVE64 image.
    pub fx: [u8; 512],
}

impl State {
    /// All zero: not a state to run from.
    pub const ZERO: Self = Self {
        gpr: [0; 16],
        rflags: 0,
        rip: 0,
        fx: [0; 512],
    };

    /// An XMM register.
    pub fn xmm(&self, index: usize) -> u128 {
        let at = fx::XMM + 16 * index;
        u128::from_le_bytes(self.fx[at..at + 16].try_into().expect("16 bytes"))
    }

    /// Sets an XMM register.
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        let at = fx::XMM + 16 * index;
        self.fx[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.fx[fx::MXCSR..fx::MXCSR + 4].try_into().expect("4 bytes"))
    }

    /// Sets MXCSR.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.fx[fx::MXCSR..fx::MXCSR + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// An exception as the instruction raised it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector number.
    pub vector: u8,
    /// Error code; zero where the vector has none.
    pub error: u64,
    /// CR2 for a page fault, else zero.
    pub address: u64,
}

/// What one side made of the instruction.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Registers afterwards; with a fault, those that the handler finds.
    pub state: State,
    /// The exception, if one was raised.
    pub fault: Option<Fault>,
    /// Scratch memory afterwards.
    pub data: Box<[u8; DATA_LEN]>,
}
