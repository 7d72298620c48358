//! Tiny guests: machine code of our own, a few instructions each, run on the software processor and on KVM and compared.
//!
//! ```text
//!  code     writing a guest: an assembler with the few things that all guests do
//!  guest    a guest with its tables, runs of it, and the comparison of two runs
//!  hosts    which backends there are here
//!   |- exits, deaths     ports, device memory, power, and the ways to die
//!   |- interrupts        local APIC, I/O APIC, MSI-X, task priority
//!   |- dirty, dma        who wrote which page, in which phase
//!   |- emulated          what KVM leaves to softcpu
//!   |- user              privilege level 3, SYSCALL, page faults
//!   |- kexec             the jump and the entry
//!   |- host              what hosts that emulate guest kernels need
//!   `- differential      random instructions (sequence and idioms make them)
//! ```
//!
//! All of them run in the upper half of the address space, as kernels do, so that code in the lower half means what it means
//! to the machine: a kexec.

mod code;
mod deaths;
mod differential;
mod dirty;
mod dma;
mod emulated;
mod exits;
mod guest;
mod host;
pub(crate) mod hosts;
mod idioms;
mod interrupts;
mod kexec;
mod sequence;
mod several;
mod user;
