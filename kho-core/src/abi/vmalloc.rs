//! Memory that is contiguous only in the kernel's address space: include/linux/kho/abi/kexec_handover.h from 7.1
//! on, include/linux/kexec_handover.h and kernel/kexec_handover.c in 6.18 and 6.19.

use super::PAGE_SIZE;

/// Size of `struct kho_vmalloc` {`first`, `u32 total_pages`, `u16 flags`, `u16 order`}, in bytes.
pub const DESCRIPTOR_SIZE: usize = 16;
/// `KHO_VMALLOC_SIZE`: addresses that follow `next` in `struct kho_vmalloc_chunk`; a zero ends them early.
pub const CHUNK_ADDRESSES: usize = (PAGE_SIZE - 8) / 8;
/// `KHO_VMALLOC_ALLOC`: the area came from vmalloc().
pub const FLAG_ALLOC: u16 = 0x0001;
/// `KHO_VMALLOC_HUGE_VMAP`: the area may be mapped with huge pages.
pub const FLAG_HUGE_VMAP: u16 = 0x0002;

const _: () = assert!(8 + CHUNK_ADDRESSES * 8 == PAGE_SIZE);
