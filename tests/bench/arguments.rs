//! The command line.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// Compares one live update on baton with the same on QEMU's TCG, and measures what else costs time.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// The baton program.
    #[arg(long, default_value = "target/release/baton")]
    pub baton: PathBuf,
    /// A QEMU program; may be given several times.
    #[arg(long, default_value = "qemu-system-x86_64")]
    pub qemu: Vec<PathBuf>,
    /// The scenario, with one memfd and one kexec.
    #[arg(long, default_value = "tests/scenarios/memfd-under-dma.toml")]
    pub scenario: PathBuf,
    /// Kernel version or bzImage, for all programs; may be given several times. All but the comparison and the
    /// profile use the first.
    #[arg(long, default_values = ["7.3.4", "6.19.11"])]
    pub kernel: Vec<String>,
    /// Measured runs of each.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Measure these parts only, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Also run a small live update on KVM, if there is one. Takes minutes if KVM emulates guest kernels.
    #[arg(long)]
    pub kvm_cycle: bool,
    /// The scenario whose handover is swept.
    #[arg(long, default_value = "tests/scenarios/sweeps/receiver.toml")]
    pub receiver: PathBuf,
    /// Measured injections.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    pub injections: u16,
    /// Write every sample to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The cycle on baton and on each QEMU, for each kernel, and where baton's time went by phase.
    Versus,
    /// Where baton's processor time goes by function, for each kernel, if there is perf.
    Profile,
    /// What translation gains: hot loops and a boot, with the first kernel and the last.
    Translation,
    /// How the cost grows with processors, RAM and preserved memory.
    Growth,
    /// Exits, start and device writes on each backend.
    Backends,
    /// Snapshots and branches.
    Forks,
    /// Injections into a handover.
    Injections,
}

impl Arguments {
    /// Whether a part is to be measured.
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The other kernel of the part that uses two.
    pub fn last_kernel(&self) -> Option<&str> {
        self.kernel.last().map(String::as_str)
    }

    /// The kernel of the parts that use one.
    pub fn first_kernel(&self) -> Option<&str> {
        self.kernel.first().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Arguments {
        Arguments::try_parse_from([&["bench"], words].concat()).unwrap()
    }

    #[test]
    fn everything_is_measured_unless_parts_are_named() {
        let all = parsed(&[]);
        assert!(Part::value_variants().iter().all(|part| all.wants(*part)));
        let some = parsed(&["--only", "versus,growth"]);
        let wanted: Vec<_> = Part::value_variants()
            .iter()
            .filter(|part| some.wants(**part))
            .collect();
        assert_eq!(wanted, [&Part::Versus, &Part::Growth]);
    }

    #[test]
    fn kernels_given_replace_the_usual_ones() {
        assert_eq!(parsed(&[]).kernel, ["7.3.4", "6.19.11"]);
        let one = parsed(&["--kernel", "7.2.12"]);
        assert_eq!((one.kernel.len(), one.first_kernel()), (1, Some("7.2.12")));
    }
}
