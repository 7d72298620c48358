//! Reads results in the kernel's test protocol (Documentation/dev-tools/ktap.rst, version 1, and TAP 13 and 14 as kselftest
//! prints it) out of console output, between lines of other kinds.

use serde::Serialize;

/// Most results that are kept of one text.
const MAX_RESULTS: usize = 100_000;

/// A test's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// `ok`.
    Passed,
    /// `not ok`.
    Failed,
    /// Not run: the directive SKIP.
    Skipped,
    /// `not ok`, as expected: the directives TODO and XFAIL.
    ExpectedFailure,
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// How deep it is nested, 0 for a test of its own.
    pub depth: usize,
    /// Its number.
    pub number: u64,
    /// Its name; may be empty.
    pub name: String,
    /// Its result.
    pub status: Status,
}

/// What was found in a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Results {
    /// The results in order. Those nested in a test stand before it.
    pub tests: Vec<TestResult>,
    /// Plans that do not fit the results that follow them, and `Bail out!` lines, in words.
    pub broken: Vec<String>,
    /// Whether there were more results than are kept.
    pub cut: bool,
}

/// A plan, and what came of it.
struct Planned {
    depth: usize,
    tests: u64,
    seen: u64,
}

/// Reads all results of a text.
pub fn read(text: &str) -> Results {
    let mut results = Results::default();
    let mut plans: Vec<Planned> = Vec::new();
    for line in text.lines() {
        let (depth, line) = unindented(line.trim_end());
        if let Some(tests) = plan(line) {
            close(&mut plans, depth, &mut results);
            plans.push(Planned {
                depth,
                tests,
                seen: 0,
            });
        } else if line.starts_with("Bail out!") {
            results.broken.push(line.to_owned());
            plans.clear();
        } else if let Some((number, name, status)) = result(line) {
            close(&mut plans, depth + 1, &mut results);
            if let Some(plan) = plans.last_mut().filter(|plan| plan.depth == depth) {
                plan.seen += 1;
            }
            if results.tests.len() >= MAX_RESULTS {
                results.cut = true;
                continue;
            }
            results.tests.push(TestResult {
                depth,
                number,
                name: name.to_owned(),
                status,
            });
        }
    }
    close(&mut plans, 0, &mut results);
    results
}

/// Ends the plans that are at least so deep.
fn close(plans: &mut Vec<Planned>, depth: usize, results: &mut Results) {
    while let Some(plan) = plans.pop_if(|plan| plan.depth >= depth) {
        if plan.seen != plan.tests {
            results.broken.push(format!(
                "the plan says {} tests, and {} results follow",
                plan.tests, plan.seen
            ));
        }
    }
}

/// A line without the marks of nesting, and how many there are: two blanks or more, or `# ` as kselftest's runner has.
fn unindented(mut line: &str) -> (usize, &str) {
    let mut depth = 0;
    loop {
        let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
        let rest = &line[blanks..];
        let nested = rest
            .strip_prefix("# ")
            .filter(|rest| plan(rest.trim_start()).is_some() || result(rest.trim_start()).is_some());
        depth += blanks / 2;
        match nested {
            Some(inner) => (depth, line) = (depth + 1, inner),
            None => return (depth, rest),
        }
    }
}

/// The number of tests of a plan line, `1..N`.
fn plan(line: &str) -> Option<u64> {
    let number = line.strip_prefix("1..")?.split_whitespace().next()?;
    number.parse().ok()
}

/// Number, name and status of a result line, `ok N NAME # DIRECTIVE`.
fn result(line: &str) -> Option<(u64, &str, Status)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let number = number.parse().ok()?;
    let (name, directive) = rest.split_once('#').unwrap_or((rest, ""));
    let word = directive
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_ascii_uppercase();
    let status = match (&word[..], passed) {
        ("SKIP", _) => Status::Skipped,
        ("TODO" | "XFAIL", false) => Status::ExpectedFailure,
        (_, true) => Status::Passed,
        (_, false) => Status::Failed,
    };
    let name = name.trim();
    Some((number, name.strip_prefix("- ").unwrap_or(name), status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(text: &str) -> Vec<(usize, u64, String, Status)> {
        let tests = read(text).tests.into_iter();
        tests
            .map(|test| (test.depth, test.number, test.name, test.status))
            .collect()
    }

    #[test]
    fn results_are_found_between_other_lines() {
        let text = "TAP version 13\n1..4\n[    1.2] mm: ok 7 is no result\nok 1 global.a\r\nnot ok 2 global.b\n\
                    ok 3 c # SKIP no device\nnot ok 4 - d # TODO later\n# Totals: pass:1 fail:1\nok then\n";
        let all = told(text);
        assert_eq!(
            all,
            [
                (0, 1, "global.a".into(), Status::Passed),
                (0, 2, "global.b".into(), Status::Failed),
                (0, 3, "c".into(), Status::Skipped),
                (0, 4, "d".into(), Status::ExpectedFailure),
            ]
        );
        assert_eq!(read(text).broken, [""; 0]);
    }

    #[test]
    fn subtests_are_nested_by_blanks_or_by_marks() {
        let nested = "1..1\n  KTAP version 1\n  1..2\n  ok 1 x\n  ok 2 y\nok 1 suite\n";
        let marked = "1..1\n# 1..2\n# ok 1 x\n# ok 2 y\n# a comment\nok 1 suite\n";
        for text in [nested, marked] {
            let depths: Vec<_> = told(text)
                .into_iter()
                .map(|(depth, _, name, _)| (depth, name))
                .collect();
            assert_eq!(
                depths,
                [(1, "x".into()), (1, "y".into()), (0, "suite".into())],
                "{text}"
            );
            assert_eq!(read(text).broken, [""; 0], "{text}");
        }
    }

    #[test]
    fn what_a_plan_promises_has_to_come() {
        assert_eq!(
            read("1..3\nok 1 a\nok 2 b\n").broken,
            ["the plan says 3 tests, and 2 results follow"]
        );
        assert_eq!(
            read("1..2\nok 1 a\nBail out! no memory\n").broken,
            ["Bail out! no memory"]
        );
        // Two programs, one after another.
        assert_eq!(
            read("1..1\nok 1 a\nTAP version 13\n1..1\nok 1 b\n").broken,
            [""; 0]
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(?s).{0,200}", lines in proptest::collection::vec("[ #]{0,6}(not ok|ok|1\\.\\.)[ 0-9#a-z]{0,9}", 0..20)) {
            let _ = read(&text);
            let _ = read(&lines.join("\n"));
        }
    }
}
