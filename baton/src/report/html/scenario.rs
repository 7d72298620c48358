//! One scenario: verdict and cause, facts, rules, findings, time, memory, console, kernels.

use super::findings::{self, console, console_line, story};
use super::matrix::Tone;
use super::words::{count, millis, number, size, tone, word};
use super::{memory, timeline};
use crate::report::cases::findings as found;
use crate::report::injections::Injection;
use crate::report::json::{Rule, ScenarioReport};
use crate::report::picture::Excerpt;
use harness::oracle::unit_of;
use maud::{Markup, html};

/// Most firings of an injection, and most reasons why one could not fire, that are shown.
const FIRINGS: usize = 3;

/// The whole scenario. `id` begins all identities in it.
pub(super) fn scenario(scenario: &ScenarioReport, id: &str) -> Markup {
    let all = [
        ("rules", "Rules", rules(scenario, id)),
        ("injections", "Injections", injections(scenario, id)),
        ("findings", "Findings", findings::section(scenario, id)),
        ("time", "Timeline", timeline::section(scenario, id)),
        ("memory", "Guest memory", memory::section(scenario, id)),
        ("console", "Console", consoles(scenario)),
        ("kernels", "Kernels and hashes", kernels(scenario)),
    ];
    let sections: Vec<_> = all
        .into_iter()
        .filter(|(_, _, body)| !body.0.is_empty())
        .collect();
    html! {
        (verdict(scenario))
        (facts(scenario))
        @if !sections.is_empty() {
            nav.contents aria-label={ "Contents of " (scenario.name()) } {
                ul { @for (key, title, _) in &sections { li { a href={ "#" (id) "-" (key) } { (title) } } } }
            }
        }
        @for (key, title, body) in &sections {
            section aria-labelledby={ (id) "-" (key) } {
                h3 id={ (id) "-" (key) } { (title) }
                (body)
            }
        }
    }
}

/// The verdict with its cause and reasons, and how to have the run again.
fn verdict(scenario: &ScenarioReport) -> Markup {
    let tone = tone(scenario.verdict());
    // What the line on the outcome says is not said twice.
    let known = scenario
        .outcome
        .as_ref()
        .map(|outcome| format!(": {}", outcome.text));
    let short = |reason: &str| match &known {
        Some(known) => reason.strip_suffix(known.as_str()).unwrap_or(reason).to_owned(),
        None => reason.to_owned(),
    };
    html! {
        div.verdict.(tone.class()) {
            div.title {
                (word(tone, &scenario.verdict().name().to_uppercase()))
                h2 { (scenario.name()) }
            }
            @if let Some(cause) = &scenario.cause { p.cause { "Because " (cause) } }
            @if let Some(outcome) = &scenario.outcome { p { "The run " (outcome.sentence()) "." } }
            @if !scenario.reasons.is_empty() {
                ul { @for reason in &scenario.reasons { li { (short(reason)) } } }
            }
            @if !scenario.reproduce.is_empty() {
                p { span.note { "Run it again" } code.command { (scenario.reproduce) } }
            }
        }
    }
}

fn facts(scenario: &ScenarioReport) -> Markup {
    let kernels: Vec<&str> = scenario
        .kernels
        .iter()
        .map(|kernel| kernel.release.as_str())
        .collect();
    let writes: u64 = scenario.device_writes.values().sum();
    let bytes: u64 = scenario.device_bytes.values().sum();
    let blackouts: Vec<String> = scenario.blackouts_ns.iter().map(|ns| millis(*ns)).collect();
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    html! {
        @if !scenario.phases.is_empty() {
            dl.facts {
                (fact("kernels", html! { (kernels.join(" \u{2192} ")) }))
                @if let Some(handover) = &scenario.handover {
                    (fact("handed over", html! { (handover) }))
                }
                (fact("backend", html! { (scenario.backend) ", seed " (scenario.seed) }))
                (fact("RAM", html! { (size(scenario.picture.ram_bytes)) }))
                (fact("preserved", html! {
                    (size(scenario.preserved_bytes)) " in " (number(scenario.preserved_pages, "page", "pages"))
                }))
                (fact("device writes", html! { (count(writes)) ", " (size(bytes)) }))
                (fact(if blackouts.len() > 1 { "blackouts" } else { "blackout" }, html! {
                    @if blackouts.is_empty() { "not measured" } @else { (blackouts.join(", ")) }
                }))
            }
        }
    }
}

fn rules(scenario: &ScenarioReport, id: &str) -> Markup {
    html! {
        @if !scenario.rules.is_empty() {
            table.rules {
                thead { tr {
                    th scope="col" { "result" }
                    th scope="col" { "rule" }
                    th scope="col" { "looked at" }
                } }
                tbody { @for rule in &scenario.rules { (one_rule(rule, id)) } }
            }
        }
    }
}

fn one_rule(rule: &Rule, id: &str) -> Markup {
    let (tone, said) = result(rule);
    let usual = rule.expected == "holds" || rule.expected == "any";
    html! {
        tr {
            td {
                (word(tone, &said))
                @if !usual || !rule.met {
                    br;
                    span.note {
                        @if rule.met { "as expected" } @else { "expected: " (rule.expected) }
                    }
                }
            }
            th scope="row" {
                @if rule.findings > 0 { a href={ "#" (id) "-" (rule.name) } { (rule.name) } } @else { (rule.name) }
                @if let Some(story) = story(&rule.name) { br; span.note { (story) } }
            }
            td {
                (count(rule.looked_at)) "\u{a0}" (unit_of(rule.looked_at, rule.unit))
                @if !rule.note.is_empty() { br; span.note { (rule.note) } }
                @for blind in &rule.blind { br; span.note { "Not seen: " (blind) } }
            }
        }
    }
}

fn injections(scenario: &ScenarioReport, id: &str) -> Markup {
    html! {
        @if !scenario.injections.is_empty() {
            div.scroll tabindex="0" role="region" aria-labelledby={ (id) "-injections" } {
                table {
                    thead { tr {
                        th.num scope="col" { "no." }
                        th scope="col" { "injection" }
                        th scope="col" { "armed" }
                        th scope="col" { "fired" }
                        th scope="col" { "first consequence" }
                    } }
                    tbody { @for injection in &scenario.injections { (one_injection(injection)) } }
                }
            }
        }
    }
}

fn one_injection(injection: &Injection) -> Markup {
    let tone = if injection.fired > 0 {
        Tone::Good
    } else {
        Tone::Warn
    };
    html! {
        tr {
            td.num { (injection.number) }
            th scope="row" { (injection.injection) }
            td { @match &injection.armed { Some(at) => (at), None => "never" } }
            td {
                (word(tone, &injection.times()))
                @for firing in injection.firings.iter().take(FIRINGS) {
                    br;
                    span.note { (firing.at) ": " (firing.what) }
                }
                @for reason in injection.unable.iter().take(FIRINGS) { br; span.note { "could not fire " (reason) } }
            }
            td { @match &injection.first_consequence { Some(text) => (text), None => "none seen" } }
        }
    }
}

/// The result of a rule, and what it means for the verdict.
pub(super) fn result(rule: &Rule) -> (Tone, String) {
    let said = match rule.unjudged() {
        Some(_) if rule.saw_nothing() => "not judged".into(),
        Some(_) => "cannot be judged".into(),
        None if rule.held => "held".into(),
        None => found(rule.findings),
    };
    let tone = match (rule.met, rule.unjudged().is_some()) {
        (true, true) => Tone::Quiet,
        (false, true) => Tone::Warn,
        (true, false) => Tone::Good,
        (false, false) => Tone::Bad,
    };
    (tone, said)
}

fn consoles(scenario: &ScenarioReport) -> Markup {
    let parts = &scenario.picture.console;
    html! {
        @if !parts.is_empty() {
            p.note {
                "On the left guest time in ms, where the trace tells it. What the handover's subsystems say is bold."
            }
            @for part in parts {
                details {
                    summary {
                        (part.phase.name()) " of generation " (part.generation) ", "
                        (number((part.head.len() + part.left_out + part.tail.len()) as u64, "line", "lines"))
                    }
                    (excerpt(part))
                }
            }
        }
    }
}

fn excerpt(part: &Excerpt) -> Markup {
    if part.left_out == 0 {
        return console(&part.head);
    }
    html! {
        pre.console {
            @for line in &part.head { (console_line(line)) }
            u { "\u{2026} " (number(part.left_out as u64, "line", "lines")) " left out" }
            @for line in &part.tail { (console_line(line)) }
        }
    }
}

fn kernels(scenario: &ScenarioReport) -> Markup {
    html! {
        @if !scenario.kernels.is_empty() {
            @for kernel in &scenario.kernels {
                h4 { "Generation " (kernel.generation) ": Linux " (kernel.release) }
                dl.pairs {
                    dt { "command line" }
                    dd { code { (kernel.command_line) } }
                    dt { "image" }
                    dd { code { (kernel.image) } ", XXH3 " code { (kernel.image_hash) } }
                    @if let Some(build) = &kernel.build_id { dt { "build id" } dd { code { (build) } } }
                    @if let Some(processors) = kernel.processors { dt { "processors" } dd { (processors) } }
                    @if let Some(refused) = &kernel.symbols_refused { dt { "symbols" } dd { (refused) } }
                }
            }
            h4 { "The run" }
            dl.pairs {
                dt { "scenario" }
                dd { code { (scenario.scenario_file) } }
                dt { "final state" }
                dd { code { (scenario.state_hash) } }
                dt { "device writes" }
                dd { code { (scenario.ledger_digest) } }
            }
        }
    }
}
