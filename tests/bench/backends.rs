//! Costs of the backends on this host: exits, start, a small cycle; and the rate at which a device can write.

use crate::bandwidth::{self, BLOCKS, Bandwidth};
use crate::cycle::{self, Split};
use crate::exits::{self, Exits};
use crate::samples::Spread;
use crate::start::Start;
use harness::backend::Found;
use harness::plan::Plan;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use vmm::soft::Soft;

/// Port writes per run: on soft, and on KVM, where each may take ten microseconds.
const PORT_WRITES: [u32; 2] = [1_000_000, 20_000];

/// Everything measured.
#[derive(Debug, Serialize)]
pub struct Backends {
    /// What this host's KVM is, in words.
    pub kvm: String,
    /// Whether this KVM has faults, such as emulating guest kernel code. If so, its numbers say little about KVM elsewhere.
    pub kvm_is_poor: bool,
    /// Port writes, on soft first.
    pub exits: Vec<Exits>,
    /// From the program's start to the first guest instruction, in seconds, by backend.
    pub starts: Vec<(&'static str, Option<Spread>)>,
    /// Device writes, by block size.
    pub bandwidths: Vec<Bandwidth>,
    /// A small live update, on soft first; empty if not requested.
    pub cycles: Vec<Split>,
    /// Why one of the cycles did not pass. The other numbers are still valid.
    pub cycle_error: Option<String>,
}

/// How to measure.
#[derive(Debug)]
pub struct Settings<'a> {
    /// The baton program.
    pub program: &'a Path,
    /// Scenario of which the start is measured.
    pub scenario: &'a Path,
    /// The same, resolved.
    pub plan: &'a Plan,
    /// A folder for files.
    pub work: &'a Path,
    /// Runs of each measurement.
    pub runs: u32,
    /// Run a cycle on KVM, which may take minutes.
    pub kvm_cycle: bool,
}

/// Measures everything that this host has.
pub fn measure(settings: &Settings<'_>) -> Result<Backends, String> {
    let Settings {
        program,
        scenario,
        plan,
        work,
        runs,
        kvm_cycle,
    } = *settings;
    let found = Found::look();
    let (kvm, kvm_is_poor) = (baton::report::kvm(&found), matches!(found, Found::Poor(_)));
    let mut exits = vec![exits::measure(&Soft::default(), PORT_WRITES[0], runs)?];
    let mut names = vec!["soft"];
    if let Found::Sound(kvm) | Found::Poor(kvm) = &found {
        exits.push(exits::measure(kvm, PORT_WRITES[1], runs)?);
        names.push("kvm");
    }
    let bandwidths: Result<_, _> = BLOCKS
        .into_iter()
        .map(|block| bandwidth::measure(block, runs))
        .collect();
    let start = Start::prepare(program, scenario, plan, work)?;
    let starts: Result<_, String> = names
        .iter()
        .map(|name| Ok((*name, start.measure(name, runs)?)))
        .collect();
    let with_cycle = names.iter().filter(|_| kvm_cycle && names.len() > 1);
    let cycles: Result<Vec<_>, _> = with_cycle
        .map(|name| cycle::measure(program, name, work))
        .collect();
    Ok(Backends {
        kvm,
        kvm_is_poor,
        exits,
        starts: starts?,
        bandwidths: bandwidths?,
        cycle_error: cycles.as_ref().err().cloned(),
        cycles: cycles.unwrap_or_default(),
    })
}

impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The backends on this host\n")?;
        writeln!(f, "  kvm    {}", self.kvm)?;
        if self.kvm_is_poor {
            writeln!(
                f,
                "         Its figures are this host's. They say nothing about a host with VT-x or SVM."
            )?;
        }
        let [soft, kvm, ratio] = if self.exits.len() > 1 {
            ["soft", "kvm", "kvm/soft"]
        } else {
            ["soft alone", "", ""]
        };
        writeln!(
            f,
            "\n{}",
            format!("  {:<34}{soft:>24}{kvm:>26}{ratio:>10}", "").trim_end()
        )?;
        let of = |index: usize| self.exits.get(index);
        let rate = |index| of(index).and_then(|exits| exits.per_second);
        row(f, "port writes, thousand/s", [rate(0), rate(1)], 1e-3, 0)?;
        let each = |index| of(index).and_then(|exits| exits.ns_each);
        row(f, "  one, without its loop, us", [each(0), each(1)], 1e-3, 2)?;
        let start = |index: usize| self.starts.get(index).and_then(|(_, spread)| *spread);
        row(f, "start to first instruction, ms", [start(0), start(1)], 1e3, 1)?;
        self.bandwidth_table(f)?;
        self.cycle_table(f)
    }
}

impl Backends {
    fn bandwidth_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n  device writes on one thread, GB/s and share of memcpy in the same turn"
        )?;
        writeln!(
            f,
            "    {:<10}{:>10}{:>20}{:>20}{:>20}",
            "block", "memcpy", "without ledger", "with ledger", "and content made"
        )?;
        for one in &self.bandwidths {
            let median = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median);
            let [memory, ledger, stream] = [
                (one.memory, one.shares[0]),
                (one.ledger, one.shares[1]),
                (one.stream, one.shares[2]),
            ]
            .map(|(rate, share)| format!("{:.2} ({:.0} %)", median(rate) / 1e9, median(share) * 100.0));
            writeln!(
                f,
                "    {:<10}{:>10.2}{memory:>20}{ledger:>20}{stream:>20}",
                format!("{} KiB", one.block_bytes >> 10),
                median(one.memcpy) / 1e9,
            )?;
        }
        Ok(())
    }

    fn cycle_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.cycle_error {
            return writeln!(f, "\n  a small live update did not pass: {error}");
        }
        let [soft, kvm] = self.cycles.as_slice() else {
            return Ok(());
        };
        writeln!(
            f,
            "\n  one small live update (256 MiB, 4 MiB preserved), one run of each"
        )?;
        writeln!(f, "    {:<24}{:>12}{:>12}{:>12}", "", "soft", "kvm", "kvm/soft")?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, soft: f64, kvm: f64| {
            writeln!(
                f,
                "    {name:<24}{:>12}{:>12}{:>12.1}",
                format!("{soft:.3} s"),
                format!("{kvm:.3} s"),
                kvm / soft
            )
        };
        line(f, "wall time", soft.wall_s, kvm.wall_s)?;
        line(f, "processor time", soft.cpu_s, kvm.cpu_s)?;
        for phase in &soft.phases {
            let same = kvm
                .phases
                .iter()
                .find(|other| (&other.name, other.generation) == (&phase.name, phase.generation));
            let kvm_ms = same.map_or(f64::NAN, |phase| phase.wall_ms);
            let name = format!("  {}, generation {}", phase.name, phase.generation);
            line(f, &name, phase.wall_ms / 1e3, kvm_ms / 1e3)?;
        }
        Ok(())
    }
}

/// A line with medians on soft and KVM, and their ratio.
fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    spreads: [Option<Spread>; 2],
    scale: f64,
    digits: usize,
) -> fmt::Result {
    let cell = |spread: Option<Spread>| {
        spread.map_or_else(String::new, |spread| {
            let [median, least, greatest] =
                [spread.median, spread.least, spread.greatest].map(|value| value * scale);
            format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
        })
    };
    let [soft, kvm] = spreads;
    let ratio = soft.zip(kvm).map_or_else(String::new, |(soft, kvm)| {
        format!("{:.3}", kvm.median / soft.median)
    });
    let line = format!("  {name:<34}{:>24}{:>26}{ratio:>10}", cell(soft), cell(kvm));
    writeln!(f, "{}", line.trim_end())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::phases::Phase;

    fn spread(value: f64) -> Option<Spread> {
        Spread::of([value])
    }

    fn split(backend: &str, factor: f64) -> Split {
        Split {
            backend: backend.into(),
            wall_s: 2.0 * factor,
            cpu_s: factor,
            phases: vec![Phase {
                name: "boot-old".into(),
                generation: 0,
                wall_ms: 500.0 * factor,
                guest_ns: 1,
                instructions: None,
            }],
        }
    }

    /// A host with KVM, or one without.
    pub fn backends(has_kvm: bool) -> Backends {
        let exits = |backend, rate| Exits {
            backend,
            count: 10,
            per_second: spread(rate),
            ns_each: spread(1e9 / rate),
        };
        let mut all = Backends {
            kvm: "as found".into(),
            kvm_is_poor: true,
            exits: vec![exits("soft", 4e6), exits("kvm", 1e5)],
            starts: vec![("soft", spread(0.05)), ("kvm", spread(0.1))],
            bandwidths: vec![Bandwidth {
                block_bytes: 4096,
                memcpy: spread(10e9),
                memory: spread(8e9),
                ledger: spread(5e9),
                stream: spread(2e9),
                shares: [spread(0.8), spread(0.5), spread(0.2)],
            }],
            cycles: vec![split("soft", 1.0), split("kvm", 50.0)],
            cycle_error: None,
        };
        if !has_kvm {
            all.kvm_is_poor = false;
            all.exits.truncate(1);
            all.starts.truncate(1);
            all.cycles.clear();
        }
        all
    }

    #[test]
    fn the_table_has_ratios_and_shares() {
        let text = backends(true).to_string();
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "soft kvm kvm/soft",
            "port writes, thousand/s 4000 (4000 to 4000) 100 (100 to 100) 0.025",
            "first instruction, ms 50.0 (50.0 to 50.0) 100.0 (100.0 to 100.0) 2.000",
            "4 KiB 10.00 8.00 (80 %) 5.00 (50 %) 2.00 (20 %)",
            "boot-old, generation 0 0.500 s 25.000 s 50.0",
            "nothing about a host with VT-x",
        ] {
            assert!(words.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_cycle_that_fails_is_told() {
        let mut failed = backends(true);
        failed.cycles.clear();
        failed.cycle_error = Some("verdict fail: why".into());
        assert!(failed.to_string().ends_with("did not pass: verdict fail: why\n"));
    }

    #[test]
    fn a_host_without_kvm_has_no_figures_for_it() {
        let text = backends(false).to_string();
        assert!(
            text.contains("  kvm    as found\n") && text.contains("soft alone"),
            "{text}"
        );
        assert!(
            !text.contains("kvm/soft") && !text.contains("VT-x") && !text.contains("NaN"),
            "{text}"
        );
    }
}
