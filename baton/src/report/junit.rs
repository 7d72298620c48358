//! The report as JUnit XML: a test suite per scenario, in it the test cases of [`super::cases`].

use super::cases::{Case, Status, cases};
use super::json::{Report, ScenarioReport};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::time::Duration;

/// Lines of the console's end in a test suite's output.
const TAIL: usize = 24;

/// The report as XML. Characters that XML cannot hold are left out.
pub fn junit(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut xml = quick_junit::Report::new("baton");
    let suites: Vec<TestSuite> = report.scenarios.iter().map(suite).collect();
    xml.set_time(suites.iter().filter_map(|suite| suite.time).sum());
    xml.add_test_suites(suites);
    xml.to_string()
}

fn suite(scenario: &ScenarioReport) -> TestSuite {
    let mut suite = TestSuite::new(scenario.name());
    let time = duration(scenario);
    suite.set_time(time);
    let kernels: Vec<&str> = scenario
        .kernels
        .iter()
        .map(|kernel| kernel.release.as_str())
        .collect();
    suite.add_properties([
        ("scenario", scenario.scenario_file.as_str()),
        ("backend", &scenario.backend),
        ("seed", &scenario.seed.to_string()),
        ("kernels", &kernels.join(" -> ")),
        ("reproduce", &scenario.reproduce),
    ]);
    let cases = cases(scenario);
    suite.add_test_cases((0..).zip(&cases).map(|(number, case)| {
        let mut xml = test_case(case);
        xml.set_classname(scenario.name());
        // The run is the first case's; a rule takes no time worth telling.
        xml.set_time(if number == 0 { time } else { Duration::ZERO });
        xml
    }));
    suite.set_system_out(output(scenario));
    suite
}

/// Host time of the run.
fn duration(scenario: &ScenarioReport) -> Duration {
    let ms: f64 = scenario.phases.iter().map(|phase| phase.wall_ms).sum();
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

fn test_case(case: &Case) -> TestCase {
    let mut status = match case.status {
        Status::Passed => TestCaseStatus::success(),
        Status::Skipped => TestCaseStatus::skipped(),
        Status::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Status::Error => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    if case.status != Status::Passed {
        status.set_message(case.text.as_str());
    }
    if matches!(case.status, Status::Failed | Status::Error) && !case.details.is_empty() {
        status.set_description(case.details.join("\n"));
    }
    let passed = case.status == Status::Passed;
    let mut xml = TestCase::new(case.name.as_str(), status);
    if passed {
        let lines = std::iter::once(&case.text).chain(&case.details);
        xml.set_system_out(lines.map(String::as_str).collect::<Vec<_>>().join("\n"));
    }
    xml
}

/// The console's end, and how to have the run again.
fn output(scenario: &ScenarioReport) -> String {
    let mut lines: Vec<&str> = scenario.picture.last_lines(TAIL);
    let reproduce = format!("reproduce: {}", scenario.reproduce);
    if !scenario.reproduce.is_empty() {
        lines.push(&reproduce);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::cases::END;
    use crate::report::samples::variety;
    use quick_junit::Report as Xml;

    fn parsed(scenarios: Vec<ScenarioReport>) -> Xml {
        let text = junit(&Report::new(scenarios)).unwrap();
        Xml::deserialize_from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
    }

    #[test]
    fn what_is_written_can_be_read_and_counts_right() {
        let scenarios = variety();
        let expected: Vec<(String, Vec<Case>)> = scenarios
            .iter()
            .map(|scenario| (scenario.name().to_owned(), cases(scenario)))
            .collect();
        let xml = parsed(scenarios);
        assert_eq!(xml.test_suites.len(), expected.len());
        let (mut failures, mut errors, mut skipped) = (0, 0, 0);
        for (suite, (name, cases)) in xml.test_suites.iter().zip(&expected) {
            assert_eq!(suite.name.as_str(), name);
            assert_eq!((suite.tests, suite.test_cases.len()), (cases.len(), cases.len()));
            for (read, case) in suite.test_cases.iter().zip(cases) {
                assert_eq!(read.name.as_str(), case.name);
                let (status, message) = match &read.status {
                    TestCaseStatus::Success { .. } => (Status::Passed, None),
                    TestCaseStatus::Skipped { message, .. } => (Status::Skipped, message.as_ref()),
                    TestCaseStatus::NonSuccess { kind, message, .. } => match kind {
                        NonSuccessKind::Failure => (Status::Failed, message.as_ref()),
                        NonSuccessKind::Error => (Status::Error, message.as_ref()),
                    },
                };
                assert_eq!(status, case.status, "{}", case.name);
                let said = message.map(quick_junit::XmlString::as_str);
                let wanted = (status != Status::Passed).then_some(case.text.as_str());
                assert_eq!(said, wanted);
                failures += usize::from(status == Status::Failed);
                errors += usize::from(status == Status::Error);
                skipped += usize::from(status == Status::Skipped);
            }
        }
        assert_eq!(
            (xml.failures, xml.errors, xml.skipped),
            (failures, errors, skipped)
        );
        assert!(failures > 0 && errors > 0 && skipped > 0);
    }

    #[test]
    fn a_failed_set_up_is_an_error_with_its_cause_and_the_output_says_how_to_have_it_again() {
        let mut evidence = harness::testing::good();
        evidence.outcome.kind = harness::evidence::OutcomeKind::SetupFailed;
        evidence.outcome.generation = 0;
        let hello = evidence.kernels[0].hello.as_mut().unwrap();
        (hello.liveupdate, hello.release) = (false, "6.17.8".into());
        evidence.console = "[    0.1] KHO: \u{1b}[31mdisabled ]]> & <gone>\u{0}\n".into();
        let judged = harness::verdict::Judged::new(evidence).unwrap();
        let xml = parsed(vec![ScenarioReport::new(&judged)]);
        let suite = &xml.test_suites[0];
        let TestCaseStatus::NonSuccess {
            kind, description, ..
        } = &suite.test_cases[0].status
        else {
            panic!("{suite:?}");
        };
        assert_eq!(
            (suite.test_cases[0].name.as_str(), *kind),
            (END, NonSuccessKind::Error)
        );
        let cause = description.as_ref().unwrap().as_str();
        assert!(
            cause.contains("because Linux 6.17.8 has no Live Update Orchestrator"),
            "{cause}"
        );
        let output = suite.system_out.as_ref().unwrap().as_str();
        assert!(
            output.contains("KHO: ") && output.contains("disabled ]]> & <gone>"),
            "{output}"
        );
        assert!(
            output.ends_with("reproduce: baton run small.toml --seed 1 --backend soft"),
            "{output}"
        );
    }
}
