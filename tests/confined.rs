//! While a guest runs, the program can open nothing but what it was told to write.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tests::image::{SPIN, bzimage};
use tests::{Finished, baton, program, ready, run_text, skipped};
use vmm::confine::{Confinement, offered};

/// Whether Landlock confines here. If not, says that `test` is left out, and fails in CI.
fn confines(test: &str) -> bool {
    match offered().unwrap() {
        Confinement::Confines { .. } => true,
        found => {
            assert!(
                std::env::var_os("CI").is_none(),
                "{test} needs Landlock: {found:?}"
            );
            skipped(&format!("{test}: Landlock is needed: {found:?}"));
            false
        }
    }
}

/// Boots a guest that spins, calls `meanwhile` once it is about to run, and ends it. Returns the exit status and what
/// was said.
fn boot(folder: &Path, meanwhile: impl FnOnce()) -> (i32, String) {
    let kernel = folder.join("spin");
    std::fs::write(&kernel, bzimage(SPIN)).unwrap();
    let mut child = Command::new(program())
        .args(["boot", "--backend", "soft", "--ram", "128 MiB", "--kernel"])
        .arg(&kernel)
        .arg("--out")
        .arg(folder.join("out"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Ctrl-A x ends it") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    meanwhile();
    child.stdin.take().unwrap().write_all(&[1, b'x']).unwrap();
    stderr.read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code().unwrap_or(-1), said)
}

#[test]
fn what_takes_the_place_of_an_output_is_not_written() {
    if !ready("a confined boot") || !confines("a confined boot") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (status, said) = boot(folder.path(), || ());
    assert_eq!(status, 0, "{said}");
    assert!(out.join("console.txt").exists() && out.join("boot.json").exists());
    // The same name, and another folder.
    let (status, said) = boot(folder.path(), || {
        std::fs::rename(&out, folder.path().join("away")).unwrap();
        std::fs::create_dir(&out).unwrap();
    });
    assert_eq!(status, 3, "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
}

#[test]
fn a_confined_run_writes_evidence_snapshots_and_reports() {
    if !ready("outputs of a confined run") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(folder.path().join("held")).unwrap();
    let kernel = folder.path().join("spin");
    std::fs::write(&kernel, bzimage(SPIN)).unwrap();
    let text = "name = \"spin\"\nram = \"128 MiB\"\n[limits]\nprogress = \"20 ms\"\nboot = \"20 ms\"\n\
        [[memfd]]\nname = \"m\"\nsize = \"64 KiB\"\ntoken = 1\n[expect]\noutcome = \"guest-hang\"\n";
    let snapshot = format!("1000={}", at("held/snapshot"));
    let (out, html, junit) = (at("out"), at("report.html"), at("report.xml"));
    let run = run_text(
        text,
        &[
            "--kernel",
            &at("spin"),
            "--backend",
            "soft",
            "--out",
            &out,
            "--html",
            &html,
            "--junit",
            &junit,
            "--snapshot",
            &snapshot,
        ],
    );
    let all = |run: &Finished| format!("status {}\n{}", run.status, run.text);
    assert_eq!(run.status, 0, "{}", all(&run));
    for file in ["out/evidence.json", "held/snapshot", "report.html", "report.xml"] {
        assert_ne!(
            std::fs::metadata(folder.path().join(file)).unwrap().len(),
            0,
            "{file}"
        );
    }
    let piped = run_text(
        text,
        &[
            "--kernel",
            &at("spin"),
            "--backend",
            "soft",
            "--ktap",
            "/dev/stdout",
            "--html",
            "/dev/null",
        ],
    );
    assert_eq!(piped.status, 0, "{}", all(&piped));
    assert!(piped.text.contains("KTAP version 1"), "{}", all(&piped));
    let again = baton(["resume", &at("held/snapshot"), "--out", &at("again")]);
    assert_eq!(again.status, 0, "{}", all(&again));
    let judged = baton(["judge", &at("again")]);
    assert_eq!(judged.status, 0, "{}", all(&judged));
}
