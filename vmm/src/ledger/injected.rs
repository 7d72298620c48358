//! Writes that an injection made, or changed.

use serde::{Deserialize, Serialize};

/// A write that was made because of an injection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Number of the injection, from 0.
    pub injection: u16,
    /// Index of the device's write that it was made of; `None` if the injector made it by itself.
    pub of: Option<u64>,
    /// Its bytes.
    pub content: Content,
}

/// The bytes of a write that was made because of an injection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Those that the device meant to write, from this one on.
    AsMeant {
        /// Number of the first.
        from: u32,
    },
    /// These.
    Bytes(Vec<u8>),
}

impl Content {
    /// Bytes of memory that it takes beside its entry.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::AsMeant { .. } => 0,
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}
