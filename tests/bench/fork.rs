//! Snapshots and branches: how long they take, and what memory and disk they cost.
//!
//! The scenario's guest is held at its first jump. A branch is made and dropped many times, then many branches are kept
//! at once, and one of them runs to its end.

use crate::samples::Spread;
use harness::conductor::{Progress, Run, Until};
use harness::plan::Plan;
use harness::snapshot::RunSnapshot;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::Instant;
use vmm::soft::Soft;

/// Target: most milliseconds that a branch takes in the median.
const GOAL_MS: f64 = 5.0;
/// Branches that are timed.
const TIMED: usize = 200;
/// Branches that are kept at once.
const KEPT: usize = 20;

/// What snapshots and branches cost. Times are in seconds.
#[derive(Debug, Serialize)]
pub struct Forks {
    /// Guest RAM that the snapshot holds, in bytes.
    pub held_bytes: u64,
    /// The first snapshot of a run: it copies all RAM that the guest has written.
    pub snapshot_s: f64,
    /// Another one at the same place, which has nothing to copy.
    pub again_s: f64,
    /// A branch, ready to run.
    pub fork_s: Option<Spread>,
    /// Dropping it.
    pub drop_s: Option<Spread>,
    /// Anonymous memory of a branch that has not run, in bytes, from many of them.
    pub idle_bytes: u64,
    /// The same of a branch that has run to its end.
    pub ended_bytes: u64,
    /// The snapshot as a file, in bytes.
    pub file_bytes: u64,
    /// Writing it, with the disk's own cache flushed.
    pub write_s: Option<Spread>,
    /// Reading it.
    pub read_s: Option<Spread>,
}

/// Measures everything; files go into `work`.
pub fn measure(plan: &Plan, agent: &[u8], work: &Path, runs: u32) -> Result<Forks, String> {
    let mut run = Run::new(plan, agent, &Soft::default(), &[]).map_err(|error| error.to_string())?;
    let place = Until::jump(0);
    if run.proceed(&[place], &()) != Progress::Paused(0) {
        return Err(format!("{}: the run did not come to {place}", plan.name));
    }
    let (snapshot_s, held) = timed(|| run.snapshot().map_err(|error| error.to_string()))?;
    let (again_s, _) = timed(|| run.snapshot().map_err(|error| error.to_string()))?;
    drop(run);
    let (mut forks, mut drops) = (Vec::new(), Vec::new());
    for _ in 0..TIMED {
        let (seconds, one) = timed(|| branch(&held))?;
        forks.push(seconds);
        let dropped = timed(|| {
            drop(one);
            Ok(())
        });
        drops.push(dropped?.0);
    }
    let (idle_bytes, ended_bytes) = memory(&held)?;
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    let file = work.join("held.snapshot");
    for _ in 0..runs {
        let failed = |error: harness::snapshot::SnapshotError| error.to_string();
        writes.push(timed(|| held.write(&file).map_err(failed))?.0);
        reads.push(timed(|| RunSnapshot::read(&file).map_err(failed))?.0);
    }
    Ok(Forks {
        held_bytes: held.machine.ram.stored_pages() * vmm::memory::PAGE_SIZE,
        snapshot_s,
        again_s,
        fork_s: Spread::of(forks),
        drop_s: Spread::of(drops),
        idle_bytes,
        ended_bytes,
        file_bytes: std::fs::metadata(&file).map_err(|error| error.to_string())?.len(),
        write_s: Spread::of(writes),
        read_s: Spread::of(reads),
    })
}

fn branch(held: &RunSnapshot) -> Result<Run, String> {
    Run::from_snapshot(held, &[]).map_err(|error| error.to_string())
}

fn timed<T>(work: impl FnOnce() -> Result<T, String>) -> Result<(f64, T), String> {
    let begin = Instant::now();
    let done = work()?;
    Ok((begin.elapsed().as_secs_f64(), done))
}

/// Memory of a branch that has not run, and of one that has run to its end.
fn memory(held: &RunSnapshot) -> Result<(u64, u64), String> {
    let before = anonymous_bytes()?;
    let mut kept = Vec::new();
    for _ in 0..KEPT {
        kept.push(branch(held)?);
    }
    let idle = anonymous_bytes()?;
    if let Some(one) = kept.last_mut() {
        one.proceed(&[], &());
    }
    let ended = anonymous_bytes()?;
    let each = idle.saturating_sub(before) / KEPT as u64;
    Ok((each, each + ended.saturating_sub(idle)))
}

/// Resident memory of this process that belongs to no file: what it has written.
fn anonymous_bytes() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.ok_or("/proc/self/status has no RssAnon")? << 10)
}

impl Forks {
    /// Whether a branch is made as fast as it has to be.
    pub fn is_fast(&self) -> bool {
        self.fork_s.is_some_and(|spread| spread.median * 1e3 <= GOAL_MS)
    }
}

impl fmt::Display for Forks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss)] // for people
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let ms = |spread: Option<Spread>| {
            spread.map_or_else(String::new, |spread| {
                let [median, least, greatest] =
                    [spread.median, spread.least, spread.greatest].map(|seconds| seconds * 1e3);
                format!("{median:.2} ms ({least:.2} to {greatest:.2})")
            })
        };
        writeln!(f, "Snapshots and branches of the guest at its first jump\n")?;
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<34}{value:>30}");
        row(
            &format!("snapshot of {}", mib(self.held_bytes)),
            format!("{:.1} ms", self.snapshot_s * 1e3),
        )?;
        row(
            "  again, nothing changed",
            format!("{:.1} ms", self.again_s * 1e3),
        )?;
        row("branch", ms(self.fork_s))?;
        row("  dropped", ms(self.drop_s))?;
        row("  its memory before it runs", mib(self.idle_bytes))?;
        row("  its memory at its end", mib(self.ended_bytes))?;
        row("file", mib(self.file_bytes))?;
        row("  written", ms(self.write_s))?;
        row("  read", ms(self.read_s))?;
        let reached = if self.is_fast() { "reached" } else { "missed " };
        writeln!(
            f,
            "\n  {reached}  at most {GOAL_MS} ms for a branch in the median"
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Branches that take so many seconds.
    pub fn forks(seconds: f64) -> Forks {
        Forks {
            held_bytes: 100 << 20,
            snapshot_s: 0.1,
            again_s: 0.001,
            fork_s: Spread::of([seconds]),
            drop_s: Spread::of([0.001]),
            idle_bytes: 1 << 20,
            ended_bytes: 50 << 20,
            file_bytes: 20 << 20,
            write_s: Spread::of([0.2]),
            read_s: Spread::of([0.3]),
        }
    }

    #[test]
    fn the_table_says_whether_branches_are_fast() {
        let text = forks(0.005).to_string();
        for part in ["100.0 MiB", "5.00 ms (5.00 to 5.00)", "reached  at most 5 ms"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(forks(0.0051).to_string().contains("missed   at most 5 ms"));
    }

    #[test]
    fn memory_that_is_written_counts() {
        let before = anonymous_bytes().unwrap();
        let written = std::hint::black_box(vec![1_u8; 32 << 20]);
        assert!(
            anonymous_bytes().unwrap() - before >= 30 << 20,
            "{}",
            written.len()
        );
    }
}
