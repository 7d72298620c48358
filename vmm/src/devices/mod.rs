//! The devices: state machines over a clock. They are given register accesses and `advance(now)`, and say when they next want
//! to be called; none of them sleeps, spawns or reads the host's time. Times are guest nanoseconds.

pub mod bus;
pub mod clock;
pub mod dma;
pub mod injector;
pub mod ioapic;
pub mod lapic;
pub mod mailbox;
pub mod msix;
pub mod pci;
pub mod power;
pub mod uart;

pub use bus::SystemBus;
