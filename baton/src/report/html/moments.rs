//! The page on a sweep over moments of device writes: fates with numbers, then each kernel's cases in order of time,
//! and what came of them in groups.

use super::matrix::listing;
use super::words::{count, millis, number};
use campaign::mutation::Fate;
use campaign::sweep::{DmaDeed, DmaLine};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

/// Most cells of a row. With more cases a cell stands for several.
const CELLS: usize = 100;
/// Groups of a kernel that are open at first.
const OPEN: usize = 2;
/// Most groups of a kernel that are shown.
const SHOWN: usize = 100;

/// The page.
pub fn moments(lines: &[DmaLine]) -> String {
    let kernels: BTreeSet<&str> = lines.iter().map(|line| line.kernel.as_str()).collect();
    let scenario = lines.first().map_or("", |line| &line.scenario);
    let releases: Vec<&str> = kernels.iter().copied().collect();
    let body = html! {
        article {
            div.title { h2 { "Device writes of " (scenario) } }
            p {
                "At one moment after the other a block of the device was dropped, or one more was written. A case is "
                "one of the two at one moment, compared with the run as it is."
            }
            @if lines.is_empty() { p { "No case has a result." } } @else { (fates(lines, &releases)) }
            @for (number, release) in (1..).zip(&releases) { (kernel(lines, release, &format!("k{number}"))) }
        }
    };
    super::page(
        &format!("Device writes of {scenario} on {}", releases.join(", ")),
        &format!("Device write report of baton {}", env!("CARGO_PKG_VERSION")),
        &body,
    )
}

/// A letter for a fate, its colour, and what it means.
fn look(fate: Fate) -> (&'static str, &'static str, &'static str) {
    match fate {
        Fate::NotFired => ("\u{2013}", "quiet", "no device write followed"),
        Fate::Caught => ("C", "good", "a rule caught it"),
        Fate::EndedOtherwise => ("E", "warn", "no rule did, but the run ended otherwise"),
        Fate::NotNoticed => ("X", "bad", "nothing noticed it, and what a user sees differs"),
        Fate::NoEffect => ("\u{b7}", "quiet", "nothing that a user sees differs"),
        Fate::CannotBeTold => (
            "?",
            "quiet",
            "another fault was caught, and what differs may be that one's",
        ),
    }
}

/// How much a fate matters where a cell stands for several cases: that which nobody noticed most.
fn weight(fate: Fate) -> u8 {
    match fate {
        Fate::NotFired | Fate::NoEffect => 0,
        Fate::CannotBeTold => 1,
        Fate::Caught => 2,
        Fate::EndedOtherwise => 3,
        Fate::NotNoticed => 4,
    }
}

fn named(fate: Fate) -> Markup {
    let (sign, colour, _) = look(fate);
    html! { span.k.(colour) aria-hidden="true" { (sign) } " " (fate.name()) }
}

/// All fates that occur, with what they mean and how many cases each kernel has of them.
fn fates(lines: &[DmaLine], releases: &[&str]) -> Markup {
    let cases = |fate, release: &str| {
        let of = lines
            .iter()
            .filter(|line| line.fate == fate && line.kernel == release);
        of.count() as u64
    };
    let occurs = |fate: &Fate| lines.iter().any(|line| line.fate == *fate);
    let headings: Vec<_> = [("fate", false)]
        .into_iter()
        .chain(releases.iter().map(|release| (*release, true)))
        .collect();
    let rows = html! {
        @for fate in Fate::ALL.into_iter().filter(occurs) {
            tr {
                th scope="row" { (named(fate)) br; span.note { (look(fate).2) } }
                @for release in releases { td.num { (count(cases(fate, release))) } }
            }
        }
    };
    html! {
        section aria-labelledby="fates" {
            h3 id="fates" { "Fates" }
            (listing("fates-about", "What came of it: number of cases", &headings, &rows))
        }
    }
}

fn kernel(lines: &[DmaLine], release: &str, id: &str) -> Markup {
    let mut of: Vec<&DmaLine> = lines.iter().filter(|line| line.kernel == release).collect();
    of.sort_by_key(|line| (line.moment_ns, line.deed));
    let groups = groups(&of);
    html! {
        section aria-labelledby=(id) {
            h3 id=(id) { "Linux " (release) }
            p { (number(of.len() as u64, "case", "cases")) "." }
            @for deed in DmaDeed::ALL { (in_time(&of, deed, &format!("{id}-{deed}"))) }
            h4 { "What came of it" }
            @for (at, one) in groups.iter().take(SHOWN).enumerate() { (group(one, at < OPEN)) }
            @if groups.len() > SHOWN {
                p.note { (number((groups.len() - SHOWN) as u64, "more kind is", "more kinds are")) " not shown." }
            }
        }
    }
}

/// The cases of a deed by phase, each row in order of time.
fn in_time(lines: &[&DmaLine], deed: DmaDeed, id: &str) -> Markup {
    let mut phases: Vec<(&str, Vec<&DmaLine>)> = Vec::new();
    for line in lines.iter().copied().filter(|line| line.deed == deed) {
        match phases.last_mut() {
            Some((phase, cases)) if *phase == line.phase => cases.push(line),
            _ => phases.push((&line.phase, vec![line])),
        }
    }
    let caption = match deed {
        DmaDeed::Drop => "A block is dropped: cases in order of time",
        DmaDeed::Extra => "One more block: cases in order of time",
    };
    html! {
        @if !phases.is_empty() {
            div.scroll tabindex="0" role="region" aria-labelledby=(id) {
                table.grid {
                    caption id=(id) { (caption) }
                    tbody {
                        @for (phase, cases) in &phases {
                            tr { th scope="row" { (phase) } @for some in in_cells(cases) { (cell(some)) } }
                        }
                    }
                }
            }
        }
    }
}

/// The cases of each cell of a row.
fn in_cells<'a>(cases: &'a [&'a DmaLine]) -> impl Iterator<Item = &'a [&'a DmaLine]> {
    cases.chunks(cases.len().div_ceil(CELLS).max(1))
}

fn cell(cases: &[&DmaLine]) -> Markup {
    let worst = cases.iter().max_by_key(|line| weight(line.fate));
    html! {
        @if let Some(line) = worst {
            @let (sign, colour, _) = look(line.fate);
            @let others = if cases.len() > 1 { format!(", the worst of {}", cases.len()) } else { String::new() };
            td.(colour) title={ (millis(line.moment_ns)) ": " (line.fate.name()) (others) ": " (line.what) } { (sign) }
        }
    }
}

/// Cases of one fate, caught by the same rules, of one deed in one phase.
type Group<'a> = Vec<&'a DmaLine>;

/// The groups: what nobody noticed first, then by number of cases.
fn groups<'a>(lines: &[&'a DmaLine]) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<_, Group<'_>> = BTreeMap::new();
    for line in lines.iter().filter(|line| weight(line.fate) > 0) {
        let key = (line.fate, &line.caught_by, line.deed, &line.phase);
        groups.entry(key).or_default().push(line);
    }
    let mut groups: Vec<Group<'_>> = groups.into_values().collect();
    groups.sort_by_key(|group| {
        let fate = group.first().map_or(0, |line| weight(line.fate));
        std::cmp::Reverse((fate, group.len()))
    });
    groups
}

fn group(group: &[&DmaLine], open: bool) -> Markup {
    html! {
        @if let Some(first) = group.first() {
            @let rules: Vec<String> = first.caught_by.iter().map(ToString::to_string).collect();
            details.finding.(look(first.fate).1) open[open] {
                summary {
                    (named(first.fate)) ", " (first.deed) " in " (first.phase) ", "
                    (number(group.len() as u64, "case", "cases"))
                    @if !rules.is_empty() { ": " (rules.join(", ")) }
                }
                p { "The first, at " (millis(first.moment_ns)) ": " (first.what) }
                p { span.note { "Run it again" } code.command { (first.reproduce) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::oracle::RuleName;

    fn line(moment_ns: u64, deed: DmaDeed, fate: Fate) -> DmaLine {
        let caught_by = match fate {
            Fate::Caught => vec![RuleName::DeviceNeverSilent],
            _ => Vec::new(),
        };
        DmaLine {
            kernel: "7.3.4".into(),
            scenario: "small".into(),
            seed: 1,
            deed,
            moment_ns,
            phase: "1:restore".into(),
            fate,
            caught_by,
            what: "</td><script>alert(1)</script>".into(),
            reproduce: format!("baton sweep dma small.toml --only {deed}@{moment_ns}"),
        }
    }

    #[test]
    fn the_page_has_each_case_and_escapes_what_guests_say() {
        let lines = [
            line(1_000_000, DmaDeed::Drop, Fate::Caught),
            line(2_000_000, DmaDeed::Drop, Fate::NotNoticed),
            line(1_000_000, DmaDeed::Extra, Fate::NoEffect),
        ];
        let page = moments(&lines);
        assert!(!page.contains("<script"), "{page}");
        for said in [
            "title=\"1.000\u{a0}ms: caught: &lt;/td&gt;&lt;script&gt;",
            "title=\"2.000\u{a0}ms: not-noticed: ",
            "drop in 1:restore, 1\u{a0}case: device-never-silent",
            "baton sweep dma small.toml --only drop@2000000",
            look(Fate::NotNoticed).2,
        ] {
            assert!(page.contains(said), "{said}\n{page}");
        }
        assert!(moments(&[]).contains("No case has a result."));
    }

    #[test]
    fn a_cell_of_several_cases_shows_the_worst() {
        let of = |index: u64| {
            let fate = if index == 7 {
                Fate::NotNoticed
            } else {
                Fate::Caught
            };
            line(index * 1_000_000, DmaDeed::Drop, fate)
        };
        let lines: Vec<DmaLine> = (0..250).map(of).collect();
        let lines: Vec<&DmaLine> = lines.iter().collect();
        let cells: Vec<_> = in_cells(&lines).collect();
        assert!(cells.len() <= CELLS);
        assert_eq!(cells.iter().map(|cell| cell.len()).sum::<usize>(), 250);
        assert!(cell(cells[2]).into_string().contains(">X<"));
        assert!(cell(cells[3]).into_string().contains(">C<"));
        // What nobody noticed comes before what is more.
        let groups = groups(&lines);
        assert_eq!(groups[0].len(), 1);
        assert_eq!(groups[1].len(), 249);
    }
}
