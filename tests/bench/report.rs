//! The benchmark's result, for people and as JSON.

use crate::host::Machine;
use crate::samples::{Executed, Sample, Spread};
use serde::Serialize;
use std::fmt;

/// Memory that baton may take beside guest RAM, in bytes.
const MEMORY_MARGIN: u64 = 256 << 20;
/// Least speed on a kernel boot that is aimed at, in MIPS.
const GOAL_MIPS: f64 = 100.0;
/// Greatest ratio of wall times, baton's to QEMU's, that is aimed at.
const GOAL_RATIO: f64 = 1.5;

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
}

/// What the samples say.
#[derive(Debug, Serialize)]
struct Summary {
    boot_mips: Option<Spread>,
    cycle_mips: Option<Spread>,
    baton_wall_s: Option<Spread>,
    qemu_wall_s: Option<Spread>,
    baton_cpu_s: Option<Spread>,
    qemu_cpu_s: Option<Spread>,
    wall_ratio: Option<f64>,
    cpu_ratio: Option<f64>,
    /// Wall time of QEMU less what its guest spent on comparing digests.
    qemu_wall_without_compare_s: Option<Spread>,
    baton_peak_rss_bytes: u64,
    baton_peak_rss_limit_bytes: u64,
    qemu_peak_rss_bytes: u64,
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

    fn summary(&self) -> Summary {
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
        Summary {
            boot_mips: rate(|sample| sample.boot),
            cycle_mips: rate(|sample| sample.cycle),
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = self.summary();
        let Machine {
            processor,
            processors,
            kernel,
        } = &self.machine;
        let [before, after] = self.load_average;
        writeln!(
            f,
            "One live update, boot to verdict, on baton and on QEMU's TCG\n"
        )?;
        writeln!(
            f,
            "  host   {processor}, {processors} processors, Linux {kernel}; load average {before:.2} before, {after:.2} after"
        )?;
        writeln!(
            f,
            "  guest  Linux {}, {} MiB, 1 processor, {} MiB preserved ({})",
            self.kernel,
            mib(self.ram_bytes),
            mib(self.memfd_bytes),
            self.scenario
        )?;
        writeln!(f, "  peer   {}, q35", self.qemu_version)?;
        writeln!(
            f,
            "  runs   {} of each in turns; median, (least to greatest)\n",
            self.baton.len()
        )?;
        writeln!(f, "  {:<26}{:>24}{:>24}{:>9}", "", "baton", "QEMU TCG", "ratio")?;
        row(f, "wall time", "s", summary.baton_wall_s, summary.qemu_wall_s)?;
        row(f, "processor time", "s", summary.baton_cpu_s, summary.qemu_cpu_s)?;
        row(
            f,
            "wall, without comparing *",
            "s",
            summary.baton_wall_s,
            summary.qemu_wall_without_compare_s,
        )?;
        row(f, "softcpu, boot", "MIPS", summary.boot_mips, None)?;
        row(f, "softcpu, whole cycle", "MIPS", summary.cycle_mips, None)?;
        let (peak, peer) = (
            mib(summary.baton_peak_rss_bytes),
            mib(summary.qemu_peak_rss_bytes),
        );
        writeln!(
            f,
            "  {:<26}{:>24}{:>24}\n",
            "peak resident memory",
            format!("{peak} MiB"),
            format!("{peer} MiB")
        )?;
        writeln!(
            f,
            "  * QEMU's time less what its guest takes to compare all digests with the pattern's,"
        )?;
        writeln!(
            f,
            "    which in baton the host does. Device, ledger, evidence and oracle are baton's alone.\n"
        )?;
        let boot = summary.boot_mips.map(|spread| spread.median);
        let limit = mib(summary.baton_peak_rss_limit_bytes);
        goal(
            f,
            &format!("at least {GOAL_MIPS} MIPS on a kernel boot"),
            boot.is_some_and(|mips| mips >= GOAL_MIPS),
        )?;
        goal(
            f,
            &format!("at most {GOAL_RATIO} times QEMU's wall time"),
            summary.wall_ratio.is_some_and(|ratio| ratio <= GOAL_RATIO),
        )?;
        goal(
            f,
            &format!("at most {limit} MiB of memory (guest RAM and 256 MiB)"),
            self.memory_is_bounded(),
        )
    }
}

fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    unit: &str,
    baton: Option<Spread>,
    qemu: Option<Spread>,
) -> fmt::Result {
    let digits = if unit == "s" { 2 } else { 0 };
    let cell = |spread: Option<Spread>| {
        spread.map_or_else(String::new, |spread| {
            format!(
                "{:.digits$} {unit} ({:.digits$} to {:.digits$})",
                spread.median, spread.least, spread.greatest
            )
        })
    };
    let ratio = baton
        .zip(qemu)
        .map_or_else(String::new, |(b, c)| format!("{:.2}", b.median / c.median));
    let line = format!("  {name:<26}{:>24}{:>24}{ratio:>9}", cell(baton), cell(qemu));
    writeln!(f, "{}", line.trim_end())
}

fn goal(f: &mut fmt::Formatter<'_>, text: &str, reached: bool) -> fmt::Result {
    writeln!(f, "  {}  {text}", if reached { "reached" } else { "missed " })
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(peak_rss_bytes: u64) -> Report {
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
    fn the_table_says_what_was_reached() {
        let text = report(769 << 20).to_string();
        for part in [
            "wall time                    3.00 s (2.00 to 9.00)   1.50 s (1.00 to 2.00)     2.00\n",
            "reached  at least 100 MIPS",
            "missed   at most 1.5 times",
            "missed   at most 768 MiB",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(report(768 << 20).memory_is_bounded() && !report((768 << 20) + 1).memory_is_bounded());
    }

    #[test]
    fn json_has_summary_and_samples() {
        let value: serde_json::Value = serde_json::from_str(&report(1).json().unwrap()).unwrap();
        assert_eq!(value["summary"]["wall_ratio"], 2.0);
        assert_eq!(value["baton"][2]["wall_s"], 9.0);
        assert_eq!(value["qemu"][0]["compare_share"], 0.5);
        assert!(value["qemu"][0].get("boot").is_none());
    }
}
