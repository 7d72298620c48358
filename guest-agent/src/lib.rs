//! What the guest and the host agree on, and what the guest does.
//!
//! The binary of this crate is PID 1 of every guest that baton boots. This library holds the guest interface, one
//! definition for both sides:
//!
//! * [`device`]: PCI identities, BARs and registers of the mailbox and of the DMA engine,
//! * [`protocol`]: the typed messages that travel through the mailbox,
//! * [`pattern`]: what preserved memory is filled with, and the digest of a page.

#![forbid(unsafe_code)]

pub mod device;
pub mod pattern;
pub mod protocol;
