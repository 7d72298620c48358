//! Runs a plan and judges it: the run, its snapshots, and a second run if the last writer of a byte is in question.

use std::path::{Path, PathBuf};

use crate::compare::first_difference;
use crate::conductor::{HostTimes, Observer, Progress, Run, Stopwatch, Until, WarmRuns, chain};
use crate::evidence::Evidence;
use crate::oracle::{MAX_KEPT, Question, open_questions};
use crate::plan::Plan;
use crate::scenario::{ScenarioError, parse};
use crate::snapshot::{RunSnapshot, SnapshotError};
use crate::verdict::Judged;
use vmm::machine::{MachineError, Moment};
use vmm::memory::PAGE_SIZE;
use vmm::processors::Backend;
use vmm::soft::Soft;

/// Most guest RAM, in bytes, of a snapshot at a jump for the second run. If a run has written more, the second run
/// begins at power-on.
pub(crate) const MAX_HELD: u64 = 256 << 20;

/// Why a plan could not be run or judged.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine cannot be made.
    #[error("the machine cannot be made: {}", chain(.0))]
    Machine(MachineError),
    /// The backend cannot take snapshots.
    #[error("no snapshot can be taken: {}", chain(.0))]
    Hold(MachineError),
    /// A snapshot cannot be written.
    #[error("{}", chain(.0))]
    Snapshot(#[from] SnapshotError),
    /// The expectations cannot be read.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
}

/// A snapshot to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Where in the run.
    pub at: Until,
    /// The file.
    pub file: PathBuf,
}

/// Callbacks of a run.
pub struct Listeners<'a> {
    /// Observer of its phases.
    pub observer: &'a dyn Observer,
    /// Called before a second run.
    pub again: &'a dyn Fn(Again),
}

/// Nobody listens.
pub const SILENT: Listeners<'static> = Listeners {
    observer: &(),
    again: &|_| {},
};

/// A second run, which watches the bytes whose last writer is in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Number of these bytes.
    pub bytes: usize,
    /// Where the run begins: at the snapshot that it goes on from, or at power-on.
    pub from: Moment,
}

/// Runs a plan and judges it, and writes the snapshots of `holds` on the way. If the run ends before it comes to one of
/// their places, the verdict is an error, and the reason says which.
///
/// If findings have bytes whose last writer is unknown and the backend is repeatable, a second run watches those bytes.
/// It begins at the last snapshot before they were written, or else at power-on. If it differs from the first run, the
/// verdict is an error, because neither run proves anything, and the reason names the first difference.
pub fn run(
    plan: &Plan,
    agent: &[u8],
    backend: &dyn Backend,
    holds: &[Hold],
    listeners: &Listeners<'_>,
) -> Result<Judged, RunError> {
    if !holds.is_empty() && !backend.is_repeatable() {
        return Err(RunError::Hold(MachineError::NoSnapshot));
    }
    let run = Run::new(plan, agent, backend, &[]).map_err(RunError::Machine)?;
    finish(run, HostTimes::default(), backend, holds, None, listeners)
}

/// Continues a run from a snapshot to its end, and judges it as [`run`] does.
pub fn resume(snapshot: &RunSnapshot, holds: &[Hold], listeners: &Listeners<'_>) -> Result<Judged, RunError> {
    let run = Run::from_snapshot(snapshot, &[]).map_err(RunError::Machine)?;
    finish(
        run,
        snapshot.host_times.clone(),
        &Soft {
            translation: snapshot.translation,
        },
        holds,
        None,
        listeners,
    )
}

/// Takes a run to its end and judges it. It takes code that `others` have left, and leaves its own for them.
pub(crate) fn finish(
    mut run: Run,
    host_times: HostTimes,
    backend: &dyn Backend,
    holds: &[Hold],
    others: Option<&WarmRuns>,
    listeners: &Listeners<'_>,
) -> Result<Judged, RunError> {
    let (plan, agent) = (run.plan().clone(), run.agent().clone());
    let watch = Stopwatch::resumed(listeners.observer, host_times);
    // A second run is made to be fast if one is to be expected.
    let may_ask = backend.is_repeatable() && awaits_findings(&plan);
    let own = WarmRuns::default();
    let warm = others.unwrap_or(&own);
    run.warm_up(warm);
    let passed = proceed(&mut run, may_ask, holds, &watch)?;
    if may_ask || others.is_some() {
        run.leave_code(warm);
    }
    let mut evidence = run.finish(&watch);
    watch.fill(&mut evidence);
    let mut judged = Judged::new(evidence)?;
    let questions = open_questions(&judged.results, MAX_KEPT);
    if !questions.is_empty() && backend.is_repeatable() {
        let from_power_on = || Run::new(&plan, &agent, backend, &questions).map_err(RunError::Machine);
        judged = answered(judged, &questions, &passed.held, from_power_on, warm, listeners)?;
    }
    judged.fail_with(passed.missed);
    Ok(judged)
}

/// Asks a second run, which begins as late as it can, who wrote the bytes in question.
fn answered(
    judged: Judged,
    questions: &[Question],
    held: &[RunSnapshot],
    from_power_on: impl Fn() -> Result<Run, RunError>,
    warm: &WarmRuns,
    listeners: &Listeners<'_>,
) -> Result<Judged, RunError> {
    let watched = |mut run: Run| {
        (listeners.again)(Again {
            bytes: questions.len(),
            from: run.stands_at(),
        });
        run.warm_up(warm);
        run.proceed(&[], &());
        run.leave_code(warm);
        run.finish(&())
    };
    let start = last_before(held, first_doubt(&judged.evidence, questions));
    if let Some(snapshot) = start {
        let second = watched(Run::from_snapshot(snapshot, questions).map_err(RunError::Machine)?);
        let all = second.authors.iter().all(|author| author.write.is_some());
        // The run from the snapshot saw no write to some byte, so only a run from power-on can name its writer.
        if all || differs(&judged.evidence, &second).is_some() {
            return with_authors(judged, second);
        }
    }
    with_authors(judged, watched(from_power_on()?))
}

/// What was met on the way to a run's end.
struct Passed {
    /// Snapshots at the jumps.
    held: Vec<RunSnapshot>,
    /// Why snapshots that were asked for are not there, one sentence each.
    missed: Vec<String>,
}

/// Whether findings are to be expected. If a run has some that nobody expected, its second run begins at power-on, with
/// nothing decoded.
fn awaits_findings(plan: &Plan) -> bool {
    !plan.injections.is_empty()
        || parse(&plan.scenario_file, &plan.scenario_text)
            .is_ok_and(|scenario| scenario.expect.awaits_findings())
}

/// Takes the run to its end. Snapshots that were asked for are written; those at each jump are returned if a second run
/// may want them.
fn proceed(run: &mut Run, may_ask: bool, holds: &[Hold], watch: &Stopwatch<'_>) -> Result<Passed, RunError> {
    let jumps = if may_ask { run.plan().kexecs } else { 0 };
    let mut stops: Vec<(Until, Option<&Path>)> = (0..u16::try_from(jumps).unwrap_or(u16::MAX))
        .map(|generation| (Until::jump(generation), None))
        .collect();
    stops.extend(holds.iter().map(|hold| (hold.at, Some(hold.file.as_path()))));
    let mut held = Vec::new();
    loop {
        let places: Vec<Until> = stops.iter().map(|(until, _)| *until).collect();
        let Progress::Paused(reached) = run.proceed(&places, watch) else {
            break;
        };
        let (_, file) = stops.remove(reached);
        if file.is_none() && run.touched_bytes() > MAX_HELD {
            continue;
        }
        let mut snapshot = run.snapshot().map_err(RunError::Hold)?;
        snapshot.host_times = watch.times();
        match file {
            Some(file) => snapshot.write(file)?,
            None => held.push(snapshot),
        }
    }
    let missed = |(until, file): (Until, Option<&Path>)| {
        let file = file?.display();
        Some(format!(
            "no snapshot was written to {file}: the run ended before it came to {until}"
        ))
    };
    let missed = stops.into_iter().filter_map(missed).collect();
    Ok(Passed { held, missed })
}

/// Earliest guest time at which a byte in question may have been written last: the beginning of a phase, or 0 if that
/// may have been before the first jump.
fn first_doubt(evidence: &Evidence, questions: &[Question]) -> u64 {
    let begin = |question: &Question| {
        let checkpoint = evidence.captures.checkpoints.get(question.checkpoint)?;
        let page = question.address / PAGE_SIZE;
        let writes = evidence.cpu_writes.iter();
        let before =
            writes.filter(|write| write.address / PAGE_SIZE == page && write.time_ns < checkpoint.at.time_ns);
        let last = before.max_by_key(|write| write.time_ns)?;
        let mut phases = evidence.phases.iter();
        let phase = phases.find(|phase| phase.generation == last.generation && phase.phase == last.phase)?;
        Some(phase.begin_ns)
    };
    questions
        .iter()
        .map(|question| begin(question).unwrap_or(0))
        .min()
        .unwrap_or(0)
}

/// The last snapshot that was taken no later than `time`.
fn last_before(held: &[RunSnapshot], time: u64) -> Option<&RunSnapshot> {
    let before = held.iter().filter(|snapshot| snapshot.time() <= time);
    before.max_by_key(|snapshot| snapshot.time())
}

fn with_authors(mut judged: Judged, second: Evidence) -> Result<Judged, RunError> {
    if let Some(reason) = differs(&judged.evidence, &second) {
        judged.fail_with([reason]);
        return Ok(judged);
    }
    let mut evidence = judged.evidence;
    evidence.authors = second.authors;
    Ok(Judged::new(evidence)?)
}

/// The difference between the first run and the second; `None` if they are equal.
fn differs(first: &Evidence, second: &Evidence) -> Option<String> {
    let difference = first_difference(first, second)?;
    let said = match &difference.record {
        Some(record) => record.sentence(),
        None => difference.to_string(),
    };
    Some(format!("a second run differs from the first; {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_second_run_that_differs_is_told_by_its_first_difference() {
        let (first, mut second) = (testing::good(), testing::good());
        second.authors.push(crate::evidence::Author {
            checkpoint: 0,
            address: 1,
            write: None,
        });
        assert_eq!(
            differs(&first, &second),
            None,
            "authors are what the second run is for"
        );
        second.trace.records[5].value = 0x20;
        second.state_hash = "12".into();
        let reason = differs(&first, &second).unwrap();
        assert!(
            reason.starts_with("a second run differs from the first; first difference: at 0.350000 ms"),
            "{reason}"
        );
        assert!(
            reason.ends_with("gave 0x60 in the first and 0x20 in the second"),
            "{reason}"
        );
    }
}
