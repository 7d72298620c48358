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
    /// Whether the run ended in the way that was expected.
    pub as_expected: bool,
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
        let idle = idle_injections(&evidence);
        let mut judged = Self {
            evidence,
            results,
            judgement,
        };
        judged.fail_with(idle);
        Ok(judged)
    }

    /// Adds reasons for which the scenario counts as not run or judged. Without any, the verdict stands.
    pub(crate) fn fail_with(&mut self, reasons: impl IntoIterator<Item = String>) {
        for reason in reasons {
            self.judgement.verdict = Verdict::Error;
            self.judgement.reasons.push(reason);
        }
    }
}

/// One reason for each injection that never fired: a run without its fault says nothing of it. A run that has not ended
/// has its own reason.
fn idle_injections(evidence: &Evidence) -> Vec<String> {
    if evidence.outcome.kind == OutcomeKind::Unfinished {
        return Vec::new();
    }
    let all = (0..).zip(&evidence.injections);
    let idle = all.filter_map(|(number, injection): (u32, _)| {
        let why = injection.never_fired()?;
        Some(format!(
            "injection {number} never fired ({}): {why}",
            injection.words
        ))
    });
    idle.collect()
}

/// Compares results with expectations.
///
/// A run that ended in another way than it should is the first reason. Rules that had to say something and had nothing
/// to look at follow from that, and are one reason together.
pub fn judge(evidence: &Evidence, expect: &Expect, results: &[RuleResult]) -> Judgement {
    let Outcome {
        kind,
        text,
        generation,
        phase,
    } = &evidence.outcome;
    let mut judgement = Judgement {
        verdict: Verdict::Pass,
        reasons: Vec::new(),
        as_expected: expect.is_met_by(*kind),
        rules: Vec::new(),
    };
    let unexpected = !judgement.as_expected;
    if unexpected {
        let wanted = expect
            .outcome
            .map_or("any in the guest", |expected| expected.name());
        judgement.fail(format!(
            "the run ended as {}, expected {wanted}: {text}",
            kind.name()
        ));
        if kind.is_unjudgeable() {
            judgement.verdict = Verdict::Error;
        }
    }
    let mut nothing_seen = 0;
    for result in results {
        let expected = expect.of(result.rule);
        let met = match expected {
            Expected::Holds => result.held(),
            Expected::Violated => deviation(expect, result).is_none(),
            Expected::Unjudged => !result.judged(),
            Expected::Any => true,
        };
        judgement.rules.push((result.rule, expected, met));
        if met {
            continue;
        }
        if unexpected && result.saw_nothing() {
            nothing_seen += 1;
        } else {
            judgement.fail(unmet(expect, result, expected));
        }
    }
    if nothing_seen > 0 {
        judgement.fail(ended_before(nothing_seen, evidence));
    }
    // Ignore the results of the rules, because they saw only a part of the run.
    if *kind == OutcomeKind::Unfinished {
        judgement.verdict = Verdict::Error;
        judgement.reasons = vec![format!(
            "{text}: its evidence reaches into {phase} of generation {generation}"
        )];
    }
    judgement
}

/// Says that some rules had nothing to look at because the run ended too early.
pub fn ended_before(rules: usize, evidence: &Evidence) -> String {
    let Outcome {
        generation, phase, ..
    } = &evidence.outcome;
    let rules = if rules == 1 {
        "1 rule".into()
    } else {
        format!("{rules} rules")
    };
    format!("{rules} had nothing to look at, because the run ended in {phase} of generation {generation}")
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
        (1, None) => "is violated (1 finding)".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Phase;
    use crate::testing;

    /// The judgement of a run that ended in this way before anything was preserved.
    fn early(kind: OutcomeKind, expect: &str) -> Judgement {
        let mut evidence = testing::good();
        evidence.scenario_text = format!("{}[expect]\n{expect}", testing::SCENARIO);
        evidence.outcome = Outcome {
            kind,
            generation: 0,
            phase: Phase::Prepare,
            text: "open(/dev/liveupdate) failed".into(),
        };
        (evidence.blobs, evidence.retrievals, evidence.memory) = Default::default();
        evidence.objects[0].preserved_by.clear();
        evidence.captures = Default::default();
        evidence.dma = None;
        evidence.ledger.entries.clear();
        Judged::new(evidence).unwrap().judgement
    }

    #[test]
    fn what_follows_from_an_unexpected_end_is_one_reason_after_it() {
        let judgement = early(OutcomeKind::GuestPanic, "");
        assert_eq!(judgement.verdict, Verdict::Fail);
        assert_eq!(
            judgement.reasons,
            [
                "the run ended as guest-panic, expected completed: open(/dev/liveupdate) failed",
                "9 rules had nothing to look at, because the run ended in prepare of generation 0"
            ]
        );
        // A rule that had nothing to look at in a run that ended as it should is a reason by itself.
        let judgement = early(OutcomeKind::Completed, "");
        assert_eq!(judgement.reasons.len(), 9, "{judgement:?}");
        assert_eq!(
            judgement.reasons[0],
            "preserved-content had nothing to look at, and had to hold"
        );
    }

    #[test]
    fn any_outcome_covers_what_happens_in_the_guest_and_no_failed_set_up() {
        for kind in OutcomeKind::ALL {
            let any = early(kind, "outcome = \"any\"\n").verdict;
            let named = early(kind, &format!("outcome = \"{}\"\n", kind.name()));
            let expected = match kind {
                OutcomeKind::SetupFailed | OutcomeKind::LedgerFull | OutcomeKind::MachineFailed => {
                    Verdict::Error
                }
                _ => Verdict::Pass,
            };
            assert_eq!(any, expected, "{}", kind.name());
            if !matches!(kind, OutcomeKind::Completed | OutcomeKind::SessionLost) {
                assert_eq!(named.verdict, Verdict::Pass, "{}", kind.name());
            }
        }
    }
}
