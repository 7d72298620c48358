//! Whose turn it is.

use serde::{Deserialize, Serialize};

/// Instructions of one turn, each 1 ns of guest time. With all processors busy an interprocessor interrupt waits at
/// most some tens of microseconds. Much shorter turns would make the change of processors expensive.
pub const TURN: u64 = 10_000;

/// Whether a processor executes, and if not, what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It executes.
    Running,
    /// It halted (HLT).
    Halted {
        /// Whether interrupts were enabled. If not, only an NMI wakes it.
        interruptible: bool,
    },
    /// It waits in firmware for the wakeup mailbox.
    Waiting,
}

/// The turn of one processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Index of the processor.
    pub processor: usize,
    /// Guest time at which it ends.
    pub end: u64,
    /// The processor executed PAUSE, which ends its turn early.
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
