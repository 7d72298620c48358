//! Linked blocks of records: include/linux/kho/abi/block.h, from 7.2 on.

use super::PAGE_SIZE;

/// `KHO_BLOCK_SIZE`, in bytes.
pub const BLOCK_SIZE: usize = PAGE_SIZE;
/// Size of `struct kho_block_header_ser` {`next`, `count`}, in bytes.
pub const BLOCK_HEADER_SIZE: usize = 16;
/// `KHO_MAX_BLOCKS` (kernel/liveupdate/kho_block.c): the new kernel refuses longer lists.
pub const MAX_BLOCKS: usize = 10_000;

/// Records of `record_size` bytes that fit into one block.
pub const fn records_per_block(record_size: usize) -> usize {
    match (BLOCK_SIZE - BLOCK_HEADER_SIZE).checked_div(record_size) {
        Some(records) => records,
        None => 0,
    }
}
