//! How the cost of a live update grows with the guest's processors, RAM and preserved memory.
//!
//! One size changes at a time. The guest's work is that of `memfd-under-dma`.

use crate::baton::Cycle;
use crate::host;
use crate::samples::{Sample, Spread};
use crate::table::mib;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// Numbers of processors.
const PROCESSORS: [u64; 4] = [1, 2, 4, 8];
/// Sizes of guest RAM, in MiB.
const RAM_MIB: [u64; 6] = [512, 1024, 2048, 4096, 8192, 16384];
/// Sizes of preserved memory, in MiB.
const PRESERVED_MIB: [u64; 5] = [64, 256, 512, 1024, 2048];
/// Guest RAM while the preserved memory grows, in MiB: a guest needs some beside it.
const RAM_FOR_PRESERVED_MIB: u64 = 4096;
/// The sizes that do not change.
const USUAL: Size = Size {
    processors: 1,
    ram_mib: 512,
    preserved_mib: 64,
};
/// What baton and the host need beside guest RAM, in bytes.
const MARGIN: u64 = 1 << 30;
/// Runs of each size at most, because a large guest takes long.
const MOST_RUNS: u32 = 3;

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// The number of guest processors.
    Processors,
    /// Guest RAM.
    Ram,
    /// Preserved memory.
    Preserved,
}

/// A guest's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Guest processors.
    pub processors: u64,
    /// Guest RAM in MiB.
    pub ram_mib: u64,
    /// Preserved memory in MiB.
    pub preserved_mib: u64,
}

/// What one size costs.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What grows.
    pub axis: Axis,
    /// The sizes.
    pub size: Size,
    /// The runs; none if the host has not enough memory.
    pub samples: Vec<Sample>,
}

/// All sizes.
#[derive(Debug, Serialize)]
pub struct Growth {
    /// The kernel that was asked for; `None` is the scenario's default.
    pub kernel: Option<String>,
    /// Memory that the host had, in bytes.
    pub available_bytes: u64,
    /// Each size, in the order of the axes.
    pub rows: Vec<Row>,
}

/// Every size, by axis.
fn sizes() -> Vec<(Axis, Size)> {
    let processors = PROCESSORS.map(|processors| (Axis::Processors, Size { processors, ..USUAL }));
    let ram = RAM_MIB.map(|ram_mib| (Axis::Ram, Size { ram_mib, ..USUAL }));
    let preserved = PRESERVED_MIB.map(|preserved_mib| {
        let ram_mib = RAM_FOR_PRESERVED_MIB;
        let size = Size {
            preserved_mib,
            ram_mib,
            ..USUAL
        };
        (Axis::Preserved, size)
    });
    processors.into_iter().chain(ram).chain(preserved).collect()
}

/// Runs every size that the host's memory allows. `done` is told each.
pub fn measure(
    program: &Path,
    kernel: Option<&str>,
    work: &Path,
    runs: u32,
    done: &dyn Fn(&Row),
) -> Result<Growth, String> {
    let available_bytes = host::available_bytes().unwrap_or(0);
    let mut rows = Vec::new();
    for (axis, size) in sizes() {
        let scenario = work.join("growth.toml");
        std::fs::write(&scenario, text(size)).map_err(|error| format!("{}: {error}", scenario.display()))?;
        let cycle = Cycle::prepare(program, &scenario, kernel, work);
        let runs = if fits(size, available_bytes) {
            runs.min(MOST_RUNS)
        } else {
            0
        };
        let samples: Result<_, String> = (0..runs).map(|_| cycle.run()).collect();
        let row = Row {
            axis,
            size,
            samples: samples.map_err(|error| format!("{size:?}: {error}"))?,
        };
        done(&row);
        rows.push(row);
    }
    Ok(Growth {
        kernel: kernel.map(str::to_owned),
        available_bytes,
        rows,
    })
}

/// Number of sizes, for whoever shows progress.
pub fn count() -> u64 {
    sizes().len() as u64
}

/// Whether a guest that touches all its RAM, and a host copy of what is preserved, fit into this memory.
fn fits(size: Size, available_bytes: u64) -> bool {
    ((size.ram_mib + size.preserved_mib) << 20) + MARGIN <= available_bytes
}

/// The scenario.
fn text(size: Size) -> String {
    let Size {
        processors,
        ram_mib,
        preserved_mib,
    } = size;
    format!(
        r#"name = "growth"
description = "A guest of one size among several."
ram = "{ram_mib} MiB"
vcpus = {processors}

[[memfd]]
name = "guest-memory"
size = "{preserved_mib} MiB"
session = "vm"
token = 1

[dma]
rate = "100 MB/s"
buffer = "4 KiB"
ring = 1024
when_full = "overwrite"
bus_master = "retained"
"#
    )
}

impl Row {
    fn spread(&self, of: fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.iter().map(of))
    }

    /// The size that grows, in the axis' unit: processors or GiB.
    #[allow(clippy::cast_precision_loss)] // for people
    fn amount(&self) -> f64 {
        match self.axis {
            Axis::Processors => self.size.processors as f64,
            Axis::Ram => self.size.ram_mib as f64 / 1024.0,
            Axis::Preserved => self.size.preserved_mib as f64 / 1024.0,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size {
            processors,
            ram_mib,
            preserved_mib,
        } = self.size;
        write!(
            f,
            "{processors} processors, {ram_mib} MiB, {preserved_mib} MiB preserved: "
        )?;
        match self.spread(|sample| sample.cpu_s) {
            Some(cpu) => write!(f, "{:.2} s of a processor", cpu.median),
            None => write!(f, "left out"),
        }
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = self.kernel.as_deref().unwrap_or("the default kernel");
        writeln!(
            f,
            "How the cost of a live update grows ({kernel}), medians of processor time\n"
        )?;
        for (axis, unit, fixed) in [
            (Axis::Processors, "processors", "512 MiB, 64 MiB preserved"),
            (Axis::Ram, "GiB of RAM", "1 processor, 64 MiB preserved"),
            (Axis::Preserved, "GiB preserved", "1 processor, 4 GiB of RAM"),
        ] {
            writeln!(f, "  {unit} ({fixed})")?;
            writeln!(
                f,
                "    {:>10}{:>12}{:>14}{:>14}{:>18}{:>14}",
                "", "cpu s", "of the first", "next one, s", "million instr", "peak MiB"
            )?;
            self.table(f, axis)?;
        }
        writeln!(
            f,
            "  \"next one\" is what each further processor or GiB adds, from the line above."
        )
    }
}

impl Growth {
    fn table(&self, f: &mut fmt::Formatter<'_>, axis: Axis) -> fmt::Result {
        let (mut first, mut before) = (None, None);
        for row in self.rows.iter().filter(|row| row.axis == axis) {
            let amount = row.amount();
            let Some(seconds) = row.spread(|sample| sample.cpu_s).map(|spread| spread.median) else {
                writeln!(
                    f,
                    "    {amount:>10}  left out: this host has {} MiB of memory available",
                    self.available_bytes >> 20
                )?;
                continue;
            };
            let by = *first.get_or_insert(seconds);
            let next: Option<f64> =
                before.map(|(less, fewer): (f64, f64)| (seconds - less) / (amount - fewer));
            before = Some((seconds, amount));
            let millions = row.spread(|sample| sample.cycle.map_or(0.0, |cycle| cycle.millions()));
            let peak = row.samples.iter().map(|sample| sample.peak_rss_bytes).max();
            writeln!(
                f,
                "    {amount:>10}{seconds:>12.2}{:>14.2}{:>14}{:>18.0}{:>14}",
                seconds / by,
                next.map_or_else(String::new, |next| format!("{next:+.2}")),
                millions.map_or(0.0, |millions| millions.median),
                mib(peak.unwrap_or(0)),
            )?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Two sizes that were measured and one that was not.
    pub fn growth() -> Growth {
        let row = |processors, cpu_s: Option<f64>| Row {
            axis: Axis::Processors,
            size: Size { processors, ..USUAL },
            samples: cpu_s
                .map(|cpu_s| Sample {
                    cpu_s,
                    peak_rss_bytes: 5 << 20,
                    ..Sample::default()
                })
                .into_iter()
                .collect(),
        };
        Growth {
            kernel: None,
            available_bytes: 3 << 20,
            rows: vec![row(2, Some(1.0)), row(4, Some(2.0)), row(8, None)],
        }
    }

    #[test]
    fn the_table_says_what_the_next_one_adds_and_what_is_left_out() {
        let text = growth().to_string();
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "2 1.00 1.00 0 5",
            "4 2.00 2.00 +0.50 0 5",
            "8 left out: this host has 3 MiB",
        ] {
            assert!(words.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_left_out() {
        let sixteen = Size {
            ram_mib: 16384,
            ..USUAL
        };
        assert!(!fits(sixteen, 17 << 30) && fits(sixteen, 18 << 30));
    }

    #[test]
    fn every_size_is_a_scenario() {
        let folder = tempfile::tempdir().unwrap();
        for (_, size) in sizes() {
            let path = folder.path().join("growth.toml");
            std::fs::write(&path, text(size)).unwrap();
            assert!(harness::scenario::load(&path).is_ok(), "{size:?}");
        }
    }
}
