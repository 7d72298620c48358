//! Changes of device writes.

use std::fmt;

use serde::Deserialize;

use super::{Inject, Of, Target};
use crate::scenario::Span;
use crate::scenario::check::{Problem, require};

/// What becomes of a device write.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DmaFault {
    /// It is not made.
    Drop,
    /// It is made after the next one.
    Reorder,
    /// It is made, and again later.
    Duplicate {
        /// How much later.
        after: Span,
    },
    /// It is made later.
    Delay {
        /// How much later.
        by: Span,
    },
    /// The first bytes of it are made at once, and the others later.
    Torn {
        /// How much later.
        after: Span,
        /// Number of the first bytes. Default: half of it.
        #[serde(default)]
        at: u32,
    },
    /// One bit of it is flipped.
    Flip {
        /// Which one, counted from its first byte's bit 0.
        bit: u32,
    },
    /// It has the content of another block.
    Content {
        /// The number of that block.
        block: u64,
    },
    /// It goes to another address.
    Redirect {
        /// Where.
        to: Target,
    },
    /// A number is added to the completion count.
    Count {
        /// The number.
        by: i64,
    },
}

impl DmaFault {
    pub(super) fn target(&self) -> Option<&Target> {
        match self {
            Self::Redirect { to } => Some(to),
            _ => None,
        }
    }

    pub(super) fn check(&self, inject: &Inject) -> Result<(), Problem> {
        let of = inject.when.get_ref().of;
        let of_block = matches!(of, None | Some(Of::Block));
        let of_count = matches!(of, None | Some(Of::Completion));
        match self {
            Self::Count { by } => {
                require(of_count, &inject.when, || {
                    "count is for completion counts alone".into()
                })?;
                require(*by != 0, &inject.what, || {
                    "found by = 0, which changes nothing".into()
                })
            }
            Self::Content { .. } => require(of_block, &inject.when, || "content is for blocks alone".into()),
            _ => Ok(()),
        }
    }
}

/// The deed in plain words.
impl fmt::Display for DmaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device write is ")?;
        match self {
            Self::Drop => f.write_str("dropped"),
            Self::Reorder => f.write_str("made after the next one"),
            Self::Duplicate { after } => write!(f, "made, and made again after {after}"),
            Self::Delay { by } => write!(f, "made {by} later"),
            Self::Torn { after, at: 0 } => write!(f, "made by half, and the rest {after} later"),
            Self::Torn { after, at } => write!(f, "made up to byte {at}, and the rest {after} later"),
            Self::Flip { bit } => write!(f, "made with bit {bit} flipped"),
            Self::Content { block } => write!(f, "made with the content of block {block}"),
            Self::Redirect { to } => write!(f, "sent to {to}"),
            Self::Count { by } => write!(f, "made with {by:+} added to the completion count"),
        }
    }
}
