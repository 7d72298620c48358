//! Code that the end-to-end tests share: running the program, writing small scenarios, reading the report.
//!
//! The tests run `target/release/baton` as a user does, and need a guest kernel in the cache; `make test` builds
//! both. If something is missing, a test says so and passes; in CI it fails.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub mod chromium;
pub mod image;
pub mod on_kvm;

/// The program that `make build` builds, or the one that `BATON_PROGRAM` names.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("BATON_PROGRAM").map_or_else(|| workspace().join("target/release/baton"), PathBuf::from)
}

/// The folder that holds the scenario files.
#[must_use]
pub fn scenarios() -> PathBuf {
    workspace().join("tests/scenarios")
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in a workspace")
}

/// The last lines of a text, at most so many, each behind `margin`.
#[must_use]
pub fn tail(text: &str, most: usize, margin: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(most)..];
    last.iter().map(|line| format!("{margin}{line}\n")).collect()
}

/// Whether `test` can run here. Says why it cannot, and fails instead in CI.
#[must_use]
pub fn ready(test: &str) -> bool {
    let missing = if program().exists() {
        let doctor = Command::new(program())
            .arg("doctor")
            .output()
            .expect("baton doctor starts");
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        (!said.contains("kernel 7.3.4: built")).then(|| "guest kernel 7.3.4 (run `make images`)".to_owned())
    } else {
        Some(format!("{} (run `make build`)", program().display()))
    };
    let Some(missing) = missing else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test} needs {missing}");
    skipped(&format!("{test}: needs {missing}"));
    false
}

/// Set by `make nightly`: there a test that needs a variant of a kernel must not be left out.
pub const NIGHTLY: &str = "BATON_NIGHTLY";

/// The folder of a kernel, if it is built.
#[must_use]
pub fn built(kernel: &str) -> Option<PathBuf> {
    harness::kernel::kernel_directory(kernel).filter(|folder| folder.join("bzImage").is_file())
}

/// The folder of a kernel that `test` needs besides the default one. Without it says so.
///
/// # Panics
/// If the kernel is missing where one of these environment variables is set.
#[must_use]
pub fn built_for(test: &str, kernel: &str, required_by: &[&str]) -> Option<PathBuf> {
    let folder = built(kernel);
    if folder.is_none() {
        assert!(!is_set(required_by), "{test} needs guest kernel {kernel}");
        skipped(&format!(
            "{test}: needs guest kernel {kernel} (run `images/build {kernel}`)"
        ));
    }
    folder
}

/// The folder of a variant of a kernel, such as "7.3.4+kaslr", which `test` needs. Without it says so.
///
/// # Panics
/// In CI and in `make nightly`, when the variant or anything else that `test` needs is missing.
#[must_use]
pub fn variant(test: &str, kernel: &str) -> Option<PathBuf> {
    const REQUIRED_BY: [&str; 2] = [NIGHTLY, "CI"];
    if !ready(test) {
        assert!(!is_set(&REQUIRED_BY), "{test} must run here");
        return None;
    }
    built_for(test, kernel, &REQUIRED_BY)
}

/// Whether one of these environment variables is set.
fn is_set(names: &[&str]) -> bool {
    names.iter().any(|name| std::env::var_os(name).is_some())
}

/// Says on standard error that a test is left out. The test harness holds back what `eprintln!` prints in a test that
/// passes, but not what is written to the stream itself.
pub fn skipped(what: &str) {
    // If standard error is closed, nobody can be told.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}");
}

/// Whether `test`, which needs KVM, can run here, given why KVM cannot be used, if so. Says why not. In CI it fails
/// instead, unless `BATON_KVM_TESTS_RUN_IN` names what runs it there.
#[must_use]
pub fn kvm_ready(test: &str, unusable: Option<String>) -> bool {
    let Some(error) = unusable else { return true };
    let elsewhere = std::env::var(KVM_TESTS_RUN_IN)
        .ok()
        .filter(|name| !name.is_empty());
    match elsewhere {
        Some(place) => skipped(&format!("{test}: run in {place}; here {error}")),
        None => {
            assert!(std::env::var_os("CI").is_none(), "{test} needs KVM: {error}");
            skipped(&format!("{test}: {error}"));
        }
    }
    false
}

/// Names what runs the tests that need KVM, where this host's own is not for them.
pub const KVM_TESTS_RUN_IN: &str = "BATON_KVM_TESTS_RUN_IN";

/// A finished `baton` and its report.
#[derive(Debug)]
pub struct Finished {
    /// Exit status.
    pub status: i32,
    /// Standard output and error.
    pub text: String,
    /// The JSON report; null when none was written.
    pub report: Value,
}

impl Finished {
    /// The report of the run's only scenario.
    ///
    /// # Panics
    /// When there is no report.
    #[must_use]
    pub fn scenario(&self) -> &Value {
        let list = self.report["scenarios"].as_array();
        list.and_then(|list| list.first())
            .unwrap_or_else(|| panic!("no report; baton said:\n{}", self.text))
    }

    /// The findings of a rule.
    #[must_use]
    pub fn findings(&self, rule: &str) -> Vec<&Value> {
        let all = self.scenario()["findings"].as_array();
        all.into_iter()
            .flatten()
            .filter(|finding| finding["rule"] == rule)
            .collect()
    }

    /// The report's entry for a rule.
    ///
    /// # Panics
    /// When it says nothing.
    #[must_use]
    pub fn rule(&self, name: &str) -> &Value {
        let rules = self.scenario()["rules"].as_array();
        let found = rules.into_iter().flatten().find(|rule| rule["name"] == name);
        found.unwrap_or_else(|| panic!("no rule {name}; baton said:\n{}", self.text))
    }
}

/// Runs `baton` with these arguments and `--json`. `run` uses softcpu unless the arguments name a backend, because
/// these tests must give the same on every host.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn baton<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("report.json");
    let mut arguments: Vec<std::ffi::OsString> = arguments
        .into_iter()
        .map(|argument| argument.as_ref().to_owned())
        .collect();
    let runs = arguments.first().is_some_and(|command| command == "run");
    if runs && !arguments.iter().any(|argument| argument == "--backend") {
        arguments.extend(["--backend", "soft"].map(Into::into));
    }
    let output = Command::new(program())
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("baton starts");
    finished(&output, &json)
}

fn finished(output: &Output, json: &Path) -> Finished {
    let report = std::fs::read(json)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Value::Null);
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    Finished {
        status: output.status.code().unwrap_or(-1),
        text: String::from_utf8_lossy(&text).into_owned(),
        report,
    }
}

/// A JSON report without the time that phases took on the host.
#[must_use]
pub fn without_host_time(report: &Value) -> Value {
    let mut report = report.clone();
    for scenario in report["scenarios"].as_array_mut().into_iter().flatten() {
        for phase in scenario["phases"].as_array_mut().into_iter().flatten() {
            phase["wall_ms"] = Value::Null;
        }
    }
    report
}

/// Writes `text` to a scenario file and runs it with further arguments.
///
/// # Panics
/// When the file cannot be written.
#[must_use]
pub fn run_text(text: &str, further: &[&str]) -> Finished {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("scenario.toml");
    std::fs::write(&file, text).expect("the scenario is written");
    let mut arguments = vec!["run", file.to_str().expect("a plain path")];
    arguments.extend(further);
    baton(arguments)
}

/// A small scenario that takes about a second, as a base for variants.
#[must_use]
pub fn small(further: &str) -> String {
    format!(
        r#"name = "small"
ram = "256 MiB"

[[memfd]]
name = "memory"
size = "4 MiB"
session = "vm"
token = 1

[dma]
rate = "100 MB/s"
ring = 64
{further}"#
    )
}
