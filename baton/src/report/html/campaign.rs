//! The page on a campaign: counts, scenarios and variants by kernels, failures by group, missing cells.

use super::matrix::{Cell, Matrix, Row, Tone, matrix};
use super::words::{count, number, word};
use crate::report::campaign::{CampaignReport, GroupReport, Places, cell_line};
use crate::report::printable;
use campaign::plan::CellId;
use campaign::result::Status;
use campaign::summary::{Counts, Score, Table};
use harness::oracle::RuleName;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Most rows and columns of a matrix.
const SHOWN: (usize, usize) = (400, 48);
/// Most groups, and how many of them are open at first.
const GROUPS: (usize, usize) = (200, 3);
/// Most missing cells that are named.
const MISSING: usize = 200;

/// The page.
pub fn campaign(report: &CampaignReport, places: &Places) -> String {
    let body = html! {
        article {
            (verdict(report, places))
            (facts(report))
            (contents(report))
            (by_kernels(report))
            (groups(report, places))
            (injections(report, places))
            (missing(report))
        }
    };
    super::page(
        &format!("Campaign {}: {}", report.name, verdict_of(report).name()),
        &format!("Campaign report of baton {}", report.baton),
        &body,
    )
}

/// The worst status of the campaign; a cell without a result could not be run.
fn verdict_of(report: &CampaignReport) -> Status {
    let counts = [
        (Status::Died, report.died),
        (Status::Error, report.error + report.missing.len() as u64),
        (Status::Fail, report.fail),
    ];
    counts
        .into_iter()
        .find(|(_, count)| *count > 0)
        .map_or(Status::Pass, |(status, _)| status)
}

fn tone(status: Status) -> Tone {
    match status {
        Status::Pass => Tone::Good,
        Status::Fail => Tone::Bad,
        Status::Error | Status::Died => Tone::Warn,
    }
}

fn verdict(report: &CampaignReport, places: &Places) -> Markup {
    let status = verdict_of(report);
    let counts = [
        (Status::Pass, report.pass),
        (Status::Fail, report.fail),
        (Status::Error, report.error),
        (Status::Died, report.died),
    ];
    let told = counts.into_iter().filter(|(_, count)| *count > 0);
    html! {
        div.verdict.(tone(status).class()) {
            div.title {
                (word(tone(status), &status.name().to_uppercase()))
                h2 { "Campaign " (report.name) }
            }
            p {
                (count(report.done)) " of " (number(report.cells, "cell", "cells")) " have a result: "
                @for (at, (status, number)) in told.enumerate() {
                    @if at > 0 { ", " }
                    (word(tone(status), &format!("{} {}", count(number), status.name())))
                }
                @if !report.missing.is_empty() {
                    ". " (number(report.missing.len() as u64, "cell is", "cells are")) " missing"
                }
                "."
            }
            @if let Some(file) = &places.campaign {
                p {
                    span.note { "Run it again" }
                    code.command { "baton campaign " (crate::report::quoted(&file.display().to_string())) }
                }
            }
        }
    }
}

fn facts(report: &CampaignReport) -> Markup {
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    html! {
        dl.facts {
            (fact("plan", html! { code { (report.plan) } }))
            (fact("part of it", html! { (report.partition) }))
            (fact("guest instructions", html! { (count(report.guest_instructions)) }))
            (fact("time on one processor", html! { (format!("{:.1}\u{a0}s", report.cell_seconds)) }))
        }
    }
}

fn contents(report: &CampaignReport) -> Markup {
    html! {
        nav.contents aria-label="Contents" {
            ul {
                li { a href="#kernels" { "Kernels" } }
                @if !report.groups.is_empty() { li { a href="#failures" { "Failures" } } }
                @if report.fired().next().is_some() { li { a href="#injections" { "Injections" } } }
                @if !report.missing.is_empty() { li { a href="#missing" { "Missing cells" } } }
            }
        }
    }
}

fn by_kernels(report: &CampaignReport) -> Markup {
    let variants: BTreeSet<&str> = report
        .by_variant
        .cells
        .keys()
        .map(|(name, _)| name.as_str())
        .collect();
    html! {
        section aria-labelledby="kernels" {
            h3 id="kernels" { "Kernels" }
            (table(
                &report.by_scenario,
                "scenario",
                "Each scenario with each pair of kernels, over all seeds and variants",
            ))
            @if variants.len() > 1 {
                (table(
                    &report.by_variant,
                    "variant",
                    "Each variant with each pair of kernels, over all scenarios and seeds",
                ))
            }
        }
    }
}

/// A matrix of counts, and what it leaves out.
fn table(table: &Table, corner: &str, caption: &str) -> Markup {
    let rows: BTreeSet<&str> = table.cells.keys().map(|(row, _)| row.as_str()).collect();
    let columns: BTreeSet<&str> = table.cells.keys().map(|(_, kernels)| kernels.as_str()).collect();
    let more = (
        rows.len().saturating_sub(SHOWN.0),
        columns.len().saturating_sub(SHOWN.1),
    );
    let shown: Vec<&str> = columns.iter().copied().take(SHOWN.1).collect();
    let row = |name: &str| Row {
        name: if name.is_empty() {
            "as it is".into()
        } else {
            printable(name)
        },
        cells: shown
            .iter()
            .map(|kernels| cell(table.cells.get(&(name.to_owned(), (*kernels).to_owned()))))
            .collect(),
    };
    let arrow = |name: &&str| printable(name).replace(" -> ", " \u{2192} ");
    html! {
        (matrix(&Matrix {
            caption: format!("{caption}: cells that passed, of all"),
            corner: corner.into(),
            columns: shown.iter().map(arrow).collect(),
            rows: rows.iter().copied().take(SHOWN.0).map(row).collect(),
        }))
        @if more.0 > 0 { p.note { (number(more.0 as u64, "more row is", "more rows are")) " not shown." } }
        @if more.1 > 0 {
            p.note { (number(more.1 as u64, "more pair of kernels is", "more pairs of kernels are")) " not shown." }
        }
        @if table.left_out > 0 {
            p.note { (number(table.left_out, "result is", "results are")) " in no row, because there are too many." }
        }
    }
}

fn cell(counts: Option<&Counts>) -> Cell {
    let Some(counts) = counts else {
        return Cell {
            text: String::new(),
            tone: Tone::Quiet,
            note: "not run".into(),
            target: None,
        };
    };
    let of = |status: Status| counts.get(&status).copied().unwrap_or(0);
    let worst = counts.keys().max().copied().unwrap_or(Status::Pass);
    let told = Status::ALL.into_iter().filter(|status| of(*status) > 0);
    let told: Vec<String> = told
        .map(|status| format!("{} {}", count(of(status)), status.name()))
        .collect();
    Cell {
        text: format!("{}/{}", count(of(Status::Pass)), count(counts.values().sum())),
        tone: tone(worst),
        note: told.join(", "),
        target: None,
    }
}

fn groups(report: &CampaignReport, places: &Places) -> Markup {
    let rest = report.groups.len().saturating_sub(GROUPS.0);
    html! {
        @if !report.groups.is_empty() {
            section aria-labelledby="failures" {
                h3 id="failures" { "Failures" }
                p.note {
                    "Failures that show the same are one group: the same rule or line of the kernel, last writer, owner "
                    "of the page, and phase. The worst group comes first. Of each, the failure of least guest time is "
                    "shown."
                }
                @for (number, one) in report.groups.iter().take(GROUPS.0).enumerate() {
                    (group(one, places, number < GROUPS.1))
                }
                @if rest > 0 { p.note { (number(rest as u64, "more group is", "more groups are")) " not shown." } }
                @if report.ungrouped > 0 {
                    p.note { (number(report.ungrouped, "more failure is", "more failures are")) " in no group." }
                }
            }
        }
    }
}

fn group(GroupReport { signature, group }: &GroupReport, places: &Places, open: bool) -> Markup {
    let smallest = &group.smallest;
    html! {
        details.finding.(tone(group.status).class()) open[open] {
            summary {
                (word(tone(group.status), &format!("{} {}", count(group.count), group.status.name())))
                " " (signature)
            }
            p { (printable(smallest.text())) }
            dl.pairs {
                dt { "such as" }
                dd { (smallest.label) }
                dt { "scenarios" }
                dd { (group.scenarios.join(", ")) }
                dt { "ended as" }
                dd { (smallest.outcome) }
                @if smallest.symptoms.len() > 1 {
                    dt { "it also shows" }
                    dd {
                        ul {
                            @for one in smallest.symptoms.iter().skip(1) {
                                li { (one.signature) @if one.count > 1 { ", " (number(one.count, "time", "times")) } }
                            }
                        }
                    }
                }
                @if let Some(place) = places.evidence_of(smallest.cell) {
                    dt { "evidence" }
                    dd { code { (place.display()) } }
                }
            }
            @if let Some(minimal) = places.minimal_of(smallest.cell) {
                p {
                    span.note { "It fails so with " (minimal.injections.0) " of " (minimal.injections.1) " injections" }
                    code.command { (minimal.reproduce) }
                }
            }
            (again(places, smallest.cell))
        }
    }
}

/// The command that runs a cell again and makes a page of it.
fn again(places: &Places, cell: CellId) -> Markup {
    html! {
        @if let Some(line) = cell_line(places, cell) {
            p { span.note { "Run that one again" } code.command { (line) " --html cell.html" } }
        }
    }
}

/// What came of injections by deed, which rules caught them, and those that nothing noticed.
fn injections(report: &CampaignReport, places: &Places) -> Markup {
    let rules: BTreeSet<RuleName> = report
        .fired()
        .flat_map(|(_, score)| score.by_rule.keys().copied())
        .collect();
    let (noticed, mattered) = report.noticed();
    let row = |(deed, score): (&String, &Score)| Row {
        name: deed.clone(),
        cells: fates(score)
            .into_iter()
            .chain(rules.iter().map(|rule| caught(score.by_rule.get(rule))))
            .collect(),
    };
    let names = FATES.into_iter().chain(rules.iter().map(|rule| rule.name()));
    html! {
        @if report.fired().next().is_some() {
            section aria-labelledby="injections" {
                h3 id="injections" { "Injections" }
                p {
                    "Noticed: " (count(noticed)) " of " (count(mattered)) " that changed anything that a user sees. "
                    "What is not noticed is a gap in the rules."
                }
                (matrix(&Matrix {
                    caption: "What came of injections, by deed, and how many each rule caught".into(),
                    corner: "deed".into(),
                    columns: names.map(str::to_owned).collect(),
                    rows: report.fired().map(row).collect(),
                }))
                @for (deed, score) in report.fired().filter(|(_, score)| score.not_noticed > 0) {
                    details.finding {
                        summary {
                            (word(Tone::Bad, &format!("{} not noticed", count(score.not_noticed)))) " of " (deed)
                        }
                        @for gap in &score.gaps { p { (gap.label) ": " (gap.differs) } (again(places, gap.cell)) }
                    }
                }
            }
        }
    }
}

/// Columns of [`fates`].
const FATES: [&str; 6] = [
    "fired",
    "caught",
    "ended otherwise",
    "not noticed",
    "no effect",
    "cannot be told",
];

/// What came of the injections of a deed.
fn fates(score: &Score) -> [Cell; 6] {
    let cell = |value: u64, tone| Cell {
        text: count(value),
        tone: if value == 0 { Tone::Quiet } else { tone },
        note: String::new(),
        target: None,
    };
    [
        cell(score.fired, Tone::Quiet),
        cell(score.caught, Tone::Good),
        cell(score.ended_otherwise, Tone::Good),
        cell(score.not_noticed, Tone::Bad),
        cell(score.no_effect, Tone::Quiet),
        cell(score.cannot_be_told, Tone::Warn),
    ]
}

/// How many a rule caught.
fn caught(number: Option<&u64>) -> Cell {
    Cell {
        text: number.map_or_else(String::new, |number| count(*number)),
        tone: if number.is_some() { Tone::Good } else { Tone::Quiet },
        note: String::new(),
        target: None,
    }
}

fn missing(report: &CampaignReport) -> Markup {
    let rest = report.missing.len().saturating_sub(MISSING);
    html! {
        @if !report.missing.is_empty() {
            section aria-labelledby="missing" {
                h3 id="missing" { "Missing cells" }
                ul { @for one in report.missing.iter().take(MISSING) { li { (one.label) " " code { (one.cell) } } } }
                @if rest > 0 { p.note { (number(rest as u64, "more cell is", "more cells are")) " not shown." } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::campaign::tests::{header, summary};
    use campaign::plan::Label;
    use campaign::result::CellResult;
    use campaign::summary::Summary;

    #[test]
    fn the_page_has_scenarios_by_kernels_and_a_command_for_each_group() {
        let missing = [(
            CellId::of(&[b"x"]),
            summary().ranked()[0].1.smallest.label.clone(),
        )];
        let report = CampaignReport::new(&header(), &summary(), &missing);
        let places = Places {
            campaign: Some("my campaign.toml".into()),
            evidence: vec![(CellId::of(&[b"a"]), "out/evidence/1".into())],
            ..Places::default()
        };
        let page = campaign(&report, &places);
        for said in [
            "<th scope=\"col\">7.3.4 \u{2192} 7.2.12</th>".to_owned(),
            "0/2</td>".into(),
            "kernel N not found".into(),
            format!(
                "baton campaign cell 'my campaign.toml' {} --html cell.html",
                CellId::of(&[b"a"])
            ),
            "out/evidence/1".into(),
            "1\u{a0}cell is missing".into(),
            "<th scope=\"row\">dma.drop</th>".into(),
            "1 not noticed".into(),
            "page 3 of ring differs".into(),
        ] {
            assert!(page.contains(&said), "{said}\n{page}");
        }
    }

    #[test]
    fn however_large_the_campaign_the_page_stays_small_and_says_what_is_missing() {
        let mut summary = Summary::default();
        for index in 0..1500u32 {
            let word: String = index
                .to_string()
                .bytes()
                .map(|digit| char::from(digit + 49))
                .collect();
            let label = Label {
                scenario: word.clone(),
                kernels: format!("{} -> 1", index % 60),
                seed: 1,
                variant: String::new(),
            };
            let evil = format!("{word} <script>{}", "x".repeat(1000));
            let cell = CellId::of(&[word.as_bytes()]);
            summary.add(&CellResult::without_run(cell, label, Status::Fail, &evil));
        }
        let page = campaign(&CampaignReport::new(&header(), &summary, &[]), &Places::default());
        assert!(page.len() < 3_000_000, "{} bytes", page.len());
        assert!(!page.contains("<script"));
        for said in [
            "1,100\u{a0}more rows are",
            "12\u{a0}more pairs",
            "800\u{a0}more groups",
            "500\u{a0}more failures",
        ] {
            assert!(page.contains(said), "{said}");
        }
    }
}
