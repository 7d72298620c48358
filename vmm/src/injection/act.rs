//! Deeds other than changes of memory and of device writes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::devices::power::PowerRequest;

/// Something that happens at a moment, as no processor or device would make it happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Interrupt messages that the DMA engine did not send.
    Messages {
        /// Their vector; `None` for the one that the driver programmed.
        vector: Option<u8>,
        /// How many, the first at once.
        count: u32,
        /// Nanoseconds between two.
        every: u64,
    },
    /// A message of the DMA engine that the local APIC accepted before it was switched off, so that it is pending.
    Pend {
        /// Its vector; `None` for the one that the driver programmed.
        vector: Option<u8>,
    },
    /// The DMA engine goes on when the driver disables it.
    IgnoreStop {
        /// For so many nanoseconds; `None` for good.
        ns: Option<u64>,
    },
    /// The DMA engine writes nothing for so many nanoseconds.
    Silence {
        /// How many.
        ns: u64,
    },
    /// The DMA engine writes so many blocks at once, beside those that are due.
    Burst {
        /// How many.
        blocks: u32,
    },
    /// The bus master bit of the DMA engine changes.
    BusMaster {
        /// Its new value.
        on: bool,
    },
    /// A function-level reset of the DMA engine.
    ResetFunction,
    /// The DMA engine is gone: reads give all ones, writes are lost, and it writes nothing.
    Remove,
    /// A BAR of the DMA engine moves.
    MoveBar {
        /// Which.
        bar: u8,
        /// Its new guest physical address.
        to: u32,
    },
    /// The machine is reset or switched off.
    Power(PowerRequest),
    /// A processor gets a non-maskable interrupt.
    Nmi {
        /// Which, from 0.
        processor: u8,
    },
    /// The requests of other processors to stop no longer reach this one.
    Unstoppable {
        /// Which, from 0.
        processor: u8,
    },
    /// The time stamp counters of all processors jump by so many nanoseconds.
    ShiftTsc {
        /// How many; negative is back.
        by: i64,
    },
    /// The timers of all local APICs that are armed now fire later.
    DelayTimers {
        /// By so many nanoseconds.
        by: u64,
    },
    /// Each access to a register of the DMA engine takes longer. No processor executes meanwhile.
    SlowAccesses {
        /// By so many nanoseconds.
        by: u64,
        /// For so many nanoseconds.
        ns: u64,
    },
}

impl Act {
    /// What of it the `kvm` backend cannot do; `None` if it can. There, local APICs and time belong to the host.
    #[must_use]
    pub fn needs_soft(self) -> Option<&'static str> {
        match self {
            Self::Pend { .. } => Some("it makes an interrupt pending in a local APIC"),
            Self::Unstoppable { .. } => Some("it keeps interrupts between processors back"),
            Self::ShiftTsc { .. } => Some("it shifts time stamp counters"),
            Self::DelayTimers { .. } => Some("it delays timers of local APICs"),
            Self::SlowAccesses { .. } => Some("it lets time pass in an access to a register"),
            _ => None,
        }
    }
}

/// What was done, as a sentence.
impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = |f: &mut fmt::Formatter<'_>, vector: Option<u8>| match vector {
            Some(vector) => write!(f, " with vector {vector:#x}"),
            None => Ok(()),
        };
        match *self {
            Self::Messages { vector, count: 1, .. } => {
                f.write_str("an interrupt message was sent")?;
                with(f, vector)?;
                f.write_str(", not by the device")
            }
            Self::Messages { vector, count, every } => {
                write!(f, "{count} interrupt messages were sent")?;
                with(f, vector)?;
                write!(f, ", one every {every} ns, not by the device")
            }
            Self::Pend { vector } => {
                f.write_str("an interrupt message was made pending in the local APIC")?;
                with(f, vector)
            }
            Self::IgnoreStop { ns: Some(ns) } => {
                write!(f, "the device obeys no stop for {ns} ns from now on")
            }
            Self::IgnoreStop { ns: None } => f.write_str("the device obeys no stop from now on"),
            Self::Silence { ns } => write!(f, "the device was silenced for {ns} ns"),
            Self::Burst { blocks } => write!(
                f,
                "the device wrote {blocks} blocks at once, before they were due"
            ),
            Self::BusMaster { on: true } => f.write_str("the device's bus master bit was set"),
            Self::BusMaster { on: false } => f.write_str("the device's bus master bit was cleared"),
            Self::ResetFunction => f.write_str("the device's function was reset"),
            Self::Remove => f.write_str("the device was taken away"),
            Self::MoveBar { bar, to } => write!(f, "BAR {bar} of the device was moved to {to:#x}"),
            Self::Power(PowerRequest::Off) => f.write_str("the machine was switched off"),
            Self::Power(PowerRequest::Reset) => f.write_str("the machine was reset"),
            Self::Nmi { processor } => write!(f, "processor {processor} got a non-maskable interrupt"),
            Self::Unstoppable { processor } => write!(
                f,
                "processor {processor} gets no request to stop from another one from now on"
            ),
            Self::ShiftTsc { by } => {
                let way = if by < 0 { "back" } else { "forward" };
                write!(
                    f,
                    "all time stamp counters went {way} by {} ns",
                    by.unsigned_abs()
                )
            }
            Self::DelayTimers { by } => write!(f, "the armed timers of local APICs were put off by {by} ns"),
            Self::SlowAccesses { by, ns } => write!(
                f,
                "each access to a register of the device takes {by} ns longer for {ns} ns from now on"
            ),
        }
    }
}
