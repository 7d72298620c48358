//! `[[inject]]`: faults on purpose. `docs/injections.md` describes every key. One file for each family of deeds.

mod blob;
mod bus;
mod check;
mod dma;
mod engine;
mod interrupt;
mod machine;
mod memory;
mod place;
mod time;
mod when;

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::Span;

pub use blob::{BlobFault, NodeFault, Setting};
pub use bus::BusFault;
pub(super) use check::check;
pub use dma::DmaFault;
pub use engine::EngineFault;
pub use interrupt::InterruptFault;
pub use machine::MachineFault;
pub use memory::{Hex, MemoryFault};
pub use place::{Class, Place, Target};
pub use time::TimeFault;
pub use when::{Boundary, Of, When};

/// A fault on purpose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// When.
    pub when: Spanned<When>,
    /// What.
    pub what: Spanned<What>,
    /// How often at most.
    #[serde(default = "once")]
    pub count: Spanned<u64>,
    /// Distance between two times.
    pub every: Option<Spanned<Every>>,
}

fn once() -> Spanned<u64> {
    Spanned::new(0..0, 1)
}

/// Distance between two times that an injection fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// So many of what it waits for.
    Number(u64),
    /// So much guest time.
    Time(Span),
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Time(time) => time.fmt(f),
        }
    }
}

/// What an injection does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Something becomes of a device write.
    Dma(DmaFault),
    /// Memory changes.
    Memory(MemoryFault),
    /// The handover changes.
    Blob(BlobFault),
    /// Interrupts are changed, or come unasked.
    Interrupt(InterruptFault),
    /// The DMA engine acts against its driver's will.
    Engine(EngineFault),
    /// Something happens to the DMA engine on its bus.
    Bus(BusFault),
    /// Something happens to the machine or to a processor.
    Machine(MachineFault),
    /// Something happens to time.
    Time(TimeFault),
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Every;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a time such as \"20 us\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Every, E> {
                let number = u64::try_from(number);
                let number = number.map_err(|_| E::custom("found a negative number, expected 1 or more"))?;
                Ok(Every::Number(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Every, E> {
                text.parse().map(Every::Time).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl What {
    /// Whether it changes device writes or messages on their way.
    pub fn is_filter(&self) -> bool {
        match self {
            Self::Dma(_) => true,
            Self::Interrupt(fault) => fault.is_filter(),
            _ => false,
        }
    }

    /// Whether it needs the DMA engine.
    fn needs_device(&self) -> bool {
        match self {
            Self::Dma(_) | Self::Interrupt(_) | Self::Engine(_) | Self::Bus(_) => true,
            Self::Time(fault) => fault.needs_device(),
            Self::Memory(_) | Self::Blob(_) | Self::Machine(_) => false,
        }
    }

    /// The place in memory that it names, if any.
    fn target(&self) -> Option<&Target> {
        match self {
            Self::Dma(fault) => fault.target(),
            Self::Memory(fault) => Some(fault.target()),
            _ => None,
        }
    }
}

/// The deed in plain words.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dma(fault) => fault.fmt(f),
            Self::Memory(fault) => fault.fmt(f),
            Self::Blob(fault) => fault.fmt(f),
            Self::Interrupt(fault) => fault.fmt(f),
            Self::Engine(fault) => fault.fmt(f),
            Self::Bus(fault) => fault.fmt(f),
            Self::Machine(fault) => fault.fmt(f),
            Self::Time(fault) => fault.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
