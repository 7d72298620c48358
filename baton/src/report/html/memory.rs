//! The map of guest memory: one lane for each owner, above each other over the same addresses.

use super::axis::{at, pieces, stretched};
use super::matrix::listing;
use super::words::{address, number, size};
use crate::report::json::ScenarioReport;
use crate::report::picture::{Extent, Lane, LaneKind, MemoryMap};
use harness::evidence::PAGE;
use maud::{Markup, html};

/// Extents of a lane that the table lists.
const LISTED: usize = 12;

/// The section on memory.
pub(super) fn section(scenario: &ScenarioReport, id: &str) -> Markup {
    let map = &scenario.picture.memory;
    if map.lanes.is_empty() {
        return html! {};
    }
    let near = around_findings(map);
    html! {
        figure.figure {
            figcaption { "All " (size(scenario.picture.ram_bytes)) " of RAM, from low to high addresses" }
            (drawing(map, &map.ram))
        }
        @if let Some(window) = near {
            figure.figure {
                figcaption { "Around the findings" }
                (drawing(map, &window))
            }
        }
        (table(map, id))
    }
}

/// The RAM around the findings, if that is a small part of it.
fn around_findings(map: &MemoryMap) -> Option<Vec<Extent>> {
    let lane = map.lanes.iter().find(|lane| lane.kind == LaneKind::Findings)?;
    let (first, last) = (lane.extents.first()?, lane.extents.last()?);
    let length = last.end().saturating_sub(first.first);
    let total = map
        .ram
        .iter()
        .fold(0u64, |sum, extent| sum.saturating_add(extent.count));
    if length > total / 4 {
        return None;
    }
    let pad = (length / 2).max(16);
    let (from, to) = (first.first.saturating_sub(pad), last.end().saturating_add(pad));
    let window = map.ram.iter().filter_map(|extent| {
        let (begin, end) = (extent.first.max(from), extent.end().min(to));
        (begin < end).then(|| Extent {
            first: begin,
            count: end - begin,
        })
    });
    Some(window.collect())
}

/// Draws lanes over a part of memory. Holes in it take no room.
fn drawing(map: &MemoryMap, window: &[Extent]) -> Markup {
    let total = window
        .iter()
        .fold(0, |sum: u64, extent| sum.saturating_add(extent.count))
        .max(1);
    let lanes = map
        .lanes
        .iter()
        .map(|lane| (lane, inside(&lane.extents, window, total)));
    let lanes: Vec<_> = lanes.filter(|(_, shares)| !shares.is_empty()).collect();
    let seams = window.iter().scan(0u64, |before, extent| {
        *before = before.saturating_add(extent.count);
        Some(share(*before, total))
    });
    let seams: Vec<f64> = seams.take(window.len().saturating_sub(1)).collect();
    html! {
        @for (lane, shares) in &lanes {
            div.lane.(class(lane.kind)) {
                p {
                    (lane.name)
                    small { (number(lane.pages, "page", "pages")) ", " (size(lane.pages.saturating_mul(PAGE))) }
                }
                svg aria-hidden="true" height="22" {
                    rect.track width="100%" height="22" {}
                    (stretched("data", &pieces(shares.iter().copied()), 1, 0, 22))
                    @for seam in &seams { line.seam x1=(at(seam * 100.0)) x2=(at(seam * 100.0)) y1="0" y2="22" {} }
                }
            }
        }
        div.lane {
            p.wide {}
            svg aria-hidden="true" height="16" {
                @if let (Some(first), Some(last)) = (window.first(), window.last()) {
                    text.tick x="0" y="12" { (address(first.first)) }
                    text.tick x="100%" y="12" text-anchor="end" { (address(last.end())) }
                }
                @for (seam, extent) in seams.iter().zip(window.iter().skip(1)) {
                    text.tick.wide x=(at(seam * 100.0)) y="12" text-anchor="middle" { (address(extent.first)) }
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)] // a place on a screen
fn share(part: u64, total: u64) -> f64 {
    part as f64 / total as f64
}

/// The parts of extents that lie in a window, as shares of its width.
fn inside(extents: &[Extent], window: &[Extent], total: u64) -> Vec<(f64, f64)> {
    let mut before = 0u64;
    let mut shares = Vec::new();
    for part in window {
        let from = extents.partition_point(|extent| extent.end() <= part.first);
        for extent in extents[from..]
            .iter()
            .take_while(|extent| extent.first < part.end())
        {
            let (begin, end) = (extent.first.max(part.first), extent.end().min(part.end()));
            let place = |frame: u64| share(before.saturating_add(frame - part.first), total);
            shares.push((place(begin), place(end)));
        }
        before = before.saturating_add(part.count);
    }
    shares
}

fn class(kind: LaneKind) -> &'static str {
    match kind {
        LaneKind::Preserved => "preserved",
        LaneKind::Unpreserved => "unpreserved",
        LaneKind::Handover => "handover",
        LaneKind::Scratch => "scratch",
        LaneKind::Staged => "staged",
        LaneKind::DeviceWrites => "device",
        LaneKind::Findings => "findings",
    }
}

/// The same as a table of addresses.
fn table(map: &MemoryMap, id: &str) -> Markup {
    let headings = [
        ("what", false),
        ("pages", true),
        ("bytes", true),
        ("addresses", false),
    ];
    let caption = "Where in guest memory each of these is";
    let rows = html! { @for lane in &map.lanes { (row(lane)) } };
    html! {
        details {
            summary { "Addresses" }
            (listing(&format!("{id}-addresses"), caption, &headings, &rows))
        }
    }
}

fn row(lane: &Lane) -> Markup {
    let rest = lane.extents.len().saturating_sub(LISTED);
    html! {
        tr {
            th scope="row" { (lane.name) }
            td.num { (super::words::count(lane.pages)) }
            td.num { (size(lane.pages.saturating_mul(PAGE))) }
            td {
                code {
                    @for (number, extent) in lane.extents.iter().take(LISTED).enumerate() {
                        @if number > 0 { ", " }
                        (address(extent.first)) "\u{2013}" (address(extent.end()))
                    }
                }
                @if rest > 0 { " and " (number(rest as u64, "more", "more")) }
                @if lane.granule > 1 { " (in steps of " (size(lane.granule.saturating_mul(PAGE))) ")" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first: u64, count: u64) -> Extent {
        Extent { first, count }
    }

    #[test]
    fn a_hole_takes_no_room() {
        let window = [extent(0, 50), extent(1000, 50)];
        let shares = inside(&[extent(40, 970), extent(1020, 5)], &window, 100);
        assert_eq!(shares, [(0.4, 0.5), (0.5, 0.6), (0.7, 0.75)]);
        assert!(inside(&[extent(60, 10)], &window, 100).is_empty());
    }

    #[test]
    fn findings_that_are_everywhere_are_not_shown_from_close_up() {
        let lane = |extents| Lane {
            kind: LaneKind::Findings,
            name: String::new(),
            pages: 1,
            extents,
            granule: 1,
        };
        let map = |extents| MemoryMap {
            ram: vec![extent(0, 1000)],
            lanes: vec![lane(extents)],
        };
        assert_eq!(
            around_findings(&map(vec![extent(100, 1), extent(149, 1)])),
            Some(vec![extent(75, 100)])
        );
        assert_eq!(around_findings(&map(vec![extent(0, 1), extent(999, 1)])), None);
    }
}
