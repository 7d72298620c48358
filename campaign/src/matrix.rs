//! A matrix: one scenario with every pair of kernels, and what becomes of each kind of object.
//!
//! All pairs with one first kernel are one run until that kernel's agent has greeted: the next kernel is not in the
//! initramfs, but comes through the mailbox. So each first kernel is booted once, and [`Trunk`] branches it for each
//! pair.

use harness::fate::{Kind, KindFate, fates};
use harness::kernel::{KernelError, KernelImage};
use harness::plan::{Overrides, Plan, PlanError, plan_with};
use harness::run::SILENT;
use harness::scenario::Scenario;
use harness::trunk::Trunk;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use vmm::soft::Soft;

use crate::sweep::each_of;

/// What came of one pair of kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairLine {
    /// The first kernel, as it was given.
    pub old: String,
    /// The later ones.
    pub new: String,
    /// Seed of the run.
    pub seed: u64,
    /// How the run ended.
    pub outcome: String,
    /// The same in one sentence.
    pub text: String,
    /// What became of each kind of object that the scenario has.
    pub kinds: Vec<KindFate>,
    /// Why the pair shows nothing, if it could not be run or judged.
    pub problem: Option<String>,
    /// Hash of the machine's state at the end.
    pub state_hash: String,
    /// Guest time of the run in nanoseconds, the first kernel's boot included.
    pub guest_ns: u64,
}

impl PairLine {
    /// What became of a kind; `None` if the scenario has none of it, or the pair shows nothing.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Option<&KindFate> {
        self.kinds.iter().find(|one| one.kind == kind)
    }
}

/// The pairs of one first kernel.
#[derive(Debug)]
pub struct Row {
    /// The first kernel, as it was given.
    pub old: String,
    /// Each later kernel with the plan of the pair.
    pub pairs: Vec<(String, Plan)>,
}

/// The pairs of `kernels`, by first kernel. Each kernel is read once.
pub fn rows(
    scenario: &Scenario,
    file: &str,
    text: &str,
    kernels: &[String],
    seed: Option<u64>,
) -> Result<Vec<Row>, PlanError> {
    let mut known: BTreeMap<String, KernelImage> = BTreeMap::new();
    let mut find = |name: &str| -> Result<KernelImage, KernelError> {
        if let Some(kernel) = known.get(name) {
            return Ok(kernel.clone());
        }
        let kernel = KernelImage::resolve(name)?;
        known.insert(name.to_owned(), kernel.clone());
        Ok(kernel)
    };
    let mut pair = |old: &String, new: &String| {
        let overrides = Overrides {
            kernel: Some(old.clone()),
            next_kernel: Some(new.clone()),
            seed,
            survey: true,
            ..Overrides::default()
        };
        let plan = plan_with(scenario, file, text, &overrides, &mut find)?;
        Ok((new.clone(), plan))
    };
    let mut row = |old: &String| {
        let pairs = kernels.iter().map(|new| pair(old, new));
        Ok(Row {
            old: old.clone(),
            pairs: pairs.collect::<Result<_, PlanError>>()?,
        })
    };
    kernels.iter().map(&mut row).collect()
}

/// Runs all pairs on `jobs` threads, a first kernel on one of them. `each` is told each result when it is there.
/// Returns the results in the order of the rows.
pub fn run(
    rows: &[Row],
    agent: &[u8],
    soft: Soft,
    jobs: usize,
    each: &(dyn Fn(&PairLine) + Sync),
) -> Vec<PairLine> {
    let lines = Mutex::new(BTreeMap::new());
    let numbered: Vec<(usize, &Row)> = rows.iter().enumerate().collect();
    each_of(&numbered, jobs, |(number, row)| {
        let mut trunk: Option<Trunk> = None;
        for (place, (new, plan)) in row.pairs.iter().enumerate() {
            let trunk = trunk.get_or_insert_with(|| Trunk::new(plan, agent, soft));
            let line = pair(trunk, &row.old, new, plan);
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            each(&line);
            lines.insert((*number, place), line);
        }
    });
    let lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
    lines.into_values().collect()
}

/// Runs one pair.
fn pair(trunk: &mut Trunk, old: &str, new: &str, plan: &Plan) -> PairLine {
    let mut line = PairLine {
        old: old.into(),
        new: new.into(),
        seed: plan.seed,
        outcome: String::new(),
        text: String::new(),
        kinds: Vec::new(),
        problem: None,
        state_hash: String::new(),
        guest_ns: 0,
    };
    let judged = match trunk.run(plan, &SILENT) {
        Ok(judged) => judged,
        Err(error) => {
            line.problem = Some(error.to_string());
            return line;
        }
    };
    let evidence = &judged.evidence;
    line.outcome = evidence.outcome.kind.name().into();
    line.text.clone_from(&evidence.outcome.text);
    line.state_hash.clone_from(&evidence.state_hash);
    line.guest_ns = evidence.phases.iter().map(|phase| phase.guest_ns).sum();
    match fates(&judged) {
        Ok(kinds) => line.kinds = kinds,
        Err(problem) => line.problem = Some(problem),
    }
    line
}
