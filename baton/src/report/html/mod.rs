//! Reports as one HTML file that fetches nothing: style sheet and drawings are inside, and there is no script.
//!
//! Templates are compile-time ones of `maud`, which escapes every value, so text of guests cannot become markup.

mod axis;
mod campaign;
mod findings;
mod matrix;
mod memory;
mod moments;
mod overview;
mod pairs;
mod scenario;
mod sweep;
mod timeline;
mod words;

pub use campaign::campaign;
pub use moments::moments;
pub use pairs::pairs;
pub use sweep::sweep;

use super::json::{Report, ScenarioReport};
use harness::verdict::Verdict;
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");
/// Even if something got into the page that should not be there, nothing would be fetched and no script would run.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

/// The page on runs of scenarios.
pub fn runs(report: &Report) -> String {
    let scenarios = &report.scenarios;
    let id = |number: usize| format!("s{}", number + 1);
    let title = match &scenarios[..] {
        [one] => format!("{}: {}", one.name(), one.verdict().name()),
        several => format!("baton: {} scenarios", several.len()),
    };
    let body = html! {
        @match &scenarios[..] {
            [one] => article { (scenario::scenario(one, &id(0))) }
            several => {
                (overview::overview(several, &id))
                @for (number, one) in several.iter().enumerate() { (folded(one, &id(number))) }
            }
        }
    };
    page(
        &title,
        &format!("Live update report of baton {}", report.baton),
        &body,
    )
}

/// A scenario among others, open if it did not pass.
fn folded(one: &ScenarioReport, id: &str) -> Markup {
    html! {
        details.scenario id=(id) open[one.verdict() != Verdict::Pass] {
            summary { (words::word(words::tone(one.verdict()), one.verdict().name())) " " (one.name()) }
            article aria-label=(one.name()) { (scenario::scenario(one, id)) }
        }
    }
}

/// A page with this title, heading and body, in the style of all reports.
fn page(title: &str, heading: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header.top { h1 { (heading) } }
                main { (body) }
            }
        }
    };
    page.into_string().chars().map(shown).collect()
}

/// The character, if a page may have it. No text of ours has others, so they are a guest's: control characters, which
/// HTML forbids, and those that change the order in which text is shown, which could make it read as something else.
fn shown(c: char) -> char {
    let control = c.is_control() && c != '\n' && c != '\t';
    let reorders =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}');
    if control || reorders { '\u{fffd}' } else { c }
}

#[cfg(test)]
mod tests;
