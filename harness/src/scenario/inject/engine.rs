//! What the DMA engine does against its driver's will.

use std::fmt;

use serde::Deserialize;

use super::Inject;
use crate::scenario::Span;
use crate::scenario::check::{Problem, require};

/// Most blocks of a burst.
const MAX_BURST: u32 = 4096;

/// What the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum EngineFault {
    /// It goes on when the driver stops it.
    IgnoreStop {
        /// For so long. Default: for good.
        #[serde(default, rename = "for")]
        during: Option<Span>,
    },
    /// It writes nothing.
    Silent {
        /// For so long.
        #[serde(rename = "for")]
        during: Span,
    },
    /// It writes blocks before they are due.
    Burst {
        /// How many.
        blocks: u32,
    },
}

impl EngineFault {
    pub(super) fn check(&self, inject: &Inject) -> Result<(), Problem> {
        let what = &inject.what;
        match self {
            Self::IgnoreStop {
                during: Some(Span(0)),
            }
            | Self::Silent { during: Span(0) } => {
                require(false, what, || "found for = 0, which changes nothing".into())
            }
            Self::Burst { blocks } => require((1..=MAX_BURST).contains(blocks), what, || {
                format!("found {blocks} blocks, expected 1 to {MAX_BURST}")
            }),
            _ => Ok(()),
        }
    }
}

/// The deed in plain words.
impl fmt::Display for EngineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IgnoreStop { during: None } => f.write_str("the device obeys no stop from then on"),
            Self::IgnoreStop { during: Some(during) } => {
                write!(f, "the device obeys no stop for {during}")
            }
            Self::Silent { during } => write!(f, "the device writes nothing for {during}"),
            Self::Burst { blocks } => write!(
                f,
                "the device writes {blocks} blocks at once, before they are due"
            ),
        }
    }
}
