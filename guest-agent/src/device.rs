//! PCI identities and registers of the two functions that baton's machine adds: the mailbox and the DMA engine.
//!
//! All registers are little-endian. 32-bit registers take 32-bit accesses, 64-bit registers take 64-bit ones.

/// PCI vendor identity of baton's functions (not assigned by PCI-SIG; exists only in baton's own machine).
pub const VENDOR_ID: u16 = 0xba70;
/// PCI device identity of the mailbox.
pub const MAILBOX_DEVICE_ID: u16 = 0x0001;
/// PCI device identity of the DMA engine.
pub const DMA_DEVICE_ID: u16 = 0x0002;
/// Device number of the mailbox on bus 0 (function 0).
pub const MAILBOX_SLOT: u8 = 1;
/// Device number of the DMA engine on bus 0 (function 0).
pub const DMA_SLOT: u8 = 2;

/// The mailbox: one BAR with a register page and a message window.
pub mod mailbox {
    /// Size of BAR 0 in bytes.
    pub const BAR0_SIZE: u64 = 0x2_0000;
    /// u32, read: [`MAGIC_VALUE`].
    pub const MAGIC: u64 = 0x00;
    /// "BATN" in ASCII, little-endian.
    pub const MAGIC_VALUE: u32 = 0x4e54_4142;
    /// u32, write: the length in bytes of the message in the window. The guest stops until the host has answered.
    pub const DOORBELL: u64 = 0x08;
    /// u32, read: the length in bytes of the host's message in the window; 0 if there is none.
    pub const REPLY_LENGTH: u64 = 0x0c;
    /// The message window, for both directions.
    pub const WINDOW: u64 = 0x1000;
    /// Size of the window in bytes, the maximum length of a message.
    pub const WINDOW_SIZE: u64 = BAR0_SIZE - WINDOW;
}

/// The DMA engine: BAR 0 holds the registers, BAR 2 the MSI-X table and pending bits.
pub mod dma {
    /// Size of BAR 0 in bytes.
    pub const BAR0_SIZE: u64 = 0x1000;
    /// Size of BAR 2 in bytes.
    pub const BAR2_SIZE: u64 = 0x1000;
    /// Offset of the MSI-X pending-bit array in BAR 2 (the table is at 0).
    pub const MSIX_PBA: u64 = 0x800;
    /// Number of MSI-X vectors.
    pub const MSIX_VECTORS: u16 = 1;

    /// u32, read: [`MAGIC_VALUE`].
    pub const MAGIC: u64 = 0x00;
    /// "BDMA" in ASCII, little-endian.
    pub const MAGIC_VALUE: u32 = 0x414d_4442;
    /// u32, read and write: see the `CONTROL_*` bits.
    pub const CONTROL: u64 = 0x04;
    /// The engine fills buffers while this bit is set.
    pub const CONTROL_ENABLE: u32 = 1 << 0;
    /// Writing 1 puts every register back to its reset value; reads as 0.
    pub const CONTROL_RESET: u32 = 1 << 1;
    /// If set, the engine overwrites the oldest blocks when the ring is full; otherwise it waits.
    pub const CONTROL_FREE_RUN: u32 = 1 << 2;
    /// Raise MSI-X vector 0 after each completion.
    pub const CONTROL_INTERRUPT: u32 = 1 << 3;
    /// u32, read: see the `STATUS_*` bits.
    pub const STATUS: u64 = 0x08;
    /// The engine is enabled and may master the bus.
    pub const STATUS_RUNNING: u32 = 1 << 0;
    /// The engine read an invalid descriptor or list of pages and has stopped until reset.
    pub const STATUS_FAULT: u32 = 1 << 1;
    /// u64, read and write: guest physical address of the list of the ring's pages; a multiple of 4096.
    ///
    /// The list is an array of u64. Word i is the guest physical address of the page, a multiple of 4096, that holds
    /// descriptors `i * DESCRIPTORS_PER_PAGE` and following. So the ring lies on any pages, as a queue of NVMe does
    /// with its PRP list. The engine keeps no copy: for each block it reads the word and then the descriptor.
    pub const RING_PAGES: u64 = 0x10;
    /// u32, read and write: number of descriptors in the ring, 1 to [`MAX_RING_ENTRIES`].
    pub const RING_ENTRIES: u64 = 0x18;
    /// u64, read and write: guest physical address where the engine writes the number of completed blocks (u64); a
    /// multiple of 8, or 0 for none.
    pub const COMPLETION_ADDRESS: u64 = 0x20;
    /// u64, read and write: number of blocks that the consumer has released since reset. The ring is full when
    /// `COMPLETED - CONSUMED == RING_ENTRIES`.
    pub const CONSUMED: u64 = 0x28;
    /// u64, read: blocks completed since reset; block number n went to descriptor `n % RING_ENTRIES`.
    pub const COMPLETED: u64 = 0x30;
    /// u64, read: how often the engine had a block ready but no free descriptor.
    pub const WAITS: u64 = 0x38;
    /// u64, read: blocks that overwrote one that the consumer had not released.
    pub const OVERWRITES: u64 = 0x40;
    /// u64, read: faults of the engine (see [`STATUS_FAULT`]).
    pub const FAULTS: u64 = 0x48;
    /// u32, read: number of address bits of the engine, 32 to 64. It reaches guest physical addresses below 2 to the
    /// power of it; at any other it faults.
    pub const ADDRESS_BITS: u64 = 0x50;

    /// Most descriptors a ring may have.
    pub const MAX_RING_ENTRIES: u32 = 4096;
    /// Most bytes one descriptor may name.
    pub const MAX_BUFFER_BYTES: u32 = 64 * 1024;
    /// Size of a descriptor: {u64 address, u32 length, u32 zero}.
    pub const DESCRIPTOR_BYTES: u64 = 16;
    /// Descriptors in each page of the ring.
    pub const DESCRIPTORS_PER_PAGE: u64 = 4096 / DESCRIPTOR_BYTES;
    /// Size of a word of the list at [`RING_PAGES`].
    pub const LIST_WORD_BYTES: u64 = 8;
}
