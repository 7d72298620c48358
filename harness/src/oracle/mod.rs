//! The oracle: pure rules over evidence.
//!
//! Each rule states one invariant of a live update and returns a [`RuleResult`]: how many items it checked, and every
//! deviation. A rule never touches a machine, so saved evidence can be judged again. A rule that had nothing to check,
//! or could not see all of it, does not hold.

mod content;
#[cfg(test)]
mod controls;
mod finding;
mod injected;
#[cfg(test)]
mod mutations;
pub mod rules;

pub use finding::{Finding, Findings, MAX_KEPT, Question, Writer};
pub use injected::first_consequence;

pub(crate) use finding::{many, millis};

use crate::evidence::{Evidence, OutcomeKind};
use content::Context;
use serde::{Deserialize, Serialize};

/// The rules by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleName {
    /// See [`rules::preserved_content`].
    PreservedContent,
    /// See [`rules::device_writes_landed`].
    DeviceWritesLanded,
    /// See [`rules::no_cpu_write_before_retrieval`].
    NoCpuWriteBeforeRetrieval,
    /// See [`rules::dma_only_to_preserved`].
    DmaOnlyToPreserved,
    /// See [`rules::blob_well_formed`].
    BlobWellFormed,
    /// See [`rules::map_covers_preserved`].
    MapCoversPreserved,
    /// See [`rules::device_never_silent`].
    DeviceNeverSilent,
    /// See [`rules::session_retrieved`].
    SessionRetrieved,
    /// See [`rules::nothing_leaked`].
    NothingLeaked,
    /// See [`rules::kept_from_allocator`].
    KeptFromAllocator,
    /// See [`rules::interrupts_neither_lost_nor_invented`].
    InterruptsNeitherLostNorInvented,
    /// See [`rules::kernel_quiet`].
    KernelQuiet,
    /// See [`rules::steps_answered`].
    StepsAnswered,
    /// See [`rules::payload_passed`].
    PayloadPassed,
}

impl RuleName {
    /// All rules, in the order of reports.
    pub const ALL: [Self; 14] = [
        Self::PreservedContent,
        Self::DeviceWritesLanded,
        Self::NoCpuWriteBeforeRetrieval,
        Self::DmaOnlyToPreserved,
        Self::BlobWellFormed,
        Self::MapCoversPreserved,
        Self::DeviceNeverSilent,
        Self::SessionRetrieved,
        Self::NothingLeaked,
        Self::KeptFromAllocator,
        Self::InterruptsNeitherLostNorInvented,
        Self::KernelQuiet,
        Self::StepsAnswered,
        Self::PayloadPassed,
    ];

    /// The name in scenario files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreservedContent => "preserved-content",
            Self::DeviceWritesLanded => "device-writes-landed",
            Self::NoCpuWriteBeforeRetrieval => "no-cpu-write-before-retrieval",
            Self::DmaOnlyToPreserved => "dma-only-to-preserved",
            Self::BlobWellFormed => "blob-well-formed",
            Self::MapCoversPreserved => "map-covers-preserved",
            Self::DeviceNeverSilent => "device-never-silent",
            Self::SessionRetrieved => "session-retrieved",
            Self::NothingLeaked => "nothing-leaked",
            Self::KeptFromAllocator => "kept-from-allocator",
            Self::InterruptsNeitherLostNorInvented => "interrupts-neither-lost-nor-invented",
            Self::KernelQuiet => "kernel-quiet",
            Self::StepsAnswered => "steps-answered",
            Self::PayloadPassed => "payload-passed",
        }
    }

    /// The invariant in one sentence.
    pub fn story(self) -> &'static str {
        match self {
            Self::PreservedContent => {
                "preserved memory holds its pattern overlaid with the device's writes, byte for byte"
            }
            Self::DeviceWritesLanded => "every completed device write is found where it landed",
            Self::NoCpuWriteBeforeRetrieval => {
                "no CPU writes preserved memory between the jump and its retrieval"
            }
            Self::DmaOnlyToPreserved => "after the jump the device writes to preserved memory only",
            Self::BlobWellFormed => "each handover blob can be decoded, and breaks no rule of its ABI",
            Self::MapCoversPreserved => {
                "the handover map covers what was preserved and the handover's own pages, nothing else"
            }
            Self::DeviceNeverSilent => "the running device is never silent for longer than its rate allows",
            Self::SessionRetrieved => "every session and all that it preserved is retrieved",
            Self::NothingLeaked => "memory that was preserved is given back once it is closed",
            Self::KeptFromAllocator => "no preserved page is free in a new kernel until it is closed",
            Self::InterruptsNeitherLostNorInvented => {
                "each interrupt message of the device reaches the driver, and no interrupt comes without one"
            }
            Self::KernelQuiet => "no kernel warns, oopses or reports an error of its own",
            Self::StepsAnswered => {
                "each step that the scenario gives succeeds, or fails with the error that it says"
            }
            Self::PayloadPassed => "the user's own programs say that they passed",
        }
    }

    fn check(self, context: &Context<'_>) -> RuleResult {
        match self {
            Self::PreservedContent => rules::preserved_content::check(context),
            Self::DeviceWritesLanded => rules::device_writes_landed::check(context),
            Self::NoCpuWriteBeforeRetrieval => rules::no_cpu_write_before_retrieval::check(context),
            Self::DmaOnlyToPreserved => rules::dma_only_to_preserved::check(context),
            Self::BlobWellFormed => rules::blob_well_formed::check(context),
            Self::MapCoversPreserved => rules::map_covers_preserved::check(context),
            Self::DeviceNeverSilent => rules::device_never_silent::check(context),
            Self::SessionRetrieved => rules::session_retrieved::check(context),
            Self::NothingLeaked => rules::nothing_leaked::check(context),
            Self::KeptFromAllocator => rules::kept_from_allocator::check(context),
            Self::InterruptsNeitherLostNorInvented => {
                rules::interrupts_neither_lost_nor_invented::check(context)
            }
            Self::KernelQuiet => rules::kernel_quiet::check(context),
            Self::StepsAnswered => rules::steps_answered::check(context),
            Self::PayloadPassed => rules::payload_passed::check(context),
        }
    }
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a rule looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LookedAt {
    /// How many.
    pub count: u64,
    /// Their unit, in the plural, which ends in an s: `pages`, `device writes`.
    pub unit: &'static str,
    /// Details, such as which checkpoints or how many bytes.
    pub note: String,
}

/// The unit of so many, given in the plural as in [`LookedAt`]: `page` of 1, `pages` of 2.
pub fn unit_of(count: u64, plural: &str) -> &str {
    match count {
        1 => plural.strip_suffix('s').unwrap_or(plural),
        _ => plural,
    }
}

/// What a rule says about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleResult {
    /// Which rule.
    pub rule: RuleName,
    /// What it looked at.
    pub looked_at: LookedAt,
    /// Every deviation.
    pub findings: Findings,
    /// What the rule could not see, because evidence of it is cut or missing: one sentence each. Such a rule does not
    /// hold, because what it did not see might deviate.
    pub blind: Vec<String>,
}

impl RuleResult {
    /// Whether the rule says anything of the run: it has findings, or it saw all that it had to look at.
    pub fn judged(&self) -> bool {
        self.findings.total > 0 || self.held()
    }

    /// Whether there was nothing to look at. A rule that could not see all of it is another case.
    pub fn saw_nothing(&self) -> bool {
        !self.judged() && self.blind.is_empty()
    }

    /// Why the rule says nothing of the run; `None` if it does.
    pub fn unjudged(&self) -> Option<String> {
        match &self.blind[..] {
            _ if self.judged() => None,
            [] => Some("had nothing to look at".into()),
            blind => Some(format!("cannot be judged: {}", blind.join("; "))),
        }
    }

    /// Whether the rule checked something, saw all of it and has no findings.
    pub fn held(&self) -> bool {
        self.looked_at.count > 0 && self.findings.total == 0 && self.blind.is_empty()
    }
}

/// Applies every rule. `allowed` are the complaints of kernels that are no deviation: parts of their lines.
pub fn judge(evidence: &Evidence, allowed: &[String]) -> Vec<RuleResult> {
    let context = Context::new(evidence, allowed);
    let cut = cut(evidence);
    let check = |rule: &RuleName| {
        let mut result = rule.check(&context);
        result.blind.extend(cut.clone());
        injected::explain(&context, &mut result);
        result
    };
    RuleName::ALL.iter().map(check).collect()
}

/// What no rule sees of a run that was cut short by the harness.
fn cut(evidence: &Evidence) -> Option<String> {
    let outcome = &evidence.outcome;
    (outcome.kind == OutcomeKind::LedgerFull).then(|| {
        format!(
            "the ledger was full in {} of generation {}, and the rest of the run was not made",
            outcome.phase, outcome.generation
        )
    })
}

/// Up to `most` questions about the last writer of a byte, which only a second run that watches the byte can answer.
pub fn open_questions(results: &[RuleResult], most: usize) -> Vec<Question> {
    let asked = results
        .iter()
        .flat_map(|result| &result.findings.kept)
        .filter_map(|finding| finding.question);
    let mut questions: Vec<Question> = Vec::new();
    for question in asked {
        if questions.len() < most && !questions.contains(&question) {
            questions.push(question);
        }
    }
    questions
}
