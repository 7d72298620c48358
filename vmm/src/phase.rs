//! Phases and generations of a live update.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A phase of one live update. Every record of the machine is stamped with the phase it was made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The first kernel boots, up to the agent's greeting.
    BootOld,
    /// The agent sets up what has to survive.
    Prepare,
    /// Everything is preserved and the device is running.
    Armed,
    /// The next kernel is loaded and the old one shuts down.
    Handover,
    /// Between the old kernel's last instruction and the new kernel's first.
    Jump,
    /// The new kernel boots, up to the agent's greeting.
    BootNew,
    /// The agent takes back what was preserved.
    Restore,
    /// The live update is over.
    Done,
}

impl Phase {
    /// All phases in the order of a run.
    pub const ALL: [Self; 8] = [
        Self::BootOld,
        Self::Prepare,
        Self::Armed,
        Self::Handover,
        Self::Jump,
        Self::BootNew,
        Self::Restore,
        Self::Done,
    ];

    /// The phase's name in scenarios and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BootOld => "boot-old",
            Self::Prepare => "prepare",
            Self::Armed => "armed",
            Self::Handover => "handover",
            Self::Jump => "jump",
            Self::BootNew => "boot-new",
            Self::Restore => "restore",
            Self::Done => "done",
        }
    }

    /// The phase of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which kernel is running: 0 for the one that was booted, one more after each kexec.
pub type Generation = u16;

/// Generation and phase in which a record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Kernel generation.
    pub generation: Generation,
    /// Phase of the live update.
    pub phase: Phase,
}

impl Stamp {
    /// The stamp of a machine that was just switched on.
    pub const START: Self = Self {
        generation: 0,
        phase: Phase::BootOld,
    };
    /// The stamp of a machine that is switched on between two kernels: the first is only said to have been there.
    pub const BETWEEN: Self = Self {
        generation: 0,
        phase: Phase::Jump,
    };
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of generation {}", self.phase, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_are_distinct() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_name(phase.name()), Some(phase));
        }
        assert_eq!(Phase::from_name("boot"), None);
        assert_eq!(format!("{:>10}", Phase::Armed), "     armed");
    }
}
