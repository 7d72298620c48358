//! What has become of injections.

use super::Phase;
use serde::{Deserialize, Serialize};

/// An injection, and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectionEvidence {
    /// Trigger and deed in words.
    pub words: String,
    /// Whether it acts on the machine itself: interrupts, the device, its bus, processors or time. If not, it acts on
    /// memory or on what the device writes.
    #[serde(default)]
    pub acts_on_machine: bool,
    /// When it was armed; `None` if the run did not come to that.
    pub armed: Option<InjectedAt>,
    /// How often it fired.
    pub fired: u64,
    /// The first times that it fired.
    pub firings: Vec<FiringEvidence>,
    /// Why it could not fire when it was due, one sentence for each of the first times.
    pub unable: Vec<String>,
}

/// One time that an injection fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiringEvidence {
    /// When.
    pub at: InjectedAt,
    /// What was done, in words.
    pub what: String,
}

/// A moment of an injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectedAt {
    /// Kernel generation.
    pub generation: u32,
    /// Phase.
    pub phase: Phase,
    /// Guest time.
    pub time_ns: u64,
    /// Instructions retired since power-on, where the backend counts them.
    pub instructions: Option<u64>,
}

impl InjectionEvidence {
    /// Why it never fired, in words; `None` if it did.
    pub fn never_fired(&self) -> Option<String> {
        if self.fired > 0 {
            return None;
        }
        Some(match (&self.armed, self.unable.first()) {
            (None, _) => "the run did not come to where it is armed".into(),
            (Some(_), Some(reason)) => format!("it could not be done {reason}"),
            (Some(_), None) => "what it waits for did not happen".into(),
        })
    }
}
