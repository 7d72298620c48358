//! Steps that the scenario gives: what the agent answered, and what they have put into objects.

use super::Moment;
use crate::scenario::Errno;
use guest_agent::protocol::Part;
use serde::{Deserialize, Serialize};

/// A step that the scenario gives, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its place in the scenario's list, from 1; 0 if the list leaves it out.
    pub number: u32,
    /// What it does, in words.
    pub what: String,
    /// The error that it has to fail with; `None` if it has to succeed.
    pub expected: Option<Errno>,
    /// Why it failed; `None` if it succeeded.
    pub failure: Option<StepFailure>,
    /// The session that a process of its own fills again and again from then on, if it does.
    pub fills: Option<String>,
    /// When the agent answered, or the next kernel's agent greeted.
    pub at: Moment,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// The call that failed.
    pub call: String,
    /// Its error; `None` if the agent refused by itself.
    pub errno: Option<Errno>,
    /// What the agent makes of it.
    pub detail: String,
}

impl StepRecord {
    /// Whether the answer is the expected one.
    pub fn is_as_expected(&self) -> bool {
        match (&self.failure, self.expected) {
            (None, None) => true,
            (Some(failure), Some(expected)) => failure.errno == Some(expected),
            _ => false,
        }
    }

    /// What was expected.
    pub fn wanted(&self) -> String {
        self.expected
            .map_or_else(|| "success".to_owned(), |errno| errno.to_string())
    }

    /// What came instead, or as well.
    pub fn got(&self) -> String {
        match &self.failure {
            None => "success".into(),
            Some(StepFailure {
                errno: Some(errno), ..
            }) => errno.to_string(),
            Some(failure) => format!("the agent's refusal ({})", failure.detail),
        }
    }
}

/// What a step has put into a part of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Laid {
    /// When the agent said so.
    pub at: Moment,
    /// Which part.
    pub part: Part,
    /// Seed of the pattern; `None` for zeroes.
    pub seed: Option<u64>,
}
