//! How a run ended.

use super::Phase;
use serde::{Deserialize, Serialize};

/// How a run ended, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In which way.
    pub kind: OutcomeKind,
    /// Kernel generation that ran then, 0 for the first.
    pub generation: u32,
    /// Phase that the run was in.
    pub phase: Phase,
    /// One sentence with what is known.
    pub text: String,
}

/// In which way a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeKind {
    /// Every step was done.
    Completed,
    /// A session, a memfd or memory reserved by name could not be retrieved; the run went on without it to its end.
    SessionLost,
    /// The first kernel could not do what the scenario asks for, so that nothing was tested.
    SetupFailed,
    /// A program of the user's own failed or ended before the kexec that was to come of it.
    PayloadFailed,
    /// The agent reported a failure that the run could not go on from.
    AgentFailed,
    /// The agent died or spoke nonsense.
    AgentDied,
    /// The guest kernel panicked.
    GuestPanic,
    /// The guest made no progress for longer than the scenario allows, or halted for ever.
    GuestHang,
    /// The processor shut down.
    TripleFault,
    /// The guest reset the machine or powered it off unasked.
    UnexpectedReset,
    /// The guest executed an instruction that the backend ought to know and does not.
    UnknownInstruction,
    /// The ledger was full before the run's end.
    LedgerFull,
    /// The machine itself failed.
    MachineFailed,
    /// It has not ended, or was killed: evidence so far. No scenario can expect that.
    Unfinished,
}

impl OutcomeKind {
    /// All that a run can end in.
    pub const ALL: [Self; 13] = [
        Self::Completed,
        Self::SessionLost,
        Self::SetupFailed,
        Self::PayloadFailed,
        Self::AgentFailed,
        Self::AgentDied,
        Self::GuestPanic,
        Self::GuestHang,
        Self::TripleFault,
        Self::UnexpectedReset,
        Self::UnknownInstruction,
        Self::LedgerFull,
        Self::MachineFailed,
    ];

    /// The name in scenario files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::SessionLost => "session-lost",
            Self::SetupFailed => "setup-failed",
            Self::PayloadFailed => "payload-failed",
            Self::AgentFailed => "agent-failed",
            Self::AgentDied => "agent-died",
            Self::GuestPanic => "guest-panic",
            Self::GuestHang => "guest-hang",
            Self::TripleFault => "triple-fault",
            Self::UnexpectedReset => "unexpected-reset",
            Self::UnknownInstruction => "unknown-instruction",
            Self::LedgerFull => "ledger-full",
            Self::MachineFailed => "machine-failed",
            Self::Unfinished => "unfinished",
        }
    }

    /// Whether such a run says nothing about the guest, so that it cannot be judged at all.
    pub fn is_unjudgeable(self) -> bool {
        matches!(
            self,
            Self::SetupFailed
                | Self::UnknownInstruction
                | Self::LedgerFull
                | Self::MachineFailed
                | Self::Unfinished
        )
    }
}
