//! Runs that are killed at any point leave evidence that can be read and is marked as unfinished, and leave nothing
//! elsewhere.
//!
//! Half of the kills come at random times, the other half within milliseconds of a phase change, when evidence is
//! written. `BATON_KILL_SEED` seeds the times.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{OpenOptions, read_dir};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::{Finished, baton, kvm_ready, program, ready, small};

/// Kills on soft.
const KILLS: u64 = 64;
/// Number of kills on KVM, all while the first kernel boots.
const KILLS_ON_KVM: u64 = 8;
/// Runs at once.
const WORKERS: u64 = 2;
/// Phases that end before the last one: boot-old, prepare, armed, handover, jump, boot-new, restore.
const PHASE_CHANGES: u64 = 7;
/// Longest time between a phase change and the kill.
const CLOSE: Duration = Duration::from_millis(12);
/// How long something may take to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// All that may be in an evidence directory.
const NAMES: [&str; 9] = [
    "evidence.json",
    "ledger.bin",
    "trace.bin.zst",
    "captures.bin.zst",
    "blob.bin.zst",
    "console.txt",
    "so-far",
    "so-far.new",
    "so-far.old",
];

/// When to kill.
#[derive(Debug, Clone, Copy)]
enum Kill {
    Never,
    /// So long after the start.
    At(Duration),
    /// So long after this many phases have passed.
    AfterPhase(u64, Duration),
}

/// What was found in the evidence directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    SoFar,
    Verdict,
}

/// Folders of one run.
struct Place {
    /// Removes them when it goes.
    _folder: TempDir,
    scenario: PathBuf,
    out: PathBuf,
    /// TMPDIR of the run.
    temporary: PathBuf,
    /// Its working directory.
    work: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [scenario, out, temporary, work] =
            ["scenario.toml", "out", "tmp", "work"].map(|name| folder.path().join(name));
        std::fs::create_dir(&temporary).unwrap();
        std::fs::create_dir(&work).unwrap();
        std::fs::write(&scenario, small("")).unwrap();
        Self {
            _folder: folder,
            scenario,
            out,
            temporary,
            work,
        }
    }

    /// Starts a run and kills it.
    fn run(&self, backend: &str, kill: Kill) -> ExitStatus {
        let by_phase = matches!(kill, Kill::AfterPhase(..));
        let mut child = Command::new(program())
            .args(["run", "--backend", backend, "--out"])
            .args([&self.out, &self.scenario])
            .env("TMPDIR", &self.temporary)
            .current_dir(&self.work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(if by_phase { Stdio::piped() } else { Stdio::null() })
            .spawn()
            .unwrap();
        match kill {
            Kill::Never => return child.wait().unwrap(),
            Kill::At(time) => std::thread::sleep(time),
            Kill::AfterPhase(phases, time) => {
                let lines = BufReader::new(child.stderr.take().unwrap()).lines();
                let passed = lines
                    .map_while(Result::ok)
                    .filter(|line| line.contains(" passed: "));
                let seen = (1..).zip(passed).find(|(count, _)| *count == phases);
                assert!(seen.is_some(), "the run ended before {phases} phases had passed");
                std::thread::sleep(time);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap()
    }

    /// Looks at all that the run left.
    fn look(&self, status: ExitStatus, what: &str) -> Left {
        // The script that finds kernels outlives its caller by some milliseconds.
        let survivors = gone_within_patience(|| self.survivors());
        assert_eq!(survivors, Vec::<String>::new(), "{what}: processes");
        assert_eq!(names(&self.temporary), BTreeSet::new(), "{what}: in TMPDIR");
        assert_eq!(
            names(&self.work),
            BTreeSet::new(),
            "{what}: in the working directory"
        );
        let known: BTreeSet<OsString> = NAMES.map(Into::into).into();
        let kept = names(&self.out);
        assert!(
            kept.is_subset(&known),
            "{what}: in the evidence directory: {kept:?}"
        );

        let judged = self.judge();
        let left = match judged.status {
            0 => Left::Verdict,
            3 if judged.text.contains("no evidence in it") => Left::Nothing,
            3 if judged.text.contains("the run has not ended") => Left::SoFar,
            other => panic!("{what}: judged with status {other}:\n{}", judged.text),
        };
        assert!(
            !judged.text.contains("panicked") && !judged.text.contains("cannot be read"),
            "{what}: {}",
            judged.text
        );
        match left {
            Left::Nothing => assert!(!kept.contains::<OsString>(&"so-far".into()), "{what}: {kept:?}"),
            Left::SoFar => assert_eq!(judged.scenario()["outcome"]["kind"], "unfinished", "{what}"),
            Left::Verdict => assert_eq!(judged.scenario()["verdict"], "pass", "{what}"),
        }
        if status.signal().is_none() {
            assert_eq!(
                (status.code(), left),
                (Some(0), Left::Verdict),
                "{what}: {}",
                judged.text
            );
            let finished: BTreeSet<OsString> = NAMES.iter().take(6).map(Into::into).collect();
            assert_eq!(kept, finished, "{what}: after the run's end");
        }
        left
    }

    fn judge(&self) -> Finished {
        baton([OsString::from("judge"), self.out.clone().into()])
    }

    /// Processes of the run that are still alive, found by their environment.
    fn survivors(&self) -> Vec<String> {
        let mark = self.temporary.to_str().unwrap().as_bytes();
        let of_run = |process: &PathBuf| {
            let environment = std::fs::read(process.join("environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|window| window == mark)
        };
        let survivors = processes().into_iter().filter(of_run);
        survivors
            .map(|process| {
                let command = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
                format!("{}: {command}", process.display())
            })
            .collect()
    }
}

/// Names in a folder; empty if the folder does not exist.
fn names(folder: &Path) -> BTreeSet<OsString> {
    let entries = read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// Folders of all processes.
fn processes() -> Vec<PathBuf> {
    let numbered = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok())
    };
    let entries = read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(numbered).collect()
}

/// New shared memory that no process has open. Waits, because other processes may create and remove some meanwhile.
fn abandoned(before: &BTreeSet<OsString>) -> Vec<PathBuf> {
    let folder = Path::new("/dev/shm");
    gone_within_patience(|| {
        let open: BTreeSet<PathBuf> = processes()
            .into_iter()
            .flat_map(|process| read_dir(process.join("fd")).into_iter().flatten().flatten())
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .collect();
        let now = names(folder);
        let new = now.difference(before).map(|name| folder.join(name));
        new.filter(|path| !open.contains(path)).collect()
    })
}

/// Calls `left` until it returns nothing or [`PATIENCE`] is over, and returns its last result.
fn gone_within_patience<T>(left: impl Fn() -> Vec<T>) -> Vec<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = left();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Number `index` of the random sequence that starts at `seed`, from 0 to 1.
fn fraction(seed: u64, index: u64) -> f64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..index {
        rng.u64(..);
    }
    rng.f64()
}

fn seed() -> u64 {
    let given = std::env::var("BATON_KILL_SEED").ok();
    let seed = given.map_or(20_261_125, |text| {
        text.parse().expect("BATON_KILL_SEED is a number")
    });
    eprintln!("seed {seed} (BATON_KILL_SEED)");
    seed
}

/// Kills `count` runs, `workers` at a time, and returns what each leaves.
fn kill_many(backend: &str, count: u64, workers: u64, when: impl Fn(u64) -> Kill + Sync) -> Vec<Left> {
    let shared_memory = names(Path::new("/dev/shm"));
    let (next, found) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let (place, kill) = (Place::new(), when(index));
                    let status = place.run(backend, kill);
                    let left = place.look(status, &format!("kill {index} on {backend}, {kill:?}"));
                    found.lock().unwrap().push(left);
                }
            });
        }
    });
    assert_eq!(
        abandoned(&shared_memory),
        Vec::<PathBuf>::new(),
        "shared memory is left"
    );
    found.into_inner().unwrap()
}

#[test]
fn a_killed_run_leaves_evidence_so_far_and_nothing_elsewhere() {
    if !ready("killed runs") {
        return;
    }
    let seed = seed();
    let whole = Place::new();
    let start = Instant::now();
    let status = whole.run("soft", Kill::Never);
    let length = start.elapsed();
    assert_eq!(whole.look(status, "no kill"), Left::Verdict);

    let left = kill_many("soft", KILLS, WORKERS, |index| {
        let fraction = fraction(seed, index);
        if index % 2 == 0 {
            // Two runs at a time are slower than one. Kill every eighth while it starts.
            let most = if index % 8 == 0 { 0.1 } else { 1.5 };
            Kill::At(length.mul_f64(most * fraction))
        } else {
            Kill::AfterPhase(1 + index / 2 % PHASE_CHANGES, CLOSE.mul_f64(fraction))
        }
    });
    let count = |what| left.iter().filter(|left| **left == what).count();
    let (nothing, so_far, verdict) = (count(Left::Nothing), count(Left::SoFar), count(Left::Verdict));
    eprintln!(
        "of {KILLS}: {nothing} left nothing yet, {so_far} evidence so far, {verdict} a verdict; a whole run took {} ms",
        length.as_millis()
    );
    // Kills at phase changes come before the end, except after the last phases.
    assert!(
        so_far >= 16,
        "only {so_far} of {KILLS} runs were killed with evidence so far"
    );
}

#[test]
fn a_run_killed_on_kvm_leaves_no_process_and_evidence_so_far() {
    if !ready("killed runs on KVM") {
        return;
    }
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let unusable = opened.err().map(|error| format!("/dev/kvm: {error}"));
    if !kvm_ready("killed runs on KVM", unusable) {
        return;
    }
    let seed = seed();
    let mut left = kill_many("kvm", KILLS_ON_KVM, 1, |index| {
        Kill::At(Duration::from_millis(1500).mul_f64(fraction(seed, index)))
    });
    if !left.contains(&Left::SoFar) {
        // On a slow host all of them come before the machine starts.
        let close = CLOSE.mul_f64(fraction(seed, KILLS_ON_KVM));
        left.extend(kill_many("kvm", 1, 1, |_| Kill::AfterPhase(1, close)));
    }
    eprintln!("{left:?}");
    assert!(
        left.contains(&Left::SoFar),
        "no run was killed after it had begun: {left:?}"
    );
}

#[test]
fn damaged_evidence_so_far_is_called_so() {
    if !ready("damaged evidence so far") {
        return;
    }
    let place = Place::new();
    let status = place.run("soft", Kill::AfterPhase(2, Duration::ZERO));
    assert_eq!(status.signal(), Some(9));
    assert_eq!(place.look(status, "undamaged"), Left::SoFar);
    let so_far = ["so-far", "so-far.old"].map(|name| place.out.join(name));
    let so_far = so_far.iter().find(|path| path.exists()).unwrap();
    // A console that is cut short is a console.
    for name in NAMES.iter().take(4) {
        let path = so_far.join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let judged = place.judge();
        assert_eq!(judged.status, 3, "{name}: {}", judged.text);
        assert!(
            judged.text.contains(name) && !judged.text.contains("the run has not ended"),
            "{name}: {}",
            judged.text
        );
        std::fs::write(&path, whole).unwrap();
    }
    assert!(place.judge().text.contains("the run has not ended"));
}
