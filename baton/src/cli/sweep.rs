//! `baton sweep`: one kind of fault at every place.

use super::outputs::{Outputs, Said, write_all};
use super::{Exit, complain};
use crate::report::{CountProgress, SweepReport, html, write_text};
use campaign::json_lines::{self, Appender, LinesError};
use campaign::sweep::{CaseError, Class, Line, Only, Sweep, left, read, table};
use clap::{Args, Subcommand};
use harness::plan::Overrides;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(subcommand)]
    command: SweepCommand,
}

#[derive(Debug, Subcommand)]
enum SweepCommand {
    /// Give every field of the handover every wrong value, and class what the new kernel makes of it.
    #[command(after_help = EXIT_HELP)]
    Blob(BlobArgs),
}

const EXIT_HELP: &str = "Exit status: 0 all cases were run (whatever their classes), 2 bad usage or scenario, 3 a case \
could not be run.";

#[derive(Debug, Args)]
struct BlobArgs {
    /// Scenario file with one kexec or more; the second kernel is the one that is tested.
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Kernel, the same for all generations: a version or the path of a bzImage. May be given several times, for one
    /// sweep each; without it the scenario's.
    #[arg(long, value_name = "VERSION|PATH")]
    kernel: Vec<String>,
    /// Seed of every random choice.
    #[arg(long)]
    seed: Option<u64>,
    /// Cases that run at the same time; one per processor unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Only these cases: PATH, PATH=VALUE, or PATH* for all fields whose paths begin so. May be given several times.
    #[arg(long, value_name = "PATH[=VALUE]")]
    only: Vec<Only>,
    /// Print the results as lines of JSON, each when it is there; the table goes to standard error then.
    #[arg(long)]
    json: bool,
    /// Write a report to read in a browser: one file that fetches nothing; - is standard output, and the table goes to
    /// standard error then.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Append results to DIR/results.jsonl, leave out the cases that are in it already, and keep the evidence of
    /// interesting cases in a folder each.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Branch at the new kernel's entry always, not as late as gives the same result.
    #[arg(long, hide = true)]
    from_entry: bool,
}

/// Runs the command.
pub(super) fn sweep(args: &SweepArgs) -> Exit {
    let SweepCommand::Blob(args) = &args.command;
    blob(args).unwrap_or_else(|failed| failed)
}

fn blob(args: &BlobArgs) -> Result<Exit, Exit> {
    let failed = |error: &dyn std::fmt::Display| {
        complain(error);
        Exit::Failed
    };
    let outputs = Outputs {
        reports: args.html.iter().map(PathBuf::as_path).collect(),
        out: args.out.as_deref(),
        snapshots: Vec::new(),
    };
    let usage = |error: &dyn std::fmt::Display| {
        complain(error);
        Exit::Usage
    };
    outputs.check().map_err(|error| usage(&error))?;
    if args.json && outputs.said() == Said::Error {
        return Err(usage(&"--json and --html - are both standard output"));
    }
    let agent = harness::agent::load().map_err(|error| failed(&error))?;
    let kernels: Vec<Option<&String>> = match &args.kernel[..] {
        [] => vec![None],
        some => some.iter().map(Some).collect(),
    };
    let mut plans = Vec::new();
    for kernel in kernels {
        let overrides = Overrides {
            kernel: kernel.cloned(),
            seed: args.seed,
            ..Overrides::default()
        };
        let plan = super::run::prepare(&args.scenario, &overrides).map_err(|error| {
            complain(error);
            Exit::Usage
        })?;
        plans.push((kernel, plan));
    }
    let results = args.out.as_ref().map(|out| out.join("results.jsonl"));
    let mut lines = match &results {
        Some(file) if file.exists() => read(file).map_err(|error| failed(&error))?,
        _ => Vec::new(),
    };
    let sink = Sink::open(args, results.as_deref()).map_err(|error| failed(&error))?;
    for (kernel, plan) in &plans {
        let command = command(args, *kernel, plan.seed);
        let mut sweep = Sweep::new(plan, &agent, &command).map_err(|error| failed(&error))?;
        sweep.from_entry = args.from_entry;
        sweep.hashed = args.out.is_some();
        let cases = sweep.cases(&args.only).map_err(|error| {
            complain(error);
            Exit::Usage
        })?;
        if cases.is_empty() {
            let kernel = sweep.kernel();
            complain(format!(
                "--only names no case: no such field of {kernel} can have such a value, or it has it already"
            ));
            return Err(Exit::Usage);
        }
        let cases = left(cases, sweep.kernel(), &lines);
        sink.begin(sweep.kernel(), cases.len());
        let jobs = args.jobs.map_or_else(super::processors, usize::from);
        sweep.run_all(&cases, jobs, args.out.as_deref(), &|result| sink.take(result));
        sink.end(sweep.base.snapshots());
    }
    let Sink { state, .. } = sink;
    let state = state
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    lines.extend(state.lines);
    let text = format!("{}{}", table(&lines), interesting(&lines));
    if args.json || outputs.said() == Said::Error {
        eprint!("{text}");
    } else {
        super::print(&text)?;
    }
    write_all(&[(&args.html, &|path| {
        write_text(&html::sweep(&SweepReport::new(&lines)), path)
    })])?;
    Ok(if state.failed { Exit::Failed } else { Exit::Met })
}

/// The command line that runs a case again, up to `--only`.
fn command(args: &BlobArgs, kernel: Option<&String>, seed: u64) -> String {
    let mut command = format!("baton sweep blob {} --seed {seed}", args.scenario.display());
    if let Some(kernel) = kernel {
        command = format!("{command} --kernel {kernel}");
    }
    command
}

/// The cases in which the kernel did what it should not, one line each, worst first.
fn interesting(lines: &[Line]) -> String {
    let mut some: Vec<&Line> = lines.iter().filter(|line| line.class.is_interesting()).collect();
    some.sort_by_key(|line| {
        (
            std::cmp::Reverse(line.class),
            line.kernel.clone(),
            line.path.clone(),
        )
    });
    let mut out = String::new();
    for line in some {
        let Line {
            kernel,
            path,
            set,
            was,
            value,
            class,
            what,
            ..
        } = line;
        out.push_str(&format!(
            "{class} {kernel}: {path}={set} ({value}, was {was}): {what}\n"
        ));
    }
    out
}

/// Where results go: to the file, to standard output, and into the counts.
struct Sink {
    state: Mutex<State>,
}

struct State {
    file: Option<Appender>,
    json: bool,
    progress: Option<CountProgress>,
    lines: Vec<Line>,
    failed: bool,
    kernel: String,
    done: usize,
    bad: usize,
    began: (Instant, f64),
}

impl Sink {
    fn open(args: &BlobArgs, results: Option<&Path>) -> Result<Self, LinesError> {
        let open = |path: &Path| {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|error| LinesError::file(folder, error))?;
            }
            Appender::open(path)
        };
        Ok(Self {
            state: Mutex::new(State {
                file: results.map(open).transpose()?,
                json: args.json,
                progress: None,
                lines: Vec::new(),
                failed: false,
                kernel: String::new(),
                done: 0,
                bad: 0,
                began: (Instant::now(), 0.0),
            }),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn begin(&self, kernel: &str, planned: usize) {
        let mut state = self.lock();
        state.kernel = kernel.into();
        state.progress = Some(CountProgress::new(kernel, planned as u64, 0, "interesting"));
        (state.done, state.bad) = (0, 0);
        state.began = (Instant::now(), cpu_seconds());
    }

    fn take(&self, result: Result<&Line, &CaseError>) {
        let mut state = self.lock();
        state.done += 1;
        match result {
            Ok(line) => state.keep(line),
            Err(error) => {
                state.failed = true;
                complain(error);
            }
        }
        if let Some(progress) = &state.progress {
            progress.show(state.done as u64, state.bad as u64);
        }
    }

    fn end(&self, snapshots: usize) {
        let mut state = self.lock();
        if let Some(progress) = state.progress.take() {
            progress.finish();
        }
        let (wall, cpu) = (
            state.began.0.elapsed().as_secs_f64(),
            cpu_seconds() - state.began.1,
        );
        #[allow(clippy::cast_precision_loss)] // numbers for people
        let per_hour = state.done as f64 * 3600.0 / cpu.max(0.001);
        eprintln!(
            "{}: {} injections from {snapshots} snapshots, {} interesting, in {wall:.1} s and {cpu:.1} s of processor time: \
             {per_hour:.0} injections per core-hour",
            state.kernel, state.done, state.bad
        );
    }
}

impl State {
    /// Keeps a result: in the file, on standard output, and for the table.
    fn keep(&mut self, line: &Line) {
        self.bad += usize::from(line.class.is_interesting() || line.class == Class::NotJudged);
        let text = match json_lines::line(line) {
            Ok(text) => text,
            Err(error) => {
                complain(error);
                self.failed = true;
                return;
            }
        };
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.append(&text)) {
            complain(error);
            self.failed = true;
        }
        if self.json {
            // A closed pipe is no error: its reader needs no more.
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        self.lines.push(line.clone());
    }
}

/// Processor time that this process has used, in seconds; 0 if the host does not tell.
fn cpu_seconds() -> f64 {
    // User and system time are the 14th and 15th field, in hundredths of a second (man 5 proc_pid_stat). The second field
    // is a name in parentheses, which may contain spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
