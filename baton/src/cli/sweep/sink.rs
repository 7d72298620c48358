//! Where results of a sweep go.

use crate::cli::complain;
use crate::report::CountProgress;
use campaign::json_lines::{self, Appender, LinesError};
use campaign::sweep::CaseError;
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where results go: to the file, to standard output, and into the counts.
pub(super) struct Sink<L> {
    state: Mutex<State<L>>,
    /// What is counted beside the results, in words.
    counted: &'static str,
    counts: fn(&L) -> bool,
}

struct State<L> {
    file: Option<Appender>,
    json: bool,
    progress: Option<CountProgress>,
    lines: Vec<L>,
    failed: bool,
    kernel: String,
    done: usize,
    bad: usize,
    began: (Instant, f64),
}

impl<L: Serialize + Clone> Sink<L> {
    /// Opens the file. Lines are printed as well if `json` is set.
    pub(super) fn open(
        json: bool,
        results: Option<&Path>,
        counted: &'static str,
        counts: fn(&L) -> bool,
    ) -> Result<Self, LinesError> {
        let open = |path: &Path| {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|error| LinesError::file(folder, error))?;
            }
            Appender::open(path)
        };
        Ok(Self {
            state: Mutex::new(State {
                file: results.map(open).transpose()?,
                json,
                progress: None,
                lines: Vec::new(),
                failed: false,
                kernel: String::new(),
                done: 0,
                bad: 0,
                began: (Instant::now(), 0.0),
            }),
            counted,
            counts,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sweep of so many cases begins.
    pub(super) fn begin(&self, kernel: &str, planned: usize) {
        let mut state = self.lock();
        state.kernel = kernel.into();
        state.progress = Some(CountProgress::new(kernel, planned as u64, 0, self.counted));
        (state.done, state.bad) = (0, 0);
        state.began = (Instant::now(), cpu_seconds());
    }

    /// A case has its result, or could not be run.
    pub(super) fn take(&self, result: Result<&L, &CaseError>) {
        let mut state = self.lock();
        state.done += 1;
        match result {
            Ok(line) => state.keep(line, (self.counts)(line)),
            Err(error) => {
                state.failed = true;
                complain(error);
            }
        }
        if let Some(progress) = &state.progress {
            progress.show(state.done as u64, state.bad as u64);
        }
    }

    /// The sweep has ended: says how fast it was.
    pub(super) fn end(&self, snapshots: usize) {
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
            "{}: {} injections from {snapshots} snapshots, {} {}, in {wall:.1} s and {cpu:.1} s of processor time: \
             {per_hour:.0} injections per core-hour",
            state.kernel, state.done, state.bad, self.counted
        );
    }

    /// All results, and whether something went wrong.
    pub(super) fn into_lines(self) -> (Vec<L>, bool) {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (state.lines, state.failed)
    }
}

impl<L: Serialize + Clone> State<L> {
    /// Keeps a result: in the file, on standard output, and for the table.
    fn keep(&mut self, line: &L, counts: bool) {
        self.bad += usize::from(counts);
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

/// Processor time that this process has used, in seconds.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).map_or(0.0, |used| used.as_secs_f64())
}
