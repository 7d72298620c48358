//! The timeline: phases, kexecs and blackouts, device writes, marks; and each kexec from close up.

use super::axis::{at, bars, percent, stretched};
use super::matrix::listing;
use super::words::{count, millis, number};
use crate::report::json::ScenarioReport;
use crate::report::picture::{Mark, MarkKind, Span, Timeline, View};
use maud::{Markup, html};

/// Pixels between the tops of two lanes of marks.
const STEP: u32 = 34;
/// Width in percent that the name of a phase needs, on a wide screen and on a narrow one.
const NAMED: (f64, f64) = (5.0, 22.0);

/// The section on time.
pub(super) fn section(scenario: &ScenarioReport, id: &str) -> Markup {
    let timeline = &scenario.picture.timeline;
    if timeline.phases.is_empty() {
        return html! {};
    }
    html! {
        figure.figure {
            figcaption { "The whole run in guest time" }
            (drawing(timeline, &timeline.whole, &format!("{id}-t")))
        }
        @for (number, view) in (1..).zip(&timeline.close_ups) {
            figure.figure {
                figcaption { "Kexec " (number) " from close up: " (millis(view.to_ns - view.from_ns)) " of it" }
                (drawing(timeline, view, &format!("{id}-k{number}")))
            }
        }
        @if timeline.marks_left_out > 0 {
            p.note { (number(timeline.marks_left_out as u64, "more moment is", "more moments are")) " not marked." }
        }
        (marks(timeline, id))
        (phases(scenario, id))
    }
}

/// One view of the timeline.
fn drawing(timeline: &Timeline, view: &View, id: &str) -> Markup {
    let place = |time: u64| percent(time, view.from_ns, view.to_ns);
    let inside = |time: u64| (view.from_ns..=view.to_ns).contains(&time);
    let shown: Vec<&Mark> = timeline
        .marks
        .iter()
        .filter(|mark| inside(mark.time_ns))
        .collect();
    let lanes: Vec<(MarkKind, Vec<&Mark>)> = [
        MarkKind::Kexec,
        MarkKind::Device,
        MarkKind::Injection,
        MarkKind::Retrieval,
        MarkKind::Finding,
    ]
    .into_iter()
    .map(|kind| {
        (
            kind,
            shown
                .iter()
                .copied()
                .filter(|mark| mark.kind == kind)
                .collect::<Vec<_>>(),
        )
    })
    .filter(|(_, marks)| !marks.is_empty())
    .collect();
    let (path, most) = bars(&view.writes);
    let writes: u64 = view.writes.iter().sum();
    let part = (view.to_ns - view.from_ns) / view.writes.len().max(1) as u64;
    let blackouts = timeline
        .blackouts
        .iter()
        .filter(|one| one.start < view.to_ns && one.end > view.from_ns);
    let in_view = |span: &&Span| span.begin_ns < view.to_ns && span.end_ns > view.from_ns;
    let below = 138 + STEP * u32::try_from(lanes.len()).unwrap_or(0);
    html! {
        svg role="img" aria-labelledby={ (id) "-d" } height=(below + 22) {
            desc id={ (id) "-d" } {
                (timeline.phases.len()) " phases, " (number(writes, "device write", "device writes")) " and "
                (number(shown.len() as u64, "mark", "marks")) " between " (millis(view.from_ns)) " and "
                (millis(view.to_ns)) ". The tables below have the same in words."
            }
            @for span in timeline.phases.iter().filter(in_view) {
                (phase(span, place(span.begin_ns), place(span.end_ns)))
            }
            @for one in blackouts {
                @let (from, to) = (place(one.start), place(one.end));
                rect.blackout x=(at(from)) width=(at((to - from).max(0.15))) y="27" height="5" {
                    title { "blackout of " (millis(one.end - one.start)) }
                }
                @if to - from > NAMED.0 {
                    text.tick.wide[to - from < NAMED.1] x=(at(from)) y="45" {
                        "blackout " (millis(one.end - one.start))
                    }
                }
            }
            rect.track x="0" y="66" width="100%" height="56" {}
            text x="0" y="61" { "device writes" }
            text.tick x="100%" y="61" text-anchor="end" { "at most " (count(most)) " in " (micros(part)) }
            (stretched("bars", &path, 100, 66, 56))
            @for (lane, (kind, marks)) in (0..).zip(&lanes) {
                @let top = 138 + STEP * lane;
                g.(class(*kind)) {
                    text x="0" y=(top) { (name(*kind)) }
                    line.track-line x1="0" x2="100%" y1=(top + 14) y2=(top + 14) {}
                    @for mark in marks {
                        @let x = at(place(mark.time_ns));
                        g {
                            title { (mark.text) ", at " (millis(mark.time_ns)) }
                            line.stem x1=(x) x2=(x) y1=(top + 6) y2=(top + 22) {}
                            circle.dot cx=(x) cy=(top + 14) r="4" {}
                        }
                    }
                }
            }
            @for tick in 0..=4u64 {
                @let time = view.from_ns + (view.to_ns - view.from_ns) / 4 * tick;
                @let anchor = match tick { 0 => "start", 4 => "end", _ => "middle" };
                text.tick.wide[tick % 2 == 1] x=(at(25.0 * tick_share(tick))) y=(below + 16) text-anchor=(anchor) {
                    (millis(time))
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)] // 0 to 4
fn tick_share(tick: u64) -> f64 {
    tick as f64
}

fn micros(ns: u64) -> String {
    format!("{}.{:03}\u{a0}\u{b5}s", count(ns / 1000), ns % 1000)
}

fn phase(span: &Span, from: f64, to: f64) -> Markup {
    let wide = (to - from).max(0.15);
    let class = if span.generation.is_multiple_of(2) {
        "span-old"
    } else {
        "span-new"
    };
    html! {
        g {
            title {
                (span.phase.name()) " of generation " (span.generation) ": " (millis(span.begin_ns)) " to "
                (millis(span.end_ns))
            }
            rect class=(class) x=(at(from)) y="0" width=(at(wide)) height="25" {}
            @if wide > NAMED.0 {
                text.wide[wide < NAMED.1] x=(at(from)) y="17" dx="6" { (span.phase.name()) }
            }
        }
    }
}

fn class(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Kexec => "kexec",
        MarkKind::Device => "device",
        MarkKind::Injection => "injection",
        MarkKind::Retrieval => "preserved",
        MarkKind::Finding => "findings",
    }
}

fn name(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Kexec => "kexec",
        MarkKind::Device => "device",
        MarkKind::Injection => "injection",
        MarkKind::Retrieval => "retrieval",
        MarkKind::Finding => "what findings are about was written",
    }
}

/// The marks as a table.
fn marks(timeline: &Timeline, id: &str) -> Markup {
    let caption = "What is marked in the timeline, in guest time";
    let rows = html! {
        @for mark in &timeline.marks {
            tr {
                td.num { (millis(mark.time_ns)) }
                td { (name(mark.kind)) }
                td { (mark.text) }
            }
        }
    };
    html! {
        @if !timeline.marks.is_empty() {
            details {
                summary { "Marked moments (" (timeline.marks.len()) ")" }
                (listing(
                    &format!("{id}-marks"),
                    caption,
                    &[("at", true), ("kind", false), ("what", false)],
                    &rows,
                ))
            }
        }
    }
}

/// The phases as a table.
fn phases(scenario: &ScenarioReport, id: &str) -> Markup {
    let headings = [
        ("phase", false),
        ("generation", true),
        ("guest time", true),
        ("instructions", true),
        ("device writes", true),
        ("bytes", true),
        ("host time", true),
    ];
    let rows = html! {
        @for phase in &scenario.phases {
            tr {
                th scope="row" { (phase.name) }
                td.num { (phase.generation) }
                td.num { (millis(phase.guest_ns)) }
                td.num { (phase.instructions.map_or_else(|| "\u{2013}".into(), count)) }
                td.num { (count(phase.device_writes)) }
                td.num { (count(phase.device_bytes)) }
                td.num { (format!("{:.0}\u{a0}ms", phase.wall_ms)) }
            }
        }
    };
    listing(&format!("{id}-phases"), "Phases", &headings, &rows)
}
