//! `reserve_mem=` regions: include/linux/kho/abi/memblock.h (mm/memblock.c before 7.1).

/// `MEMBLOCK_KHO_FDT`: name of the node in the KHO root.
pub const NODE_NAME: &str = "memblock";
/// `MEMBLOCK_KHO_NODE_COMPATIBLE`.
pub const COMPATIBLE_V1: &str = "memblock-v1";
/// `RESERVE_MEM_KHO_NODE_COMPATIBLE`.
pub const RESERVE_MEM_COMPATIBLE_V1: &str = "reserve-mem-v1";
/// Physical address of the region, a native `u64`.
pub const PROP_START: &str = "start";
/// Size of the region in bytes, a native `u64`.
pub const PROP_SIZE: &str = "size";
