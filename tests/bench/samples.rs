//! The measurements of one run, and the summary of many.

use crate::phases::Phase;
use serde::Serialize;

/// One run of one side.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    /// Wall time from start to exit, in seconds.
    pub wall_s: f64,
    /// Processor time, user and system, in seconds.
    pub cpu_s: f64,
    /// Largest resident set, in bytes.
    pub peak_rss_bytes: u64,
    /// On baton: the guest's execution until the first agent's first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Executed>,
    /// On baton: what the guest executed in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Executed>,
    /// On baton: the phases, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    /// On QEMU: share of the cycle that the guest spent on comparing digests, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare_share: Option<f64>,
}

/// Guest instructions and the wall time they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Executed {
    /// Retired instructions.
    pub instructions: u64,
    /// Wall time in milliseconds.
    pub wall_ms: f64,
}

impl Executed {
    /// Instructions in millions.
    #[allow(clippy::cast_precision_loss)] // for people
    pub fn millions(self) -> f64 {
        self.instructions as f64 / 1e6
    }

    /// Million instructions per second.
    pub fn mips(self) -> f64 {
        self.millions() / (self.wall_ms / 1000.0)
    }
}

/// Median, least and greatest of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median; of an even number of values the mean of the middle two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// The median of the values that are present; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let half = values.len() / 2;
        let (least, greatest) = (*values.first()?, *values.last()?);
        let upper = values[half];
        let median = if values.len().is_multiple_of(2) {
            (values[half - 1] + upper) / 2.0
        } else {
            upper
        };
        Some(Self {
            median,
            least,
            greatest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |median, least, greatest| {
            Some(Spread {
                median,
                least,
                greatest,
            })
        };
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([2.0]), spread(2.0, 2.0, 2.0));
        assert_eq!(Spread::of([9.0, 1.0, 3.0]), spread(3.0, 1.0, 9.0));
        assert_eq!(Spread::of([9.0, 1.0, 3.0, 4.0]), spread(3.5, 1.0, 9.0));
    }

    #[test]
    fn mips_are_millions_per_second() {
        assert_eq!(
            Executed {
                instructions: 50_000_000,
                wall_ms: 500.0
            }
            .mips(),
            100.0
        );
    }
}
