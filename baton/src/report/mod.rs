//! Reports on judged runs: as text, as JSON, and in formats of other tools, made from the same structure as the JSON.
//! And progress while a run goes on.

mod boot;
mod campaign;
mod cases;
mod compare;
mod count;
mod host;
pub mod html;
mod injections;
mod json;
mod junit;
mod ktap;
mod matrix;
mod picture;
mod plan;
mod progress;
#[cfg(test)]
mod samples;
mod sweep;
mod text;

pub use boot::{BootFacts, BootReport};
pub use campaign::{CampaignReport, MinimalPlace, Places, campaign_text};
pub use compare::CompareReport;
pub use count::CountProgress;
pub use host::kvm;
pub use json::{Report, ScenarioReport, VERSION, write_json};
pub use junit::junit;
pub use ktap::ktap;
pub use matrix::{MatrixReport, matrix_text};
pub use plan::{PlanReport, plan_text};
pub use progress::Progress;
pub use sweep::SweepReport;
pub use text::text;

use harness::evidence::{Evidence, OutcomeKind, injected};
use harness::oracle::Finding;
use harness::verdict::Judged;
use std::path::Path;
use vmm::ledger::Entry;

/// Most lines of the console's end that a report shows.
const LAST_LINES: usize = 12;

/// Most characters of a line of the guest that a report shows.
const MAX_LINE: usize = 200;

/// A line of text of the guest without characters that a terminal would obey, and without line breaks.
fn printable(line: &str) -> String {
    printable_to(line, MAX_LINE)
}

/// Likewise, with at most so many characters. A text that is longer ends in three dots.
fn printable_to(line: &str, most: usize) -> String {
    let obeyed = |c: char| c.is_control() && c != '\t' || matches!(c, '\u{2028}' | '\u{2029}');
    let plain = |c: char| if obeyed(c) { '\u{fffd}' } else { c };
    let mut shown: String = line.chars().take(most).map(plain).collect();
    if line.chars().nth(most).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Splits findings into runs on adjacent pages with the same owner and the same kind of last writer.
fn grouped(findings: &[Finding]) -> Vec<&[Finding]> {
    let follows = |a: &Finding, b: &Finding| {
        let adjacent = a.page.is_some_and(|page| page.checked_add(1) == b.page);
        adjacent
            && a.owner == b.owner
            && std::mem::discriminant(&a.last_writer) == std::mem::discriminant(&b.last_writer)
    };
    findings.chunk_by(follows).collect()
}

/// Writes a report to `path`; `-` is standard output.
pub fn write_text(text: &str, path: &Path) -> std::io::Result<()> {
    if path.as_os_str() == "-" {
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
    } else {
        std::fs::write(path, text)
    }
}

/// The last lines of the console that are not empty, if the run ended otherwise than it should; none if it was
/// completed.
fn last_lines(judged: &Judged) -> Vec<&str> {
    let evidence = &judged.evidence;
    if judged.judgement.as_expected || evidence.outcome.kind == OutcomeKind::Completed {
        return Vec::new();
    }
    let lines = evidence.console.lines().map(str::trim_end);
    let lines = lines.filter(|line| !line.is_empty()).rev().take(LAST_LINES);
    let mut lines: Vec<&str> = lines.collect();
    lines.reverse();
    lines
}

/// Whether a write is one of the device's that was made, be it as the device meant it or as an injection changed it.
fn by_device(evidence: &Evidence, write: &Entry) -> bool {
    write.was_made() && injected(&evidence.ledger, write).is_none_or(|made| made.of.is_some())
}

/// A phase with the device's writes in it, their number and their bytes.
struct PhaseLine<'a> {
    record: &'a harness::evidence::PhaseRecord,
    device_writes: u64,
    device_bytes: u64,
}

/// Phases in order. In a chain of kernels a phase occurs once per generation, so a line is one phase of one generation.
fn phase_lines(evidence: &Evidence) -> Vec<PhaseLine<'_>> {
    let line = |record: &'_ harness::evidence::PhaseRecord| {
        let ours = |write: &&Entry| {
            let here =
                u32::from(write.stamp.generation) == record.generation && write.stamp.phase == record.phase;
            here && by_device(evidence, write)
        };
        let (writes, bytes) = evidence
            .ledger
            .entries
            .iter()
            .filter(ours)
            .fold((0, 0), |(writes, bytes), write| {
                (writes + 1, bytes + u64::from(write.length))
            });
        (writes, bytes)
    };
    let lines = evidence.phases.iter().map(|record| {
        let (device_writes, device_bytes) = line(record);
        PhaseLine {
            record,
            device_writes,
            device_bytes,
        }
    });
    lines.collect()
}

/// Shell command that runs the scenario again with the same seed, backend, overrides and, on KVM, the same slowdown of
/// device time, whether that was measured or given.
fn reproduce(evidence: &Evidence) -> String {
    let Evidence {
        scenario_file,
        seed,
        backend,
        overrides,
        slowdown,
        ..
    } = evidence;
    let mut overrides = overrides.clone();
    if evidence.is_from_kvm() {
        overrides.extend(["--slowdown".into(), slowdown.to_string()]);
    }
    run_line(scenario_file, *seed, backend, &overrides)
}

/// Shell command that runs a scenario.
pub fn run_line(scenario: &str, seed: u64, backend: &str, overrides: &[String]) -> String {
    let seed = seed.to_string();
    let fixed = ["baton", "run", scenario, "--seed", &seed, "--backend", backend];
    let words = fixed.into_iter().chain(overrides.iter().map(String::as_str));
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for the shell if it needs quoting.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_pasted() {
        let mut evidence = harness::testing::good();
        evidence.scenario_file = "it's/a file.toml".into();
        evidence.overrides = vec!["--kernel".into(), "7.2.12".into()];
        assert_eq!(
            reproduce(&evidence),
            r"baton run 'it'\''s/a file.toml' --seed 1 --backend soft --kernel 7.2.12"
        );
        evidence.scenario_file = "s.toml".into();
        evidence.backend = "kvm".into();
        evidence.slowdown = 7;
        assert_eq!(
            reproduce(&evidence),
            "baton run s.toml --seed 1 --backend kvm --kernel 7.2.12 --slowdown 7"
        );
    }
}
