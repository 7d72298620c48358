//! The text that `baton blob` prints.

use super::classes::{self, Extent};
use super::locate::Located;
use kho_core::diff::{Diff, Difference, Kind};
use kho_core::tree::{Bytes, Counted, Line, tree};
use kho_core::verify::Verdict;
use kho_core::{Handover, Rule, Severity};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// The tree of the handover and a summary.
pub(super) fn show(file: &Path, located: &Located, limit: usize) -> String {
    let handover = &located.found.handover;
    format!(
        "{}\n\n{}\n\n{}",
        head(file, located),
        clean(&tree(handover, limit).to_string()),
        summary(handover)
    )
}

/// The tree of an FDT alone.
pub(super) fn fdt(file: &Path, tree: &Line) -> String {
    format!(
        "{}: an FDT alone; addresses are offsets in the file\n\n{}",
        file.display(),
        clean(&tree.to_string())
    )
}

/// The findings by rule, most severe first, and the verdict.
pub(super) fn verify(file: &Path, located: &Located, verdict: &Verdict) -> String {
    let mut out = head(file, located);
    out.push_str("\n\n");
    let mut rules: Vec<Rule> = Rule::ALL.to_vec();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.severity()));
    let mut counts: BTreeMap<Severity, usize> = BTreeMap::new();
    for rule in rules {
        let mut findings = verdict.findings.of(rule).peekable();
        if findings.peek().is_none() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{} {rule}: {}", rule.severity(), rule.explanation().trim());
        for finding in findings {
            *counts.entry(rule.severity()).or_default() += 1;
            let _ = writeln!(out, "{:#14x}  {}", finding.at, finding.what);
            let _ = writeln!(
                out,
                "                expected {}, found {}",
                finding.expected, finding.found
            );
        }
        out.push('\n');
    }
    if verdict.findings.dropped() > 0 {
        let _ = writeln!(
            out,
            "{} more that {} only counted\n",
            Counted(verdict.findings.dropped(), "finding"),
            if verdict.findings.dropped() == 1 {
                "was"
            } else {
                "were"
            }
        );
    }
    let count = |severity| counts.get(&severity).copied().unwrap_or(0);
    let judged = match verdict.findings.worst() {
        Some(Severity::Error) => "BROKEN",
        Some(Severity::Warning) => "doubtful",
        _ => "sound",
    };
    let _ = write!(
        out,
        "{judged}: {}, {}, {} under {} rules",
        Counted::of(count(Severity::Error), "error"),
        Counted::of(count(Severity::Warning), "warning"),
        Counted::of(count(Severity::Note), "note"),
        Rule::ALL.len()
    );
    clean(&out)
}

/// The differences and their number by kind. Consecutive pages of a file that differ in the same way are one line.
pub(super) fn diff(
    (file, one): (&Path, &Located),
    (other_file, other): (&Path, &Located),
    diff: &Diff,
) -> String {
    let mut out = format!("--- {}\n+++ {}\n\n", head(file, one), head(other_file, other));
    let mut rest = diff.differences.as_slice();
    while let Some((first, others)) = rest.split_first() {
        let run = run(first, others);
        match page(first).filter(|_| run > 0) {
            None => {
                let _ = writeln!(out, "{first}");
            }
            Some(Page { name, number, aspect }) => {
                let _ = writeln!(
                    out,
                    "{} {name} / pages {number} to {}: {}{aspect}",
                    sign(first),
                    number + run as u64,
                    Counted::of(run + 1, "page"),
                );
            }
        }
        rest = others.get(run..).unwrap_or_default();
    }
    if diff.differences.is_empty() {
        return format!("{out}no differences");
    }
    let count = |wanted: char| diff.differences.iter().filter(|one| sign(one) == wanted).count();
    let _ = write!(
        out,
        "\n{}: {} appeared (+), {} vanished (-), {} moved (>), {} changed (~)",
        Counted::of(diff.differences.len(), "difference"),
        count('+'),
        count('-'),
        count('>'),
        count('~')
    );
    if diff.dropped > 0 {
        let _ = write!(out, ", and {} more that are not listed", diff.dropped);
    }
    clean(&out)
}

/// Preserved memory, one line per extent.
pub(super) fn extents(file: &Path, located: &Located, extents: &[Extent]) -> String {
    let handover = &located.found.handover;
    let mut out = head(file, located);
    let _ = writeln!(
        out,
        "\n\n{:>14} {:>14} {:>11}  owner",
        "first byte", "end", "size"
    );
    for extent in extents {
        let _ = writeln!(
            out,
            "{:#14x} {:#14x} {:>11}  {}",
            extent.region.start,
            extent.region.end(),
            Bytes(extent.region.size).to_string(),
            classes::name(extent.owner, handover)
        );
    }
    let _ = write!(out, "\n{}", summary(handover));
    clean(&out)
}

/// The file, its size, and the addresses at which the handover was found.
pub(super) fn head(file: &Path, located: &Located) -> String {
    let found = &located.found;
    let told = match found.setup_data {
        Some(at) => format!("setup_data at {at:#x} points to it"),
        None => "no setup_data points to it, so that scratch is unknown".into(),
    };
    let mut out = format!(
        "{}: {} of RAM, {} handover at {:#x} ({told})",
        file.display(),
        Bytes(located.image.size()),
        found.handover.version,
        found.handover.fdt.start,
    );
    if !located.others.is_empty() {
        let others: Vec<String> = located.others.iter().map(|at| format!("{at:#x}")).collect();
        let _ = write!(out, "\n  other KHO FDTs, for --at: {}", others.join(", "));
    }
    for unread in located.unread.iter().take(super::locate::MAX_REASONS) {
        let _ = write!(out, "\n  not read: {}", clean(&super::locate::reason(unread)));
    }
    let others = located.unread.len().saturating_sub(super::locate::MAX_REASONS);
    if others > 0 {
        let _ = write!(out, "\n  not read: {others} more");
    }
    out
}

/// Preserved memory by kind, scratch, and the number of findings, on one line.
pub(super) fn summary(handover: &Handover) -> String {
    let extents = classes::extents(handover);
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for (owner, bytes) in classes::totals(&extents) {
        *kinds.entry(classes::kind(owner)).or_default() += bytes;
    }
    let parts: Vec<String> = kinds
        .iter()
        .map(|(kind, bytes)| format!("{} {kind}", Bytes(*bytes)))
        .collect();
    let total = extents
        .iter()
        .fold(0_u64, |sum, extent| sum.saturating_add(extent.region.size));
    let scratch = handover
        .scratch
        .iter()
        .fold(0_u64, |sum, area| sum.saturating_add(area.region.size));
    let findings = match handover.findings.count() {
        0 => "read without findings".into(),
        count => format!("{} while reading, see verify", Counted(count, "finding")),
    };
    let parts = if parts.is_empty() {
        "nothing".into()
    } else {
        parts.join(", ")
    };
    format!(
        "{} preserved in {}: {parts}; {} of scratch; {findings}",
        Bytes(total),
        Counted(handover.map.count(), "block"),
        Bytes(scratch)
    )
}

/// The page that a difference is about.
#[derive(Debug, PartialEq, Eq)]
struct Page<'a> {
    /// The file or region.
    name: &'a str,
    /// Number of the page in it.
    number: u64,
    /// Part of the page that differs, as text to append: nothing, `, flags` or `, contents`.
    aspect: &'static str,
}

/// Number of differences in `others` that continue `first`: same kind, same file, consecutive pages.
fn run(first: &Difference, others: &[Difference]) -> usize {
    let Some(start) = page(first) else { return 0 };
    let same = |(index, other): &(usize, &Difference)| {
        let next = start.number.checked_add(*index as u64 + 1);
        let expected = next.map(|number| Page { number, ..start });
        sign(other) == sign(first) && page(other) == expected
    };
    others.iter().enumerate().take_while(same).count()
}

/// The page that a difference names as `NAME / page N`, ` flags` or ` at byte N` following; `None` if it names none.
fn page(difference: &Difference) -> Option<Page<'_>> {
    let (name, rest) = difference.what.rsplit_once(" / page ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (number, aspect) = rest.split_at(digits);
    let aspect = match aspect {
        "" => "",
        " flags" => ", flags",
        aspect if aspect.starts_with(" at byte ") => ", contents",
        _ => return None,
    };
    Some(Page {
        name,
        number: number.parse().ok()?,
        aspect,
    })
}

fn sign(difference: &Difference) -> char {
    match difference.kind {
        Kind::Appeared => '+',
        Kind::Vanished => '-',
        Kind::Moved { .. } => '>',
        Kind::Changed { .. } => '~',
    }
}

/// Escapes control characters except line breaks, because the guest chooses the names in a handover.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(what: &str) -> Difference {
        Difference {
            what: what.into(),
            kind: Kind::Moved { from: 1, to: 2 },
        }
    }

    #[test]
    fn pages_that_follow_each_other_are_a_run() {
        let others = [moved("f / page 4"), moved("f / page 5"), moved("g / page 6")];
        assert_eq!(run(&moved("f / page 3"), &others), 2);
        assert_eq!(run(&moved("f / page 4"), &others), 0);
        assert_eq!(run(&moved("f / page 3 flags"), &others), 0);
        let contents = [moved("f / page 4 at byte 0x10"), moved("f / page 5 flags")];
        assert_eq!(run(&moved("f / page 3 at byte 0x0"), &contents), 1);
        assert_eq!(run(&moved("KHO FDT"), &others), 0);
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jé\n└"), "a\\u{1b}[2Jé\n└");
    }
}
