//! What happens to time.

use std::fmt;

use serde::Deserialize;

use super::Inject;
use crate::scenario::Span;
use crate::scenario::check::{Problem, require};

/// Longest jump of the time stamp counters, in nanoseconds: an hour.
const MAX_JUMP: u64 = 3_600_000_000_000;

/// What happens to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TimeFault {
    /// The time stamp counters of all processors jump forward.
    TscForward {
        /// How far.
        by: Span,
    },
    /// They jump back.
    TscBack {
        /// How far.
        by: Span,
    },
    /// The timers of local APICs that are armed fire late.
    LateTimer {
        /// How late.
        by: Span,
    },
    /// Accesses to registers of the device take longer.
    SlowDevice {
        /// How much longer each takes.
        by: Span,
        /// For so long.
        #[serde(rename = "for")]
        during: Span,
    },
}

impl TimeFault {
    pub(super) fn needs_device(&self) -> bool {
        matches!(self, Self::SlowDevice { .. })
    }

    pub(super) fn check(&self, inject: &Inject) -> Result<(), Problem> {
        let (by, during) = match self {
            Self::TscForward { by } | Self::TscBack { by } | Self::LateTimer { by } => (by, None),
            Self::SlowDevice { by, during } => (by, Some(during)),
        };
        require((1..=MAX_JUMP).contains(&by.0), &inject.what, || {
            format!(
                "found by = {by}, expected more than 0 and at most {}",
                Span(MAX_JUMP)
            )
        })?;
        require(during.is_none_or(|during| during.0 > 0), &inject.what, || {
            "found for = 0, which changes nothing".into()
        })
    }

    /// How far the time stamp counters jump, in nanoseconds.
    pub(crate) fn jump(by: Span) -> i64 {
        i64::try_from(by.0).unwrap_or(i64::MAX)
    }
}

/// The deed in plain words.
impl fmt::Display for TimeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TscForward { by } => write!(f, "all time stamp counters jump forward by {by}"),
            Self::TscBack { by } => write!(f, "all time stamp counters jump back by {by}"),
            Self::LateTimer { by } => write!(f, "the armed timers of local APICs fire {by} late"),
            Self::SlowDevice { by, during } => write!(
                f,
                "each access to a register of the device takes {by} longer, for {during}"
            ),
        }
    }
}
