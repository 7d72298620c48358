//! Campaigns: the same cells, whole, in parts on several "machines", and killed and continued, give equal results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{program, ready};

/// How long something may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn repository() -> PathBuf {
    let tests = tests::scenarios().parent().unwrap().to_path_buf();
    tests.parent().unwrap().to_path_buf()
}

fn small() -> PathBuf {
    repository().join("tests/campaigns/small.toml")
}

fn campaign(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(program());
    command
        .arg("campaign")
        .args(arguments.iter().map(|argument| argument.as_ref()));
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    let texts = [&output.stdout, &output.stderr];
    texts
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .concat()
}

/// The results in a directory, by cell, without host times.
fn results(directory: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(directory.join("results.jsonl")).unwrap_or_default();
    let result = |line: &str| {
        let mut result: Value = serde_json::from_str(line).unwrap();
        result.as_object_mut().unwrap().remove("wall_us").unwrap();
        (result["cell"].as_str().unwrap().to_owned(), result)
    };
    let all: Vec<_> = text.lines().map(result).collect();
    let count = all.len();
    let results: BTreeMap<_, _> = all.into_iter().collect();
    assert_eq!(results.len(), count, "a cell has one result");
    results
}

/// The script of a Kubernetes manifest: the block after `- |`.
fn manifest_script(text: &str) -> String {
    let mut lines = text
        .lines()
        .skip_while(|line| line.trim() != "- |")
        .skip(1)
        .peekable();
    let indent = lines
        .peek()
        .map_or(0, |line| line.len() - line.trim_start().len());
    let script = lines.take_while(|line| line.len() - line.trim_start().len() >= indent);
    script.map(|line| &line[indent..]).collect::<Vec<_>>().join("\n")
}

/// The processes, other than this one, that have `mark` in their environment.
fn marked(mark: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pid = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let has = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .windows(mark.len())
            .any(|window| window == mark.as_bytes())
    };
    processes.filter_map(pid).filter(has).collect()
}

#[test]
fn the_whole_its_parts_and_what_was_killed_are_equal() {
    if !ready("campaigns") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let whole = at("whole");
    let output = campaign(&[&small(), &"--out", &whole]);
    let text = said(&output);
    // The ledger of three variants is too small on purpose.
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("campaign small: 9 of 9 cells: 6 pass, 0 fail, 3 error, 0 died"),
        "{text}"
    );
    assert!(text.contains("3 error: run ended as ledger-full at "), "{text}");
    let expected = results(&whole);
    assert_eq!(expected.len(), 9);
    let kept: Vec<_> = std::fs::read_dir(whole.join("evidence"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(kept.len(), 1, "one failure of the only group");

    // The line that reproduces the group.
    let line = text
        .lines()
        .find(|line| line.contains("baton campaign cell"))
        .unwrap();
    let cell = line.split(' ').next_back().unwrap();
    let again = campaign(&[&"cell", &small(), &cell]);
    assert_eq!(again.status.code(), Some(3));
    assert!(said(&again).contains("the ledger is full"), "{}", said(&again));

    parts_on_slurm(&at("slurm"), &expected);
    parts_on_kubernetes(&at("kubernetes"), &expected);
    killed_and_continued(&at("killed"), &expected);
}

#[test]
fn injections_are_scored_and_a_failure_is_made_smaller() {
    if !ready("a campaign of injections") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (out, json) = (folder.path().join("out"), folder.path().join("report.json"));
    let file = repository().join("tests/campaigns/faults.toml");
    let output = campaign(&[&file, &"--out", &out, &"--minimise", &"--json", &json]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let score = |deed: &str, fate: &str| report["injections"][deed][fate].as_u64().unwrap();
    for (deed, fired, caught) in [
        ("dma.drop", 8, 2),
        ("memory.flip", 10, 10),
        ("dma.redirect", 2, 2),
    ] {
        let found = (score(deed, "fired"), score(deed, "caught"));
        assert_eq!(found, (fired, caught), "{deed}: {text}");
        assert_eq!(score(deed, "not_noticed"), 0, "{deed}: {text}");
    }
    // A write that is made later leaves memory as it should be, and stands beside a flipped bit that was caught.
    assert_eq!(score("dma.reorder", "cannot_be_told"), 4, "{text}");
    // Of three injections one makes the failure, and the smaller scenario fails by itself.
    let of_three: Vec<_> = std::fs::read_dir(out.join("minimal"))
        .unwrap()
        .flatten()
        .collect();
    assert!(!of_three.is_empty(), "{text}");
    assert!(text.contains("fails so with 1 of "), "{text}");
    for minimal in of_three {
        let finished = tests::baton(["run".as_ref(), minimal.path().as_os_str()]);
        assert_eq!(finished.scenario()["verdict"], "fail", "{}", finished.text);
    }
}

/// Runs the script of each task, all of them after each other, and merges.
fn parts_on_slurm(results_at: &Path, expected: &BTreeMap<String, Value>) {
    for task in 1..=8 {
        let mut command = Command::new("bash");
        command
            .arg(repository().join("docs/ci/slurm.sh"))
            .env("SLURM_ARRAY_TASK_ID", task.to_string())
            .env("SLURM_ARRAY_TASK_COUNT", "8")
            .env("SLURM_CPUS_PER_TASK", "2");
        part(&mut command, results_at);
    }
    merged(results_at, 8, expected);
}

/// The same with the command of the manifest.
fn parts_on_kubernetes(results_at: &Path, expected: &BTreeMap<String, Value>) {
    let manifest = std::fs::read_to_string(repository().join("docs/ci/kubernetes.yaml")).unwrap();
    let script = manifest_script(&manifest);
    assert!(script.starts_with("exec baton campaign"), "{script}");
    for index in 0..8 {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script])
            .env("PARTS", "8")
            .env("JOB_COMPLETION_INDEX", index.to_string());
        part(&mut command, results_at);
    }
    merged(results_at, 8, expected);
}

/// Runs the command of one part.
fn part(command: &mut Command, results_at: &Path) {
    command
        .env("PATH", path_with_program())
        .env("CAMPAIGN", small())
        .env("RESULTS", results_at);
    let output = command.output().unwrap();
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{command:?}: {}",
        said(&output)
    );
}

fn path_with_program() -> String {
    let folder = program().canonicalize().unwrap();
    let folder = folder.parent().unwrap().display().to_string();
    format!("{folder}:{}", std::env::var("PATH").unwrap_or_default())
}

/// Merges the parts, and then all parts but one that has cells.
fn merged(results_at: &Path, parts: usize, expected: &BTreeMap<String, Value>) {
    let mut directories: Vec<PathBuf> = std::fs::read_dir(results_at)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    directories.sort();
    assert_eq!(directories.len(), parts);
    let all = results_at.join("all");
    let arguments = |directories: &[PathBuf]| {
        let mut arguments = vec!["merge".to_owned()];
        arguments.extend(
            directories
                .iter()
                .map(|directory| directory.display().to_string()),
        );
        arguments
    };
    let merge = |arguments: &[String]| {
        let arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = arguments
            .iter()
            .map(|argument| argument as &dyn AsRef<std::ffi::OsStr>)
            .collect();
        campaign(&arguments)
    };
    let mut whole = arguments(&directories);
    whole.extend(["--out".into(), all.display().to_string()]);
    let output = merge(&whole);
    assert!(
        said(&output).contains("9 of 9 cells: 6 pass, 0 fail, 3 error"),
        "{}",
        said(&output)
    );
    assert_eq!(&results(&all), expected);

    let lost = directories
        .iter()
        .position(|directory| !results(directory).is_empty())
        .unwrap();
    let cells: Vec<String> = results(&directories[lost]).into_keys().collect();
    directories.remove(lost);
    let output = merge(&arguments(&directories));
    assert_eq!(output.status.code(), Some(3));
    for cell in cells {
        assert!(
            said(&output).contains(&format!("missing {cell} small-live-update")),
            "{}",
            said(&output)
        );
    }
}

/// Kills the campaign three times, each time after some more results, and then lets it end.
fn killed_and_continued(out: &Path, expected: &BTreeMap<String, Value>) {
    let mark = format!("BATON_TEST_MARK={}", out.display());
    let (name, value) = mark.split_once('=').unwrap();
    for after in [1, 3, 5] {
        let mut child = Command::new(program())
            .arg("campaign")
            .arg(small())
            .arg("--out")
            .arg(out)
            .env(name, value)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        let lines = || {
            std::fs::read(out.join("results.jsonl"))
                .map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
        };
        while lines() < after {
            assert!(begin.elapsed() < PATIENCE, "no result in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let begin = Instant::now();
        while !marked(&mark).is_empty() {
            assert!(
                begin.elapsed() < PATIENCE,
                "workers are left: {:?}",
                marked(&mark)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let output = campaign(&[&small(), &"--out", &out]);
    let text = said(&output);
    assert!(text.contains("of 9 cells have a result already"), "{text}");
    assert_eq!(&results(out), expected);
    let names: std::collections::BTreeSet<_> = std::fs::read_dir(out)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names.iter().map(String::as_str).collect::<Vec<_>>(),
        ["cells.jsonl", "evidence", "plan.json", "results.jsonl"]
    );

    // Another plan may not go on in this directory.
    let other = repository().join("tests/campaigns/quick.toml");
    let output = campaign(&[&other, &"--out", &out]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        said(&output).contains("results of another plan"),
        "{}",
        said(&output)
    );
}
