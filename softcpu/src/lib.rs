//! A deterministic x86-64 processor as a library.
//!
//! [`Cpu`] executes 64-bit guest code (long mode only: no real mode, no 16-bit or 32-bit segments) on [`Ram`], reaching
//! everything else through a [`Bus`]. A run is a pure function of the initial state and of what the bus answers: time
//! is the number of instructions retired, and nothing depends on the host.
//!
//! ```text
//!  cpu      run: deadlines, interrupts, faults                             Exit, Cpu
//!   |- fetch    how the loop gets to code: found, decoded, translated, dropped
//!   |- exec     the loop over decoded operations, one file per family
//!   |    `- sse, x87
//!   |- decode   iced-x86 instruction -> Op (24 bytes, position-independent)
//!   |- op       the list of operations, from which decode's tables and exec's dispatch are made
//!   |- code     decoded pages, dropped when their bytes are written
//!   |- translate host code for the parts of them that run often
//!   |- core     registers and the state of a run
//!   |- access   memory through the TLB
//!   |- mmu      page-table walks
//!   `- hooks    what the harness watches (watching: how it asks for it)
//!  memory   guest RAM: the only module with unsafe code
//!  share    decoded and translated code that the processors of a machine have in common
//!  warm     the same for the processors of another machine
//!  state    the whole processor as plain data
//!  model    CPUID: offers exactly what is implemented
//! ```
//!
//! An instruction of an extension that CPUID does not offer raises #UD in the guest. One that it does offer but that is
//! not implemented ends the run with [`Exit::Unknown`]: never a wrong result.

#![deny(unsafe_code)]

mod access;
mod bus;
mod code;
mod core;
mod cpu;
mod decode;
mod exec;
mod fetch;
pub mod flags;
mod hooks;
pub mod memory;
mod mmu;
mod model;
mod msr;
mod op;
pub mod registers;
mod share;
mod sse;
pub mod state;
mod translate;
mod warm;
mod watching;
mod word;
mod x87;

pub use bus::{Bus, NoBus};
pub use cpu::{Cpu, Exit, Shutdown, UnknownInstruction};
pub use hooks::{CpuWrite, WatchedPage, Watches};
pub use memory::{Ram, RamRegion};
pub use model::CpuModel;
pub use msr::Msrs;
pub use registers::Registers;
pub use share::{CodeChange, LentCode};
pub use state::{CpuState, StateError};
pub use translate::Translation;
pub use warm::WarmCode;
pub use x87::X87;
