//! Numbers of model-specific registers, by Intel's names (SDM volume 4).

/// IA32_TIME_STAMP_COUNTER.
pub(super) const IA32_TSC: u32 = 0x10;
/// IA32_STAR: the segments that SYSCALL and SYSRET load.
pub(super) const IA32_STAR: u32 = 0xc000_0081;
/// IA32_LSTAR: where SYSCALL goes to.
pub(super) const IA32_LSTAR: u32 = 0xc000_0082;
/// IA32_FMASK: the flags that SYSCALL clears.
pub(super) const IA32_FMASK: u32 = 0xc000_0084;
/// IA32_EFER.SCE: SYSCALL and SYSRET are enabled.
pub(super) const EFER_SCE: u64 = 1;
