//! Kernel images without a kernel: a bzImage of a few bytes of code, and broken images.

pub use harness::testing::bzimage;

/// UD2 without an IDT: the first fault cannot be delivered.
pub const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// A jump to itself.
pub const SPIN: &[u8] = &[0xeb, 0xfe];
/// CLI, HLT: nothing can end it.
pub const DEAD_HALT: &[u8] = &[0xfa, 0xf4];
/// REP XCHG R8, RAX, whose prefix a processor ignores. softcpu's decoder takes it for PAUSE, so softcpu refuses it.
pub const UNKNOWN: &[u8] = &[0xf3, 0x41, 0x90];
