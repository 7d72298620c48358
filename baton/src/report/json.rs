//! The JSON report. `docs/report.md` documents every field. [`VERSION`] goes up when a field is removed or changes its
//! meaning.

use super::{last_lines, phase_lines, reproduce};
use harness::cause::{cause, kernel_lines};
use harness::evidence::{Evidence, Outcome};
use harness::oracle::{Finding, RuleResult};
use harness::verdict::{Judged, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the report's schema.
pub const VERSION: u32 = 1;

/// Most console lines about the handover in a report.
const MAX_LINES: usize = 100;

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `"baton-report"`.
    pub schema: &'static str,
    /// [`VERSION`].
    pub version: u32,
    /// Version of the baton that made the verdicts.
    pub baton: &'static str,
    /// One entry per scenario, in the order of the command line.
    pub scenarios: Vec<ScenarioReport>,
}

/// One scenario.
#[derive(Debug, Serialize)]
pub struct ScenarioReport {
    name: String,
    verdict: Verdict,
    /// Why the verdict is not `pass`, one sentence each.
    reasons: Vec<String>,
    scenario_file: String,
    reproduce: String,
    backend: String,
    seed: u64,
    outcome: Option<OutcomeReport>,
    /// Why it ended so, where the evidence shows it.
    cause: Option<String>,
    /// Lines of KHO, LUO and kexec on the console.
    kernel_lines: Vec<String>,
    /// The console's last lines, if the run ended otherwise than it should.
    last_lines: Vec<String>,
    kernels: Vec<Kernel>,
    phases: Vec<Phase>,
    device_writes: BTreeMap<String, u64>,
    device_bytes: BTreeMap<String, u64>,
    preserved_pages: u64,
    preserved_bytes: u64,
    rules: Vec<Rule>,
    findings: Vec<Finding>,
    state_hash: String,
    ledger_digest: String,
    blackout_ns: Option<u64>,
    blackouts_ns: Vec<u64>,
    /// Lower bound on the time of each jump; null if the backend saw the jump itself.
    jumps_not_before_ns: Vec<Option<u64>>,
    /// Host nanoseconds to a nanosecond of device time.
    slowdown: u32,
    /// Instructions that softcpu executed because KVM could not.
    emulated: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct OutcomeReport {
    kind: &'static str,
    generation: u32,
    phase: &'static str,
    text: String,
}

#[derive(Debug, Serialize)]
struct Kernel {
    generation: u32,
    release: String,
    build_id: Option<String>,
    image: String,
    image_hash: String,
    command_line: String,
    booted: bool,
    processors: Option<u32>,
    /// Bytes by which it lay above the addresses of its symbol file; null if there are no symbols.
    symbol_offset: Option<u64>,
    /// Why its symbol file was not used.
    symbols_refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    generation: u32,
    guest_ns: u64,
    instructions: Option<u64>,
    wall_ms: f64,
    device_writes: u64,
    device_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Rule {
    name: String,
    looked_at: u64,
    unit: &'static str,
    note: String,
    held: bool,
    blind: Vec<String>,
    findings: u64,
    expected: &'static str,
    met: bool,
}

impl Report {
    /// Puts scenarios into a report.
    pub fn new(scenarios: Vec<ScenarioReport>) -> Self {
        Self {
            schema: "baton-report",
            version: VERSION,
            baton: env!("CARGO_PKG_VERSION"),
            scenarios,
        }
    }
}

impl ScenarioReport {
    /// The entry of a scenario that was judged.
    pub fn new(judged: &Judged) -> Self {
        let Judged {
            evidence,
            results,
            judgement,
        } = judged;
        let (mut device_writes, mut device_bytes) = (BTreeMap::new(), BTreeMap::new());
        let mut phases = Vec::new();
        for line in phase_lines(evidence) {
            let name = line.record.phase.name().to_owned();
            *device_writes.entry(name.clone()).or_default() += line.device_writes;
            *device_bytes.entry(name.clone()).or_default() += line.device_bytes;
            #[allow(clippy::cast_precision_loss)] // milliseconds for people
            phases.push(Phase {
                name,
                generation: line.record.generation,
                guest_ns: line.record.guest_ns,
                instructions: line.record.instructions,
                wall_ms: line.record.wall_us as f64 / 1000.0,
                device_writes: line.device_writes,
                device_bytes: line.device_bytes,
            });
        }
        Self {
            name: evidence.name.clone(),
            verdict: judgement.verdict,
            reasons: judgement.reasons.clone(),
            scenario_file: evidence.scenario_file.clone(),
            reproduce: reproduce(evidence),
            backend: evidence.backend.clone(),
            seed: evidence.seed,
            outcome: Some(outcome(&evidence.outcome)),
            cause: cause(evidence),
            kernel_lines: kernel_lines(&evidence.console)
                .take(MAX_LINES)
                .map(str::to_owned)
                .collect(),
            last_lines: last_lines(judged).into_iter().map(str::to_owned).collect(),
            kernels: kernels(evidence),
            phases,
            device_writes,
            device_bytes,
            preserved_pages: evidence.preserved_pages(),
            preserved_bytes: evidence.preserved_pages() * harness::evidence::PAGE,
            rules: results
                .iter()
                .zip(&judgement.rules)
                .map(|(result, (_, expected, met))| rule(result, expected.name(), *met))
                .collect(),
            findings: results
                .iter()
                .flat_map(|result| result.findings.kept.iter().cloned())
                .collect(),
            state_hash: evidence.state_hash.clone(),
            ledger_digest: evidence.ledger_digest(),
            blackout_ns: evidence.blackouts_ns.iter().max().copied(),
            blackouts_ns: evidence.blackouts_ns.clone(),
            jumps_not_before_ns: evidence.jumps_not_before.clone(),
            slowdown: evidence.slowdown,
            emulated: evidence.emulated.iter().cloned().collect(),
        }
    }

    /// The scenario's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The scenario's verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The entry of a scenario that could not be run or judged. `reason` is the only one of its reasons.
    pub fn error(name: String, scenario_file: String, seed: u64, reason: String) -> Self {
        Self {
            name,
            verdict: Verdict::Error,
            reasons: vec![reason],
            scenario_file,
            reproduce: String::new(),
            backend: String::new(),
            seed,
            outcome: None,
            cause: None,
            kernel_lines: Vec::new(),
            last_lines: Vec::new(),
            kernels: Vec::new(),
            phases: Vec::new(),
            device_writes: BTreeMap::new(),
            device_bytes: BTreeMap::new(),
            preserved_pages: 0,
            preserved_bytes: 0,
            rules: Vec::new(),
            findings: Vec::new(),
            state_hash: String::new(),
            ledger_digest: String::new(),
            blackout_ns: None,
            blackouts_ns: Vec::new(),
            jumps_not_before_ns: Vec::new(),
            slowdown: 1,
            emulated: BTreeMap::new(),
        }
    }
}

fn outcome(outcome: &Outcome) -> OutcomeReport {
    OutcomeReport {
        kind: outcome.kind.name(),
        generation: outcome.generation,
        phase: outcome.phase.name(),
        text: outcome.text.clone(),
    }
}

fn kernels(evidence: &Evidence) -> Vec<Kernel> {
    let kernel = |(generation, kernel): (u32, &harness::evidence::KernelEvidence)| Kernel {
        generation,
        release: kernel.release().to_owned(),
        build_id: kernel
            .hello
            .as_ref()
            .map(|hello| hello.build_id.clone())
            .filter(|id| !id.is_empty()),
        image: kernel.path.clone(),
        image_hash: kernel.image_hash.clone(),
        command_line: kernel.command_line.clone(),
        booted: kernel.hello.is_some(),
        processors: kernel.hello.as_ref().map(|hello| hello.processors),
        symbol_offset: kernel.symbols.offset(),
        symbols_refused: kernel.symbols.refusal(),
    };
    (0..).zip(&evidence.kernels).map(kernel).collect()
}

fn rule(result: &RuleResult, expected: &'static str, met: bool) -> Rule {
    Rule {
        name: result.rule.name().to_owned(),
        looked_at: result.looked_at.count,
        unit: result.looked_at.unit,
        note: result.looked_at.note.clone(),
        held: result.held(),
        blind: result.blind.clone(),
        findings: result.findings.total,
        expected,
        met,
    }
}

/// Writes a report to `path`; `-` is standard output.
pub fn write_json(report: &impl Serialize, path: &Path) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    if path.as_os_str() == "-" {
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
    } else {
        std::fs::write(path, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing;

    #[test]
    fn every_documented_field_is_there_and_none_else() {
        let mut evidence = testing::good();
        testing::change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
        let judged = Judged::new(evidence).unwrap();
        let value = serde_json::to_value(Report::new(vec![ScenarioReport::new(&judged)])).unwrap();
        let scenario = &value["scenarios"][0];
        assert_eq!(scenario["verdict"], "fail");
        assert_eq!(scenario["device_writes"]["armed"], 8);
        assert_eq!(scenario["device_bytes"]["armed"], 4 * (4096 + 8));
        assert_eq!(scenario["preserved_pages"], testing::PAGES);
        let documented = include_str!("../../../docs/report.md");
        for object in [
            &value,
            scenario,
            &scenario["phases"][0],
            &scenario["rules"][0],
            &scenario["findings"][0],
            &scenario["kernels"][0],
        ] {
            for key in object.as_object().unwrap().keys() {
                assert!(
                    documented.contains(&format!("`{key}`")),
                    "{key} is not in docs/report.md"
                );
            }
        }
    }
}
