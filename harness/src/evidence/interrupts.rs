//! Interrupts of the DMA engine, as the agent counted them.

use super::Moment;
use serde::{Deserialize, Serialize};

/// A time during which the agent's driver had the engine's MSI-X vector armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedRecord {
    /// When the agent was asked to arm it.
    pub armed: Moment,
    /// What ended it; `None` if nothing did.
    pub disarmed: Option<DisarmedRecord>,
}

/// The end of such a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisarmedRecord {
    /// When the agent was asked to disable the vector.
    pub asked: Moment,
    /// When it answered. No handler of the guest ran any more then.
    pub answered: Moment,
    /// Interrupts that the agent counted while the vector was armed.
    pub count: u64,
}
