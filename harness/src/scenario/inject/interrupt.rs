//! Deeds to interrupts of the DMA engine.

use std::fmt;

use serde::Deserialize;
use vmm::dma_view::MAX_LATE;

use super::Inject;
use crate::scenario::check::{Problem, require};
use crate::scenario::{Scenario, Span};

/// Most messages of a storm.
const MAX_STORM: u32 = 1024;
const _: () = assert!(MAX_STORM as usize <= MAX_LATE);
/// First vector that is not one of an exception.
const FIRST_VECTOR: u8 = 32;

/// What becomes of interrupt messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum InterruptFault {
    /// A message is lost.
    Lost,
    /// It is sent, and again later.
    Duplicate {
        /// How much later.
        after: Span,
    },
    /// It is sent later.
    Late {
        /// How much later.
        by: Span,
    },
    /// It has another vector.
    Vector {
        /// Which.
        to: u8,
    },
    /// A message comes that the device did not send.
    Spurious {
        /// Its vector. Default: the device's.
        #[serde(default)]
        vector: Option<u8>,
    },
    /// Many such messages come.
    Storm {
        /// How many.
        messages: u32,
        /// Time between two.
        distance: Span,
        /// Their vector. Default: the device's.
        #[serde(default)]
        vector: Option<u8>,
    },
    /// A message is pending in the local APIC.
    Pending {
        /// Its vector. Default: the device's.
        #[serde(default)]
        vector: Option<u8>,
    },
}

impl InterruptFault {
    /// Whether it changes messages of the device on their way.
    pub(super) fn is_filter(&self) -> bool {
        matches!(
            self,
            Self::Lost | Self::Duplicate { .. } | Self::Late { .. } | Self::Vector { .. }
        )
    }

    pub(super) fn check(&self, scenario: &Scenario, inject: &Inject) -> Result<(), Problem> {
        let what = &inject.what;
        require(scenario.has_interrupts(), what, || {
            "it is about interrupts, and the scenario has no dma.interrupts = true".into()
        })?;
        let vector = match *self {
            Self::Vector { to } => Some(to),
            Self::Spurious { vector } | Self::Storm { vector, .. } | Self::Pending { vector } => vector,
            _ => None,
        };
        require(vector.is_none_or(|vector| vector >= FIRST_VECTOR), what, || {
            format!(
                "found vector {}, expected {FIRST_VECTOR} to 255",
                vector.unwrap_or(0)
            )
        })?;
        match *self {
            Self::Storm {
                messages, distance, ..
            } => {
                require((1..=MAX_STORM).contains(&messages), what, || {
                    format!("found {messages} messages, expected 1 to {MAX_STORM}")
                })?;
                require(distance.0 > 0, what, || {
                    "found distance = 0, expected more".into()
                })
            }
            _ => Ok(()),
        }
    }
}

/// The deed in plain words.
impl fmt::Display for InterruptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with =
            |vector: Option<u8>| vector.map_or(String::new(), |vector| format!(" with vector {vector:#x}"));
        match self {
            Self::Lost => f.write_str("an interrupt message is lost"),
            Self::Duplicate { after } => {
                write!(f, "an interrupt message is sent, and sent again after {after}")
            }
            Self::Late { by } => write!(f, "an interrupt message is sent {by} later"),
            Self::Vector { to } => write!(f, "an interrupt message is sent with vector {to:#x}"),
            Self::Spurious { vector } => write!(
                f,
                "an interrupt message{} comes that the device did not send",
                with(*vector)
            ),
            Self::Storm {
                messages,
                distance,
                vector,
            } => write!(
                f,
                "{messages} interrupt messages{} come, one every {distance}, that the device did not send",
                with(*vector)
            ),
            Self::Pending { vector } => write!(
                f,
                "an interrupt message{} is made pending in the local APIC",
                with(*vector)
            ),
        }
    }
}
