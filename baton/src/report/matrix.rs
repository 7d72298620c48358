//! Reports on a matrix of kernels: a table per kind of object, and why what is not kept is not.

use super::printable;
use campaign::matrix::PairLine;
use harness::fate::{Fate, Kind};
use serde::Serialize;
use std::fmt::Write;

/// Version of the report's schema.
pub const VERSION: u32 = 1;

/// The report.
#[derive(Debug, Serialize)]
pub struct MatrixReport {
    /// `"baton-matrix-report"`.
    schema: &'static str,
    version: u32,
    pub(super) baton: String,
    /// Name of the scenario.
    pub(super) name: String,
    /// Its file.
    pub(super) scenario: String,
    pub(super) kernels: Vec<String>,
    pub(super) pairs: Vec<PairLine>,
}

impl MatrixReport {
    /// The report on the pairs of `kernels`.
    pub fn new(name: &str, scenario: &str, kernels: &[String], pairs: Vec<PairLine>) -> Self {
        Self {
            schema: "baton-matrix-report",
            version: VERSION,
            baton: env!("CARGO_PKG_VERSION").into(),
            name: name.into(),
            scenario: scenario.into(),
            kernels: kernels.to_vec(),
            pairs,
        }
    }

    /// The pairs that could not be run or judged.
    pub fn problems(&self) -> impl Iterator<Item = &PairLine> {
        self.pairs.iter().filter(|pair| pair.problem.is_some())
    }

    /// The kinds of objects that some pair has.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> {
        let has = |kind: &Kind| self.pairs.iter().any(|pair| pair.of(*kind).is_some());
        Kind::ALL.into_iter().filter(has)
    }

    pub(super) fn pair(&self, old: &str, new: &str) -> Option<&PairLine> {
        self.pairs.iter().find(|pair| pair.old == old && pair.new == new)
    }

    /// How many pairs have each fate, for a kind.
    pub(super) fn counts(&self, kind: Kind) -> Vec<(Fate, usize)> {
        let of = |fate: Fate| {
            let all = self.pairs.iter().filter_map(|pair| pair.of(kind));
            (fate, all.filter(|one| one.fate == fate).count())
        };
        Fate::ALL
            .into_iter()
            .map(of)
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The command that runs a pair alone.
    pub(super) fn command(&self, pair: &PairLine) -> String {
        let overrides = ["--kernel", &pair.old, "--next-kernel", &pair.new].map(str::to_owned);
        super::run_line(&self.scenario, pair.seed, "soft", &overrides)
    }
}

/// The report for people.
pub fn matrix_text(report: &MatrixReport) -> String {
    let mut text = String::new();
    let width = report
        .kernels
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let width = width.max(
        Fate::ALL
            .map(|fate| fate.name().len())
            .into_iter()
            .max()
            .unwrap_or(0),
    );
    for kind in report.kinds() {
        let counts = report.counts(kind);
        let counts: Vec<String> = counts
            .iter()
            .map(|(fate, count)| format!("{count} {}", fate.name()))
            .collect();
        let _ = writeln!(text, "{}: {}", kind.name(), counts.join(", "));
        let _ = write!(text, "  {:width$}", "old \\ new");
        for new in &report.kernels {
            let _ = write!(text, "  {:width$}", printable(new));
        }
        text.push('\n');
        for old in &report.kernels {
            let _ = write!(text, "  {:width$}", printable(old));
            for new in &report.kernels {
                let fate = report.pair(old, new).and_then(|pair| pair.of(kind));
                let _ = write!(text, "  {:width$}", fate.map_or("?", |one| one.fate.name()));
            }
            text.push('\n');
        }
        for (fate, why, pairs) in reasons(report, kind) {
            let _ = writeln!(
                text,
                "  {}: {}\n    {}",
                fate.name(),
                printable(&why),
                pairs.join(", ")
            );
        }
        text.push('\n');
    }
    for pair in report.problems() {
        let problem = pair.problem.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "no result for {} -> {}: {}",
            pair.old,
            pair.new,
            printable(problem)
        );
    }
    // Trailing spaces would be in the way when it is copied.
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Why objects of a kind were not kept, with the pairs for which that is so, the worst first.
pub(super) fn reasons(report: &MatrixReport, kind: Kind) -> Vec<(Fate, String, Vec<String>)> {
    let mut reasons: Vec<(Fate, String, Vec<String>)> = Vec::new();
    for pair in &report.pairs {
        let Some(one) = pair.of(kind).filter(|one| one.fate != Fate::Kept) else {
            continue;
        };
        let name = format!("{} -> {}", pair.old, pair.new);
        // Kernels differ in where things lie, which makes no other reason.
        let same = |(fate, why, _): &&mut (Fate, String, Vec<String>)| {
            *fate == one.fate && without_addresses(why) == without_addresses(&one.why)
        };
        match reasons.iter_mut().find(same) {
            Some((_, _, pairs)) => pairs.push(name),
            None => reasons.push((one.fate, one.why.clone(), vec![name])),
        }
    }
    reasons.sort_by_key(|(fate, _, _)| std::cmp::Reverse(*fate));
    reasons
}

/// A text without its hexadecimal numbers.
fn without_addresses(text: &str) -> String {
    let mut parts = text.split("0x");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    rest.fold(first, |text, part| text + "0x" + part)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use harness::fate::KindFate;

    pub(in crate::report) fn sample() -> MatrixReport {
        let pair = |old: &str, new: &str, fate: Fate, why: &str| PairLine {
            old: old.into(),
            new: new.into(),
            seed: 1,
            outcome: "completed".into(),
            text: "every step was done".into(),
            kinds: vec![KindFate {
                kind: Kind::ReserveMem,
                fate,
                why: why.into(),
            }],
            problem: None,
            state_hash: "11".into(),
            guest_ns: 5,
        };
        let mut unrun = pair("b", "b", Fate::Kept, "");
        (unrun.kinds, unrun.problem) = (Vec::new(), Some("no such <machine>\u{1b}".into()));
        let pairs = vec![
            pair("a", "a", Fate::Kept, ""),
            pair("a", "b", Fate::Panic, "oh <no>\u{1b}"),
            pair("b", "a", Fate::LostSilently, "gone"),
            unrun,
        ];
        MatrixReport::new("m", "m.toml", &["a".into(), "b".into()], pairs)
    }

    #[test]
    fn the_table_has_a_row_per_first_kernel_and_the_reasons_follow() {
        let text = matrix_text(&sample());
        let expected = "\
reserve_mem: 1 kept, 1 lost-silently, 1 panic
  old \\ new      a              b
  a              kept           panic
  b              lost-silently  ?
  panic: oh <no>\u{fffd}
    a -> b
  lost-silently: gone
    b -> a

no result for b -> b: no such <machine>\u{fffd}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn reasons_that_differ_in_addresses_alone_are_one() {
        assert_eq!(
            without_addresses("FDT (0x82a0) is at 0x1, not kho-v1"),
            "FDT (0x) is at 0x, not kho-v1"
        );
        assert_ne!(
            without_addresses("kho-v1 at 0x1"),
            without_addresses("kho-v2 at 0x1")
        );
    }

    #[test]
    fn a_pair_has_a_command_of_its_own() {
        let report = sample();
        assert_eq!(
            report.command(&report.pairs[1]),
            "baton run m.toml --seed 1 --backend soft --kernel a --next-kernel b"
        );
    }
}
