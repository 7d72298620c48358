//! How a machine that was booted without a scenario ended.

use crate::oracle::millis;
use serde::Serialize;
use std::fmt;
use vmm::machine::{Event, Moment};

/// Why a machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The guest switched the machine off.
    PowerOff,
    /// The user ended it from the keyboard.
    Stopped,
    /// The guest reset the machine.
    Reset,
    /// The kernel panicked.
    Panic,
    /// The guest is halted for good, or printed nothing for as long as it may be silent.
    Hang,
    /// The limit of guest time or of host time was reached.
    Timeout,
    /// The processor shut down.
    TripleFault,
    /// The backend does not implement an instruction that CPUID offers.
    UnknownInstruction,
    /// The machine itself failed.
    MachineFailed,
}

impl End {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Stopped => "stopped",
            Self::Reset => "reset",
            Self::Panic => "panic",
            Self::Hang => "hang",
            Self::Timeout => "timeout",
            Self::TripleFault => "triple-fault",
            Self::UnknownInstruction => "unknown-instruction",
            Self::MachineFailed => "machine-failed",
        }
    }

    /// How a final event ends a machine; `None` for any other event. What a kernel does once it has panicked depends on
    /// its command line, so `panicked` comes first.
    pub(super) fn of(event: &Event, panicked: bool) -> Option<Self> {
        let end = match event {
            Event::PowerOff { .. } => Self::PowerOff,
            Event::Reset { .. } => Self::Reset,
            Event::TripleFault { .. } => Self::TripleFault,
            Event::DeadHalt { .. } | Event::NoProgress { .. } => Self::Hang,
            Event::UnknownInstruction { .. } => Self::UnknownInstruction,
            Event::LedgerFull { .. } | Event::MessageTooLong { .. } => Self::MachineFailed,
            Event::Message(_)
            | Event::Jump { .. }
            | Event::KernelEntry { .. }
            | Event::InjectionAsks { .. }
            | Event::AwaitedAddress { .. }
            | Event::Reached { .. } => return None,
        };
        let told = matches!(end, Self::UnknownInstruction | Self::MachineFailed);
        Some(if panicked && !told { Self::Panic } else { end })
    }
}

/// A kernel that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Guest time of its first instruction, in nanoseconds.
    pub began_ns: u64,
    /// Guest time at which it jumped to the next kernel, in nanoseconds; `None` if it is the last.
    pub jumped_ns: Option<u64>,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// Whether the machine was reset, be it after a panic or by a triple fault: a machine that goes on after a reset
    /// would boot again.
    pub reset: bool,
    /// The same for people: the panic's message, or what the machine reported.
    pub text: String,
    /// When and where.
    pub at: Moment,
    /// The kernels that ran, each started by a kexec of the one before.
    pub kernels: Vec<Generation>,
    /// Whether a jump was under way: the last kernel had left, and the next one had not begun.
    pub between: bool,
    /// Whether each kexec was seen. If not, `kernels` may be too short.
    pub kexecs_seen: bool,
}

/// The sentence about the end, which names the kernel if there was more than one.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, kernel) in self.kernels.iter().enumerate() {
            if let Some(jumped) = kernel.jumped_ns {
                let ran = jumped.saturating_sub(kernel.began_ns);
                write!(f, "generation {number} ended by kexec after {}; ", millis(ran))?;
            }
        }
        match (self.kernels.len(), self.between) {
            (0 | 1, false) => {}
            (count, false) => write!(f, "generation {}: ", count - 1)?,
            (count, true) => write!(f, "before generation {count} began: ")?,
        }
        write!(f, "{}: {}", self.end.name(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::phase::Stamp;

    fn moment() -> Moment {
        Moment {
            time: 5,
            retired: None,
            rip: None,
            stamp: Stamp::START,
        }
    }

    #[test]
    fn a_panic_is_told_whatever_the_kernel_does_then() {
        let at = moment();
        let reset = Event::Reset { at, by: None };
        let off = Event::PowerOff { at, by: None };
        assert_eq!(End::of(&reset, false), Some(End::Reset));
        assert_eq!(End::of(&reset, true), Some(End::Panic));
        assert_eq!(End::of(&off, false), Some(End::PowerOff));
        let unknown = Event::UnknownInstruction {
            at,
            bytes: Vec::new(),
            what: String::new(),
        };
        assert_eq!(End::of(&unknown, true), Some(End::UnknownInstruction));
        assert_eq!(End::of(&Event::Jump { time: 1 }, true), None);
    }

    #[test]
    fn the_sentence_names_the_kernel_that_ended() {
        let began = |began_ns, jumped_ns| Generation { began_ns, jumped_ns };
        let ended = |kernels, between| {
            let ended = Ended {
                end: End::PowerOff,
                reset: false,
                text: "off".into(),
                at: moment(),
                kernels,
                between,
                kexecs_seen: true,
            };
            ended.to_string()
        };
        assert_eq!(ended(vec![began(0, None)], false), "power-off: off");
        assert_eq!(
            ended(vec![began(0, Some(2_000_000)), began(2_500_000, None)], false),
            "generation 0 ended by kexec after 2.000 ms; generation 1: power-off: off"
        );
        assert_eq!(
            ended(vec![began(0, Some(2_000_000))], true),
            "generation 0 ended by kexec after 2.000 ms; before generation 1 began: power-off: off"
        );
    }
}
