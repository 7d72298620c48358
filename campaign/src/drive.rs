//! Drives worker processes: one per processor, each fed with jobs until none is left.
//!
//! A worker that dies is the result `died` of the cell that it ran, and the rest of its job is given to a new worker. A
//! worker dies with this process. Only this module is asynchronous.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::job::{Job, JobCell};
use crate::plan::{CampaignPlan, Cell, CellId};
use crate::result::{CellResult, Status};
use crate::worker::Answer;

/// Most cells of one job: so many share what a worker prepares, and so many are lost to others if it is slow.
const MAX_JOB: usize = 256;

/// Bytes of a worker's standard error that are kept.
const STDERR_KEPT: usize = 4096;

/// Longest time that the standard error of a dead worker is waited for; a process that it left behind may hold it open.
const STDERR_PATIENCE: Duration = Duration::from_secs(1);

/// How to drive.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program and arguments that run a worker.
    pub worker: (PathBuf, Vec<String>),
    /// How many workers at once.
    pub jobs: usize,
    /// Host time that a cell may take.
    pub cell_timeout: Duration,
}

/// How driving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every cell has its result.
    Done,
    /// The user interrupted it.
    Interrupted,
}

/// Why driving failed.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The runtime or a worker cannot be started.
    #[error("a worker cannot be started: {0}")]
    Start(#[source] std::io::Error),
    /// A worker died before it began with a cell.
    #[error("a worker ended before it ran anything: {0}")]
    Useless(String),
}

/// The jobs that no worker has yet.
struct Pending {
    plan: Arc<CampaignPlan>,
    /// Cells by index; those of one entry have one base.
    chunks: VecDeque<VecDeque<usize>>,
}

impl Pending {
    /// Divides cells, given by index in ascending order.
    fn new(plan: Arc<CampaignPlan>, cells: &[usize], workers: usize) -> Self {
        let base = |index: &usize| plan.cells.get(*index).map(|cell| cell.base);
        // Toward the end no worker should wait long for another, so a base is cut into more pieces than there are
        // workers.
        let pieces = |count: usize| count.div_ceil(4 * workers).clamp(1, MAX_JOB);
        let chunks = cells
            .chunk_by(|a, b| base(a) == base(b))
            .flat_map(|cells| cells.chunks(pieces(cells.len())))
            .map(|chunk| chunk.iter().copied().collect())
            .collect();
        Self { plan, chunks }
    }

    fn next(&mut self) -> Option<(VecDeque<usize>, Job)> {
        let chunk = self.chunks.pop_front()?;
        let cells: Vec<&Cell> = chunk
            .iter()
            .filter_map(|index| self.plan.cells.get(*index))
            .collect();
        let (base, _) = self.plan.bases.get(cells.first()?.base)?;
        let cell = |cell: &&Cell| JobCell {
            id: cell.id,
            label: self.plan.label(cell),
            add: self.plan.addition(cell).to_owned(),
        };
        let job = Job {
            base: base.clone(),
            cells: cells.iter().map(cell).collect(),
        };
        Some((chunk, job))
    }
}

/// Runs cells of a plan, given by index in ascending order, and passes each result to `each`. An error of `each` ends
/// it.
pub fn drive<E: From<DriveError>>(
    plan: &Arc<CampaignPlan>,
    cells: &[usize],
    settings: &Settings,
    each: &mut dyn FnMut(CellResult) -> Result<(), E>,
) -> Result<Ended, E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DriveError::Start)?;
    runtime.block_on(async {
        let workers = settings.jobs.clamp(1, cells.len().max(1));
        let pending = Arc::new(Mutex::new(Pending::new(Arc::clone(plan), cells, workers)));
        let (sender, mut results) = mpsc::channel(64);
        let lanes: Vec<JoinHandle<Result<(), DriveError>>> = (0..workers)
            .map(|_| tokio::spawn(lane(settings.clone(), Arc::clone(&pending), sender.clone())))
            .collect();
        drop(sender);
        loop {
            tokio::select! {
                result = results.recv() => match result {
                    Some(result) => each(result)?,
                    None => break,
                },
                _ = tokio::signal::ctrl_c() => return Ok(Ended::Interrupted),
            }
        }
        for lane in lanes {
            if let Ok(Err(error)) = lane.await {
                return Err(error.into());
            }
        }
        Ok(Ended::Done)
    })
}

/// Gives jobs to one worker after another until none is left.
async fn lane(
    settings: Settings,
    pending: Arc<Mutex<Pending>>,
    results: mpsc::Sender<CellResult>,
) -> Result<(), DriveError> {
    let next = || pending.lock().unwrap_or_else(PoisonError::into_inner).next();
    let mut idle: Option<Worker> = None;
    while let Some((mut chunk, job)) = next() {
        let mut worker = match idle.take() {
            Some(worker) => worker,
            None => Worker::start(&settings).map_err(DriveError::Start)?,
        };
        let mut progress = Progress::default();
        let Err(reason) = worker.run(&job, &settings, &results, &mut progress).await else {
            idle = Some(worker);
            continue;
        };
        let reason = worker.bury(&reason).await;
        let cell = progress
            .begun
            .and_then(|id| job.cells.iter().find(|cell| cell.id == id));
        let Some(cell) = cell else {
            return Err(DriveError::Useless(reason));
        };
        let died = CellResult::without_run(cell.id, cell.label.clone(), Status::Died, &reason);
        if results.send(died).await.is_err() {
            break;
        }
        chunk.drain(..chunk.len().min(progress.done + 1));
        if !chunk.is_empty() {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.chunks.push_front(chunk);
        }
    }
    Ok(())
}

/// How far a worker came with a job.
#[derive(Debug, Default)]
struct Progress {
    /// The cell that it runs.
    begun: Option<CellId>,
    /// How many results it gave.
    done: usize,
}

/// A worker process.
struct Worker {
    child: Child,
    jobs: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Worker {
    fn start(settings: &Settings) -> std::io::Result<Self> {
        let (program, arguments) = &settings.worker;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let missing = || std::io::Error::other("a worker has no standard streams");
        let jobs = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        let stderr = tokio::spawn(last_bytes(child.stderr.take().ok_or_else(missing)?));
        Ok(Self {
            child,
            jobs,
            answers,
            stderr,
        })
    }

    /// Lets it run a job. The error says how it failed.
    async fn run(
        &mut self,
        job: &Job,
        settings: &Settings,
        results: &mpsc::Sender<CellResult>,
        progress: &mut Progress,
    ) -> Result<(), String> {
        let mut line = serde_json::to_vec(job).map_err(|error| error.to_string())?;
        line.push(b'\n');
        // If it has died, reading its answers says so.
        let _ = self.jobs.write_all(&line).await;
        loop {
            let answer = tokio::time::timeout(settings.cell_timeout, self.answers.next_line())
                .await
                .map_err(|_| format!("no result within {} s", settings.cell_timeout.as_secs()))?;
            let Some(line) = answer.map_err(|error| error.to_string())? else {
                return Err(String::new());
            };
            match serde_json::from_str(&line).map_err(|error| format!("it said no answer: {error}"))? {
                Answer::Begin(cell) => progress.begun = Some(cell),
                Answer::Result(result) => {
                    progress.begun = None;
                    progress.done += 1;
                    if results.send(*result).await.is_err() {
                        return Err("the campaign has ended".into());
                    }
                }
                Answer::Done => return Ok(()),
            }
        }
    }

    /// Kills it, and says how it died: how it failed, its status, and the last that it wrote to standard error.
    async fn bury(mut self, failure: &str) -> String {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => Some(status),
            // It closed its output, so it is about to end by itself, unless it failed otherwise.
            _ if failure.is_empty() => tokio::time::timeout(STDERR_PATIENCE, self.child.wait())
                .await
                .ok()
                .and_then(Result::ok),
            _ => None,
        };
        let _ = self.child.kill().await;
        let stderr = tokio::time::timeout(STDERR_PATIENCE, self.stderr).await;
        let stderr = stderr.ok().and_then(Result::ok).unwrap_or_default();
        let status = status.map(|status| status.to_string()).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr);
        let said: Vec<&str> = [failure, &status, stderr.trim()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect();
        format!("the worker died: {}", said.join("; "))
    }
}

/// Reads to the end, and returns the last bytes.
async fn last_bytes(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut kept, mut block) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = stream.read(&mut block).await {
        kept.extend_from_slice(&block[..count]);
        let excess = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..excess);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Base;
    use crate::plan::Label;
    use std::collections::BTreeSet;

    fn plan(bases: usize, per_base: usize) -> Arc<CampaignPlan> {
        let label = |base: usize| Label {
            scenario: format!("s{base}"),
            kernels: String::new(),
            seed: 1,
            variant: String::new(),
        };
        let base = |base: usize| Base {
            scenario_file: format!("s{base}.toml"),
            text: String::new(),
            old: None,
            new: None,
            seed: 1,
        };
        let cell = |index: usize| Cell {
            id: CellId::of(&[index.to_string().as_bytes()]),
            base: index / per_base,
            variant: None,
        };
        Arc::new(CampaignPlan {
            name: "n".into(),
            file: "c.toml".into(),
            bases: (0..bases).map(|index| (base(index), label(index))).collect(),
            variants: Vec::new(),
            cells: (0..bases * per_base).map(cell).collect(),
        })
    }

    /// A worker made of a shell script, which sees each job as `$job` and the identities of its cells as `$cells`.
    fn settings(script: &str, timeout: u64) -> Settings {
        let read =
            r#"while read -r job; do cells=$(echo "$job" | grep -o '"id":"[0-9a-f]*"' | cut -d'"' -f4);"#;
        let script = format!("{read} {script} echo '\"done\"'; done");
        Settings {
            worker: ("/bin/sh".into(), vec!["-c".into(), script]),
            jobs: 3,
            cell_timeout: Duration::from_secs(timeout),
        }
    }

    /// Says that it begins with the cell `$c`.
    const BEGIN: &str = r#"echo "{\"begin\":\"$c\"}";"#;

    /// Begins with the cell `$c` and gives its result.
    fn run() -> String {
        let result = concat!(
            r#"\"scenario\":\"s\",\"kernels\":\"\",\"seed\":1,\"variant\":\"\",\"status\":\"pass\",\"reasons\":[],"#,
            r#"\"outcome\":\"completed\",\"symptoms\":[],\"state_hash\":\"\",\"ledger_digest\":\"\",\"guest_ns\":1,"#,
            r#"\"instructions\":1,\"wall_us\":1"#,
        );
        format!(r#"{BEGIN} echo "{{\"result\":{{\"cell\":\"$c\",{result}}}}}";"#)
    }

    /// The same for each cell; `special` is done first, if the cell is `victim`.
    fn run_all_but(victim: CellId, special: &str) -> String {
        format!(
            "for c in $cells; do if [ $c = {victim} ]; then {BEGIN} {special} fi; {} done;",
            run()
        )
    }

    fn drive_all(plan: &Arc<CampaignPlan>, settings: &Settings) -> Result<Vec<CellResult>, DriveError> {
        let all: Vec<usize> = (0..plan.cells.len()).collect();
        let mut results = Vec::new();
        let ended = drive(plan, &all, settings, &mut |result| {
            results.push(result);
            Ok::<(), DriveError>(())
        })?;
        assert_eq!(ended, Ended::Done);
        Ok(results)
    }

    #[test]
    fn every_cell_has_one_result() {
        let plan = plan(3, 17);
        let results = drive_all(
            &plan,
            &settings(&format!("for c in $cells; do {} done;", run()), 60),
        )
        .unwrap();
        let cells: BTreeSet<CellId> = results.iter().map(|result| result.cell).collect();
        assert_eq!((results.len(), cells.len()), (51, 51));
    }

    #[test]
    fn a_worker_that_dies_is_the_result_of_its_cell_and_of_no_other() {
        let plan = plan(2, 10);
        let victim = plan.cells[13].id;
        let script = run_all_but(victim, "echo oh no >&2; kill -9 $$;");
        let results = drive_all(&plan, &settings(&script, 60)).unwrap();
        assert_eq!(results.len(), 20);
        let dead: Vec<&CellResult> = results
            .iter()
            .filter(|result| result.status == Status::Died)
            .collect();
        assert_eq!(
            dead.iter().map(|result| result.cell).collect::<Vec<_>>(),
            [victim]
        );
        let reason = &dead[0].reasons[0];
        assert!(
            reason.contains("signal: 9") && reason.contains("oh no"),
            "{reason}"
        );
    }

    #[test]
    fn a_worker_that_hangs_is_killed() {
        let plan = plan(1, 4);
        let victim = plan.cells[2].id;
        let script = run_all_but(victim, "exec sleep 1000;");
        let results = drive_all(&plan, &settings(&script, 1)).unwrap();
        let dead = results
            .iter()
            .find(|result| result.status == Status::Died)
            .unwrap();
        assert_eq!((results.len(), dead.cell), (4, victim));
        assert!(
            dead.reasons[0].contains("no result within 1 s"),
            "{:?}",
            dead.reasons
        );
    }

    #[test]
    fn workers_that_never_begin_end_it() {
        let error = drive_all(&plan(1, 4), &settings("echo no agent >&2; exit 1;", 60)).unwrap_err();
        assert!(error.to_string().contains("no agent"), "{error}");
    }

    #[test]
    fn jobs_hold_cells_of_one_base_and_all_of_them() {
        let plan = plan(3, 1000);
        let all: Vec<usize> = (0..3000).collect();
        let mut pending = Pending::new(Arc::clone(&plan), &all, 2);
        let mut seen = Vec::new();
        while let Some((chunk, job)) = pending.next() {
            assert!(job.cells.len() <= MAX_JOB && chunk.len() == job.cells.len());
            let base = plan.cells[chunk[0]].base;
            assert_eq!(job.base, plan.bases[base].0);
            assert!(chunk.iter().all(|cell| plan.cells[*cell].base == base));
            seen.extend(chunk);
        }
        assert_eq!(seen, all);
    }
}
