//! A worker: runs jobs one after another. It reads a job per line and writes answers, a line each.
//!
//! It is a process of its own, so that a cell that kills it is a result and not the end of a campaign.

use crate::job::{Base, Job, JobCell, Resolver};
use crate::plan::{CampaignPlan, Cell, CellId};
use crate::result::{CellResult, Status};
use harness::conductor::chain;
use harness::plan::Plan;
use harness::run::SILENT;
use harness::trunk::Trunk;
use harness::verdict::Judged;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::time::Instant;
use vmm::confine::in_confined_thread;
use vmm::soft::Soft;

/// What a worker says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It begins with this cell: if it dies now, this cell is why.
    Begin(CellId),
    /// A cell's result.
    Result(Box<CellResult>),
    /// The job is done.
    Done,
}

/// Why a worker ended before its input did.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The agent was not found.
    #[error(transparent)]
    Agent(#[from] harness::agent::AgentError),
    /// A line of its input is no job.
    #[error("a job cannot be read: {0}")]
    Job(#[from] serde_json::Error),
    /// Input or output failed.
    #[error("input or output of a worker: {0}")]
    Stream(#[from] std::io::Error),
}

/// Works on `soft` until the input ends.
pub fn work(soft: Soft, input: impl BufRead, mut output: impl Write) -> Result<(), WorkerError> {
    let (mut resolver, mut trunk) = (Resolver::new()?, None);
    let mut say = |answer: &Answer| -> Result<(), WorkerError> {
        serde_json::to_writer(&mut output, answer)?;
        output.write_all(b"\n")?;
        Ok(output.flush()?)
    };
    for line in input.lines() {
        let job: Job = serde_json::from_str(&line?)?;
        for cell in &job.cells {
            say(&Answer::Begin(cell.id))?;
            let result = run_cell(soft, &mut resolver, &mut trunk, &job.base, cell);
            say(&Answer::Result(Box::new(result)))?;
        }
        say(&Answer::Done)?;
    }
    Ok(())
}

/// Runs a cell and sums it up.
fn run_cell(
    soft: Soft,
    resolver: &mut Resolver,
    trunk: &mut Option<Trunk>,
    base: &Base,
    cell: &JobCell,
) -> CellResult {
    let begin = Instant::now();
    let plan = resolved(resolver, base, cell);
    let result = plan.and_then(|plan| {
        let (judged, plain) = branch(trunk, &plan, resolver.agent(), soft)?;
        let wall = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let label = cell.label.clone();
        Ok(CellResult::of(cell.id, label, &judged, plain, wall))
    });
    result
        .unwrap_or_else(|reason| CellResult::without_run(cell.id, cell.label.clone(), Status::Error, &reason))
}

/// Runs a plan. It branches from `trunk` if it begins so; else a new trunk takes its place. A plan with injections
/// comes with the run without them.
pub(crate) fn branch<'a>(
    trunk: &'a mut Option<Trunk>,
    plan: &Plan,
    agent: &[u8],
    soft: Soft,
) -> Result<(Judged, Option<&'a Judged>), String> {
    if trunk.as_ref().is_some_and(|trunk| !trunk.serves(plan)) {
        *trunk = None;
    }
    let trunk = trunk.get_or_insert_with(|| Trunk::new(plan, agent, soft));
    confined(plan, || {
        let judged = trunk.run(plan, &SILENT).map_err(|error| error.to_string())?;
        if plan.injections.is_empty() {
            return Ok((judged, None));
        }
        let plain = trunk.plain().map_err(|error| error.to_string())?;
        Ok((judged, Some(plain)))
    })
}

/// Runs a guest of `plan` on a thread that can open nothing. This process reads the files of the next cell later.
fn confined<T: Send>(plan: &Plan, work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    plan.read_files();
    in_confined_thread(work).map_err(|error| chain(&error))?
}

/// Runs a cell of a plan in this process from power-on, and returns it with its result.
pub fn run_again(plan: &CampaignPlan, cell: &Cell, soft: Soft) -> Result<(Judged, CellResult), String> {
    let mut resolver = Resolver::new().map_err(|error| error.to_string())?;
    let (base, _) = &plan.bases[cell.base];
    let cell = JobCell {
        id: cell.id,
        label: plan.label(cell),
        add: plan.addition(cell).to_owned(),
    };
    let plan = resolved(&mut resolver, base, &cell)?;
    let run = |plan: &Plan| {
        confined(plan, || {
            let judged = harness::run::run(plan, resolver.agent(), &soft, &[], &SILENT);
            judged.map_err(|error| error.to_string())
        })
    };
    let judged = run(&plan)?;
    let plain = if plan.injections.is_empty() {
        None
    } else {
        let injections = Vec::new();
        Some(run(&Plan { injections, ..plan })?)
    };
    let result = CellResult::of(cell.id, cell.label, &judged, plain.as_ref(), 0);
    Ok((judged, result))
}

/// The plan of a cell.
fn resolved(resolver: &mut Resolver, base: &Base, cell: &JobCell) -> Result<Plan, String> {
    let text = base.with(&cell.add);
    let plan = resolver.resolve(base, &text)?;
    let found = resolver.cell(&plan, &text);
    if found == cell.id {
        Ok(plan)
    } else {
        Err(format!(
            "a kernel or baton has changed since the plan was made: the cell is {found} now"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing;
    use vmm::confine::{Confinement, offered};

    #[test]
    fn a_cell_runs_where_nothing_can_be_opened() {
        let open = || std::fs::File::open("/proc/self/status").map(drop);
        let plan = testing::plan(testing::SCENARIO);
        let denied = confined(&plan, || Ok(open().is_err())).unwrap();
        let confines = matches!(offered().unwrap(), Confinement::Confines { .. });
        assert_eq!(denied, confines);
        open().unwrap();
        assert_eq!(confined::<()>(&plan, || Err("why".into())), Err("why".into()));
    }
}
