//! What a running machine reports.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::phase::{Generation, Stamp};

/// Time and position of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Guest time in nanoseconds.
    pub time: u64,
    /// Instructions retired, where the backend counts them.
    pub retired: Option<u64>,
    /// Instruction pointer; `None` if the processor has lost its registers.
    pub rip: Option<u64>,
    /// Generation and phase.
    pub stamp: Stamp,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns in {}", self.time, self.stamp)?;
        if let Some(rip) = self.rip {
            write!(f, ", rip {rip:#x}")?;
        }
        self.retired
            .map_or(Ok(()), |count| write!(f, ", {count} instructions"))
    }
}

/// Why [`super::Machine::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The agent sent a message. The machine stands until [`super::Machine::reply`].
    Message(Vec<u8>),
    /// The agent announced a message longer than the window.
    MessageTooLong {
        /// When.
        at: Moment,
        /// The length announced, in bytes.
        length: u64,
    },
    /// The old kernel jumps: its identity-mapped kexec code is about to run.
    Jump {
        /// Guest time in nanoseconds.
        time: u64,
    },
    /// The new kernel's first instruction is about to run.
    KernelEntry {
        /// Guest time in nanoseconds.
        time: u64,
        /// Guest physical address of its boot parameters.
        boot_params: u64,
        /// Its generation.
        generation: Generation,
    },
    /// The machine was switched off.
    PowerOff {
        /// When.
        at: Moment,
        /// The injection that did it; `None` if the guest did.
        by: Option<u16>,
    },
    /// The machine was reset.
    Reset {
        /// When.
        at: Moment,
        /// The injection that did it; `None` if the guest did.
        by: Option<u16>,
    },
    /// The processor shut down.
    TripleFault {
        /// When.
        at: Moment,
        /// Exceptions and addresses, as far as the backend knows them.
        reason: String,
    },
    /// All processors are halted, and nothing can wake one.
    DeadHalt {
        /// When.
        at: Moment,
        /// Whether interrupts are enabled. If so, no device will ever raise one.
        interruptible: bool,
    },
    /// The guest runs, but made no progress for longer than the limit.
    NoProgress {
        /// When this was noticed.
        at: Moment,
        /// Last progress, in guest nanoseconds.
        since: u64,
        /// The limit, in guest nanoseconds.
        limit: u64,
    },
    /// The ledger is full, which has stopped the DMA engine. Later device writes could not be judged.
    LedgerFull {
        /// When.
        at: Moment,
    },
    /// An injection asks what to do. The machine stands until [`super::Machine::answer_injection`].
    InjectionAsks {
        /// When.
        at: Moment,
        /// Number of the injection, from 0.
        number: usize,
    },
    /// A kernel is about to execute an instruction that an injection may wait for, if the kernel lies there. The
    /// machine stands until [`super::Machine::kernel_lies_at`].
    AwaitedAddress {
        /// When.
        at: Moment,
    },
    /// A kernel is about to execute an instruction of [`super::Machine::stop_before`], if the kernel lies there.
    Reached {
        /// When.
        at: Moment,
    },
    /// The backend cannot execute an instruction.
    UnknownInstruction {
        /// When.
        at: Moment,
        /// The instruction's bytes.
        bytes: Vec<u8>,
        /// Disassembly or reason.
        what: String,
    },
}

impl Event {
    /// Whether the machine cannot run on after this.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Message(_)
                | Self::Jump { .. }
                | Self::KernelEntry { .. }
                | Self::InjectionAsks { .. }
                | Self::AwaitedAddress { .. }
                | Self::Reached { .. }
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => write!(f, "message of {} bytes", message.len()),
            Self::MessageTooLong { at, length } => {
                write!(
                    f,
                    "the agent announced a message of {length} bytes, more than the window holds ({at})"
                )
            }
            Self::Jump { time } => write!(f, "kexec jump at {time} ns"),
            Self::KernelEntry {
                time,
                boot_params,
                generation,
            } => {
                write!(
                    f,
                    "entry of kernel {generation} at {time} ns with boot parameters at {boot_params:#x}"
                )
            }
            Self::AwaitedAddress { at } => write!(f, "an instruction that an injection may wait for ({at})"),
            Self::Reached { at } => write!(f, "an instruction to stop at ({at})"),
            Self::PowerOff { at, by: None } => write!(f, "power off ({at})"),
            Self::PowerOff { at, by: Some(by) } => {
                write!(f, "injection {by} switched the machine off ({at})")
            }
            Self::Reset { at, by: None } => write!(f, "reset ({at})"),
            Self::Reset { at, by: Some(by) } => write!(f, "injection {by} reset the machine ({at})"),
            Self::TripleFault { at, reason } => write!(f, "triple fault: {reason} ({at})"),
            Self::DeadHalt {
                at,
                interruptible: true,
            } => write!(f, "halted with nothing left to wake it ({at})"),
            Self::DeadHalt {
                at,
                interruptible: false,
            } => write!(f, "halted with interrupts disabled ({at})"),
            Self::NoProgress { at, since, limit } => {
                write!(f, "no progress since {since} ns, limit {limit} ns ({at})")
            }
            Self::LedgerFull { at } => write!(f, "the ledger is full ({at})"),
            Self::InjectionAsks { at, number } => write!(f, "injection {number} asks what to do ({at})"),
            Self::UnknownInstruction { at, what, .. } => write!(f, "unknown instruction: {what} ({at})"),
        }
    }
}
