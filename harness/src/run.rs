//! A scenario from plan to judgement, with a second run where an author is in question.

use crate::conductor::{Observer, chain, conduct};
use crate::oracle::{MAX_KEPT, open_questions};
use crate::plan::Plan;
use crate::scenario::ScenarioError;
use crate::verdict::{Judged, Verdict};
use vmm::machine::MachineError;
use vmm::processors::Backend;

/// Why a plan could not be run or judged at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There was no machine to begin with.
    #[error("the machine cannot be made: {}", chain(.0))]
    Machine(MachineError),
    /// The expectations cannot be read.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
}

/// Runs a plan and judges it. If findings are about bytes whose last writer is unknown and the backend is repeatable, the
/// plan is run a second time with those bytes watched. `again` is called before that, with the number of such bytes. If
/// the second run differs from the first, neither proves anything, and the verdict is an error.
pub fn run(
    plan: &Plan,
    agent: &[u8],
    backend: &dyn Backend,
    observer: &dyn Observer,
    again: &dyn Fn(usize),
) -> Result<Judged, RunError> {
    let first = conduct(plan, agent, backend, observer, &[]).map_err(RunError::Machine)?;
    let mut judged = Judged::new(first)?;
    let questions = open_questions(&judged.results, MAX_KEPT);
    if questions.is_empty() || !backend.is_repeatable() {
        return Ok(judged);
    }
    again(questions.len());
    let second = conduct(plan, agent, backend, &(), &questions).map_err(RunError::Machine)?;
    let hashes =
        [&judged.evidence, &second].map(|evidence| (evidence.state_hash.clone(), evidence.ledger_digest()));
    if hashes[0] != hashes[1] {
        let [(state, ledger), (again, ledger_again)] = hashes;
        judged.judgement.verdict = Verdict::Error;
        judged.judgement.reasons.push(format!(
            "a second run differs: state hash {state} and {again}, ledger digest {ledger} and {ledger_again}"
        ));
        return Ok(judged);
    }
    let mut evidence = judged.evidence;
    evidence.authors = second.authors;
    Ok(Judged::new(evidence)?)
}
