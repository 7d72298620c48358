//! Findings with their bytes side by side and the console around them.

use super::words::{address, count, number};
use crate::report::grouped;
use crate::report::json::{Rule, ScenarioReport};
use crate::report::picture::Line;
use harness::oracle::{Finding, RuleName, Writer};
use maud::{Markup, html};

/// Most groups of findings on adjacent pages that are shown of a rule, and how many of them are open at first.
const SHOWN: (usize, usize) = (24, 2);

/// The section on findings; nothing if there are none.
pub(super) fn section(scenario: &ScenarioReport, id: &str) -> Markup {
    let violated: Vec<&Rule> = scenario.rules.iter().filter(|rule| rule.findings > 0).collect();
    html! {
        @for rule in violated { (of_rule(rule, scenario, id)) }
    }
}

fn of_rule(rule: &Rule, scenario: &ScenarioReport, id: &str) -> Markup {
    let ours = |finding: &Finding| finding.rule.name() == rule.name;
    // The findings of a rule are beside each other.
    let first = scenario.findings.iter().position(ours).unwrap_or(0);
    let length = scenario.findings[first..]
        .iter()
        .take_while(|finding| ours(finding))
        .count();
    let groups = grouped(&scenario.findings[first..first + length]);
    let mut at = first;
    let placed = groups.iter().map(|group| {
        let begin = at;
        at += group.len();
        (begin, *group)
    });
    let placed: Vec<_> = placed.take(SHOWN.0).collect();
    let shown: usize = placed.iter().map(|(_, group)| group.len()).sum();
    let rest = rule.findings.saturating_sub(shown as u64);
    html! {
        h4 id={ (id) "-" (rule.name) } { (rule.name) }
        p.note {
            @if let Some(story) = story(&rule.name) { (story) ": " }
            (number(rule.findings, "finding", "findings"))
            @if rule.met { ", as the scenario expects" }
            "."
        }
        @for (number, (begin, group)) in placed.iter().enumerate() {
            @let around = scenario.picture.around.get(*begin).map_or(&[][..], Vec::as_slice);
            (finding(group, around, number < SHOWN.1))
        }
        @if rest > 0 {
            p.note { (number(rest, "more finding is", "more findings are")) " not shown." }
        }
    }
}

/// The invariant of a rule in one sentence.
pub(super) fn story(name: &str) -> Option<&'static str> {
    let rule = RuleName::ALL.into_iter().find(|rule| rule.name() == name);
    rule.map(RuleName::story)
}

/// Findings on adjacent pages; the first stands for all.
fn finding(group: &[Finding], around: &[Line], open: bool) -> Markup {
    let Some(first) = group.first() else {
        return html! {};
    };
    html! {
        details.finding open[open] {
            summary { (first.text) }
            dl.pairs {
                @if let Some(page) = first.page {
                    dt { @if group.len() == 1 { "page" } @else { "pages" } }
                    dd {
                        code { (format!("{page:#x}")) }
                        @if group.len() > 1 {
                            " to " code { (format!("{:#x}", page.saturating_add(group.len() as u64 - 1))) }
                            " (" (count(group.len() as u64)) " alike)"
                        }
                        ", at " code { (first.address.map_or_else(|| address(page), |at| format!("{at:#x}"))) }
                    }
                }
                dt { "owner" }
                dd { (first.owner) }
                @if first.last_writer != Writer::Nobody {
                    dt { "last writer" }
                    dd { (first.last_writer) }
                }
                @if !first.explained_by.is_empty() {
                    dt { "explained by" }
                    dd {
                        @for number in &first.explained_by {
                            "injection " (number) " "
                        }
                    }
                }
            }
            (side_by_side(first))
            @if !around.is_empty() {
                div {
                    p.note { "The console around it" }
                    (console(around))
                }
            }
        }
    }
}

/// What was expected and what is there, below each other so that the bytes can be compared.
fn side_by_side(finding: &Finding) -> Markup {
    let bytes = pairs(&finding.expected).zip(pairs(&finding.actual));
    let row = |class: &'static str, name: &str, value: &str, bytes: Option<&(String, String)>| {
        html! {
            tr class=(class) {
                th scope="row" { (name) }
                @match bytes {
                    Some((hex, plain)) => { td { code { (hex) } } td { code { (plain) } } }
                    None => td { (value) }
                }
            }
        }
    };
    html! {
        table.bytes {
            (row("expected", "expected", &finding.expected, bytes.as_ref().map(|(expected, _)| expected)))
            (row("actual", "found", &finding.actual, bytes.as_ref().map(|(_, actual)| actual)))
        }
    }
}

/// Bytes in hexadecimal as pairs of digits, and as characters; `None` if the text is not that.
fn pairs(text: &str) -> Option<(String, String)> {
    let even = !text.is_empty() && text.len().is_multiple_of(2);
    if !even || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let bytes: Vec<&str> = (0..text.len())
        .step_by(2)
        .filter_map(|at| text.get(at..at + 2))
        .collect();
    let plain = |pair: &&str| match u8::from_str_radix(pair, 16) {
        Ok(byte) if byte.is_ascii_graphic() => char::from(byte),
        _ => '.',
    };
    Some((bytes.join(" "), bytes.iter().map(plain).collect()))
}

/// Lines of the console with their times.
pub(super) fn console(lines: &[Line]) -> Markup {
    html! { pre.console { @for line in lines { (console_line(line)) } } }
}

/// A line of the console. Lines of the handover's subsystems are bold.
pub(super) fn console_line(line: &Line) -> Markup {
    let ours = harness::cause::kernel_lines(&line.text).next().is_some();
    html! {
        span {
            i { (line.time_ns.map_or_else(String::new, |ns| format!("{}.{:03}", ns / 1_000_000, ns / 1000 % 1000))) }
            @if ours { b { (line.text) } } @else { (line.text) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_are_shown_as_bytes() {
        assert_eq!(pairs("00ff41"), Some(("00 ff 41".into(), "..A".into())));
        for words in ["", "0", "no device write after the jump", "\u{e4}\u{e4}"] {
            assert_eq!(pairs(words), None);
        }
    }
}
