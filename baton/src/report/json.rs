//! The JSON report. `docs/report.md` documents every field. [`VERSION`] goes up when a field is removed or changes its
//! meaning.

use super::injections::Injection;
use super::picture::Picture;
use super::{last_lines, phase_lines, reproduce, write_text};
use harness::cause::{cause, kernel_lines};
use harness::evidence::{Evidence, KernelEvidence, Outcome, PayloadEvidence, StepRecord};
use harness::ktap::{self, TestResult};
use harness::oracle::{Finding, RuleResult};
use harness::scenario::KexecBy;
use harness::verdict::{Judged, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the report's schema.
pub const VERSION: u32 = 1;

/// Most results of a payload's tests in a report.
const MAX_TESTS: usize = 5_000;
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
    pub(super) name: String,
    pub(super) verdict: Verdict,
    /// Why the verdict is not `pass`, one sentence each.
    pub(super) reasons: Vec<String>,
    pub(super) scenario_file: String,
    pub(super) reproduce: String,
    pub(super) backend: String,
    pub(super) seed: u64,
    pub(super) outcome: Option<OutcomeReport>,
    /// Why it ended so, where the evidence shows it.
    pub(super) cause: Option<String>,
    /// Lines of KHO, LUO and kexec on the console.
    pub(super) kernel_lines: Vec<String>,
    /// The console's last lines, if the run ended otherwise than it should.
    pub(super) last_lines: Vec<String>,
    pub(super) handover: Option<String>,
    pub(super) payload: Option<PayloadReport>,
    pub(super) kernels: Vec<Kernel>,
    pub(super) phases: Vec<Phase>,
    pub(super) device_writes: BTreeMap<String, u64>,
    pub(super) device_bytes: BTreeMap<String, u64>,
    pub(super) preserved_pages: u64,
    pub(super) preserved_bytes: u64,
    pub(super) rules: Vec<Rule>,
    pub(super) findings: Vec<Finding>,
    pub(super) injections: Vec<Injection>,
    /// The steps that the scenario gives, as far as they were done.
    pub(super) steps: Vec<StepAnswer>,
    pub(super) state_hash: String,
    pub(super) ledger_digest: String,
    pub(super) blackout_ns: Option<u64>,
    pub(super) blackouts_ns: Vec<u64>,
    /// Lower bound on the time of each jump; null if the backend saw the jump itself.
    pub(super) jumps_not_before_ns: Vec<Option<u64>>,
    /// Host nanoseconds to a nanosecond of device time.
    pub(super) slowdown: u32,
    /// Instructions that softcpu executed because KVM could not.
    pub(super) emulated: BTreeMap<String, u64>,
    /// What the other formats show beside these fields.
    #[serde(skip)]
    pub(super) picture: Picture,
}

#[derive(Debug, Serialize)]
pub(super) struct OutcomeReport {
    pub(super) kind: &'static str,
    pub(super) generation: u32,
    pub(super) phase: &'static str,
    pub(super) text: String,
    /// Whether the scenario expects that.
    pub(super) as_expected: bool,
}

/// The programs of the user's own, and what they said.
#[derive(Debug, Serialize)]
pub(super) struct PayloadReport {
    pub(super) initramfs_hash: String,
    pub(super) init: bool,
    pub(super) kexec: KexecBy,
    pub(super) programs: Vec<ProgramReport>,
    pub(super) tests: Vec<TestResult>,
}

#[derive(Debug, Serialize)]
pub(super) struct ProgramReport {
    /// Null for an init, which is that of all.
    pub(super) generation: Option<u32>,
    pub(super) command: String,
    /// Null if the agent did not see it end.
    pub(super) ended: Option<String>,
}

impl PayloadReport {
    fn new(evidence: &Evidence, payload: &PayloadEvidence) -> Self {
        let program = |(generation, command): (u32, &String)| {
            let end = payload.ends.iter().find(|end| end.generation == generation);
            ProgramReport {
                generation: (!payload.is_init).then_some(generation),
                command: command.clone(),
                ended: end.map(|end| end.end.to_string()),
            }
        };
        Self {
            initramfs_hash: payload.hash.clone(),
            init: payload.is_init,
            kexec: payload.kexec,
            programs: (0..).zip(&payload.commands).map(program).collect(),
            tests: if payload.ktap {
                ktap::read(&evidence.console)
                    .tests
                    .into_iter()
                    .take(MAX_TESTS)
                    .collect()
            } else {
                Vec::new()
            },
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Kernel {
    pub(super) generation: u32,
    pub(super) release: String,
    pub(super) build_id: Option<String>,
    pub(super) image: String,
    pub(super) image_hash: String,
    pub(super) command_line: String,
    pub(super) booted: bool,
    pub(super) processors: Option<u32>,
    /// Bytes by which it lay above the addresses of its symbol file; null if there are no symbols.
    pub(super) symbol_offset: Option<u64>,
    /// Why its symbol file was not used.
    pub(super) symbols_refused: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) generation: u32,
    pub(super) guest_ns: u64,
    pub(super) instructions: Option<u64>,
    pub(super) wall_ms: f64,
    pub(super) device_writes: u64,
    pub(super) device_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) looked_at: u64,
    pub(super) unit: &'static str,
    pub(super) note: String,
    pub(super) held: bool,
    pub(super) blind: Vec<String>,
    pub(super) findings: u64,
    pub(super) expected: &'static str,
    pub(super) met: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct StepAnswer {
    /// Its place in the scenario's list; null if the list leaves it out.
    number: Option<u32>,
    generation: u32,
    what: String,
    expected: String,
    answer: String,
    /// The call that failed.
    call: Option<String>,
    /// Whether the answer is the expected one.
    met: bool,
    time_ns: u64,
}

impl StepAnswer {
    fn new(step: &StepRecord) -> Self {
        Self {
            number: Some(step.number).filter(|number| *number > 0),
            generation: step.at.generation,
            what: step.what.clone(),
            expected: step.wanted(),
            answer: step.got(),
            call: step.failure.as_ref().map(|failure| failure.call.clone()),
            met: step.is_as_expected(),
            time_ns: step.at.time_ns,
        }
    }
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
            outcome: Some(outcome(&evidence.outcome, judgement.as_expected)),
            cause: cause(evidence),
            kernel_lines: kernel_lines(&evidence.console)
                .take(MAX_LINES)
                .map(str::to_owned)
                .collect(),
            last_lines: last_lines(judged).into_iter().map(str::to_owned).collect(),
            handover: evidence.handover.as_ref().map(ToString::to_string),
            payload: evidence
                .payload
                .as_ref()
                .map(|payload| PayloadReport::new(evidence, payload)),
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
            injections: super::injections::all(evidence, results),
            steps: evidence.steps.iter().map(StepAnswer::new).collect(),
            state_hash: evidence.state_hash.clone(),
            ledger_digest: evidence.ledger_digest(),
            blackout_ns: evidence.blackouts_ns.iter().max().copied(),
            blackouts_ns: evidence.blackouts_ns.clone(),
            jumps_not_before_ns: evidence.jumps_not_before.clone(),
            slowdown: evidence.slowdown,
            emulated: evidence.emulated.iter().cloned().collect(),
            picture: Picture::new(judged),
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
            handover: None,
            payload: None,
            kernels: Vec::new(),
            phases: Vec::new(),
            device_writes: BTreeMap::new(),
            device_bytes: BTreeMap::new(),
            preserved_pages: 0,
            preserved_bytes: 0,
            rules: Vec::new(),
            findings: Vec::new(),
            injections: Vec::new(),
            steps: Vec::new(),
            state_hash: String::new(),
            ledger_digest: String::new(),
            blackout_ns: None,
            blackouts_ns: Vec::new(),
            jumps_not_before_ns: Vec::new(),
            slowdown: 1,
            emulated: BTreeMap::new(),
            picture: Picture::default(),
        }
    }
}

impl OutcomeReport {
    /// How the run ended, in one sentence.
    pub(super) fn sentence(&self) -> String {
        let Self {
            kind,
            generation,
            phase,
            text,
            ..
        } = self;
        format!("ended as {kind} in {phase} of generation {generation}: {text}")
    }
}

impl Rule {
    /// Why the rule says nothing of the run; `None` if it does.
    pub(super) fn unjudged(&self) -> Option<String> {
        match &self.blind[..] {
            _ if self.held || self.findings > 0 => None,
            [] => Some("had nothing to look at".into()),
            blind => Some(format!("cannot be judged: {}", blind.join("; "))),
        }
    }

    /// Whether there was nothing to look at.
    pub(super) fn saw_nothing(&self) -> bool {
        self.unjudged().is_some() && self.blind.is_empty()
    }
}

fn outcome(outcome: &Outcome, as_expected: bool) -> OutcomeReport {
    OutcomeReport {
        kind: outcome.kind.name(),
        generation: outcome.generation,
        phase: outcome.phase.name(),
        text: outcome.text.clone(),
        as_expected,
    }
}

fn kernels(evidence: &Evidence) -> Vec<Kernel> {
    let kernel = |(generation, kernel): (u32, &KernelEvidence)| Kernel {
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
    evidence.booted().map(kernel).collect()
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
    write_text(&text, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing;

    #[test]
    fn every_documented_field_is_there_and_none_else() {
        let mut evidence = testing::good();
        testing::change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
        let at = harness::evidence::InjectedAt {
            generation: 0,
            phase: harness::evidence::Phase::Armed,
            time_ns: 600_000,
            instructions: Some(1),
        };
        evidence.injections = vec![harness::evidence::InjectionEvidence {
            words: "at a time: something".into(),
            acts_on_machine: false,
            armed: Some(at),
            fired: 1,
            firings: vec![harness::evidence::FiringEvidence {
                at,
                what: "done".into(),
            }],
            unable: Vec::new(),
        }];
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
            &scenario["outcome"],
            &scenario["phases"][0],
            &scenario["rules"][0],
            &scenario["findings"][0],
            &scenario["kernels"][0],
            &scenario["injections"][0],
            &scenario["injections"][0]["firings"][0],
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
