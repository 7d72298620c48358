//! The unchanged run of a sweep: what it did, the fields of its handover, and the snapshots that cases branch from.
//!
//! A case puts bytes into memory at the new kernel's entry. Until a processor first reads or writes their page the run
//! is the unchanged one, so a branch from a later snapshot is the same run with less to execute. The unchanged run is
//! made twice from the entry: once to find out when each page of the handover is first touched, and once more to take
//! snapshots shortly before these moments.

use std::collections::BTreeMap;
use std::sync::Arc;

use harness::bend::Bendable;
use harness::blob;
use harness::conductor::{Progress, Run, Until, WarmRuns, chain};
use harness::evidence::PAGE;
use harness::plan::Plan;
use harness::snapshot::RunSnapshot;
use harness::verdict::Judged;
use kho_core::fields::{FieldError, Write};
use kho_core::{Handover, PhysicalMemory, SparseMemory};
use vmm::soft::Soft;

use super::class::Reference;

/// Moments closer together than this share a snapshot, in nanoseconds of guest time.
const CLOSE: u64 = 100_000;
/// A guest counts as hung when it is silent for so many times as long as the unchanged run took from the entry on, and
/// for at least so many nanoseconds.
const PATIENCE: u64 = 2;
const MIN_PATIENCE: u64 = 50_000_000;
/// Most snapshots on the way.
const MAX_FORKS: usize = 24;

/// Why a sweep cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The machine.
    #[error("{}", chain(.0))]
    Machine(#[from] vmm::machine::MachineError),
    /// Guest memory.
    #[error("{}", chain(.0))]
    Memory(#[from] vmm::memory::MemoryError),
    /// The unchanged run ends before the new kernel.
    #[error("the run ended before a second kernel was entered: {0}")]
    NoEntry(String),
    /// The new kernel is handed nothing that can be read.
    #[error("the new kernel is handed nothing that can be read: {0}")]
    NoHandover(String),
    /// There is no device whose writes could be changed.
    #[error("the scenario has no [dma], so there are no device writes")]
    NoDevice,
    /// The unchanged run is not what the scenario expects, so there is nothing to compare with.
    #[error("the unchanged run does not meet its expectations: {0}")]
    Unmet(String),
    /// The scenario cannot be judged.
    #[error(transparent)]
    Scenario(#[from] harness::scenario::ScenarioError),
    /// There is no such field, or it cannot have that value.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// The unchanged run.
#[derive(Debug)]
pub struct Base {
    /// At the new kernel's first instruction.
    pub entry: RunSnapshot,
    /// Code that the cases leave for each other.
    pub warm: WarmRuns,
    /// Later snapshots, in order.
    forks: Vec<RunSnapshot>,
    /// Guest time of the first access to each page frame of the handover; `None` if there was none.
    first: BTreeMap<u64, Option<u64>>,
    /// What it did.
    pub reference: Reference,
    /// The handover.
    pub handover: Handover,
    memory: SparseMemory,
    setup_data: Option<u64>,
    boot_params: u64,
}

impl Base {
    /// Makes the unchanged run.
    pub fn new(plan: &Plan, agent: &[u8], soft: Soft) -> Result<Self, BaseError> {
        let mut run = Run::new(plan, agent, &soft, &[])?;
        if run.proceed(&[Until::entry(1)], &()) == Progress::Ended {
            return Err(BaseError::NoEntry(run.finish(&()).outcome.text));
        }
        let mut entry = run.snapshot()?;
        let blob = entry.evidence.blobs.last();
        let blob = blob.ok_or_else(|| BaseError::NoHandover("no handover was captured".into()))?;
        let none =
            || BaseError::NoHandover(blob.problem.clone().unwrap_or_else(|| "no KHO setup_data".into()));
        let kho = blob.kho.ok_or_else(none)?;
        let setup_data = run.kho_node(blob.boot_params);
        let boot_params = blob.boot_params;
        let mut memory = blob::memory(blob);
        for at in [Some(boot_params), setup_data].into_iter().flatten() {
            let mut page = [0; kho_core::abi::PAGE_SIZE];
            run.memory()
                .read(at & !(PAGE - 1), &mut page)
                .map_err(FieldError::Memory)?;
            memory.insert(at, page);
        }
        let handover = Handover::read(&memory, kho.fdt, kho.scratch)
            .map_err(|error| BaseError::NoHandover(chain(&error)))?;
        let frames: Vec<u64> = memory.pages().map(|(at, _)| at / PAGE).collect();
        let (first, took) = search(&entry, &frames)?;
        entry.plan = Arc::new(impatient(&entry.plan, took));
        let (forks, judged) = forks(&entry, &first)?;
        if judged.judgement.verdict != harness::verdict::Verdict::Pass {
            return Err(BaseError::Unmet(judged.judgement.reasons.join("; ")));
        }
        Ok(Self {
            entry,
            warm: WarmRuns::default(),
            forks,
            first,
            reference: Reference::new(&judged),
            handover,
            memory,
            setup_data,
            boot_params,
        })
    }

    /// The handover, ready to be bent.
    pub fn bendable(&self) -> Bendable<'_> {
        Bendable {
            handover: &self.handover,
            memory: &self.memory,
            setup_data: self.setup_data,
            boot_params: Some(self.boot_params),
        }
    }

    /// The last snapshot at which no processor has touched the pages of these writes.
    pub fn fork(&self, writes: &[Write]) -> &RunSnapshot {
        let ends = |write: &Write| [write.at, write.at + (write.bytes.len() as u64).saturating_sub(1)];
        let frames = writes.iter().flat_map(ends).map(|at| at / PAGE);
        // A page that was not watched may be touched at once.
        let touched = |frame| self.first.get(&frame).map_or(Some(0), |first| *first);
        let first = frames.filter_map(touched).min().unwrap_or(u64::MAX);
        let before = self.forks.iter().rev().find(|fork| fork.time() < first);
        before.unwrap_or(&self.entry)
    }

    /// How many snapshots there are to branch from.
    pub fn snapshots(&self) -> usize {
        self.forks.len() + 1
    }
}

/// Runs to the end and finds out when each page is first touched, and how much guest time that takes.
fn search(entry: &RunSnapshot, frames: &[u64]) -> Result<(BTreeMap<u64, Option<u64>>, u64), BaseError> {
    let mut run = Run::from_snapshot(entry, &[])?;
    run.watch_first_access(frames.iter().copied());
    run.proceed(&[], &());
    let first = frames
        .iter()
        .map(|frame| (*frame, run.first_access(*frame)))
        .collect();
    Ok((first, run.stands_at().time.saturating_sub(entry.time())))
}

/// The plan with less patience for silence: a guest that is silent for much longer than the whole unchanged run took
/// has hung, and a sweep has many that do.
fn impatient(plan: &Plan, took: u64) -> Plan {
    let limit = took.saturating_mul(PATIENCE).max(MIN_PATIENCE);
    Plan {
        progress_ns: limit.min(plan.progress_ns),
        boot_progress_ns: limit.min(plan.boot_progress_ns),
        ..plan.clone()
    }
}

/// Makes the run once more, takes snapshots shortly before pages are first touched, and judges it at its end.
fn forks(
    entry: &RunSnapshot,
    first: &BTreeMap<u64, Option<u64>>,
) -> Result<(Vec<RunSnapshot>, Judged), BaseError> {
    let mut times: Vec<u64> = first
        .values()
        .flatten()
        .map(|time| time.saturating_sub(1))
        .collect();
    times.sort_unstable();
    let mut moments: Vec<u64> = Vec::new();
    for time in times {
        let last = moments.last().copied().unwrap_or(entry.time());
        if time >= last + CLOSE && moments.len() < MAX_FORKS {
            moments.push(time);
        }
    }
    let mut run = Run::from_snapshot(entry, &[])?;
    let mut forks = Vec::new();
    for moment in moments {
        if run.proceed(&[Until::Time(moment)], &()) == Progress::Ended {
            break;
        }
        forks.push(run.snapshot()?);
    }
    run.proceed(&[], &());
    Ok((forks, Judged::new(run.finish(&()))?))
}
