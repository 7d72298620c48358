//! Where the kernel came from: include/linux/kho/abi/kexec_metadata.h, from 7.1 on.

/// `KHO_METADATA_NODE_NAME`: name of the node in the KHO root.
pub const NODE_NAME: &str = "kexec-metadata";
/// `KHO_KEXEC_METADATA_VERSION`.
pub const VERSION: u32 = 1;
/// `__NEW_UTS_LEN` + 1 (include/uapi/linux/utsname.h), in bytes.
pub const RELEASE_LENGTH: usize = 65;
/// Size of `struct kho_kexec_metadata` {`u32 version`, `previous_release`, `u32 kexec_count`}, in bytes.
pub const SIZE: usize = 4 + RELEASE_LENGTH + 4;

const _: () = assert!(SIZE == 73);
