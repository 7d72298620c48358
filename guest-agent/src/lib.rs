//! The interface between guest and host, and the parts of the agent that can be tested on any machine.
//!
//! The binary of this crate is PID 1 of every guest that baton boots (its own documentation says how it is built). This
//! library holds the guest interface, one definition for both sides:
//!
//! * [`device`]: PCI identities, BARs and registers of the mailbox and of the DMA engine,
//! * [`protocol`]: the typed messages that travel through the mailbox,
//! * [`pattern`]: the content of preserved memory, and the digest of a page;
//!
//! and readers of kernel files:
//!
//! * [`command_line`]: the `baton.*` parameters of the kernel command line,
//! * [`kpageflags`]: the state of page frames in /proc/kpageflags,
//! * [`kmsg`]: records of /dev/kmsg,
//! * [`meminfo`]: memory sizes in /proc/meminfo, zones in /proc/zoneinfo,
//! * [`notes`]: the build id in /sys/kernel/notes,
//! * [`pagemap`]: page frames in /proc/self/pagemap, and page frames merged into runs;
//!
//! and [`shell_line`], a line of the agent's shell.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod command_line;
pub mod device;
pub mod kmsg;
pub mod kpageflags;
pub mod meminfo;
pub mod notes;
pub mod pagemap;
pub mod pattern;
pub mod protocol;
pub mod shell_line;
