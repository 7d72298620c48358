//! What LUO keeps of a memfd: include/linux/kho/abi/memfd.h.

use super::vmalloc::DESCRIPTOR_SIZE;

/// `MEMFD_LUO_FH_COMPATIBLE` in 6.19.
pub const COMPATIBLE_V1: &str = "memfd-v1";
/// `MEMFD_LUO_FH_COMPATIBLE` from 7.1 on.
pub const COMPATIBLE_V2: &str = "memfd-v2";

/// Size of `struct memfd_luo_ser` {`pos`, `size`, `nr_folios`, `folios`} of memfd-v1, in bytes.
pub const HEADER_SIZE_V1: usize = 24 + DESCRIPTOR_SIZE;
/// Size of `struct memfd_luo_ser` {`pos`, `size`, `u32 seals`, `u32 flags`, `nr_folios`, `folios`} of memfd-v2, in
/// bytes.
pub const HEADER_SIZE_V2: usize = 32 + DESCRIPTOR_SIZE;
/// Size of `struct memfd_luo_folio_ser` {`pfn:52`, `flags:12`, `index`}, in bytes.
pub const FOLIO_SIZE: usize = 16;
/// Width of `memfd_luo_folio_ser.pfn`.
pub const FOLIO_FRAME_BITS: u32 = 52;
/// `MEMFD_LUO_FOLIO_DIRTY`: the folio holds user data.
pub const FOLIO_DIRTY: u16 = 1 << 0;
/// `MEMFD_LUO_FOLIO_UPTODATE`: the folio has been zeroed or written.
pub const FOLIO_UPTODATE: u16 = 1 << 1;
/// `MEMFD_LUO_ALL_SEALS`: seals that memfd-v2 may carry (include/uapi/linux/fcntl.h, `F_SEAL_*`).
pub const ALL_SEALS: u32 = 0x3f;

const _: () = assert!(HEADER_SIZE_V1 == 40);
const _: () = assert!(HEADER_SIZE_V2 == 48);
const _: () = assert!(FOLIO_FRAME_BITS + 12 == 64);
