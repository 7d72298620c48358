//! The benchmark's result for people.

use crate::host::Machine;
use crate::report::Report;
use crate::samples::Spread;
use std::fmt;

/// Target: minimum speed on a kernel boot, in MIPS.
const GOAL_MIPS: f64 = 100.0;
/// Target: maximum ratio of wall times, baton's to QEMU's.
const GOAL_RATIO: f64 = 1.5;

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
        writeln!(f, "  {:<26}{:>27}{:>27}{:>9}", "", "baton", "QEMU TCG", "ratio")?;
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
        row(
            f,
            "  by processor time **",
            "MIPS",
            summary.cycle_mips_by_cpu,
            None,
        )?;
        row(
            f,
            "guest instructions",
            "million",
            summary.cycle_million_instructions,
            None,
        )?;
        let (peak, peer) = (
            mib(summary.baton_peak_rss_bytes),
            mib(summary.qemu_peak_rss_bytes),
        );
        writeln!(
            f,
            "  {:<26}{:>27}{:>27}\n",
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
            "    which in baton the host does. Device, ledger, evidence and oracle are baton's alone."
        )?;
        writeln!(
            f,
            "  ** Guest instructions by all processor time that baton took, start, evidence and oracle"
        )?;
        writeln!(
            f,
            "    included: unlike wall time it does not count what else a busy machine did.\n"
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
        )?;
        let of_qemu = summary.qemu_cpu_s.map(|spread| spread.median);
        let injections = self.injections.table(of_qemu);
        write!(f, "\n{}\n{}\n{injections}", self.backends, self.forks)
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
    let line = format!("  {name:<26}{:>27}{:>27}{ratio:>9}", cell(baton), cell(qemu));
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
    use crate::report::tests::report;

    #[test]
    fn the_table_says_what_was_reached() {
        let text = report(769 << 20).to_string();
        for part in [
            "wall time                       3.00 s (2.00 to 9.00)      1.50 s (1.00 to 2.00)     2.00\n",
            "reached  at least 100 MIPS",
            "missed   at most 1.5 times",
            "missed   at most 768 MiB",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(report(768 << 20).memory_is_bounded() && !report((768 << 20) + 1).memory_is_bounded());
    }
}
