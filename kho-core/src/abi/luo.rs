//! The Live Update Orchestrator: include/linux/kho/abi/luo.h and include/uapi/linux/liveupdate.h.

use super::PAGE_SIZE;
use super::block::records_per_block;

/// `LUO_KHO_ENTRY_NAME`: name of LUO's node in the KHO root.
pub const NODE_NAME: &str = "LUO";
/// `LUO_FDT_COMPATIBLE` in 6.19 and 7.1, where LUO's entry is an FDT.
pub const COMPATIBLE_V1: &str = "luo-v1";
/// `LUO_ABI_COMPATIBLE` in 7.2 and 7.3, where LUO's entry is `struct luo_ser`.
pub const COMPATIBLE_V5: &str = "luo-v5";

/// `LUO_ABI_COMPAT_LEN`: length of `luo_ser.compatible`, in bytes.
pub const COMPATIBLE_LENGTH: usize = 8;
/// Size of `struct luo_ser` {`compatible`, `liveupdate_num`, `sessions_pa`, `flbs_pa`}, in bytes.
pub const HEADER_SIZE: usize = COMPATIBLE_LENGTH + 24;
/// `LIVEUPDATE_SESSION_NAME_LENGTH`, in bytes.
pub const SESSION_NAME_LENGTH: usize = 64;
/// `LIVEUPDATE_HNDL_COMPAT_LENGTH`, in bytes.
pub const FILE_COMPATIBLE_LENGTH: usize = 48;
/// `LIVEUPDATE_FLB_COMPAT_LENGTH`, in bytes.
pub const FLB_COMPATIBLE_LENGTH: usize = 48;
/// Size of `struct luo_session_ser` {`name`, `files`, `count`}, in bytes.
pub const SESSION_SIZE: usize = SESSION_NAME_LENGTH + 16;
/// Size of `struct luo_file_ser` {`compatible`, `data`, `token`}, in bytes.
pub const FILE_SIZE: usize = FILE_COMPATIBLE_LENGTH + 16;
/// Size of `struct luo_flb_header_ser` {`pgcnt`, `count`}, in bytes.
pub const FLB_HEADER_SIZE: usize = 16;
/// Size of `struct luo_flb_ser` {`name`, `data`, `count`}, in bytes.
pub const FLB_SIZE: usize = FLB_COMPATIBLE_LENGTH + 16;
/// `LUO_FLB_PGCNT` (kernel/liveupdate/luo_flb.c): pages of the FLB array.
pub const FLB_PAGES: u64 = 1;

/// `LUO_FDT_LIVEUPDATE_NUM` of luo-v1: a native `u64`.
pub const PROP_LIVEUPDATE_NUMBER: &str = "liveupdate-number";
/// `LUO_FDT_SESSION_NODE_NAME` of luo-v1.
pub const SESSION_NODE_NAME: &str = "luo-session";
/// `LUO_FDT_SESSION_COMPATIBLE` in 6.19 and 7.1.
pub const SESSION_COMPATIBLE_V2: &str = "luo-session-v2";
/// `LUO_FDT_SESSION_HEADER` of luo-v1: physical address of `struct luo_session_header_ser`, a native `u64`.
pub const PROP_SESSION_HEADER: &str = "luo-session-header";
/// `LUO_FDT_FLB_NODE_NAME` of luo-v1, from 7.1 on.
pub const FLB_NODE_NAME: &str = "luo-flb";
/// `LUO_FDT_FLB_COMPATIBLE` of luo-v1, from 7.1 on.
pub const FLB_COMPATIBLE_V1: &str = "luo-flb-v1";
/// `LUO_FDT_FLB_HEADER` of luo-v1: physical address of `struct luo_flb_header_ser`, a native `u64`.
pub const PROP_FLB_HEADER: &str = "luo-flb-header";
/// Size of `struct luo_session_header_ser` {`count`} of luo-v1, in bytes.
pub const SESSION_HEADER_SIZE: usize = 8;
/// `LUO_SESSION_PGCNT` (kernel/liveupdate/luo_session.c) of luo-v1: pages of the session array.
pub const SESSION_PAGES: u64 = 16;
/// `LUO_FILE_PGCNT` (kernel/liveupdate/luo_file.c) of luo-v1: pages of the file array of one session.
pub const FILE_PAGES: u64 = 2;

// Sizes follow from the packed layouts in include/linux/kho/abi/luo.h.
const _: () = assert!(HEADER_SIZE == 32);
const _: () = assert!(COMPATIBLE_LENGTH == (COMPATIBLE_V5.len() + 1).next_multiple_of(8));
const _: () = assert!(SESSION_SIZE == 80);
const _: () = assert!(FILE_SIZE == 64);
const _: () = assert!(FLB_SIZE == 64);
const _: () = assert!(records_per_block(SESSION_SIZE) == 51);
const _: () = assert!(records_per_block(FILE_SIZE) == 63);
// luo_file.c, LUO_FILE_MAX.
const _: () = assert!(2 * PAGE_SIZE / FILE_SIZE == 128 && FILE_PAGES == 2);
