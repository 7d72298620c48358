//! What became of several scenarios: a table, and matrices of rules and of kernels.

use super::matrix::{Cell, Matrix, Row, Tone, matrix};
use super::scenario::result;
use super::words::{millis, number, tone, word};
use crate::report::json::ScenarioReport;
use harness::oracle::RuleName;
use harness::verdict::Verdict;
use maud::{Markup, html};

/// The overview. `id` gives the identity of the scenario of an index.
pub(super) fn overview(scenarios: &[ScenarioReport], id: &dyn Fn(usize) -> String) -> Markup {
    html! {
        section aria-labelledby="overview" {
            h2 id="overview" { "Overview" }
            (counts(scenarios))
            (table(scenarios, id))
            h3 { "Rules by scenario" }
            (matrix(&by_rule(scenarios, id)))
            @if let Some(kernels) = by_kernel(scenarios, id) {
                h3 { "Scenarios by kernels" }
                (matrix(&kernels))
            }
        }
    }
}

/// How many scenarios have each verdict.
fn counts(scenarios: &[ScenarioReport]) -> Markup {
    let of = |verdict: Verdict| {
        scenarios
            .iter()
            .filter(|scenario| scenario.verdict() == verdict)
            .count() as u64
    };
    let verdicts = [Verdict::Error, Verdict::Fail, Verdict::Pass];
    html! {
        p {
            (number(scenarios.len() as u64, "scenario", "scenarios")) ": "
            @for (number, verdict) in verdicts.into_iter().filter(|verdict| of(*verdict) > 0).enumerate() {
                @if number > 0 { ", " }
                (word(tone(verdict), &format!("{} {}", of(verdict), verdict.name())))
            }
        }
    }
}

fn table(scenarios: &[ScenarioReport], id: &dyn Fn(usize) -> String) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="scenarios" {
            table {
                thead { tr {
                    th scope="col" { "verdict" }
                    th scope="col" { "scenario" }
                    th scope="col" { "kernels" }
                    th scope="col" { "ended as" }
                    th.num scope="col" { "findings" }
                    th.num scope="col" { "blackout" }
                } }
                tbody { @for (number, scenario) in scenarios.iter().enumerate() { (row(scenario, &id(number))) } }
            }
        }
    }
}

fn row(scenario: &ScenarioReport, id: &str) -> Markup {
    let findings: u64 = scenario.rules.iter().map(|rule| rule.findings).sum();
    html! {
        tr {
            td { (word(tone(scenario.verdict()), scenario.verdict().name())) }
            th scope="row" { a href={ "#" (id) } { (scenario.name()) } }
            td { (kernels(scenario)) }
            td { (scenario.outcome.as_ref().map_or("not run", |outcome| outcome.kind)) }
            td.num { (super::words::count(findings)) }
            td.num { (scenario.blackout_ns.map_or_else(|| "\u{2013}".into(), millis)) }
        }
    }
}

/// The kernels of a scenario, first and later ones.
fn kernels(scenario: &ScenarioReport) -> String {
    let releases: Vec<&str> = scenario
        .kernels
        .iter()
        .map(|kernel| kernel.release.as_str())
        .collect();
    releases.join(" \u{2192} ")
}

/// Each rule's result in each scenario.
fn by_rule(scenarios: &[ScenarioReport], id: &dyn Fn(usize) -> String) -> Matrix {
    let row = |(number, scenario): (usize, &ScenarioReport)| {
        let cell = |name: &RuleName| {
            let rule = scenario.rules.iter().find(|rule| rule.name == name.name());
            let (tone, said) = rule.map_or_else(|| (Tone::Quiet, "not run".into()), result);
            Cell {
                text: short(&said).into(),
                tone,
                note: format!("{name}: {said}"),
                target: rule
                    .filter(|rule| rule.findings > 0)
                    .map(|rule| format!("{}-{}", id(number), rule.name)),
            }
        };
        Row {
            name: scenario.name().to_owned(),
            cells: RuleName::ALL.iter().map(cell).collect(),
        }
    };
    Matrix {
        caption: "What each rule says of each scenario; the colour is good where that is expected".into(),
        corner: "scenario".into(),
        columns: RuleName::ALL.iter().map(|rule| rule.name().to_owned()).collect(),
        rows: scenarios.iter().enumerate().map(row).collect(),
    }
}

/// A result in few letters, for a narrow cell.
fn short(said: &str) -> &str {
    match said {
        "cannot be judged" => "blind",
        "not judged" | "not run" => "",
        other => other.split(' ').next().unwrap_or(other),
    }
}

/// Verdicts by scenario and kernels, if a scenario was run with several kernels.
fn by_kernel(scenarios: &[ScenarioReport], id: &dyn Fn(usize) -> String) -> Option<Matrix> {
    let (mut names, mut columns): (Vec<&str>, Vec<String>) = Default::default();
    for scenario in scenarios {
        if !names.contains(&scenario.name()) {
            names.push(scenario.name());
        }
        let kernels = kernels(scenario);
        if !columns.contains(&kernels) {
            columns.push(kernels);
        }
    }
    if names.len() == scenarios.len() || columns.len() < 2 {
        return None;
    }
    let cell = |name: &str, column: &String| {
        let found = scenarios
            .iter()
            .enumerate()
            .find(|(_, one)| one.name() == name && kernels(one) == *column);
        let verdict = found.map(|(_, scenario)| scenario.verdict());
        Cell {
            text: verdict.map_or("", Verdict::name).into(),
            tone: verdict.map_or(Tone::Quiet, tone),
            note: String::new(),
            target: found.map(|(number, _)| id(number)),
        }
    };
    Some(Matrix {
        caption: "The verdict of each scenario with each chain of kernels".into(),
        corner: "scenario".into(),
        rows: names
            .iter()
            .map(|name| Row {
                name: (*name).to_owned(),
                cells: columns.iter().map(|column| cell(name, column)).collect(),
            })
            .collect(),
        columns,
    })
}
