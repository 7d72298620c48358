//! A scenario from plan to judgement, with a second run where an author is in question.

use crate::conductor::{Observer, chain, conduct};
use crate::evidence::Evidence;
use crate::oracle::{MAX_KEPT, Question, open_questions};
use crate::plan::Plan;
use crate::report::Judged;
use crate::scenario::ScenarioError;
use vmm::machine::MachineError;

/// Why a plan could not be run or judged.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There was no machine to begin with.
    #[error("the machine cannot be made: {}", chain(.0))]
    Machine(MachineError),
    /// The expectations cannot be read.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// Two runs of one plan differ, so that neither proves anything.
    #[error("a second run differs: {what} {second}, was {first}")]
    NotDeterministic {
        /// What differs.
        what: &'static str,
        /// In the first run.
        first: String,
        /// In the second run.
        second: String,
    },
}

/// Runs a plan and judges it. Where bytes were changed by a CPU that is not known yet, the plan is run again with those bytes
/// watched: a run on `soft` can be had again at will. `note` is told of that.
pub fn run(
    plan: &Plan,
    agent: &[u8],
    observer: &dyn Observer,
    note: &dyn Fn(&str),
) -> Result<Judged, RunError> {
    let first = conduct(plan, agent, observer, &[]).map_err(RunError::Machine)?;
    let judged = Judged::new(first)?;
    let questions = open_questions(&judged.results, MAX_KEPT);
    if questions.is_empty() {
        return Ok(judged);
    }
    note(&format!(
        "running once more to see who wrote {} bytes last",
        questions.len()
    ));
    let evidence = with_authors(plan, agent, judged.evidence, &questions)?;
    Ok(Judged::new(evidence)?)
}

fn with_authors(
    plan: &Plan,
    agent: &[u8],
    mut evidence: Evidence,
    questions: &[Question],
) -> Result<Evidence, RunError> {
    let second = conduct(plan, agent, &(), questions).map_err(RunError::Machine)?;
    same("state hash", &evidence.state_hash, &second.state_hash)?;
    same(
        "ledger digest",
        &evidence.ledger_digest(),
        &second.ledger_digest(),
    )?;
    evidence.authors = second.authors;
    Ok(evidence)
}

fn same(what: &'static str, first: &str, second: &str) -> Result<(), RunError> {
    if first == second {
        return Ok(());
    }
    Err(RunError::NotDeterministic {
        what,
        first: first.into(),
        second: second.into(),
    })
}
