//! The KHO root: include/linux/kho/abi/kexec_handover.h from 7.1 on, kernel/kexec_handover.c
//! (kernel/liveupdate/kexec_handover.c in 6.19) before.

use super::{PAGE_SHIFT, PAGE_SIZE};

/// `compatible` of the root node in 6.17, 6.18 and 6.19.
pub const COMPATIBLE_V1: &str = "kho-v1";
/// `compatible` of the root node between 6.19 and 7.1, in no release: the radix map, and sub-blobs without a stated
/// size. Their address is in [`PROP_SUB_BLOB`]; in the first patches in [`PROP_SUB_FDT`].
pub const COMPATIBLE_V2: &str = "kho-v2";
/// `compatible` of the root node in 7.1.
pub const COMPATIBLE_V3: &str = "kho-v3";
/// `compatible` of the root node in 7.2 and 7.3.
pub const COMPATIBLE_V4: &str = "kho-v4";

/// `KHO_FDT_MEMORY_MAP_PROP_NAME`: physical address of the preserved-memory map, a native `u64`.
pub const PROP_MEMORY_MAP: &str = "preserved-memory-map";
/// `PROP_SUB_FDT` of kho-v1: physical address of a sub-FDT, a native `u64`.
pub const PROP_SUB_FDT: &str = "fdt";
/// `KHO_SUB_TREE_PROP_NAME` from kho-v2 on: physical address of a sub-blob, a native `u64`.
pub const PROP_SUB_BLOB: &str = "preserved-data";
/// `KHO_SUB_TREE_SIZE_PROP_NAME` from kho-v3 on: size of a sub-blob in bytes, a native `u64`.
pub const PROP_SUB_BLOB_SIZE: &str = "blob-size";

/// Size of `struct kho_scratch` {`addr`, `size`} (include/linux/kexec_handover.h), in bytes.
pub const SCRATCH_ENTRY_SIZE: usize = 16;

/// `KHO_TABLE_SIZE_LOG2`: address bits that one table of the radix map resolves.
pub const RADIX_TABLE_BITS: u32 = 9;
/// Entries of one table of the radix map.
pub const RADIX_TABLE_ENTRIES: usize = 1 << RADIX_TABLE_BITS;
/// `KHO_BITMAP_SIZE_LOG2`: key bits that one leaf of the radix map resolves.
pub const RADIX_LEAF_BITS: u32 = PAGE_SHIFT + 3;
/// `KHO_RADIX_KEY_WIDTH`: page frame number and one bit for the order.
pub const RADIX_KEY_WIDTH: u32 = 64 - PAGE_SHIFT + 1;
/// `KHO_TREE_MAX_DEPTH`: levels of the radix map, the leaves counted.
pub const RADIX_DEPTH: u32 = (RADIX_KEY_WIDTH - RADIX_LEAF_BITS).div_ceil(RADIX_TABLE_BITS) + 1;
/// Position of the order bit in the key of an order-0 block.
pub const RADIX_ORDER_BIT: u32 = 64 - PAGE_SHIFT;

/// Size of the header of `struct khoser_mem_chunk` {`next`, `u32 order`, `u32 num_elms`} of kho-v1, in bytes.
pub const CHUNK_HEADER_SIZE: usize = 16;
/// Size of `struct khoser_mem_bitmap_ptr` {`phys_start`, `bitmap`} of kho-v1, in bytes.
pub const CHUNK_ELEMENT_SIZE: usize = 16;
/// `KHOSER_BITMAP_SIZE`: elements that fit into a chunk of kho-v1.
pub const CHUNK_ELEMENTS: usize = (PAGE_SIZE - CHUNK_HEADER_SIZE) / CHUNK_ELEMENT_SIZE;
/// `PRESERVE_BITS` / 8 in 6.17: size of a bitmap of kho-v1, in bytes.
pub const BITMAP_SIZE_6_17: usize = 512;
/// `PRESERVE_BITS` / 8 in 6.18 and 6.19: size of a bitmap of kho-v1, in bytes.
pub const BITMAP_SIZE_6_18: usize = PAGE_SIZE;

// include/linux/kho/abi/kexec_handover.h states these for 4 KiB pages; a wrong formula fails to compile.
const _: () = assert!(RADIX_DEPTH == 6);
const _: () = assert!(RADIX_KEY_WIDTH == 53);
const _: () = assert!(RADIX_LEAF_BITS == 15);
const _: () = assert!(RADIX_TABLE_ENTRIES * 8 == PAGE_SIZE);
const _: () = assert!((1 << RADIX_LEAF_BITS) == PAGE_SIZE * 8);
// kernel/kexec_handover.c: static_assert(sizeof(struct khoser_mem_chunk) == PAGE_SIZE).
const _: () = assert!(CHUNK_HEADER_SIZE + CHUNK_ELEMENTS * CHUNK_ELEMENT_SIZE == PAGE_SIZE);
const _: () = assert!(CHUNK_ELEMENTS == 255);
