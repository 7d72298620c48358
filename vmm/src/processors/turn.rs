//! Whose turn it is.

use serde::{Deserialize, Serialize};

/// Instructions of one turn. Short enough that an interprocessor interrupt is served within some tens of microseconds of
/// guest time with all processors busy, long enough that the change of processors costs little.
pub const TURN: u64 = 10_000;

/// What a processor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It executes.
    Running,
    /// HLT with interrupts enabled.
    Halted,
    /// HLT with interrupts disabled.
    Dead,
    /// It waits in firmware for the wakeup mailbox.
    Waiting,
}

/// The turn of one processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Whose.
    pub processor: usize,
    /// Guest time at which it ends.
    pub end: u64,
    /// The processor has given the rest of it away.
    pub yielded: bool,
}

impl Turn {
    /// A turn of `processor` from `now` on.
    pub fn of(processor: usize, now: u64) -> Self {
        Self {
            processor,
            end: now.saturating_add(TURN),
            yielded: false,
        }
    }

    /// Whether it is over.
    pub fn is_over(&self, now: u64) -> bool {
        self.yielded || now >= self.end
    }
}
