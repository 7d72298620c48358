//! The numbers of the ABI, each with the kernel header or source file that it comes from.
//!
//! x86-64 with 4 KiB pages. A structure is given by its size; its readers take the fields in order. All structures
//! are packed and little-endian.

pub mod block;
pub mod kexec_handover;
pub mod kexec_metadata;
pub mod luo;
pub mod memblock;
pub mod memfd;
pub mod test_kho;
pub mod vmalloc;

/// `PAGE_SHIFT` (arch/x86/include/asm/page_types.h).
pub const PAGE_SHIFT: u32 = 12;
/// `PAGE_SIZE`, in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// `PAGE_SIZE` as a number of bytes in physical memory.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// `MAX_PAGE_ORDER` (include/linux/mmzone.h): the largest folio that the page allocator hands out.
pub const MAX_PAGE_ORDER: u8 = 10;
/// Width of a physical address in this crate: the architecture's limit on x86-64.
pub const PHYSICAL_BITS: u32 = 52;
