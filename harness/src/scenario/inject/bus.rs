//! What happens to the DMA engine on its bus.

use std::fmt;

use guest_agent::device::dma::{BAR0_SIZE, BAR2_SIZE};
use serde::Deserialize;

use super::Inject;
use crate::scenario::check::{Problem, require};

/// What happens on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BusFault {
    /// The bus master bit is cleared.
    MasterCleared,
    /// The bus master bit is set.
    MasterSet,
    /// The function is reset.
    FunctionReset,
    /// The device is gone.
    Gone,
    /// A BAR moves.
    BarMoved {
        /// Which: 0 has the registers, 2 the interrupt table.
        bar: u8,
        /// Its new guest physical address.
        to: u32,
    },
}

impl BusFault {
    pub(super) fn check(&self, inject: &Inject) -> Result<(), Problem> {
        let Self::BarMoved { bar, to } = *self else {
            return Ok(());
        };
        let size = match bar {
            0 => BAR0_SIZE,
            2 => BAR2_SIZE,
            _ => {
                return require(false, &inject.what, || {
                    format!("found bar {bar}, expected 0 or 2")
                });
            }
        };
        require(u64::from(to).is_multiple_of(size), &inject.what, || {
            format!("found to = {to:#x}, expected a multiple of {size}, the size of the BAR")
        })
    }
}

/// The deed in plain words.
impl fmt::Display for BusFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MasterCleared => f.write_str("the device's bus master bit is cleared"),
            Self::MasterSet => f.write_str("the device's bus master bit is set"),
            Self::FunctionReset => f.write_str("the device's function is reset"),
            Self::Gone => f.write_str("the device is taken away"),
            Self::BarMoved { bar, to } => write!(f, "BAR {bar} of the device moves to {to:#x}"),
        }
    }
}
