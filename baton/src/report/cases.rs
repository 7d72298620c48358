//! The test cases of a scenario, for formats that know tests: how the run ended, then each rule.

use super::json::{OutcomeReport, Rule, ScenarioReport};
use super::printable;
use harness::evidence::OutcomeKind;
use harness::ktap::{self, TestResult};
use harness::oracle::{Finding, RuleName, Writer, unit_of};
use harness::verdict::Verdict;

/// Name of the case that says whether the run ended as it should.
pub(super) const END: &str = "run-ended-as-expected";

/// Most findings that a case tells in full.
const TOLD: usize = 6;

/// What became of a test case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// As expected.
    Passed,
    /// There was nothing to judge, and the verdict does not hang on it.
    Skipped,
    /// Otherwise than expected.
    Failed,
    /// It could not be judged, and had to be.
    Error,
}

/// One test case of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    /// [`END`], or the name of the rule.
    pub name: String,
    /// What became of it.
    pub status: Status,
    /// Why, in one line.
    pub text: String,
    /// Further lines: causes, reasons, findings. They may hold text of the guest.
    pub details: Vec<String>,
}

/// The cases of a scenario. All pass or are skipped exactly if its verdict is `pass`.
pub(super) fn cases(scenario: &ScenarioReport) -> Vec<Case> {
    let rules = scenario.rules.iter().map(|rule| of_rule(rule, scenario));
    let tests = scenario.payload.iter().flat_map(|payload| &payload.tests);
    let tests = tests.map(|test| of_test(test, scenario));
    std::iter::once(end(scenario)).chain(rules).chain(tests).collect()
}

/// A test of the payload, which the rule about the payload judges.
fn of_test(test: &TestResult, scenario: &ScenarioReport) -> Case {
    let rule = RuleName::PayloadPassed.name();
    let met = scenario
        .rules
        .iter()
        .any(|judged| judged.name == rule && judged.met);
    let (status, text) = match test.status {
        ktap::Status::Passed => (Status::Passed, "ok"),
        ktap::Status::Skipped => (Status::Skipped, "skipped by the payload"),
        ktap::Status::ExpectedFailure => (Status::Passed, "not ok, as the payload expects"),
        ktap::Status::Failed if met => (Status::Passed, "not ok, as the scenario expects"),
        ktap::Status::Failed => (Status::Failed, "not ok"),
    };
    let name = if test.name.is_empty() {
        test.number.to_string()
    } else {
        test.name.clone()
    };
    Case {
        name: format!("{rule}/{}", printable(&name).replace('#', "_")),
        status,
        text: text.into(),
        details: Vec::new(),
    }
}

fn end(scenario: &ScenarioReport) -> Case {
    let ended = scenario.outcome.as_ref().map(OutcomeReport::sentence);
    let mut details: Vec<String> = scenario
        .cause
        .iter()
        .map(|cause| format!("because {cause}"))
        .collect();
    let unexpected = scenario
        .outcome
        .as_ref()
        .is_some_and(|outcome| !outcome.as_expected);
    let (status, text) = match scenario.verdict {
        Verdict::Error => {
            let first = scenario.reasons.first().cloned().unwrap_or_default();
            details.extend(scenario.reasons.iter().skip(1).cloned());
            (Status::Error, first)
        }
        Verdict::Fail if unexpected => {
            let first = scenario.reasons.first().cloned().unwrap_or_default();
            (Status::Failed, first)
        }
        Verdict::Fail | Verdict::Pass => (Status::Passed, ended.unwrap_or_default()),
    };
    Case {
        name: END.into(),
        status,
        text,
        details,
    }
}

fn of_rule(rule: &Rule, scenario: &ScenarioReport) -> Case {
    let outcome = scenario.outcome.as_ref();
    let unfinished = outcome.is_some_and(|outcome| outcome.kind == OutcomeKind::Unfinished.name());
    let ended_early = outcome.filter(|outcome| !outcome.as_expected);
    let looked = format!(
        "looked at {} {}",
        rule.looked_at,
        unit_of(rule.looked_at, rule.unit)
    );
    let found = findings(rule.findings);
    let (status, text) = match (rule.met, rule.unjudged()) {
        (false, _) if unfinished => (Status::Skipped, "the run has not ended".into()),
        (true, Some(why)) => (Status::Skipped, why),
        (false, Some(why)) => match ended_early.filter(|_| rule.saw_nothing()) {
            Some(outcome) => {
                let (phase, generation) = (outcome.phase, outcome.generation);
                let why = format!("{why}, because the run ended in {phase} of generation {generation}");
                (Status::Skipped, why)
            }
            None => (Status::Error, format!("{why}, expected {}", rule.expected)),
        },
        (true, None) if rule.held => (Status::Passed, format!("held; {looked}")),
        (true, None) => (
            Status::Passed,
            format!("{found}, expected {}; {looked}", rule.expected),
        ),
        (false, None) if rule.held => (
            Status::Failed,
            format!("held, expected {}; {looked}", rule.expected),
        ),
        (false, None) => (
            Status::Failed,
            format!("{found}, expected {}; {looked}", rule.expected),
        ),
    };
    Case {
        name: rule.name.clone(),
        status,
        text,
        details: told(rule, &scenario.findings),
    }
}

/// The first findings of a rule, in lines.
fn told(rule: &Rule, findings: &[Finding]) -> Vec<String> {
    let ours = findings.iter().filter(|finding| finding.rule.name() == rule.name);
    let mut lines: Vec<String> = ours.take(TOLD).flat_map(lines_of).collect();
    let more = rule.findings.saturating_sub(TOLD as u64);
    if more > 0 {
        lines.push(format!("... and {more} more findings"));
    }
    lines
}

fn lines_of(finding: &Finding) -> Vec<String> {
    let mut lines = vec![finding.text.clone()];
    if let Some(page) = finding.page {
        lines.push(format!("  page {page:#x}, owner {}", finding.owner));
    }
    let mut actual = finding.actual.lines();
    let first = actual.next().unwrap_or_default();
    lines.push(format!("  expected {}, actual {first}", finding.expected));
    lines.extend(actual.map(|line| format!("  {line}")));
    if finding.last_writer != Writer::Nobody {
        lines.push(format!("  last writer: {}", finding.last_writer));
    }
    if !finding.explained_by.is_empty() {
        let numbers: Vec<String> = finding.explained_by.iter().map(u32::to_string).collect();
        lines.push(format!("  explained by injection {}", numbers.join(", ")));
    }
    lines
}

/// A number of findings in words.
pub(super) fn findings(count: u64) -> String {
    if count == 1 {
        "1 finding".into()
    } else {
        format!("{count} findings")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::variety;

    fn case<'a>(cases: &'a [Case], name: &str) -> &'a Case {
        cases.iter().find(|case| case.name == name).unwrap()
    }

    #[test]
    fn a_verdict_is_pass_exactly_if_no_case_is_bad() {
        let mut verdicts = Vec::new();
        for report in variety() {
            let bad = |case: &Case| matches!(case.status, Status::Failed | Status::Error);
            let cases = cases(&report);
            let pass = report.verdict() == Verdict::Pass;
            assert_eq!(cases.iter().any(bad), !pass, "{cases:?}");
            verdicts.push(report.verdict());
        }
        for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Error] {
            assert!(verdicts.contains(&verdict), "{verdicts:?}");
        }
    }

    #[test]
    fn each_case_says_what_is_otherwise_than_expected() {
        let [_, damaged, expected, blind, failed, unfinished, gone] = &variety()[..] else {
            panic!("seven reports");
        };
        let status = |report: &ScenarioReport, name| case(&cases(report), name).status;
        assert_eq!(status(damaged, END), Status::Passed);
        assert_eq!(status(damaged, "preserved-content"), Status::Failed);
        assert_eq!(status(expected, "preserved-content"), Status::Passed);
        assert_eq!(status(blind, "no-cpu-write-before-retrieval"), Status::Error);
        assert_eq!(status(failed, END), Status::Error);
        assert_eq!(status(failed, "device-writes-landed"), Status::Skipped);
        assert_eq!(status(unfinished, "preserved-content"), Status::Skipped);
        assert_eq!(cases(gone).len(), 1);
        assert_eq!(status(gone, END), Status::Error);
        let damaged = cases(damaged);
        let violated = case(&damaged, "preserved-content");
        assert!(
            violated.text.starts_with("1 finding, expected holds"),
            "{violated:?}"
        );
        assert!(
            violated.details.iter().any(|line| line.contains("0x100f")),
            "{violated:?}"
        );
    }
}
