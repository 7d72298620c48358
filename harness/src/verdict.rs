//! Computes the verdict: compares the results of the rules with the scenario's expectations.

use crate::evidence::{Evidence, Outcome, OutcomeKind};
use crate::oracle::{self, RuleName, RuleResult};
use crate::scenario::{Expect, Expected, ScenarioError, parse};
use serde::Serialize;

/// What became of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every expectation was met.
    Pass,
    /// At least one was not.
    Fail,
    /// It could not be run or judged.
    Error,
}

impl Verdict {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Error => "error",
        }
    }
}

/// A verdict with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is not a pass, one sentence each.
    pub reasons: Vec<String>,
    /// The expected result of each rule, and whether it was met.
    pub rules: Vec<(RuleName, Expected, bool)>,
}

/// A scenario that was run, or loaded, and judged.
#[derive(Debug, Clone)]
pub struct Judged {
    /// All that the run left.
    pub evidence: Evidence,
    /// What each rule says about it.
    pub results: Vec<RuleResult>,
    /// What that means.
    pub judgement: Judgement,
}

impl Judged {
    /// Applies the rules to evidence, and judges the results by the expectations of the scenario in it.
    pub fn new(evidence: Evidence) -> Result<Self, ScenarioError> {
        let scenario = parse(&evidence.scenario_file, &evidence.scenario_text)?;
        let results = oracle::judge(&evidence, &scenario.expect.allowed_complaints);
        let judgement = judge(&evidence, &scenario.expect, &results);
        Ok(Self {
            evidence,
            results,
            judgement,
        })
    }

    /// Adds reasons for which the scenario counts as not run or judged. Without any, the verdict stands.
    pub(crate) fn fail_with(&mut self, reasons: impl IntoIterator<Item = String>) {
        for reason in reasons {
            self.judgement.verdict = Verdict::Error;
            self.judgement.reasons.push(reason);
        }
    }
}

/// Compares results with expectations.
pub fn judge(evidence: &Evidence, expect: &Expect, results: &[RuleResult]) -> Judgement {
    let mut judgement = Judgement {
        verdict: Verdict::Pass,
        reasons: Vec::new(),
        rules: Vec::new(),
    };
    for result in results {
        let expected = expect.of(result.rule);
        let met = match expected {
            Expected::Holds => result.held(),
            Expected::Violated => deviation(expect, result).is_none(),
            Expected::Unjudged => !result.judged(),
            Expected::Any => true,
        };
        judgement.rules.push((result.rule, expected, met));
        if !met {
            judgement.fail(unmet(expect, result, expected));
        }
    }
    let Outcome {
        kind,
        text,
        generation,
        phase,
    } = &evidence.outcome;
    // Ignore the results of the rules, because they saw only a part of the run.
    if *kind == OutcomeKind::Unfinished {
        judgement.verdict = Verdict::Error;
        judgement.reasons = vec![format!(
            "{text}: its evidence reaches into {phase} of generation {generation}"
        )];
        return judgement;
    }
    if expect.outcome.is_some_and(|expected| expected != *kind) {
        let wanted = expect.outcome.map_or("any", |expected| expected.name());
        judgement.fail(format!(
            "the run ended as {}, expected {wanted}: {text}",
            kind.name()
        ));
        if kind.is_unjudgeable() {
            judgement.verdict = Verdict::Error;
        }
    }
    judgement
}

impl Judgement {
    fn fail(&mut self, reason: String) {
        self.verdict = self.verdict.max(Verdict::Fail);
        self.reasons.push(reason);
    }
}

/// How the findings of a rule that must be violated are not as expected.
fn deviation(expect: &Expect, result: &RuleResult) -> Option<String> {
    let criteria = expect.findings.get(&result.rule);
    criteria.cloned().unwrap_or_default().deviation(&result.findings)
}

fn unmet(expect: &Expect, result: &RuleResult, expected: Expected) -> String {
    let rule = result.rule;
    let found = match (result.findings.total, result.unjudged()) {
        (_, Some(why)) => why,
        (0, None) => "held".to_owned(),
        (total, None) => format!("is violated ({total} findings)"),
    };
    match expected {
        Expected::Holds => format!("{rule} {found}, and had to hold"),
        Expected::Violated if result.findings.total > 0 => {
            let why = deviation(expect, result).unwrap_or_default();
            format!("{rule} {why}")
        }
        Expected::Violated => format!("{rule} {found}, and had to be violated"),
        Expected::Unjudged | Expected::Any => format!("{rule} {found}, and was to have nothing to look at"),
    }
}
