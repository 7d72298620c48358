//! What happens to the whole machine, or to a processor.

use std::fmt;

use serde::Deserialize;

use super::Inject;
use crate::scenario::Scenario;
use crate::scenario::check::{Problem, require};

/// What happens to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MachineFault {
    /// It is reset.
    Reset,
    /// It is switched off.
    PowerOff,
    /// A processor gets a non-maskable interrupt.
    Nmi {
        /// Which, from 0.
        #[serde(default)]
        processor: u8,
    },
    /// A processor no longer gets the requests of others to stop.
    Unstoppable {
        /// Which, from 1: processor 0 makes the jump.
        processor: u8,
    },
}

impl MachineFault {
    pub(super) fn check(&self, scenario: &Scenario, inject: &Inject) -> Result<(), Problem> {
        let (least, processor) = match *self {
            Self::Reset | Self::PowerOff => return Ok(()),
            Self::Nmi { processor } => (0, processor),
            Self::Unstoppable { processor } => (1, processor),
        };
        let vcpus = *scenario.vcpus.get_ref();
        require((least..vcpus).contains(&processor.into()), &inject.what, || {
            if vcpus <= least {
                "processor 0 makes the jump, and the scenario has no other: set vcpus".into()
            } else {
                let last = vcpus - 1;
                format!("found processor {processor}, expected {least} to {last}")
            }
        })
    }
}

/// The deed in plain words.
impl fmt::Display for MachineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("the machine is reset"),
            Self::PowerOff => f.write_str("the machine is switched off"),
            Self::Nmi { processor } => write!(f, "processor {processor} gets a non-maskable interrupt"),
            Self::Unstoppable { processor } => write!(
                f,
                "processor {processor} gets no request to stop from another one from then on"
            ),
        }
    }
}
