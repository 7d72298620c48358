//! A comparison with QEMU for people.

use crate::samples::Spread;
use crate::versus::{Side, Versus};
use std::fmt;

/// Target: minimum speed on a kernel boot, in MIPS.
const GOAL_MIPS: f64 = 100.0;
/// Target: maximum ratio of wall times, baton's to the best QEMU's, for kernels that check their segments by SHA-256.
const GOAL_RATIO: f64 = 1.0;
/// The same for kernels from 7.3 on, which do not.
const GOAL_RATIO_LEAN: f64 = 0.5;

impl fmt::Display for Versus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = self.summary();
        writeln!(
            f,
            "One live update of Linux {}, boot to verdict, on baton and on QEMU's TCG\n",
            self.kernel
        )?;
        writeln!(
            f,
            "  guest  {} MiB, 1 processor, {} MiB preserved ({})",
            mib(self.ram_bytes),
            mib(self.memfd_bytes),
            self.scenario
        )?;
        for peer in &self.peers {
            writeln!(f, "  peer   {}, q35", peer.version)?;
        }
        let runs = self.baton.len();
        writeln!(
            f,
            "  runs   {runs} of each in turns; median (least to greatest)\n"
        )?;
        let names = self.peers.iter().map(|peer| short(&peer.version));
        let names: Vec<String> = std::iter::once("baton".to_owned()).chain(names).collect();
        line(f, "", &names)?;
        let sides: Vec<&Side> = std::iter::once(&summary.baton).chain(&summary.peers).collect();
        compared(f, "wall time", &sides, |side| side.wall_s)?;
        compared(f, "processor time", &sides, |side| side.cpu_s)?;
        compared(f, "wall, without comparing *", &sides, |side| {
            side.wall_without_compare_s
        })?;
        for (name, unit, spread) in [
            ("softcpu, boot", "MIPS", summary.boot_mips),
            ("softcpu, whole cycle", "MIPS", summary.cycle_mips),
            ("  by processor time **", "MIPS", summary.cycle_mips_by_cpu),
            (
                "guest instructions",
                "million",
                summary.cycle_million_instructions,
            ),
        ] {
            line(f, name, &[cell(spread, unit, 0)])?;
        }
        let peaks: Vec<_> = sides
            .iter()
            .map(|side| format!("{} MiB", mib(side.peak_rss_bytes)))
            .collect();
        line(f, "peak resident memory", &peaks)?;
        writeln!(
            f,
            "\n  * QEMU's time less what its guest takes to compare all digests with the pattern's,\n    \
             which in baton the host does. Device, ledger, evidence and oracle are baton's alone.\n  \
             ** Guest instructions by all processor time that baton took, start, evidence and oracle\n    \
             included: unlike wall time it does not count what else a busy machine did.\n"
        )?;
        parts(f, &summary.parts)?;
        let boot = summary.boot_mips.map(|spread| spread.median);
        goal(
            f,
            &format!("at least {GOAL_MIPS} MIPS on a kernel boot"),
            boot.is_some_and(|mips| mips >= GOAL_MIPS),
        )?;
        if let Some(ratio) = summary.wall_ratio {
            let most = most_of_qemu(&self.kernel);
            let text = format!("at most {most:.1} of the best QEMU's wall time ({ratio:.2})");
            goal(f, &text, ratio <= most)?;
        }
        let limit = mib(summary.baton_peak_rss_limit_bytes);
        let text = format!("at most {limit} MiB of memory (guest RAM and 256 MiB)");
        goal(f, &text, self.memory_is_bounded())
    }
}

/// The most that baton may take of the wall time of the best QEMU with a kernel of this release.
fn most_of_qemu(release: &str) -> f64 {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (7, 3) {
        GOAL_RATIO_LEAN
    } else {
        GOAL_RATIO
    }
}

/// A line of values in seconds, and below it the ratios of baton's to each peer's.
fn compared(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    sides: &[&Side],
    of: fn(&Side) -> Option<Spread>,
) -> fmt::Result {
    let spreads: Vec<_> = sides.iter().map(|side| of(side)).collect();
    let cells: Vec<_> = spreads.iter().map(|spread| cell(*spread, "s", 2)).collect();
    line(f, name, &cells)?;
    let [baton, peers @ ..] = spreads.as_slice() else {
        return Ok(());
    };
    let ratio = |peer: &Option<Spread>| {
        baton
            .zip(*peer)
            .map_or_else(String::new, |(b, p)| format!("{:.2}", b.median / p.median))
    };
    if peers.is_empty() {
        return Ok(());
    }
    let ratios: Vec<_> = std::iter::once(String::new())
        .chain(peers.iter().map(ratio))
        .collect();
    line(f, "  baton's by theirs", &ratios)
}

/// Where baton's wall time went.
fn parts(f: &mut fmt::Formatter<'_>, parts: &[crate::versus::Part]) -> fmt::Result {
    writeln!(
        f,
        "  {:<26}{:>26}{:>10}{:>14}{:>10}",
        "where baton's time went", "wall time", "share", "million ops", "MIPS"
    )?;
    for part in parts {
        let number = |spread: Option<Spread>, scale: f64, unit: &str| {
            spread.map_or_else(String::new, |spread| {
                format!("{:.0}{unit}", spread.median * scale)
            })
        };
        let text = format!(
            "    {:<24}{:>26}{:>10}{:>14}{:>10}",
            part.name,
            cell(part.wall_s, "s", 3),
            number(part.share, 100.0, " %"),
            number(part.million_instructions, 1.0, ""),
            number(part.mips, 1.0, "")
        );
        writeln!(f, "{}", text.trim_end())?;
    }
    writeln!(f)
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, cells: &[String]) -> fmt::Result {
    let mut text = format!("  {name:<26}");
    for cell in cells {
        text.push_str(&format!("{cell:>27}"));
    }
    writeln!(f, "{}", text.trim_end())
}

fn cell(spread: Option<Spread>, unit: &str, digits: usize) -> String {
    spread.map_or_else(String::new, |spread| {
        format!(
            "{:.digits$} {unit} ({:.digits$} to {:.digits$})",
            spread.median, spread.least, spread.greatest
        )
    })
}

/// "QEMU 10.0.2" of "QEMU emulator version 10.0.2 (Debian ...)".
pub fn short(version: &str) -> String {
    let number = version
        .split_once("version ")
        .and_then(|(_, rest)| rest.split(' ').next());
    number.map_or_else(|| version.to_owned(), |number| format!("QEMU {number}"))
}

fn goal(f: &mut fmt::Formatter<'_>, text: &str, reached: bool) -> fmt::Result {
    writeln!(f, "  {}  {text}", if reached { "reached" } else { "missed " })
}

/// Bytes in MiB, rounded up.
pub fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versus::tests::versus;

    #[test]
    fn the_table_has_ratios_to_each_qemu_and_says_what_was_reached() {
        let text = versus(769 << 20).to_string();
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "baton QEMU 1.2.3 QEMU 4.5.6",
            "wall time 3.00 s (2.00 to 9.00) 3.00 s (2.00 to 4.00) 1.50 s (1.00 to 2.00)",
            "baton's by theirs 1.00 2.00",
            "done 0 1.000 s (1.000 to 1.000) 33 % 90 90",
            "reached at least 100 MIPS",
            "missed at most 0.5 of the best QEMU's wall time (2.00)",
            "missed at most 768 MiB",
        ] {
            assert!(words.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn kernels_that_hash_have_a_goal_of_their_own() {
        assert_eq!(["7.3.4", "7.10.0-rc1", "8.0.1"].map(most_of_qemu), [0.5; 3]);
        assert_eq!(["7.2.12", "6.19.11", "6.99"].map(most_of_qemu), [1.0; 3]);
    }

    #[test]
    fn a_table_without_a_qemu_has_no_ratio() {
        let mut alone = versus(1);
        alone.peers.clear();
        let text = alone.to_string();
        assert!(
            !text.contains("by theirs") && !text.contains("best QEMU"),
            "{text}"
        );
    }
}
