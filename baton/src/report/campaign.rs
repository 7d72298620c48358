//! Reports on a campaign: counts, and failures by group, the worst first.

use campaign::plan::{CellId, Label};
use campaign::result::{Signature, Status};
use campaign::store::Header;
use campaign::summary::{Group, Summary};
use serde::Serialize;
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
    baton: String,
    name: String,
    plan: CellId,
    partition: String,
    cells: u64,
    done: u64,
    pass: u64,
    fail: u64,
    error: u64,
    died: u64,
    guest_instructions: u64,
    /// Host time of all cells together, in seconds.
    cell_seconds: f64,
    groups: Vec<GroupReport>,
    /// Failures in no group, because there are too many groups.
    ungrouped: u64,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct GroupReport {
    #[serde(flatten)]
    signature: Signature,
    #[serde(flatten)]
    group: Group,
}

#[derive(Debug, Serialize)]
struct Missing {
    cell: CellId,
    #[serde(flatten)]
    label: Label,
}

/// Where things of a campaign are, for its report as text.
#[derive(Debug, Default)]
pub struct Places {
    /// The campaign file.
    pub campaign: Option<PathBuf>,
    /// Evidence that is kept, by cell.
    pub evidence: Vec<(CellId, PathBuf)>,
}

impl CampaignReport {
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
            groups: summary.ranked().into_iter().map(group).collect(),
            ungrouped: summary.ungrouped,
            missing: missing.iter().map(absent).collect(),
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
    if let Some(file) = &places.campaign {
        let file = super::quoted(&file.display().to_string());
        writeln!(out, "  baton campaign cell {file} {}", smallest.cell)?;
    }
    if let Some((_, place)) = places.evidence.iter().find(|(cell, _)| *cell == smallest.cell) {
        writeln!(out, "  evidence in {}", place.display())?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use campaign::result::CellResult;

    fn summary() -> Summary {
        let mut summary = Summary::default();
        for (variant, reason) in [("a", "kernel 1 not found"), ("b", "kernel 2 not found")] {
            let label = Label {
                scenario: "s".into(),
                kernels: "7.3.4 -> 7.2.12".into(),
                seed: 3,
                variant: variant.into(),
            };
            summary.add(&CellResult::without_run(
                CellId::of(&[variant.as_bytes()]),
                label,
                Status::Error,
                reason,
            ));
        }
        summary
    }

    fn header() -> Header {
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
        };
        let text = campaign_text(&report, &places);
        for said in [
            "2 error: kernel N not found\n  in s\n  such as s, 7.3.4 -> 7.2.12, seed 3, a\n  kernel 1 not found\n".to_owned(),
            format!("  baton campaign cell 'my campaign.toml' {cell}\n  evidence in out/evidence/1\n"),
            "t, a -> a, seed 1\n".to_owned(),
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
