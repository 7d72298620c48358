//! When an injection is due.

use serde::Deserialize;
use vmm::injection::WriteKind;
use vmm::phase::{Generation, Phase, Stamp};

use super::Every;
use crate::scenario::Span;

/// When an injection is due. Without `at` and `phase` it is armed at power-on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The jump out of a kernel, or the entry of a kernel.
    #[serde(default)]
    pub at: Option<Boundary>,
    /// The beginning of a phase.
    #[serde(default, deserialize_with = "crate::scenario::criteria::phase")]
    pub phase: Option<Phase>,
    /// Of which kernel generation. Default: the first that has the phase.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// The n-th write of a device since then.
    #[serde(default)]
    pub write: Option<u64>,
    /// The n-th read of the DMA engine since then.
    #[serde(default)]
    pub read: Option<u64>,
    /// The n-th interrupt message since then.
    #[serde(default)]
    pub msi: Option<u64>,
    /// The n-th access to a register of the DMA engine since then.
    #[serde(default)]
    pub access: Option<u64>,
    /// The first execution of this symbol of the kernel.
    #[serde(default)]
    pub symbol: Option<String>,
    /// Later by up to so much, which the seed chooses: guest time, or a number of what is counted.
    #[serde(default)]
    pub within: Option<Every>,
    /// Which device writes count and are changed.
    #[serde(default)]
    pub of: Option<Of>,
    /// So much guest time later.
    #[serde(default)]
    pub after: Option<Span>,
    /// So many instructions later.
    #[serde(default)]
    pub instructions: Option<u64>,
}

/// A boundary between two kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boundary {
    /// The old kernel's last instruction.
    Jump,
    /// The new kernel's first instruction.
    Entry,
}

/// Kinds of device writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// Blocks.
    Block,
    /// Completion counts.
    Completion,
    /// Both.
    Any,
}

impl From<Of> for WriteKind {
    fn from(of: Of) -> Self {
        match of {
            Of::Block => Self::Block,
            Of::Completion => Self::Completion,
            Of::Any => Self::Any,
        }
    }
}

impl When {
    /// The phase from whose beginning on it is armed; `None` is from power-on on.
    pub fn since(&self) -> Option<Stamp> {
        let phase = match self.at {
            Some(Boundary::Jump) => Phase::Jump,
            Some(Boundary::Entry) => Phase::BootNew,
            None => match (self.phase, &self.symbol) {
                (Some(phase), _) => phase,
                // A kernel's symbol is waited for from its first instruction on.
                (None, Some(_)) if self.generation == Some(0) => Phase::BootOld,
                (None, Some(_)) => Phase::BootNew,
                (None, None) => return None,
            },
        };
        let first = Generation::from(phase >= Phase::BootNew);
        Some(Stamp {
            generation: self.generation.unwrap_or(first),
            phase,
        })
    }

    /// Whether it waits for something that can occur several times.
    pub(super) fn waits(&self) -> bool {
        self.symbol.is_some() || self.counted().next().is_some()
    }

    /// How many of the things that are counted are given.
    pub(super) fn counted(&self) -> impl Iterator<Item = u64> {
        [self.write, self.read, self.msi, self.access]
            .into_iter()
            .flatten()
    }
}
