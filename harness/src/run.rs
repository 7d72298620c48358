//! A scenario from plan to judgement, with a second run where an author is in question.

use crate::compare::first_difference;
use crate::conductor::{Observer, chain, conduct};
use crate::evidence::Evidence;
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
/// the second run differs from the first, neither proves anything: the verdict is an error, and the reason says where they
/// part.
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
    if let Some(reason) = differs(&judged.evidence, &second) {
        judged.judgement.verdict = Verdict::Error;
        judged.judgement.reasons.push(reason);
        return Ok(judged);
    }
    let mut evidence = judged.evidence;
    evidence.authors = second.authors;
    Ok(Judged::new(evidence)?)
}

/// Why the second run is not the first one again, if it is not.
fn differs(first: &Evidence, second: &Evidence) -> Option<String> {
    let difference = first_difference(first, second)?;
    let said = match &difference.first {
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
