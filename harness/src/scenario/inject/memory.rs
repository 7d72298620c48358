//! Changes of memory.

use std::fmt;

use serde::de;
use serde::{Deserialize, Deserializer};
use vmm::injection::MAX_POKE;

use super::{Inject, Target};
use crate::hex;
use crate::scenario::check::{Problem, require};

/// How memory changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MemoryFault {
    /// Bytes are written.
    Write {
        /// Where.
        at: Target,
        /// The bytes.
        bytes: Hex,
    },
    /// One bit is flipped.
    Flip {
        /// In which byte.
        at: Target,
        /// Which bit of it, 0 to 7.
        #[serde(default)]
        bit: u8,
    },
}

/// Bytes, written as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(&text).filter(|bytes| (1..=MAX_POKE).contains(&bytes.len()));
        bytes.map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "found bytes \"{text:.40}\", expected two hexadecimal digits for each of 1 to {MAX_POKE}, such as \"00ff\""
            ))
        })
    }
}

impl MemoryFault {
    pub(super) fn target(&self) -> &Target {
        match self {
            Self::Write { at, .. } | Self::Flip { at, .. } => at,
        }
    }

    pub(super) fn check(&self, inject: &Inject) -> Result<(), Problem> {
        match self {
            Self::Flip { bit, .. } => require(*bit < 8, &inject.what, || {
                format!("found bit {bit}, expected 0 to 7")
            }),
            Self::Write { .. } => Ok(()),
        }
    }
}

/// The deed in plain words.
impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { at, bytes } => {
                let Hex(bytes) = bytes;
                let (first, more) = bytes.split_at(bytes.len().min(16));
                let dots = if more.is_empty() { "" } else { "..." };
                let (count, s) = (bytes.len(), if bytes.len() == 1 { "" } else { "s" });
                write!(
                    f,
                    "{count} byte{s} {}{dots} are written at {at}",
                    hex::encode(first)
                )
            }
            Self::Flip { at, bit } => write!(f, "bit {bit} is flipped of the byte at {at}"),
        }
    }
}
