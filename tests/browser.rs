//! The report for browsers in a real one: Debian's Chromium without a window.
//!
//! `images/setup test` installs it. Where it is missing a test says so and passes; in CI it fails.

use baton::report::html::html;
use baton::report::{Report, ScenarioReport};
use harness::evidence::{InjectedAt, InjectionEvidence, OutcomeKind, Phase};
use harness::testing;
use harness::verdict::Judged;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::chromium;

/// Widths at which a report must be usable, in CSS pixels.
const WIDTHS: [u32; 2] = [400, 1400];

/// Opens everything that can be opened and measures the page. What it found is the text of an element of its own.
const MEASURE: &str = r#"<script>addEventListener('load', () => {
  const initially = [...document.querySelectorAll('details')].filter(one => !one.open).length;
  document.querySelectorAll('details').forEach(one => one.open = true);
  const root = document.documentElement;
  const wide = [...document.body.querySelectorAll('*')].filter(one => !one.closest('.scroll > *, svg') &&
    one.getBoundingClientRect().right > root.clientWidth + 1).map(one => one.tagName + '.' + one.className);
  const reached = [...document.querySelectorAll('a[href], summary, [tabindex], button, input, select')];
  const unreachable = reached.filter(one => { one.focus(); return document.activeElement !== one; });
  const unmarked = reached.filter(one => { one.focus();
    return one.matches(':focus-visible') && getComputedStyle(one).outlineStyle === 'none'; });
  const small = [...document.querySelectorAll('svg text')].filter(one => parseFloat(getComputedStyle(one).fontSize) < 11);
  const out = document.createElement('pre');
  out.id = 'measured';
  out.textContent = JSON.stringify({
    inner: root.clientWidth, scroll: root.scrollWidth, wide: wide.slice(0, 5), closed: initially,
    reached: reached.length, unreachable: unreachable.map(one => one.outerHTML.slice(0, 80)),
    unmarked: unmarked.map(one => one.outerHTML.slice(0, 80)), small: small.length,
    requests: performance.getEntriesByType('resource').map(one => one.name),
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    background: getComputedStyle(document.body).backgroundColor,
  });
  document.body.append(out);
});</script>"#;

/// Reports with findings, long words, injections, an unexpected end, and a scenario that was not run.
fn scenarios() -> Vec<ScenarioReport> {
    let long = "x".repeat(180);
    let mut damaged = testing::good();
    for page in [12, 15, 16] {
        testing::change_page(&mut damaged, 1, page, |page| page[100..164].fill(0xa5));
    }
    damaged.name = "findings-in-memory".into();
    damaged.console.push_str(&format!("[    0.250000] BUG: {long}\n"));
    damaged.kernels[1].command_line = format!("console=ttyS0 {long}");
    let at = InjectedAt {
        generation: 1,
        phase: Phase::BootNew,
        time_ns: 1_200_000,
        instructions: None,
    };
    damaged.injections.push(InjectionEvidence {
        words: format!("at 1.2 ms flip a bit of {long}"),
        armed: Some(at),
        fired: 0,
        firings: Vec::new(),
        unable: vec!["because nothing is there".into()],
    });
    let mut failed = testing::good();
    failed.outcome.kind = OutcomeKind::SetupFailed;
    failed.outcome.text = format!("create session \"{long}\": open(/dev/liveupdate) failed");
    failed.kernels[0].hello.as_mut().unwrap().liveupdate = false;
    let mut reports: Vec<ScenarioReport> = [testing::good(), damaged, failed]
        .map(|evidence| ScenarioReport::new(&Judged::new(evidence).unwrap()))
        .into();
    let (name, file) = ("not-run".to_owned(), format!("{long}.toml"));
    reports.push(ScenarioReport::error(name, file, 1, format!("{long}: no such file")));
    reports
}

/// A page in a file, and a copy of it that measures itself.
fn pages(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut reports = vec![Report::new(scenarios())];
    reports.extend(scenarios().into_iter().map(|one| Report::new(vec![one])));
    let written = reports.iter().enumerate().map(|(number, report)| {
        let page = html(report);
        let whole = folder.join(format!("{number}.html"));
        std::fs::write(&whole, &page).unwrap();
        // The page's own policy keeps scripts from running, so the copy must do without.
        let open = page.replace("Content-Security-Policy", "none").replace("</body>", &format!("{MEASURE}</body>"));
        let measured = folder.join(format!("{number}-measured.html"));
        std::fs::write(&measured, open).unwrap();
        (whole, measured)
    });
    written.collect()
}

/// Loads a page and returns what became of it.
fn dump(program: &Path, page: &Path, width: u32, dark: bool) -> Output {
    let mut command = Command::new(program);
    command.args(chromium::ARGUMENTS).arg(format!("--window-size={width},900"));
    if dark {
        command.arg(chromium::DARK);
    }
    let output = command.arg("--dump-dom").arg(format!("file://{}", page.display())).output();
    output.expect("the browser starts")
}

fn measured(output: &Output) -> Value {
    let dom = String::from_utf8_lossy(&output.stdout);
    let (_, rest) = dom.split_once("<pre id=\"measured\">").unwrap_or_else(|| panic!("not measured:\n{dom}"));
    let text = rest.split_once("</pre>").unwrap().0;
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What the page's console said: errors of scripts and styles, and what the page's policy kept from loading.
fn complaints(output: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect()
}

#[test]
fn a_browser_shows_every_report_at_both_widths_and_in_both_schemes() {
    let Some(program) = chromium::program("the report in a browser") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for (whole, copy) in pages(folder.path()) {
        let output = dump(&program, &whole, WIDTHS[0], false);
        assert_eq!(complaints(&output), Vec::<String>::new(), "{}", whole.display());
        let dom = String::from_utf8_lossy(&output.stdout);
        assert!(dom.contains("<main>") && !dom.contains("<script"), "{dom}");
        let mut backgrounds = Vec::new();
        for (width, dark) in [(WIDTHS[0], false), (WIDTHS[1], false), (WIDTHS[0], true), (WIDTHS[1], true)] {
            let output = dump(&program, &copy, width, dark);
            let found = measured(&output);
            let context = format!("{} at {width}: {found}", copy.display());
            assert_eq!(found["inner"], width, "{context}");
            assert_eq!(found["scroll"], width, "the page scrolls sideways: {context}");
            for list in ["wide", "unreachable", "unmarked", "requests"] {
                assert_eq!(found[list], Value::Array(Vec::new()), "{list}: {context}");
            }
            assert_eq!((&found["small"], &found["dark"]), (&0.into(), &dark.into()), "{context}");
            backgrounds.push(found["background"].clone());
        }
        assert_eq!(backgrounds[0], backgrounds[1]);
        assert_ne!(backgrounds[0], backgrounds[2], "dark looks like light");
    }
}

#[test]
fn the_measurements_can_fail() {
    let Some(program) = chromium::program("what measures reports") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("bad.html");
    let bad = "<body><div style='width:3000px'>wide</div><a href='#x' style='display:none'>hidden</a>\
               <img src='missing.png'>";
    std::fs::write(&page, format!("<!DOCTYPE html><html>{bad}{MEASURE}</body></html>")).unwrap();
    let output = dump(&program, &page, WIDTHS[0], false);
    let found = measured(&output);
    for list in ["wide", "unreachable", "requests"] {
        assert_eq!(found[list].as_array().map(Vec::len), Some(1), "{list}: {found}");
    }
    assert!(found["scroll"].as_u64() >= Some(3000), "{found}");
    std::fs::write(&page, "<!DOCTYPE html><script>nonsense(</script>").unwrap();
    assert!(!complaints(&dump(&program, &page, WIDTHS[0], false)).is_empty());
}

#[test]
fn a_browser_takes_a_picture() {
    let Some(program) = chromium::program("a picture of a report") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (page, picture) = (folder.path().join("page.html"), folder.path().join("page.png"));
    std::fs::write(&page, html(&Report::new(scenarios()))).unwrap();
    let status = Command::new(program)
        .args(chromium::ARGUMENTS)
        .args(["--window-size=1400,2000", chromium::DARK])
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap()
        .status;
    assert!(status.success());
    let bytes = std::fs::read(&picture).unwrap();
    // A PNG of that size that is not of one colour.
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 50_000, "{} bytes", bytes.len());
}
