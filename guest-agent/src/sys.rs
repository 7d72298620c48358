//! The unsafe part of the agent: memory that devices and the host change, system calls that rustix lacks, and the
//! entry point of a program without a C library. Its public functions are safe to call.

mod call;
pub mod child;
mod clone;
mod ioctl;
pub mod liveupdate;
mod mapping;
pub mod program;
#[cfg(panic = "abort")]
mod start;
#[cfg(panic = "abort")]
mod symbols;
#[cfg(any(panic = "abort", test))]
pub mod team;
pub mod vfio;

pub use call::{Strings, collapse, execve, exit, kexec_file_load, kexec_load, kexec_unload, ticks};
pub use mapping::{Mapping, bytes_of};
