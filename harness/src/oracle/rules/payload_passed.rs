//! `payload-passed`: the user's own programs say that they passed, in each way in which the scenario lets them: by their
//! exit status, by lines on the console, and by results in KTAP.

use crate::evidence::{Evidence, OutcomeKind, PayloadEvidence};
use crate::ktap::{self, Status};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer, many};
use crate::oracle::{LookedAt, RuleName, RuleResult};
use crate::scenario::KexecBy;
use guest_agent::protocol::ProgramEnd;

const RULE: RuleName = RuleName::PayloadPassed;

/// Most bytes of a line that a finding quotes.
const QUOTED: usize = 200;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let evidence = context.evidence;
    let mut told = Told::default();
    if let Some(payload) = &evidence.payload {
        exits(evidence, payload, &mut told);
        texts(evidence, payload, &mut told);
        if payload.ktap {
            subtests(evidence, &mut told);
        }
    } else {
        told.notes.push("there is no payload".into());
    }
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: told.count,
            unit: "statements",
            note: told.notes.join("; "),
        },
        findings: told.findings,
        blind: told.blind,
    }
}

#[derive(Default)]
struct Told {
    count: u64,
    notes: Vec<String>,
    findings: Findings,
    blind: Vec<String>,
}

fn finding(owner: String, expected: String, actual: String, text: String) -> Finding {
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner,
        expected,
        actual,
        last_writer: Writer::Nobody,
        text,
        question: None,
        explained_by: Vec::new(),
    }
}

/// How the programs ended that the agent waited for.
fn exits(evidence: &Evidence, payload: &PayloadEvidence, told: &mut Told) {
    if payload.is_init {
        return;
    }
    for (generation, command) in (0..).zip(&payload.commands) {
        let of = payload.ends.iter().find(|end| end.generation == generation);
        let Some(end) = of else {
            let awaited = payload.kexec == KexecBy::Baton || generation == evidence.kexecs;
            let reached = generation <= evidence.outcome.generation;
            if awaited && reached && evidence.outcome.kind != OutcomeKind::SetupFailed {
                told.blind.push(format!(
                    "how \"{command}\" of generation {generation} would have ended"
                ));
            }
            continue;
        };
        told.count += 1;
        if end.end != ProgramEnd::Exit(0) {
            let text = format!("\"{command}\" of generation {generation} ended with {}", end.end);
            told.findings.add(|| {
                let owner = format!("payload of generation {generation}");
                finding(owner, "exit status 0".into(), end.end.to_string(), text)
            });
        }
    }
    told.notes.push(many(payload.ends.len() as u64, "end"));
}

/// Whether a part of the console was not kept.
fn is_cut(evidence: &Evidence) -> bool {
    (0..=evidence.outcome.generation).any(|generation| evidence.console_lost(generation) > 0)
}

/// Texts that have to be on the console, and those that may not.
fn texts(evidence: &Evidence, payload: &PayloadEvidence, told: &mut Told) {
    let line_with = |text: &String| evidence.console.lines().find(|line| line.contains(text.as_str()));
    for text in &payload.passed {
        match line_with(text) {
            Some(_) => told.count += 1,
            None if is_cut(evidence) => {
                told.blind
                    .push(format!("\"{text}\" is not in what was kept of the console"));
            }
            None => {
                told.count += 1;
                told.findings.add(|| {
                    let owner = "console".into();
                    let words = format!("no line of the console has \"{text}\"");
                    finding(owner, format!("a line with \"{text}\""), "none".into(), words)
                });
            }
        }
    }
    for text in &payload.failed {
        told.count += 1;
        if let Some(line) = line_with(text) {
            told.findings.add(|| {
                let line: String = line.trim().chars().take(QUOTED).collect();
                let words = format!("the console has \"{line}\"");
                finding("console".into(), format!("no line with \"{text}\""), line, words)
            });
        } else if is_cut(evidence) {
            told.blind.push(format!(
                "whether \"{text}\" is in what was not kept of the console"
            ));
        }
    }
    let lines = payload.passed.len() + payload.failed.len();
    if lines > 0 {
        told.notes.push(many(lines as u64, "text"));
    }
}

/// Results in KTAP.
fn subtests(evidence: &Evidence, told: &mut Told) {
    let results = ktap::read(&evidence.console);
    let owner = || "console".to_owned();
    for test in &results.tests {
        told.count += 1;
        if test.status == Status::Failed {
            told.findings.add(|| {
                let words = format!("test {} \"{}\" is not ok", test.number, test.name);
                finding(
                    format!("test \"{}\"", test.name),
                    "ok".into(),
                    "not ok".into(),
                    words,
                )
            });
        }
    }
    for broken in &results.broken {
        told.findings.add(|| {
            finding(
                owner(),
                "a result for each test".into(),
                broken.clone(),
                broken.clone(),
            )
        });
    }
    if results.tests.is_empty() {
        told.blind.push("the console has no result in KTAP".into());
    }
    if results.cut || is_cut(evidence) {
        told.blind.push("not all results in KTAP were kept".into());
    }
    let skipped = results
        .tests
        .iter()
        .filter(|test| test.status == Status::Skipped)
        .count();
    let tests = many(results.tests.len() as u64, "test");
    told.notes.push(format!("{tests} in KTAP, {skipped} skipped"));
}
