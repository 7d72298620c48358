//! The benchmark's result: every sample, and what they say, for people and as JSON.

use crate::backends::Backends;
use crate::fork::Forks;
use crate::growth::Growth;
use crate::host::Machine;
use crate::profile::Profile;
use crate::sweep::Injections;
use crate::translation::Gains;
use crate::versus::{Summary, Versus};
use serde::Serialize;
use std::fmt;

/// Everything that was measured, and on what. A part that was not requested is missing.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Load average over one minute, before and after.
    pub load_average: [f64; 2],
    /// The cycle of each kernel on baton and QEMU.
    pub versus: Vec<Versus>,
    /// Where the processor time goes, by kernel.
    pub profiles: Vec<Profile>,
    /// What translation gains.
    pub translation: Option<Gains>,
    /// How the cost grows.
    pub growth: Option<Growth>,
    /// What the backends cost.
    pub backends: Option<Backends>,
    /// What snapshots and branches cost.
    pub forks: Option<Forks>,
    /// What injections cost.
    pub injections: Option<Injections>,
}

#[derive(Serialize)]
struct Whole<'a> {
    summaries: Vec<Summary>,
    #[serde(flatten)]
    report: &'a Report,
}

impl Report {
    /// Summaries and every sample.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let whole = Whole {
            summaries: self.versus.iter().map(Versus::summary).collect(),
            report: self,
        };
        Ok(serde_json::to_string_pretty(&whole)? + "\n")
    }

    /// Whether baton stayed within its memory limit, branches and injections are fast enough, and everything could be
    /// measured.
    pub fn is_good(&self) -> bool {
        self.versus.iter().all(Versus::memory_is_bounded)
            && self.forks.as_ref().is_none_or(Forks::is_fast)
            && self.injections.as_ref().is_none_or(Injections::is_fast)
            && self
                .backends
                .as_ref()
                .is_none_or(|backends| backends.cycle_error.is_none())
    }

    /// Processor time of a cycle on the best QEMU, in seconds, of the first kernel.
    fn qemu_cpu_s(&self) -> Option<f64> {
        let summary = self.versus.first()?.summary();
        Some(summary.peers[summary.best?].cpu_s?.median)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            processor,
            processors,
            kernel,
        } = &self.machine;
        let [before, after] = self.load_average;
        writeln!(
            f,
            "host: {processor}, {processors} processors, Linux {kernel}; load average {before:.2} before, {after:.2} after"
        )?;
        for versus in &self.versus {
            write!(f, "\n{versus}")?;
        }
        for profile in &self.profiles {
            write!(f, "\n{profile}")?;
        }
        if let Some(gains) = &self.translation {
            write!(f, "\n{gains}")?;
        }
        if let Some(growth) = &self.growth {
            write!(f, "\n{growth}")?;
        }
        if let Some(backends) = &self.backends {
            write!(f, "\n{backends}")?;
        }
        if let Some(forks) = &self.forks {
            write!(f, "\n{forks}")?;
        }
        if let Some(injections) = &self.injections {
            write!(f, "\n{}", injections.table(self.qemu_cpu_s()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(peak_rss_bytes: u64) -> Report {
        Report {
            load_average: [0.5, 1.0],
            versus: vec![crate::versus::tests::versus(peak_rss_bytes)],
            growth: Some(crate::growth::tests::growth()),
            backends: Some(crate::backends::tests::backends(true)),
            forks: Some(crate::fork::tests::forks(0.001)),
            injections: Some(crate::sweep::tests::injections(1)),
            ..Report::default()
        }
    }

    #[test]
    fn json_has_summaries_and_samples() {
        let value: serde_json::Value = serde_json::from_str(&report(1).json().unwrap()).unwrap();
        assert_eq!(value["summaries"][0]["wall_ratio"], 2.0);
        assert_eq!(value["versus"][0]["baton"][2]["wall_s"], 9.0);
        assert_eq!(value["versus"][0]["peers"][0]["samples"][0]["compare_share"], 0.5);
        assert!(value["versus"][0]["peers"][0]["samples"][0].get("boot").is_none());
        assert_eq!(value["backends"]["exits"][1]["backend"], "kvm");
    }

    #[test]
    fn the_text_has_every_part_that_was_measured() {
        let text = report(1).to_string();
        for part in [
            "load average 0.50",
            "One live update",
            "cost of a live update grows",
            "The backends",
            "Injections",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let alone = Report {
            growth: Some(crate::growth::tests::growth()),
            ..Report::default()
        };
        assert!(!alone.to_string().contains("Injections") && alone.is_good());
    }

    #[test]
    fn memory_that_is_not_bounded_is_not_good() {
        assert!(report(768 << 20).is_good());
        assert!(!report((768 << 20) + 1).is_good());
    }
}
