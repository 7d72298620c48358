//! Tiny guests of a few instructions each. Each runs on softcpu and, if this host has it, on KVM, and the runs are
//! compared.
//!
//! ```text
//!  code     an assembler with what all guests need           config: the machine and the kernel image
//!  guest    a guest, its runs, and their comparison          hosts: the backends of this host
//!   |- exits, deaths     ports, device memory, power, and the ways that a guest ends
//!   |- garbage           random values in every register of every device
//!   |- interrupts        local APIC, I/O APIC, MSI-X, task priority
//!   |- dirty, dma        which pages processors and devices wrote, by phase
//!   |- emulated          instructions that softcpu executes in KVM's place
//!   |- user              privilege level 3, SYSCALL, page faults
//!   |- kexec             the jump and the entry
//!   |- several           more than one vCPU on KVM
//!   |- host              the workarounds for hosts that emulate guest kernels
//!   |- sandbox, confined the seccomp filters, and Landlock
//!   `- differential      random instructions; sequence and idioms make them
//! ```
//!
//! All guests run in the upper half of the address space, as kernels do, because the machine takes kernel code in the
//! lower half for a kexec.

mod code;
mod config;
mod confined;
mod deaths;
mod differential;
mod dirty;
mod dma;
mod emulated;
mod exits;
mod garbage;
mod guest;
mod host;
mod hosts;
mod idioms;
mod interrupts;
mod kexec;
mod on_port;
mod sandbox;
mod sequence;
mod several;
mod user;
