//! Runs a job's items on the KVM of the host that it is on, one after another.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{Item, Job, What};

/// How often is looked whether a program is done.
const POLL: Duration = Duration::from_millis(5);

/// What came of an item.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The item's name.
    pub name: String,
    /// Exit status; `None` if it was killed.
    pub status: Option<i32>,
    /// How long it took.
    pub seconds: f64,
    /// Standard output and error.
    pub text: String,
    /// The scenario's entry in the JSON report; null for other items.
    pub report: Value,
    /// Names of the tests that the program has; empty for other items.
    pub tests: Vec<String>,
}

impl Answer {
    /// The answer to an item of this name, before there is any.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            status: None,
            seconds: 0.0,
            text: String::new(),
            report: Value::Null,
            tests: Vec::new(),
        }
    }
}

/// Runs the items that `next` names by their places in the job, until it names none. Passes each answer on as soon as
/// there is one.
pub fn run(job: &Job, next: &mut dyn FnMut() -> Option<usize>, each: &mut dyn FnMut(Answer)) {
    while let Some(item) = next().and_then(|place| job.items.get(place)) {
        each(answer(job, item));
    }
}

fn answer(job: &Job, item: &Item) -> Answer {
    let begin = Instant::now();
    let mut answer = Answer::new(&item.name);
    let result = match &item.what {
        What::Doctor => finish(Command::new(&job.baton).arg("doctor"), job.patience, &mut answer),
        What::Scenario { text, .. } => {
            let slowdown = job.slowdown.map(|factor| format!("--slowdown={factor}"));
            let arguments = ["--backend", "kvm"].into_iter().chain(slowdown.as_deref());
            scenario(job, text, &arguments.collect::<Vec<_>>(), &mut answer)
        }
        What::Tests { program, only } => tests(job, program, only.as_deref(), &mut answer),
    };
    if let Err(error) = result {
        answer.text.push_str(&error);
    }
    answer.seconds = begin.elapsed().as_secs_f64();
    answer
}

/// Runs a scenario, here on KVM and elsewhere on softcpu.
pub fn scenario(job: &Job, text: &str, arguments: &[&str], answer: &mut Answer) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let [file, json] = ["scenario.toml", "report.json"].map(|name| folder.path().join(name));
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    let mut command = Command::new(&job.baton);
    command
        .arg("run")
        .arg(&file)
        .args(arguments)
        .arg("--json")
        .arg(&json);
    finish(&mut command, job.patience, answer)?;
    let report = std::fs::read(&json).map_err(|error| format!("no report: {error}"))?;
    let report: Value = serde_json::from_slice(&report).map_err(|error| error.to_string())?;
    answer.report = report["scenarios"][0].clone();
    Ok(())
}

/// Names of the tests that a program has.
pub fn tests_of(job: &Job, program: &Path) -> Result<Vec<String>, String> {
    let mut list = Answer::new("list");
    let mut command = Command::new(program);
    command.args(["--list", "--format", "terse"]);
    finish(&mut command, job.patience, &mut list)?;
    let names = list.text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

fn tests(job: &Job, program: &Path, only: Option<&str>, answer: &mut Answer) -> Result<(), String> {
    answer.tests = tests_of(job, program)?;
    answer.tests.retain(|name| only.is_none_or(|only| only == name));
    let mut command = Command::new(program);
    // In CI a test that finds no KVM fails, and so it is here.
    command.env("CI", "true").env("BATON_PROGRAM", &job.baton);
    command.args(["--exact", "--test-threads", "1"]).args(only);
    finish(&mut command, job.patience, answer)
}

/// Runs a program to its end, or for so long.
fn finish(command: &mut Command, patience: Duration, answer: &mut Answer) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| format!("{name}: {error}");
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    let error = writer.try_clone().map_err(failed)?;
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(error).spawn();
    // The command holds the pipe's other end until it is given something else.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.map_err(failed)?;
    let text = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = reader.read_to_end(&mut bytes);
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if begin.elapsed() > patience {
            child.kill().map_err(failed)?;
            break child.wait().map_err(failed)?;
        }
        std::thread::sleep(POLL);
    };
    answer.status = status.code();
    match text.join() {
        Ok(text) => answer.text.push_str(&text.map_err(failed)?),
        Err(_) => return Err(format!("{name}: its output was not read")),
    }
    Ok(())
}
