//! Reports on a campaign: counts, and failures by group, the worst first.

use campaign::plan::{CellId, Label};
use campaign::result::{Signature, Status};
use campaign::store::Header;
use campaign::summary::{Counts, Group, Score, Summary, Table};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Version of the report's schema.
pub const VERSION: u32 = 1;

/// Most groups in a report as text.
const SHOWN_GROUPS: usize = 20;
/// Most missing cells in a report as text.
const SHOWN_MISSING: usize = 20;
/// A campaign's report.
#[derive(Debug, Serialize)]
pub struct CampaignReport {
    /// `"baton-campaign-report"`.
    schema: &'static str,
    version: u32,
    pub(super) baton: String,
    pub(super) name: String,
    pub(super) plan: CellId,
    pub(super) partition: String,
    pub(super) cells: u64,
    pub(super) done: u64,
    pub(super) pass: u64,
    pub(super) fail: u64,
    pub(super) error: u64,
    pub(super) died: u64,
    pub(super) guest_instructions: u64,
    /// Host time of all cells together, in seconds.
    pub(super) cell_seconds: f64,
    /// Results by scenario and kernels.
    #[serde(serialize_with = "listed")]
    pub(super) by_scenario: Table,
    /// Results by variant and kernels.
    #[serde(serialize_with = "listed")]
    pub(super) by_variant: Table,
    pub(super) groups: Vec<GroupReport>,
    /// Failures in no group, because there are too many groups.
    pub(super) ungrouped: u64,
    pub(super) missing: Vec<Missing>,
    /// What came of injections, by deed.
    pub(super) injections: BTreeMap<String, Score>,
}

#[derive(Debug, Serialize)]
pub(super) struct GroupReport {
    #[serde(flatten)]
    pub(super) signature: Signature,
    #[serde(flatten)]
    pub(super) group: Group,
}

#[derive(Debug, Serialize)]
pub(super) struct Missing {
    pub(super) cell: CellId,
    #[serde(flatten)]
    pub(super) label: Label,
}

/// A cell of a table in the JSON report.
#[derive(Debug, Serialize)]
struct Tabled<'a> {
    name: &'a str,
    kernels: &'a str,
    counts: &'a Counts,
}

/// A table as a list of its cells. What it leaves out is the difference between their counts and `done`.
fn listed<S: serde::Serializer>(table: &Table, serializer: S) -> Result<S::Ok, S::Error> {
    let cells = table.cells.iter();
    serializer.collect_seq(cells.map(|((name, kernels), counts)| Tabled {
        name,
        kernels,
        counts,
    }))
}

/// Where things of a campaign are, for its report as text.
#[derive(Debug, Default)]
pub struct Places {
    /// The campaign file.
    pub campaign: Option<PathBuf>,
    /// Evidence that is kept, by cell.
    pub evidence: Vec<(CellId, PathBuf)>,
    /// The smallest scenarios that fail as a cell does, and how many of its injections they have, by cell.
    pub minimal: Vec<(CellId, MinimalPlace)>,
}

/// The smallest scenario that fails as a cell does.
#[derive(Debug, Clone)]
pub struct MinimalPlace {
    /// Its injections, and those of the cell.
    pub injections: (usize, usize),
    /// The command that runs it.
    pub reproduce: String,
}

impl Places {
    /// The evidence that is kept of a cell.
    pub(super) fn evidence_of(&self, cell: CellId) -> Option<&PathBuf> {
        let found = self.evidence.iter().find(|(kept, _)| *kept == cell);
        found.map(|(_, place)| place)
    }

    /// The smallest scenario that fails as a cell does.
    pub(super) fn minimal_of(&self, cell: CellId) -> Option<&MinimalPlace> {
        let found = self.minimal.iter().find(|(of, _)| *of == cell);
        found.map(|(_, minimal)| minimal)
    }
}

impl CampaignReport {
    /// Deeds of which some injection fired.
    pub(super) fn fired(&self) -> impl Iterator<Item = (&String, &Score)> {
        self.injections.iter().filter(|(_, score)| score.fired > 0)
    }

    /// How many injections were noticed, and how many changed anything that a user sees.
    pub(super) fn noticed(&self) -> (u64, u64) {
        let sum = |of: fn(&Score) -> u64| self.fired().map(|(_, score)| of(score)).sum();
        (sum(Score::noticed), sum(Score::mattered))
    }

    /// The report of results.
    pub fn new(header: &Header, summary: &Summary, missing: &[(CellId, Label)]) -> Self {
        #[allow(clippy::cast_precision_loss)] // seconds for people
        let cell_seconds = summary.cell_us as f64 / 1e6;
        let group = |(signature, group): (&Signature, &Group)| GroupReport {
            signature: signature.clone(),
            group: group.clone(),
        };
        let absent = |(cell, label): &(CellId, Label)| Missing {
            cell: *cell,
            label: label.clone(),
        };
        Self {
            schema: "baton-campaign-report",
            version: VERSION,
            baton: header.baton.clone(),
            name: header.name.clone(),
            plan: header.plan,
            partition: header.partition.clone(),
            cells: header.cells,
            done: summary.done(),
            pass: summary.count(Status::Pass),
            fail: summary.count(Status::Fail),
            error: summary.count(Status::Error),
            died: summary.count(Status::Died),
            guest_instructions: summary.instructions,
            cell_seconds,
            by_scenario: summary.by_scenario.clone(),
            by_variant: summary.by_variant.clone(),
            groups: summary.ranked().into_iter().map(group).collect(),
            ungrouped: summary.ungrouped,
            missing: missing.iter().map(absent).collect(),
            injections: summary.scores().clone(),
        }
    }
}

/// The report as text.
pub fn campaign_text(report: &CampaignReport, places: &Places) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = tell(&mut out, report, places);
    out.truncate(out.trim_end().len());
    out
}

fn tell(out: &mut String, report: &CampaignReport, places: &Places) -> std::fmt::Result {
    for group in report.groups.iter().take(SHOWN_GROUPS) {
        tell_group(out, group, places)?;
    }
    let more = report.groups.len().saturating_sub(SHOWN_GROUPS);
    if more > 0 {
        writeln!(out, "{more} more groups, which the JSON report has\n")?;
    }
    if report.ungrouped > 0 {
        writeln!(out, "{} more failures in further groups\n", report.ungrouped)?;
    }
    for missing in report.missing.iter().take(SHOWN_MISSING) {
        writeln!(out, "missing {} {}", missing.cell, missing.label)?;
    }
    let more = report.missing.len().saturating_sub(SHOWN_MISSING);
    if more > 0 {
        writeln!(out, "missing {more} more")?;
    }
    tell_scores(out, report, places)?;
    let CampaignReport {
        name,
        cells,
        done,
        pass,
        fail,
        error,
        died,
        cell_seconds,
        ..
    } = report;
    write!(
        out,
        "campaign {name}: {done} of {cells} cells: {pass} pass, {fail} fail, {error} error, {died} died; "
    )?;
    write!(out, "{cell_seconds:.1} s of one processor")?;
    match report.missing.len() {
        0 => writeln!(out),
        missing => writeln!(out, "; {missing} cells are missing"),
    }
}

/// What came of injections: a line per deed, then those that were not noticed.
fn tell_scores(out: &mut String, report: &CampaignReport, places: &Places) -> std::fmt::Result {
    if report.fired().next().is_none() {
        return Ok(());
    }
    let width = report
        .fired()
        .map(|(deed, _)| deed.len())
        .max()
        .unwrap_or(0)
        .max(10);
    writeln!(
        out,
        "{:width$}  fired  caught  ended otherwise  not noticed  no effect  cannot be told  caught by",
        "injections"
    )?;
    for (deed, score) in report.fired() {
        let mut rules: Vec<_> = score.by_rule.iter().collect();
        rules.sort_by_key(|(_, count)| Reverse(**count));
        let rules: Vec<String> = rules
            .iter()
            .map(|(rule, count)| format!("{rule} {count}"))
            .collect();
        let line = format!(
            "{deed:width$} {:6} {:7} {:16} {:12} {:10} {:15}  {}",
            score.fired,
            score.caught,
            score.ended_otherwise,
            score.not_noticed,
            score.no_effect,
            score.cannot_be_told,
            rules.join(", ")
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    let (noticed, mattered) = report.noticed();
    writeln!(
        out,
        "noticed {noticed} of {mattered} that changed anything that a user sees\n"
    )?;
    for (deed, score) in report.fired() {
        for gap in &score.gaps {
            writeln!(out, "{deed} was not noticed in {}: {}", gap.label, gap.differs)?;
            if let Some(line) = cell_line(places, gap.cell) {
                writeln!(out, "  {line}")?;
            }
        }
    }
    if report.fired().any(|(_, score)| score.not_noticed > 0) {
        writeln!(out)?;
    }
    Ok(())
}

/// The command that runs a cell again.
pub(super) fn cell_line(places: &Places, cell: CellId) -> Option<String> {
    let file = places.campaign.as_ref()?;
    let file = super::quoted(&file.display().to_string());
    Some(format!("baton campaign cell {file} {cell}"))
}

fn tell_group(out: &mut String, report: &GroupReport, places: &Places) -> std::fmt::Result {
    let GroupReport { signature, group } = report;
    let smallest = &group.smallest;
    writeln!(out, "{} {}: {signature}", group.count, group.status.name())?;
    writeln!(out, "  in {}", group.scenarios.join(", "))?;
    writeln!(out, "  such as {}", smallest.label)?;
    let text = smallest.text();
    if !text.is_empty() {
        writeln!(out, "  {}", text.replace('\n', "\n  "))?;
    }
    if let Some(line) = cell_line(places, smallest.cell) {
        writeln!(out, "  {line}")?;
    }
    if let Some(minimal) = places.minimal_of(smallest.cell) {
        let (left, of) = minimal.injections;
        writeln!(
            out,
            "  fails so with {left} of {of} injections: {}",
            minimal.reproduce
        )?;
    }
    if let Some(place) = places.evidence_of(smallest.cell) {
        writeln!(out, "  evidence in {}", place.display())?;
    }
    writeln!(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use campaign::mutation::{Fate, Mutation};
    use campaign::result::CellResult;
    use harness::oracle::RuleName;

    /// Two failures of one group.
    pub(in crate::report) fn summary() -> Summary {
        let mut summary = Summary::default();
        for (variant, reason) in [("a", "kernel 1 not found"), ("b", "kernel 2 not found")] {
            let label = Label {
                scenario: "s".into(),
                kernels: "7.3.4 -> 7.2.12".into(),
                seed: 3,
                variant: variant.into(),
            };
            let cell = CellId::of(&[variant.as_bytes()]);
            let mut result = CellResult::without_run(cell, label, Status::Error, reason);
            result.mutations = vec![Mutation {
                deed: "dma.drop".into(),
                fate: if variant == "a" {
                    Fate::NotNoticed
                } else {
                    Fate::Caught
                },
                caught_by: if variant == "a" {
                    Vec::new()
                } else {
                    vec![RuleName::PreservedContent]
                },
                differs: if variant == "a" {
                    "page 3 of ring differs".into()
                } else {
                    String::new()
                },
            }];
            summary.add(&result);
        }
        summary
    }

    /// The header of a campaign of three cells.
    pub(in crate::report) fn header() -> Header {
        Header {
            schema: String::new(),
            version: 1,
            baton: "1".into(),
            name: "quick".into(),
            plan: CellId::of(&[]),
            cells: 3,
            partition: "whole".into(),
        }
    }

    #[test]
    fn groups_come_with_a_line_that_reproduces_them() {
        let label = Label {
            scenario: "t".into(),
            kernels: "a -> a".into(),
            seed: 1,
            variant: String::new(),
        };
        let missing = [(CellId::of(&[b"x"]), label)];
        let report = CampaignReport::new(&header(), &summary(), &missing);
        let cell = CellId::of(&[b"a"]);
        let places = Places {
            campaign: Some("my campaign.toml".into()),
            evidence: vec![(cell, "out/evidence/1".into())],
            minimal: vec![(
                cell,
                MinimalPlace {
                    injections: (1, 3),
                    reproduce: "baton run out/minimal/1.toml --seed 3".into(),
                },
            )],
        };
        let text = campaign_text(&report, &places);
        for said in [
            "2 error: kernel N not found\n  in s\n  such as s, 7.3.4 -> 7.2.12, seed 3, a\n  \
             kernel 1 not found\n"
                .to_owned(),
            format!(
                "  baton campaign cell 'my campaign.toml' {cell}\n  fails so with 1 of 3 injections: \
                 baton run out/minimal/1.toml --seed 3\n  evidence in out/evidence/1\n"
            ),
            "t, a -> a, seed 1\n".to_owned(),
            "\ndma.drop        2       1                0            1          0               0  preserved-content 1\n\
             noticed 1 of 2 that changed anything that a user sees\n"
                .to_owned(),
            format!(
                "dma.drop was not noticed in s, 7.3.4 -> 7.2.12, seed 3, a: page 3 of ring differs\n  \
                 baton campaign cell 'my campaign.toml' {cell}\n"
            ),
            "campaign quick: 2 of 3 cells: 0 pass, 0 fail, 2 error, 0 died; 0.0 s of one processor; 1 cells are missing"
                .to_owned(),
        ] {
            assert!(text.contains(&said), "{said}\n---\n{text}");
        }
    }

    #[test]
    fn every_field_is_documented() {
        let documented = include_str!("../../../docs/campaigns.md");
        let report = CampaignReport::new(&header(), &summary(), &[(CellId::of(&[]), summary_label())]);
        let value = serde_json::to_value(report).unwrap();
        let group = &value["groups"][0];
        for object in [
            &value,
            group,
            &group["smallest"],
            &group["smallest"]["symptoms"][0],
            &value["missing"][0],
            &value["injections"]["dma.drop"],
            &value["injections"]["dma.drop"]["gaps"][0],
            &group["smallest"]["mutations"][0],
            &value["by_scenario"][0],
            &value["by_variant"][0],
        ] {
            for key in object.as_object().unwrap().keys() {
                assert!(
                    documented.contains(&format!("`{key}`")),
                    "{key} is not in docs/campaigns.md"
                );
            }
        }
    }

    fn summary_label() -> Label {
        Label {
            scenario: String::new(),
            kernels: String::new(),
            seed: 0,
            variant: String::new(),
        }
    }
}
