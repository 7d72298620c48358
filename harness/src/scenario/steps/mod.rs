//! `[[step]]`: what the agents do, step by step, instead of the usual life cycle.
//!
//! [`Step`] mirrors the file. The module `resolve` checks the list as a whole, by doing each step in mind, and makes
//! [`Given`] steps of it, which have everything that a run needs.

mod beside;
mod errno;
mod resolve;
mod shape;
#[cfg(test)]
mod tests;

pub(super) use beside::check as check_beside;
pub use errno::Errno;
pub(super) use resolve::check;

use super::{Bytes, Memfd, Scenario, Span};
use guest_agent::protocol::{By, Change, Side};
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// A step as the file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What is done.
    #[serde(rename = "do")]
    pub verb: Spanned<Verb>,
    /// In which generation. Default: that of the step before, or the one after it if that was a kexec.
    pub generation: Option<Spanned<u32>>,
    /// Name of a memfd.
    pub object: Option<Spanned<String>>,
    /// Name of a session. Of a memfd that is preserved or retrieved: default its own.
    pub session: Option<Spanned<String>>,
    /// LUO token. Default: the memfd's own.
    pub token: Option<Spanned<u64>>,
    /// Which of two sessions of that name.
    pub side: Option<Spanned<Side>>,
    /// First byte of a part of the memfd. Default: 0.
    pub at: Option<Spanned<Bytes>>,
    /// Bytes of that part. Default: up to the end.
    pub size: Option<Spanned<Bytes>>,
    /// How a part is written.
    pub by: Option<Spanned<By>>,
    /// Seals to add.
    pub seals: Option<Spanned<Vec<Seal>>>,
    /// Whether a process of its own goes on doing it until the kernel ends.
    #[serde(rename = "loop")]
    pub looped: Option<Spanned<bool>>,
    /// How much guest time passes.
    pub time: Option<Spanned<Span>>,
    /// The error that the call has to return. Default: it has to succeed.
    pub errno: Option<Spanned<Errno>>,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Makes a memfd without pages, or a session.
    Create,
    /// Writes to a part of a memfd.
    Write,
    /// Reads a part of a memfd through a mapping.
    Read,
    /// Gives a part of a memfd pages, and writes nothing to them.
    Allocate,
    /// Makes a part of a memfd read as zeroes.
    PunchHole,
    /// Adds seals to a memfd.
    Seal,
    /// Moves a part of a memfd to huge pages.
    Collapse,
    /// Preserves a memfd in a session.
    Preserve,
    /// Takes all back that was preserved in a session, by closing it: the kernel has no call for a single file.
    Unpreserve,
    /// Retrieves a session, or a memfd from one.
    Retrieve,
    /// Retrieves a memfd that the agent has retrieved already. It has to be the same file.
    RetrieveAgain,
    /// Finishes a session.
    Finish,
    /// Closes a memfd or a session.
    Close,
    /// Lets the kernel drop caches, and clean pages of memfds with them.
    DropCaches,
    /// Loads the next kernel.
    Load,
    /// Reboots into it.
    Kexec,
    /// Jumps into an image that returns at once, after which the same kernel goes on.
    JumpBack,
    /// Takes KHO's finalization back.
    AbortFinalize,
    /// Lets guest time pass.
    Wait,
}

/// A seal of a memfd (include/uapi/linux/fcntl.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seal {
    /// F_SEAL_SEAL: no further seals.
    #[serde(rename = "seal")]
    Further,
    /// F_SEAL_SHRINK.
    Shrink,
    /// F_SEAL_GROW.
    Grow,
    /// F_SEAL_WRITE.
    Write,
    /// F_SEAL_FUTURE_WRITE.
    FutureWrite,
    /// F_SEAL_EXEC.
    Exec,
}

impl Seal {
    /// Bits of those that forbid a writable mapping.
    const FORBID_WRITING: u32 = 1 << 3 | 1 << 4;

    /// Its bit.
    fn bit(self) -> u32 {
        1 << match self {
            Self::Further => 0,
            Self::Shrink => 1,
            Self::Grow => 2,
            Self::Write => 3,
            Self::FutureWrite => 4,
            Self::Exec => 5,
        }
    }
}

/// A step that the scenario gives, with all that a run needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Its place in the scenario's list, from 1.
    pub number: u32,
    /// Kernel generation.
    pub generation: u32,
    /// What is done.
    pub deed: Deed,
    /// The error that it has to fail with; `None` if it has to succeed.
    pub errno: Option<Errno>,
    /// Whether a process of its own goes on doing it.
    pub looped: bool,
}

impl Given {
    /// The session that it fills again and again, whatever else happens, if it does.
    pub fn fills(&self) -> Option<&str> {
        match &self.deed {
            Deed::Preserve { session, .. } if self.looped => Some(session),
            _ => None,
        }
    }
}

/// What a given step does. Objects have the identities of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// Make a memfd without pages.
    CreateMemfd {
        /// Which object.
        object: u32,
        /// Flags of memfd_create(2).
        flags: u32,
    },
    /// Make a session.
    CreateSession {
        /// Its name.
        session: String,
    },
    /// Change a memfd.
    Change {
        /// Which object.
        object: u32,
        /// In which way.
        change: Change,
    },
    /// Preserve a memfd.
    Preserve {
        /// Which object.
        object: u32,
        /// In which session.
        session: String,
        /// Under which token.
        token: u64,
        /// In which of two sessions of that name.
        side: Side,
    },
    /// Retrieve a session.
    RetrieveSession {
        /// Its name.
        session: String,
    },
    /// Retrieve a memfd.
    Retrieve {
        /// Which object.
        object: u32,
        /// From which session.
        session: String,
        /// Under which token.
        token: u64,
        /// From which of two sessions of that name.
        side: Side,
    },
    /// Retrieve a memfd once more.
    RetrieveAgain {
        /// Which object.
        object: u32,
        /// From which session.
        session: String,
        /// Under which token.
        token: u64,
        /// From which of two sessions of that name.
        side: Side,
    },
    /// Finish a session.
    Finish {
        /// Its name.
        session: String,
        /// Which of two of that name.
        side: Side,
    },
    /// Close a session.
    CloseSession {
        /// Its name.
        session: String,
        /// Which of two of that name.
        side: Side,
    },
    /// Close a memfd.
    CloseMemfd {
        /// Which object.
        object: u32,
    },
    /// Let the kernel drop caches.
    DropCaches,
    /// Load the next kernel.
    Load,
    /// Reboot into it.
    Kexec,
    /// Jump into an image that returns at once. The next kernel is not loaded then, whatever was before.
    JumpBack,
    /// Take KHO's finalization back.
    AbortFinalize,
    /// Let this much guest time pass, in nanoseconds.
    Wait(u64),
}

impl Scenario {
    /// Whether the scenario gives its own steps.
    pub fn gives_steps(&self) -> bool {
        !self.step.is_empty()
    }

    /// The memfd of this name, and its identity: its place in the file, from 1 on.
    fn memfd_named(&self, name: &str) -> Option<(u32, &Memfd)> {
        let mut all = (1..).zip(&self.memfd);
        all.find(|(_, memfd)| memfd.name.get_ref() == name)
    }

    /// The generation that is booted: with a handover that baton makes there is no first kernel.
    pub(crate) fn first_generation(&self) -> u32 {
        self.handover.is_some().into()
    }

    /// The steps that it gives, with patterns from `seed`. Every generation but the last one ends with a kexec, which is
    /// added with its load where the file leaves them out.
    pub(crate) fn given(&self, seed: u64) -> Vec<Given> {
        // A scenario whose steps do not pass the check is refused when it is read.
        resolve::resolve(self, seed).unwrap_or_default()
    }
}
