//! The benchmark's result: every sample, their summary, and both as JSON.

use crate::backends::Backends;
use crate::fork::Forks;
use crate::host::Machine;
use crate::samples::{Executed, Sample, Spread};
use crate::sweep::Injections;
use serde::Serialize;

/// Memory that baton may use besides guest RAM, in bytes.
const MEMORY_MARGIN: u64 = 256 << 20;

/// Everything measured, and on what.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Load average over one minute, before and after.
    pub load_average: [f64; 2],
    /// What QEMU says of itself.
    pub qemu_version: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Release of the guest kernels.
    pub kernel: String,
    /// Guest RAM.
    pub ram_bytes: u64,
    /// Preserved memory.
    pub memfd_bytes: u64,
    /// Runs on baton.
    pub baton: Vec<Sample>,
    /// Runs on QEMU, in the same order.
    pub qemu: Vec<Sample>,
    /// What the backends cost.
    pub backends: Backends,
    /// What snapshots and branches cost.
    pub forks: Forks,
    /// What injections cost.
    pub injections: Injections,
}

/// What the samples say.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Speed of softcpu from reset until the first agent spoke, in MIPS.
    pub boot_mips: Option<Spread>,
    /// Speed of softcpu over the whole cycle, in MIPS.
    pub cycle_mips: Option<Spread>,
    /// Guest instructions of the cycle divided by baton's processor time, in MIPS; less affected by other load.
    pub cycle_mips_by_cpu: Option<Spread>,
    /// Guest instructions of the cycle on baton, in millions.
    pub cycle_million_instructions: Option<Spread>,
    /// Wall time of baton, in seconds.
    pub baton_wall_s: Option<Spread>,
    /// Wall time of QEMU, in seconds.
    pub qemu_wall_s: Option<Spread>,
    /// Processor time of baton, in seconds.
    pub baton_cpu_s: Option<Spread>,
    /// Processor time of QEMU, in seconds.
    pub qemu_cpu_s: Option<Spread>,
    /// Ratio of the medians of wall time, baton's to QEMU's.
    pub wall_ratio: Option<f64>,
    /// Ratio of the medians of processor time, baton's to QEMU's.
    pub cpu_ratio: Option<f64>,
    /// Wall time of QEMU less what its guest spent on comparing digests, in seconds.
    pub qemu_wall_without_compare_s: Option<Spread>,
    /// Largest resident set of baton in any run.
    pub baton_peak_rss_bytes: u64,
    /// What it may be.
    pub baton_peak_rss_limit_bytes: u64,
    /// Largest resident set of QEMU in any run.
    pub qemu_peak_rss_bytes: u64,
}

#[derive(Serialize)]
struct Whole<'a> {
    summary: Summary,
    #[serde(flatten)]
    report: &'a Report,
}

impl Report {
    /// Summary and every sample.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(&Whole {
            summary: self.summary(),
            report: self,
        })? + "\n")
    }

    /// Whether baton kept to its memory.
    pub fn memory_is_bounded(&self) -> bool {
        let summary = self.summary();
        summary.baton_peak_rss_bytes <= summary.baton_peak_rss_limit_bytes
    }

    /// What the samples say together.
    pub fn summary(&self) -> Summary {
        let of = |samples: &[Sample], value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
        let rate = |value: fn(&Sample) -> Option<Executed>| {
            Spread::of(self.baton.iter().filter_map(value).map(Executed::mips))
        };
        let peak = |samples: &[Sample]| {
            samples
                .iter()
                .map(|sample| sample.peak_rss_bytes)
                .max()
                .unwrap_or(0)
        };
        let ratio = |b: Option<Spread>, c: Option<Spread>| Some(b?.median / c?.median);
        let (baton_wall_s, qemu_wall_s) = (of(&self.baton, |s| s.wall_s), of(&self.qemu, |s| s.wall_s));
        let (baton_cpu_s, qemu_cpu_s) = (of(&self.baton, |s| s.cpu_s), of(&self.qemu, |s| s.cpu_s));
        let of_cycle = |value: fn(&Sample, Executed) -> f64| {
            Spread::of(
                self.baton
                    .iter()
                    .filter_map(|sample| Some(value(sample, sample.cycle?))),
            )
        };
        Summary {
            boot_mips: rate(|sample| sample.boot),
            cycle_mips: rate(|sample| sample.cycle),
            cycle_mips_by_cpu: of_cycle(|sample, cycle| cycle.millions() / sample.cpu_s),
            cycle_million_instructions: of_cycle(|_, cycle| cycle.millions()),
            baton_wall_s,
            qemu_wall_s,
            baton_cpu_s,
            qemu_cpu_s,
            wall_ratio: ratio(baton_wall_s, qemu_wall_s),
            cpu_ratio: ratio(baton_cpu_s, qemu_cpu_s),
            qemu_wall_without_compare_s: of(&self.qemu, |s| {
                s.wall_s * (1.0 - s.compare_share.unwrap_or(0.0))
            }),
            baton_peak_rss_bytes: peak(&self.baton),
            baton_peak_rss_limit_bytes: self.ram_bytes + MEMORY_MARGIN,
            qemu_peak_rss_bytes: peak(&self.qemu),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Three runs of each.
    pub fn report(peak_rss_bytes: u64) -> Report {
        let executed = |instructions, wall_ms| {
            Some(Executed {
                instructions,
                wall_ms,
            })
        };
        let baton = |wall_s| Sample {
            wall_s,
            cpu_s: wall_s / 2.0,
            peak_rss_bytes,
            boot: executed(60_000_000, 500.0),
            cycle: executed(150_000_000, 2000.0),
            compare_share: None,
        };
        let qemu = |wall_s| Sample {
            wall_s,
            cpu_s: wall_s,
            compare_share: Some(0.5),
            ..Sample::default()
        };
        Report {
            machine: Machine::default(),
            load_average: [0.5, 1.0],
            qemu_version: "QEMU 1.2".into(),
            scenario: "s".into(),
            kernel: "7.3.4".into(),
            ram_bytes: 512 << 20,
            memfd_bytes: 64 << 20,
            baton: vec![baton(3.0), baton(2.0), baton(9.0)],
            qemu: vec![qemu(1.5), qemu(1.0), qemu(2.0)],
            backends: crate::backends::tests::backends(true),
            forks: crate::fork::tests::forks(0.001),
            injections: crate::sweep::tests::injections(1),
        }
    }

    #[test]
    fn ratios_are_of_medians() {
        let summary = report(1).summary();
        assert_eq!((summary.wall_ratio, summary.cpu_ratio), (Some(2.0), Some(1.0)));
        assert_eq!(summary.qemu_wall_without_compare_s.unwrap().median, 0.75);
        assert_eq!(
            (
                summary.boot_mips.unwrap().median,
                summary.cycle_mips.unwrap().median
            ),
            (120.0, 75.0)
        );
    }

    #[test]
    fn json_has_summary_and_samples() {
        let value: serde_json::Value = serde_json::from_str(&report(1).json().unwrap()).unwrap();
        assert_eq!(value["summary"]["wall_ratio"], 2.0);
        assert_eq!(value["baton"][2]["wall_s"], 9.0);
        assert_eq!(value["qemu"][0]["compare_share"], 0.5);
        assert!(value["qemu"][0].get("boot").is_none());
        assert_eq!(value["backends"]["exits"][1]["backend"], "kvm");
    }
}
