//! The page on a matrix of kernels: a table per kind of object, and the reasons.

use super::matrix::{Cell, Matrix, Row, Tone, matrix};
use super::words::word;
use crate::report::matrix::{MatrixReport, reasons};
use crate::report::printable;
use campaign::matrix::PairLine;
use harness::fate::{Fate, Kind};
use maud::{Markup, html};

/// The page.
pub fn pairs(report: &MatrixReport) -> String {
    let body = html! {
        article {
            h2 { "Pairs of kernels: " (report.name) }
            p.note { "Each row is a first kernel, each column the kernel that it hands over to. Point at a cell for the reason." }
            @for kind in report.kinds() { (of_kind(report, kind)) }
            (problems(report))
        }
    };
    super::page(
        &format!("Pairs of kernels: {}", report.name),
        &format!("Matrix report of baton {}", report.baton),
        &body,
    )
}

fn tone(fate: Fate) -> Tone {
    match fate {
        Fate::Kept => Tone::Good,
        Fate::Refused => Tone::Quiet,
        Fate::LostAndSaid => Tone::Warn,
        Fate::LostSilently | Fate::Panic => Tone::Bad,
    }
}

fn of_kind(report: &MatrixReport, kind: Kind) -> Markup {
    let row = |old: &String| Row {
        name: printable(old),
        cells: report
            .kernels
            .iter()
            .map(|new| cell(report.pair(old, new), kind))
            .collect(),
    };
    html! {
        section aria-labelledby=(kind.name()) {
            h3 id=(kind.name()) { (kind.name()) }
            (matrix(&Matrix {
                caption: format!("What becomes of {}: first kernel by new kernel", kind.name()),
                corner: "first kernel".into(),
                columns: report.kernels.iter().map(|name| printable(name)).collect(),
                rows: report.kernels.iter().map(row).collect(),
            }))
            @for (fate, why, pairs) in reasons(report, kind) {
                p {
                    (word(tone(fate), fate.name())) " " (printable(&why)) " "
                    span.note { (pairs.join(", ").replace(" -> ", " \u{2192} ")) }
                }
            }
            @for pair in report.pairs.iter().filter(|pair| is_bad(pair, kind)) {
                p { span.note { "Run " (pair.old) " \u{2192} " (pair.new) } code.command { (report.command(pair)) } }
            }
        }
    }
}

fn is_bad(pair: &PairLine, kind: Kind) -> bool {
    pair.of(kind).is_some_and(|one| tone(one.fate) == Tone::Bad)
}

fn cell(pair: Option<&PairLine>, kind: Kind) -> Cell {
    match pair.and_then(|pair| pair.of(kind)) {
        Some(one) => Cell {
            text: one.fate.name().into(),
            tone: tone(one.fate),
            note: printable(&one.why),
            target: None,
        },
        None => Cell {
            text: "?".into(),
            tone: Tone::Warn,
            note: printable(pair.and_then(|pair| pair.problem.as_deref()).unwrap_or("not run")),
            target: None,
        },
    }
}

fn problems(report: &MatrixReport) -> Markup {
    html! {
        @for pair in report.problems() {
            p {
                (word(Tone::Warn, "no result")) " " (pair.old) " \u{2192} " (pair.new) ": "
                (printable(pair.problem.as_deref().unwrap_or_default()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::matrix::tests::sample;

    #[test]
    fn each_fate_is_a_word_and_no_text_becomes_markup() {
        let page = pairs(&sample());
        for said in [
            "kept",
            "panic",
            "lost-silently",
            "oh &lt;no&gt;",
            "no such &lt;machine&gt;",
            "--next-kernel b",
        ] {
            assert!(page.contains(said), "{said}: {page}");
        }
        assert!(!page.contains("<no>") && !page.contains('\u{1b}'), "{page}");
    }
}
