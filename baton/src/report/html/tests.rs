use super::*;
use crate::report::campaign::tests::{header, summary};
use crate::report::samples::{report, variety};
use crate::report::sweep::tests::line;
use crate::report::{CampaignReport, Places, SweepReport};
use ::campaign::sweep::{Class, Line};
use harness::testing;
use std::collections::BTreeSet;

/// Elements that have no end.
const VOID: [&str; 3] = ["meta", "link", "br"];

/// An element's name and its attributes.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
}

impl Tag {
    fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// All elements of a page. Fails if one is not closed where it should be.
fn elements(page: &str) -> Vec<Tag> {
    let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
    let (mut open, mut tags): (Vec<String>, Vec<Tag>) = Default::default();
    let mut rest = body;
    while let Some((_, after)) = rest.split_once('<') {
        let (inside, after) = after.split_once('>').unwrap();
        rest = after;
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        let (name, mut listed) = inside.split_once(' ').unwrap_or((inside, ""));
        let mut attributes = Vec::new();
        while !listed.trim().is_empty() {
            let word = listed.trim_start();
            match word.find(['=', ' ']) {
                Some(at) if word.as_bytes()[at] == b'=' => {
                    let (value, after) = word[at + 2..].split_once('"').unwrap();
                    attributes.push((word[..at].to_owned(), value.to_owned()));
                    listed = after;
                }
                at => {
                    let end = at.unwrap_or(word.len());
                    attributes.push((word[..end].to_owned(), String::new()));
                    listed = &word[end..];
                }
            }
        }
        if name == "style" {
            rest = rest.split_once("</style>").unwrap().1;
        } else if !VOID.contains(&name) {
            open.push(name.to_owned());
        }
        tags.push(Tag {
            name: name.to_owned(),
            attributes,
        });
    }
    assert!(open.is_empty(), "{open:?}");
    tags
}

/// The page on a sweep with two kernels and a case of each class.
fn swept() -> String {
    let line = |kernel, class: Class| {
        let path = format!("luo/session[{}]/count", class.name());
        line(kernel, &path, "ones", class, "what was seen")
    };
    let mut lines: Vec<_> = Class::ALL.into_iter().map(|class| line("7.3.4", class)).collect();
    lines.push(Line {
        class: Class::Panic,
        ..line("7.2.12", Class::Refused)
    });
    sweep(&SweepReport::new(&lines))
}

fn pages() -> Vec<String> {
    let one = |scenario| runs(&Report::new(vec![scenario]));
    let mut pages: Vec<String> = variety().into_iter().map(one).collect();
    pages.push(runs(&Report::new(variety())));
    pages.push(runs(&Report::new(Vec::new())));
    pages.push(swept());
    pages.push(campaign(
        &CampaignReport::new(&header(), &summary(), &[]),
        &Places::default(),
    ));
    pages
}

#[test]
fn every_page_is_whole_and_its_links_lead_somewhere() {
    for page in pages() {
        let tags = elements(&page);
        let ids: Vec<&str> = tags.iter().filter_map(|tag| tag.attribute("id")).collect();
        let known: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(known.len(), ids.len(), "an identity is given twice: {ids:?}");
        for tag in &tags {
            for name in ["aria-labelledby", "href"] {
                let to = tag.attribute(name).map(|value| value.trim_start_matches('#'));
                if let Some(to) = to.filter(|to| *to != "data:,") {
                    assert!(known.contains(to), "{name} leads to {to}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_fetched_nothing_runs_and_everything_can_be_reached_by_keyboard() {
    for page in pages() {
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("url("));
        for tag in elements(&page) {
            let name = tag.name.as_str();
            assert!(
                !["script", "img", "iframe", "object", "embed", "base"].contains(&name),
                "{name}"
            );
            assert!(
                tag.attribute("src").is_none() && tag.attribute("style").is_none(),
                "{name}"
            );
            for (attribute, value) in &tag.attributes {
                assert!(!attribute.starts_with("on"), "{attribute}");
                assert!(
                    attribute != "tabindex" || value == "0",
                    "{name} has another place in the order of keys"
                );
            }
            // What scrolls can be scrolled by keyboard, and has a name.
            if tag.attribute("class") == Some("scroll") {
                assert_eq!(
                    (tag.attribute("tabindex"), tag.attribute("role")),
                    (Some("0"), Some("region"))
                );
                assert!(
                    tag.attribute("aria-label")
                        .or(tag.attribute("aria-labelledby"))
                        .is_some()
                );
            }
            if name == "svg" && tag.attribute("y").is_none() {
                let told = tag.attribute("role") == Some("img") && tag.attribute("aria-labelledby").is_some();
                assert!(
                    told || tag.attribute("aria-hidden") == Some("true"),
                    "a drawing without words"
                );
            }
            if name == "th" {
                assert!(tag.attribute("scope").is_some(), "a heading of what?");
            }
        }
    }
}

#[test]
fn headings_go_down_by_one() {
    for page in pages() {
        let levels = elements(&page);
        let levels = levels
            .iter()
            .filter_map(|tag| tag.name.strip_prefix('h')?.parse::<u32>().ok());
        let mut before = 0;
        for level in levels {
            assert!(level <= before + 1, "h{level} after h{before}");
            before = level;
        }
        assert_eq!(page.matches("<h1").count(), 1);
        assert_eq!(page.matches("<main").count(), 1);
    }
}

#[test]
fn text_of_the_guest_stays_text() {
    let evil = "</pre><script src=\"https://evil\">alert(1)</script><img src=x onerror=a>&amp;\u{202e}";
    let mut evidence = testing::good();
    testing::change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
    evidence.console = format!("{evil}\n[    0.250000] BUG: {evil}\n");
    evidence.outcome.text = evil.into();
    evidence.kernels[1].command_line = evil.into();
    evidence.objects[0].name = evil.into();
    evidence.retrievals[0].what = evil.into();
    evidence.state_hash = evil.into();
    let page = runs(&Report::new(vec![report(evidence)]));
    let tags = elements(&page);
    assert!(tags.iter().all(|tag| tag.name != "script" && tag.name != "img"));
    assert!(page.matches("&lt;script src=&quot;").count() > 5);
    assert!(
        !page.contains('\u{202e}') && page.contains('\u{fffd}'),
        "text is shown in another order"
    );
    // Escaped once, not twice and not never.
    assert!(page.contains("&amp;amp;") && !page.contains("&amp;amp;amp;"));
}

#[test]
fn the_verdict_and_its_cause_come_before_all_else() {
    let mut evidence = testing::good();
    evidence.outcome.kind = harness::evidence::OutcomeKind::SetupFailed;
    evidence.outcome.generation = 0;
    let hello = evidence.kernels[0].hello.as_mut().unwrap();
    (hello.liveupdate, hello.release) = (false, "6.17.8".into());
    let page = runs(&Report::new(vec![report(evidence)]));
    let main = page.split_once("<main>").unwrap().1;
    let places = [
        "ERROR",
        "small",
        "Because Linux 6.17.8",
        "ended as setup-failed",
        "baton run",
        "Rules",
        "Timeline",
    ];
    let places: Vec<Option<usize>> = places.iter().map(|text| main.find(text)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{places:?}"
    );
}

#[test]
fn a_large_run_has_a_small_page() {
    let mut evidence = testing::good();
    let first = evidence.ledger.entries[0];
    evidence.ledger.entries = (0..500_000u64)
        .map(|index| vmm::ledger::Entry {
            index,
            time: index * 5,
            address: index * 7919 % (testing::RAM / 64) * 64,
            length: 64,
            ..first
        })
        .collect();
    evidence.ledger.made = 500_000;
    evidence.console = (0..20_000)
        .map(|line| format!("[{line:>12}] {}\n", "x".repeat(300)))
        .collect();
    let scenario = report(evidence);
    assert!(scenario.findings.len() > 64, "{}", scenario.findings.len());
    let page = runs(&Report::new(vec![scenario]));
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
}

/// The colours of a scheme by name, from the style sheet.
fn colours(block: &str) -> Vec<(String, [f64; 3])> {
    let parts = block.split([';', '{', '}']);
    let colour = |part: &str| {
        let (name, value) = part.trim().strip_prefix("--")?.split_once(": #")?;
        let byte = |at: usize| u8::from_str_radix(value.get(at..at + 2)?, 16).ok();
        Some((
            name.to_owned(),
            [byte(0)?, byte(2)?, byte(4)?].map(|byte| f64::from(byte) / 255.0),
        ))
    };
    parts.filter_map(colour).collect()
}

/// Contrast of two colours: WCAG 2.2, "contrast ratio".
fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
    let luminance = |colour: [f64; 3]| {
        let [r, g, b] = colour.map(|part| {
            if part <= 0.04045 {
                part / 12.92
            } else {
                ((part + 0.055) / 1.055).powf(2.4)
            }
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    };
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[test]
fn both_schemes_have_enough_contrast() {
    assert!((contrast([0.0; 3], [1.0; 3]) - 21.0).abs() < 1e-9);
    let (light, rest) = STYLE.split_once("@media (prefers-color-scheme: dark)").unwrap();
    let dark = rest.split_once("\n}\n").unwrap().0;
    let schemes = [light, dark].map(colours);
    let names =
        |scheme: &[(String, [f64; 3])]| scheme.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&schemes[0]), names(&schemes[1]));
    assert!(schemes[0].len() > 20);
    for scheme in &schemes {
        let of = |name: &str| scheme.iter().find(|(one, _)| one == name).unwrap().1;
        let enough = |front: &str, back: &str, least: f64| {
            let ratio = contrast(of(front), of(back));
            assert!(
                ratio >= least,
                "{front} on {back}: {ratio:.2}, at least {least} is needed"
            );
        };
        for back in ["bg", "panel"] {
            for front in ["text", "muted", "link", "good", "bad", "warn"] {
                enough(front, back, 4.5);
            }
        }
        for tone in ["silent", "dead"] {
            enough(tone, &format!("{tone}-bg"), 4.5);
        }
        for tone in ["good", "bad", "warn"] {
            for front in [tone, "text", "muted", "link"] {
                enough(front, &format!("{tone}-bg"), 4.5);
            }
        }
        for phase in ["phase", "phase-new"] {
            enough("text", phase, 4.5);
        }
        for shape in [
            "preserved",
            "unpreserved",
            "handover",
            "scratch",
            "staged",
            "device",
            "finding",
            "bars",
        ] {
            enough(shape, "track", 3.0);
            enough(shape, "bg", 3.0);
        }
        enough("blackout", "bg", 3.0);
    }
}
