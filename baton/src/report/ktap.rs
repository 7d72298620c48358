//! The report as KTAP, version 1 (Documentation/dev-tools/ktap.rst of Linux 7.3): a test per scenario, in it a subtest
//! for each of [`super::cases`].

use super::cases::{Case, Status, cases};
use super::json::{Report, ScenarioReport};
use super::printable;
use harness::verdict::Verdict;
use std::fmt::Write;

/// Lines of the console's end in the diagnostics of a scenario that did not pass.
const TAIL: usize = 12;

/// The report as text; every line ends with a line break.
pub fn ktap(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(report, &mut out);
    out
}

fn write_all(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(out, "KTAP version 1\n1..{}", report.scenarios.len())?;
    for (number, scenario) in (1..).zip(&report.scenarios) {
        subtests(scenario, out)?;
        let result = if scenario.verdict() == Verdict::Pass {
            "ok"
        } else {
            "not ok"
        };
        writeln!(out, "{result} {number} {}", description(scenario.name()))?;
    }
    Ok(())
}

fn subtests(scenario: &ScenarioReport, out: &mut String) -> std::fmt::Result {
    let cases = cases(scenario);
    writeln!(
        out,
        "  KTAP version 1\n  # Subtest: {}",
        description(scenario.name())
    )?;
    writeln!(out, "  1..{}", cases.len())?;
    if scenario.verdict() != Verdict::Pass {
        for line in scenario.picture.last_lines(TAIL) {
            diagnostic(&format!("console: {line}"), out)?;
        }
    }
    if !scenario.reproduce.is_empty() {
        diagnostic(&format!("reproduce: {}", scenario.reproduce), out)?;
    }
    for (number, case) in (1..).zip(&cases) {
        subtest(number, case, out)?;
    }
    Ok(())
}

fn subtest(number: usize, case: &Case, out: &mut String) -> std::fmt::Result {
    let bad = matches!(case.status, Status::Failed | Status::Error);
    if bad || case.status == Status::Passed {
        diagnostic(&format!("{}: {}", case.name, case.text), out)?;
    }
    for line in case.details.iter().filter(|_| bad) {
        diagnostic(&format!("  {line}"), out)?;
    }
    let text = printable(&case.text);
    match case.status {
        Status::Passed => writeln!(out, "  ok {number} {}", case.name),
        Status::Skipped => writeln!(out, "  ok {number} {} # SKIP {text}", case.name),
        Status::Failed => writeln!(out, "  not ok {number} {}", case.name),
        Status::Error => writeln!(out, "  not ok {number} {} # ERROR {text}", case.name),
    }
}

/// A diagnostic line of a subtest. Text of the guest cannot begin another line, because it has no line breaks then.
fn diagnostic(text: &str, out: &mut String) -> std::fmt::Result {
    writeln!(out, "  # {}", printable(text))
}

/// A test's description. The format ends it at the first `#`.
fn description(name: &str) -> String {
    printable(name).replace('#', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::variety;
    use harness::testing;

    /// A result line with the results below it.
    #[derive(Debug, Default)]
    struct Parsed {
        ok: bool,
        name: String,
        directive: Option<String>,
        below: Vec<Parsed>,
    }

    /// Reads one level of KTAP with this indentation: version, plan, and as many results as planned, numbered from 1.
    /// A deeper level belongs to the result after it.
    fn parse<'a>(
        lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
        indent: usize,
    ) -> Vec<Parsed> {
        let own = |line: &&'a str| line.len() - line.trim_start().len() == indent;
        let margin = " ".repeat(indent);
        assert_eq!(lines.next(), Some(&*format!("{margin}KTAP version 1")));
        let comment = |line: &&'a str| line.trim_start().starts_with('#');
        while lines.next_if(comment).is_some() {}
        let plan = lines.next().filter(own).unwrap().trim_start();
        let planned: usize = plan.strip_prefix("1..").unwrap().parse().unwrap();
        let (mut results, mut below) = (Vec::new(), Vec::new());
        let deeper = format!("{margin}  KTAP version 1");
        loop {
            if lines.peek() == Some(&&*deeper) {
                below = parse(lines, indent + 2);
            }
            let Some(line) = lines.next_if(own) else { break };
            let text = line.trim_start();
            if text.starts_with('#') {
                continue;
            }
            let (ok, rest) = match text.strip_prefix("not ") {
                Some(rest) => (false, rest),
                None => (true, text),
            };
            let (number, name) = rest.strip_prefix("ok ").unwrap().split_once(' ').unwrap();
            assert_eq!(number.parse(), Ok(results.len() + 1));
            let (name, directive) = match name.split_once(" # ") {
                Some((name, directive)) => (name, Some(directive.to_owned())),
                None => (name, None),
            };
            results.push(Parsed {
                ok,
                name: name.into(),
                directive,
                below: std::mem::take(&mut below),
            });
        }
        assert_eq!(results.len(), planned);
        assert!(below.is_empty());
        results
    }

    /// Reads a whole report.
    fn parsed(text: &str) -> Vec<Parsed> {
        let mut lines = text.lines().peekable();
        let results = parse(&mut lines, 0);
        assert_eq!(lines.next(), None);
        results
    }

    #[test]
    fn plans_numbers_and_nesting_are_right_whatever_happened() {
        let scenarios = variety();
        let expected: Vec<_> = scenarios
            .iter()
            .map(|scenario| (scenario.verdict(), cases(scenario)))
            .collect();
        let text = ktap(&Report::new(scenarios));
        let results = parsed(&text);
        assert_eq!(results.len(), expected.len());
        for (result, (verdict, cases)) in results.iter().zip(&expected) {
            assert_eq!(result.ok, *verdict == Verdict::Pass);
            assert_eq!(result.below.len(), cases.len());
            assert_eq!(result.ok, result.below.iter().all(|below| below.ok));
            for (below, case) in result.below.iter().zip(cases) {
                assert_eq!(below.name, case.name);
                assert_eq!(below.ok, matches!(case.status, Status::Passed | Status::Skipped));
                let word = below.directive.as_deref().and_then(|text| text.split(' ').next());
                let wanted = match case.status {
                    Status::Skipped => Some("SKIP"),
                    Status::Error => Some("ERROR"),
                    Status::Passed | Status::Failed => None,
                };
                assert_eq!(word, wanted, "{}", case.name);
            }
        }
        assert!(
            text.contains("# SKIP ") && text.contains("# ERROR ") && text.contains("\nnot ok "),
            "{text}"
        );
    }

    #[test]
    fn the_guest_cannot_add_results() {
        let mut evidence = testing::good();
        evidence.name = "small # SKIP".into();
        evidence.console = "ok 1 fake\r\nKTAP version 1\n\u{1b}[2K\u{2028}1..9\n".into();
        evidence.outcome.kind = harness::evidence::OutcomeKind::GuestPanic;
        evidence.outcome.text = "panic\nok 99 fake".into();
        let judged = harness::verdict::Judged::new(evidence).unwrap();
        let text = ktap(&Report::new(vec![ScenarioReport::new(&judged)]));
        let results = parsed(&text);
        assert_eq!(results.len(), 1);
        assert!(!results[0].ok && results[0].directive.is_none(), "{text}");
        assert!(
            results[0].below.iter().all(|below| !below.name.contains("fake")),
            "{text}"
        );
        assert!(text.contains("  # console: KTAP version 1\n"), "{text}");
    }

    #[test]
    fn a_report_without_scenarios_is_a_plan_of_none() {
        assert_eq!(ktap(&Report::new(Vec::new())), "KTAP version 1\n1..0\n");
    }
}
