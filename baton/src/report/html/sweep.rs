//! The page on a sweep: classes with their meaning and numbers, then each kernel: what looks wrong, and fields by
//! values.

use super::words::{count, number};
use crate::report::sweep::{Cell, Difference, Grid, Group, KernelSweep, SweepReport};
use campaign::sweep::Class;
use maud::{Markup, html};

/// Groups of a kernel that are open at first.
const OPEN: usize = 2;
/// Groups of a kernel that are shown without being asked for.
const SHOWN: usize = 12;

/// The page.
pub fn sweep(report: &SweepReport) -> String {
    let releases: Vec<&str> = report
        .kernels
        .iter()
        .map(|kernel| kernel.release.as_str())
        .collect();
    let title = format!("Sweep of {} on {}", report.scenario, releases.join(", "));
    let body = html! {
        article {
            div.title { h2 { "Sweep of " (report.scenario) } }
            p {
                "Each field of the handover was given wrong values, one at a time, and the new kernel had to do with "
                "it. A case is one field with one value."
            }
            @if report.kernels.is_empty() {
                p { "No case has a result." }
            } @else {
                (contents(report)) (classes(report))
            }
            @if releases.len() > 1 { (differences(report)) }
            @for (number, one) in (1..).zip(&report.kernels) { (kernel(one, &format!("k{number}"), number == 1)) }
        }
    };
    super::page(
        &title,
        &format!("Robustness report of baton {}", env!("CARGO_PKG_VERSION")),
        &body,
    )
}

fn contents(report: &SweepReport) -> Markup {
    html! {
        nav.contents aria-label="Contents" {
            ul {
                li { a href="#classes" { "Classes" } }
                @if report.kernels.len() > 1 { li { a href="#differences" { "Differences" } } }
                @for (number, kernel) in (1..).zip(&report.kernels) {
                    li { a href={ "#k" (number) } { "Linux " (kernel.release) } }
                    li { a href={ "#k" (number) "-wrong" } { "What " (kernel.release) " should not do" } }
                }
            }
        }
    }
}

/// A letter for a class, so that cells are told apart without colour.
fn sign(class: Class) -> &'static str {
    match class {
        Class::Refused => "R",
        Class::RefusedInPart => "r",
        Class::SessionLost => "S",
        Class::NoEffect => "\u{b7}",
        Class::Leak => "L",
        Class::PartialAsWhole => "C",
        Class::SilentLoss => "X",
        Class::Warning => "W",
        Class::Oops => "O",
        Class::AgentStuck => "A",
        Class::Panic => "P",
        Class::Hang => "H",
        Class::Reset => "T",
        Class::NotJudged => "?",
    }
}

/// The colour of a class: handled, without effect, silently wrong, a complaint, a part that died, all that died.
fn colour(class: Class) -> &'static str {
    match class {
        Class::Refused | Class::RefusedInPart | Class::SessionLost => "good",
        Class::NoEffect | Class::NotJudged => "quiet",
        Class::Leak | Class::PartialAsWhole | Class::SilentLoss => "silent",
        Class::Warning => "warn",
        Class::Oops | Class::AgentStuck => "bad",
        Class::Panic | Class::Hang | Class::Reset => "dead",
    }
}

/// The sign and the name of a class.
fn named(class: Class) -> Markup {
    html! { span.k.(colour(class)) aria-hidden="true" { (sign(class)) } " " (class.name()) }
}

/// All classes that occur, with what they mean and how many cases each kernel has of them.
fn classes(report: &SweepReport) -> Markup {
    let occurs = |class: &Class| {
        report
            .kernels
            .iter()
            .any(|kernel| kernel.counts.contains_key(class))
    };
    html! {
        section aria-labelledby="classes" {
            h3 id="classes" { "Classes" }
            div.scroll tabindex="0" role="region" aria-labelledby="classes-about" {
                table {
                    caption id="classes-about" { "What the kernels made of it, the worst first: number of cases" }
                    thead { tr {
                        th scope="col" { "class" }
                        @for kernel in &report.kernels { th.num scope="col" { (kernel.release) } }
                    } }
                    tbody {
                        @for class in Class::ALL.into_iter().rev().filter(occurs) {
                            tr {
                                th scope="row" { (named(class)) br; span.note { (class.meaning()) } }
                                @for kernel in &report.kernels {
                                    td.num { (count(kernel.counts.get(&class).copied().unwrap_or(0))) }
                                }
                            }
                        }
                        tr {
                            th scope="row" { "all" }
                            @for kernel in &report.kernels { td.num { (count(kernel.counts.values().sum())) } }
                        }
                    }
                }
            }
        }
    }
}

/// The cases in which kernels differ.
fn differences(report: &SweepReport) -> Markup {
    let all = report.differences.len() + report.differences_left_out;
    html! {
        section aria-labelledby="differences" {
            h3 id="differences" { "Differences between kernels" }
            @if report.differences.is_empty() {
                p { "None: each case that several kernels have is of the same class with all of them." }
            } @else {
                details {
                    summary { (number(all as u64, "case", "cases")) }
                    div.scroll tabindex="0" role="region" aria-labelledby="differences" {
                        table {
                            thead { tr {
                                th scope="col" { "field" }
                                th scope="col" { "value" }
                                @for kernel in &report.kernels { th scope="col" { (kernel.release) } }
                            } }
                            tbody { @for one in &report.differences { (difference(one)) } }
                        }
                    }
                    @if report.differences_left_out > 0 {
                        p.note {
                            (number(report.differences_left_out as u64, "more case is", "more cases are"))
                            " not shown."
                        }
                    }
                }
            }
        }
    }
}

fn difference(one: &Difference) -> Markup {
    html! {
        tr {
            th scope="row" { code { (one.path) } }
            td { (one.value) }
            @for class in &one.classes {
                td.nowrap { @match class { Some(class) => (named(*class)), None => "no such case" } }
            }
        }
    }
}

/// One kernel. Its grids are open if it is the first.
fn kernel(kernel: &KernelSweep, id: &str, first: bool) -> Markup {
    let cases: u64 = kernel.counts.values().sum();
    html! {
        section aria-labelledby=(id) {
            h3 id=(id) { "Linux " (kernel.release) }
            p {
                (number(cases, "case", "cases")) " in "
                (number(kernel.parts.len() as u64, "part", "parts")) " of the handover."
            }
            (parts(kernel, id))
            h4 { "Fields by values" }
            p.note {
                "A letter is a class, as listed above; an empty place is a value that the field cannot have. The text "
                "over a cell, under the pointer, says what was set and what was seen."
            }
            @for (number, one) in (1..).zip(&kernel.grids) { (grid(one, &format!("{id}-g{number}"), first)) }
            @if kernel.cells_left_out > 0 {
                p.note { (number(kernel.cells_left_out as u64, "more case is", "more cases are")) " in no grid." }
            }
            h4 id={ (id) "-wrong" } { "What a kernel should rather not do" }
            @let (first, more) = kernel.groups.split_at(kernel.groups.len().min(SHOWN));
            @if first.is_empty() { p { "Nothing of that was seen." } }
            @for (number, one) in first.iter().enumerate() { (group(one, number < OPEN)) }
            @if !more.is_empty() {
                details {
                    summary { (number(more.len() as u64, "more kind", "more kinds")) }
                    @for one in more { (group(one, false)) }
                }
            }
            @if kernel.groups_left_out > 0 {
                p.note { (number(kernel.groups_left_out as u64, "more kind is", "more kinds are")) " not shown." }
            }
        }
    }
}

/// Numbers of cases by part of the handover and class.
fn parts(kernel: &KernelSweep, id: &str) -> Markup {
    let used: Vec<Class> = kernel.counts.keys().copied().collect();
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby={ (id) "-parts" } {
            table.matrix {
                caption id={ (id) "-parts" } { "Cases of Linux " (kernel.release) " by part of the handover and class" }
                thead { tr {
                    th scope="col" { "part" }
                    th.num scope="col" { "cases" }
                    @for class in &used { th scope="col" { (class.name()) } }
                } }
                tbody {
                    @for (part, counts) in &kernel.parts {
                        tr {
                            th scope="row" { (part) }
                            td.num { (count(counts.values().sum())) }
                            @for class in &used {
                                @match counts.get(class) {
                                    Some(cases) => td.cell.(colour(*class)) { (count(*cases)) },
                                    None => td {},
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn group(group: &Group, open: bool) -> Markup {
    let rest = group.count.saturating_sub(group.cases.len() as u64);
    html! {
        details.finding.(colour(group.class)) open[open] {
            summary { (named(group.class)) ", " (number(group.count, "case", "cases")) ": " (group.what) }
            ul {
                @for [path, value, set, was] in &group.cases {
                    li { code { (path) " = " (set) } " (" (value) "; it was " code { (was) } ")" }
                }
                @if rest > 0 { li { "and " (number(rest, "more", "more")) } }
            }
            p { span.note { "Run the first again" } code.command { (group.reproduce) } }
        }
    }
}

fn grid(grid: &Grid, id: &str, open: bool) -> Markup {
    html! {
        details.part open[open] {
            summary { (grid.part) ": " (number(grid.rows.len() as u64, "field", "fields")) }
            div.scroll tabindex="0" role="region" aria-labelledby=(id) {
                table.grid {
                    caption id=(id) { "Fields of " (grid.part) " by values" }
                    thead { tr {
                        th scope="col" { "field" }
                        @for value in &grid.values { th scope="col" { div.up { (value) } } }
                    } }
                    tbody {
                        @for (path, cells) in &grid.rows {
                            tr { th scope="row" { (path) } @for one in cells { (cell(one.as_ref())) } }
                        }
                    }
                }
            }
        }
    }
}

fn cell(cell: Option<&Cell>) -> Markup {
    html! {
        @match cell {
            Some(cell) => td.(colour(cell.class)) title={ (cell.class.name()) ": " (cell.what) } { (sign(cell.class)) },
            None => td {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sweep::tests::line;
    use std::collections::BTreeSet;

    #[test]
    fn each_class_has_a_sign_of_its_own() {
        let signs: BTreeSet<&str> = Class::ALL.into_iter().map(sign).collect();
        assert_eq!(signs.len(), Class::ALL.len());
    }

    #[test]
    fn the_page_has_each_case_and_escapes_what_guests_say() {
        let evil = "</td><script>alert(1)</script>";
        let lines = [
            line("7.3.4", "luo/count", "ones", Class::Panic, evil),
            line("7.2.12", "luo/count", "ones", Class::Refused, "refused"),
        ];
        let page = sweep(&SweepReport::new(&lines));
        assert!(!page.contains("<script"), "{page}");
        for said in [
            "title=\"panic: luo/count = 0x0 (was 0x1): &lt;/td&gt;&lt;script&gt;",
            "<th scope=\"row\">luo/count</th>",
            "baton sweep blob receiver.toml --only 'luo/count=0x0'",
            "Differences between kernels",
            Class::Panic.meaning(),
        ] {
            assert!(page.contains(said), "{said}\n{page}");
        }
        assert!(sweep(&SweepReport::new(&[])).contains("No case has a result."));
    }
}
