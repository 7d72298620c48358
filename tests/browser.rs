//! The report for browsers in a real one: Debian's Chromium without a window.
//!
//! `images/setup test` installs it. Where it is missing a test says so and passes; in CI it fails.

use baton::report::{Report, ScenarioReport, html};
use harness::evidence::{InjectedAt, InjectionEvidence, OutcomeKind, Phase};
use harness::testing;
use harness::verdict::Judged;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::{chromium, ready, small};

/// Widths at which a report must be usable, in CSS pixels.
const WIDTHS: [u32; 2] = [390, 1280];

/// Opens everything that can be opened and measures the page. What it found is the text of an element of its own.
const MEASURE: &str = include_str!("measure.js");

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
        acts_on_machine: false,
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
    reports.push(ScenarioReport::error(
        name,
        file,
        1,
        format!("{long}: no such file"),
    ));
    reports
}

/// Pages of runs that were not run, in a folder.
fn imagined(folder: &Path) -> Vec<PathBuf> {
    let mut reports = vec![Report::new(scenarios())];
    reports.extend(scenarios().into_iter().map(|one| Report::new(vec![one])));
    let written = reports.iter().enumerate().map(|(number, report)| {
        let page = folder.join(format!("{number}.html"));
        std::fs::write(&page, html::runs(report)).unwrap();
        page
    });
    written.collect()
}

/// What makes a live update fail: a bit of preserved memory is flipped between the kernels.
const FLIPPED: &str = r#"
[[inject]]
when.at = "jump"
what.memory.flip = { at = { object = "memory", page = 200 } }
"#;

/// A campaign of two cells; one of them cannot be judged.
const CAMPAIGN: &str = r#"
name = "two"
scenarios = ["small.toml"]
[[variant]]
name = "full"
add = "[limits]\nledger = 100\n"
"#;

/// Pages that the program wrote, of each kind, in a folder.
fn made(folder: &Path) -> Vec<PathBuf> {
    let at = |name: &str| tests::scenarios().join(name).to_string_lossy().into_owned();
    let written = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_string_lossy().into_owned()
    };
    let passing = written("small.toml", &small(""));
    let failing = written("failing.toml", &small(FLIPPED));
    let campaign = written("campaign.toml", CAMPAIGN);
    let (dropped, waiting) = (at("inject/dma-drop.toml"), at("inject/never-fires.toml"));
    let receiver = at("sweeps/receiver.toml");
    let results = folder.join("results").to_string_lossy().into_owned();
    let commands: [(&str, i32, &[&str]); 6] = [
        ("passing", 0, &["run", &passing, "--backend", "soft"]),
        ("failing", 1, &["run", &failing, "--backend", "soft"]),
        ("injections", 3, &["run", &dropped, &waiting, "--backend", "soft"]),
        (
            "sweep",
            0,
            &[
                "sweep",
                "blob",
                &receiver,
                "--only",
                "luo/compatible",
                "--only",
                "scratch*",
            ],
        ),
        ("moments", 0, &["sweep", "dma", &passing, "--moments", "12"]),
        ("campaign", 3, &["campaign", &campaign, "--out", &results]),
    ];
    let pages = commands.into_iter().map(|(name, status, arguments)| {
        let page = folder.join(format!("{name}.html"));
        let output = Command::new(tests::program())
            .args(arguments)
            .arg("--html")
            .arg(&page)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{name}: {said}");
        page
    });
    pages.collect()
}

/// A copy of a page that measures itself. The page's own policy keeps scripts from running, so the copy does without.
fn measuring(page: &Path) -> PathBuf {
    let text = std::fs::read_to_string(page).unwrap();
    let script = format!("<script>{MEASURE}</script></body>");
    let copy = page.with_extension("measured.html");
    let text = text
        .replace("Content-Security-Policy", "none")
        .replace("</body>", &script);
    std::fs::write(&copy, text).unwrap();
    copy
}

/// Loads a page and returns what became of it.
fn dump(program: &Path, page: &Path, width: u32, dark: bool) -> Output {
    let mut command = Command::new(program);
    command
        .args(chromium::ARGUMENTS)
        .arg(format!("--window-size={width},900"));
    if dark {
        command.arg(chromium::DARK);
    }
    let output = command
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()))
        .output();
    output.expect("the browser starts")
}

fn measured(output: &Output) -> Value {
    let dom = String::from_utf8_lossy(&output.stdout);
    let (_, rest) = dom
        .split_once("<pre id=\"measured\">")
        .unwrap_or_else(|| panic!("not measured:\n{dom}"));
    let text = rest.split_once("</pre>").unwrap().0;
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What the page's console said: errors of scripts and styles, and what the page's policy kept from loading.
fn complaints(output: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines()
        .filter(|line| line.contains(":CONSOLE"))
        .map(str::to_owned)
        .collect()
}

/// Opens a page at both widths and in both schemes, and checks all that is measured.
fn check(program: &Path, page: &Path) {
    let output = dump(program, page, WIDTHS[0], false);
    assert_eq!(complaints(&output), Vec::<String>::new(), "{}", page.display());
    let dom = String::from_utf8_lossy(&output.stdout);
    assert!(dom.contains("<main>") && !dom.contains("<script"), "{dom}");
    let copy = measuring(page);
    let mut backgrounds = Vec::new();
    for (width, dark) in [
        (WIDTHS[0], false),
        (WIDTHS[1], false),
        (WIDTHS[0], true),
        (WIDTHS[1], true),
    ] {
        let found = measured(&dump(program, &copy, width, dark));
        let context = format!("{} at {width}, dark {dark}: {found:#}", page.display());
        assert_eq!(found["inner"], width, "{context}");
        assert_eq!(found["scroll"], width, "the page scrolls sideways: {context}");
        assert_eq!(found["dark"], dark, "{context}");
        for (fault, list) in found["faults"].as_object().unwrap() {
            assert_eq!(list, &Value::Array(Vec::new()), "{fault}: {context}");
        }
        assert!(found["texts"].as_u64() > Some(3), "{context}");
        backgrounds.push(found["background"].clone());
    }
    assert_eq!(backgrounds[0], backgrounds[1]);
    assert_ne!(backgrounds[0], backgrounds[2], "dark looks like light");
}

#[test]
fn a_browser_shows_every_kind_of_run_at_both_widths_and_in_both_schemes() {
    let Some(program) = chromium::program("the report in a browser") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for page in imagined(folder.path()) {
        check(&program, &page);
    }
}

#[test]
fn a_browser_shows_what_the_program_writes_of_runs_sweeps_and_campaigns() {
    let test = "what the program writes in a browser";
    let Some(program) = chromium::program(test).filter(|_| ready(test)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pages = made(folder.path());
    for (page, says) in pages.iter().zip([
        "</span>PASS",
        "explained by",
        "never fired",
        "Fields of luo by values",
        "One more block: cases in order of time",
        "Each variant with each pair of kernels",
    ]) {
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains(says), "{}: {says}\n{text}", page.display());
        check(&program, page);
    }
}

/// A page with each fault that is looked for.
const BAD: &str = r##"<!DOCTYPE html><html><body>
<h3>first</h3><h5 id="x">third</h5><p id="x" style="font-size:9px;color:#999">small and faint</p>
<div style="width:3000px">wide</div><img src="missing.png">
<div style="overflow-x:auto;width:50px" class="scroll"><div style="width:500px">scrolled by pointer only</div></div>
<table><tr><th>of what?</th></tr></table><div style="height:500px"></div>
<a href="#nowhere" style="outline:none;display:block">outline</a><a href="#x" style="display:none">hidden</a>
<a href="#x" style="position:absolute;top:0"></a><div tabindex="3">first by number</div>
</body></html>"##;

#[test]
fn the_measurements_can_fail() {
    let Some(program) = chromium::program("what measures reports") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("bad.html");
    std::fs::write(&page, BAD).unwrap();
    let found = measured(&dump(&program, &measuring(&page), WIDTHS[0], false));
    for (fault, list) in found["faults"].as_object().unwrap() {
        assert_ne!(list, &Value::Array(Vec::new()), "{fault} is not seen: {found:#}");
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
    std::fs::write(&page, html::runs(&Report::new(scenarios()))).unwrap();
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
    assert!(
        bytes.starts_with(b"\x89PNG") && bytes.len() > 50_000,
        "{} bytes",
        bytes.len()
    );
}
