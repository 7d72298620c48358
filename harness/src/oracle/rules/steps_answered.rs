//! `steps-answered`: each step that the scenario gives succeeds, or fails with the error that the scenario says.

use crate::evidence::StepRecord;
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::{LookedAt, RuleName, RuleResult};

const RULE: RuleName = RuleName::StepsAnswered;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (steps, mut findings) = (&context.evidence.steps, Findings::default());
    for step in steps.iter().filter(|step| !step.is_as_expected()) {
        findings.add(|| finding(step));
    }
    let failed = steps.iter().filter(|step| step.failure.is_some()).count();
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count: steps.len() as u64,
            unit: "steps",
            note: format!("{failed} of them failed"),
        },
        findings,
        blind: Vec::new(),
    }
}

fn finding(step: &StepRecord) -> Finding {
    let (wanted, got, generation) = (step.wanted(), step.got(), step.at.generation);
    let call = step
        .failure
        .as_ref()
        .map_or_else(String::new, |failure| format!(" from {}", failure.call));
    let place = match step.number {
        0 => "a step that the list leaves out".to_owned(),
        number => format!("step {number}"),
    };
    Finding {
        rule: RULE,
        page: None,
        address: None,
        owner: format!("kernel of generation {generation}"),
        text: format!(
            "{place} in generation {generation}, {}: expected {wanted}, found {got}{call}",
            step.what
        ),
        expected: wanted,
        actual: got,
        last_writer: Writer::Nobody,
        question: None,
        explained_by: Vec::new(),
    }
}
