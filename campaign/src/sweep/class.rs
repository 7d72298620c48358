//! What became of a run with one bent field: a class, from the evidence and the rules' results alone.

use harness::evidence::{Evidence, OutcomeKind};
use harness::oracle::{RuleName, RuleResult};
use harness::verdict::Judged;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// What a kernel makes of a handover with one bent field, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The kernel refuses the handover as a whole and boots as without one, without a complaint.
    Refused,
    /// Something is refused, with an error to user space or a line on the console, and all else works: what was
    /// retrieved has its content.
    RefusedInPart,
    /// User space gets an error, and nothing of what was preserved is retrieved.
    SessionLost,
    /// Everything works as if nothing had been changed.
    NoEffect,
    /// Everything is said to work, and memory that was preserved is not given back.
    Leak,
    /// A retrieval is said to have worked, and the file has other content than the preserved memory.
    PartialAsWhole,
    /// Nothing is said, and preserved memory is overwritten, or is given away by the allocator.
    SilentLoss,
    /// The kernel complains of itself and goes on: WARN, bad page and the like.
    Warning,
    /// Kernel code faults or comes to a BUG, and the task that executed it is killed.
    Oops,
    /// The agent cannot go on, or dies, after the retrieval.
    AgentStuck,
    /// The kernel panics, or faults before it can handle faults.
    Panic,
    /// The kernel makes no progress.
    Hang,
    /// The processor shuts down, or the machine is reset unasked.
    Reset,
    /// The run says nothing of the kernel: the machine itself failed.
    NotJudged,
}

impl Class {
    /// Every class, from best to worst.
    pub const ALL: [Self; 14] = [
        Self::Refused,
        Self::RefusedInPart,
        Self::SessionLost,
        Self::NoEffect,
        Self::Leak,
        Self::PartialAsWhole,
        Self::SilentLoss,
        Self::Warning,
        Self::Oops,
        Self::AgentStuck,
        Self::Panic,
        Self::Hang,
        Self::Reset,
        Self::NotJudged,
    ];

    /// Name in lines and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::RefusedInPart => "refused-in-part",
            Self::SessionLost => "session-lost",
            Self::NoEffect => "no-effect",
            Self::Leak => "leak",
            Self::PartialAsWhole => "partial-as-whole",
            Self::SilentLoss => "silent-loss",
            Self::Warning => "warning",
            Self::Oops => "oops",
            Self::AgentStuck => "agent-stuck",
            Self::Panic => "panic",
            Self::Hang => "hang",
            Self::Reset => "reset",
            Self::NotJudged => "not-judged",
        }
    }

    /// What it says of the kernel, in half a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Refused => "the kernel refuses the whole handover and boots as without one",
            Self::RefusedInPart => {
                "a part is refused with an error or a line on the console, and all else works"
            }
            Self::SessionLost => "user space gets an error, and no memfd is retrieved",
            Self::NoEffect => "nothing differs from the unchanged run",
            Self::Leak => "all is said to work, and preserved memory is not given back",
            Self::PartialAsWhole => {
                "a retrieval succeeds, and the file has other content than the preserved memory"
            }
            Self::SilentLoss => "a retrieval succeeds, and preserved memory was overwritten or given away",
            Self::Warning => "the kernel complains of itself and goes on",
            Self::Oops => "kernel code faults or comes to a BUG, and its task is killed",
            Self::AgentStuck => "a step after the retrieval fails, or the agent dies",
            Self::Panic => "the kernel panics, or faults before it can handle faults",
            Self::Hang => "the kernel makes no progress",
            Self::Reset => "triple fault, or a reset that nobody asked for",
            Self::NotJudged => "the machine itself failed: says nothing of the kernel",
        }
    }

    /// Whether a kernel should rather not do that.
    pub fn is_interesting(self) -> bool {
        !matches!(
            self,
            Self::Refused | Self::RefusedInPart | Self::SessionLost | Self::NoEffect
        )
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A class, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classed {
    /// The class.
    pub class: Class,
    /// One sentence: the first thing that shows it.
    pub what: String,
    /// Whether the kernel complained of itself, whatever else it did.
    pub warned: bool,
}

/// What the unchanged run did, for comparison.
#[derive(Debug, Clone)]
pub struct Reference {
    revived: bool,
    console: BTreeSet<String>,
    findings: HashMap<RuleName, u64>,
    ended: OutcomeKind,
}

impl Reference {
    /// Of the run without a change.
    pub fn new(judged: &Judged) -> Self {
        let findings = judged.results.iter();
        Self {
            revived: revived(&judged.evidence),
            console: console(&judged.evidence).collect(),
            findings: findings
                .map(|result| (result.rule, result.findings.total))
                .collect(),
            ended: judged.evidence.outcome.kind,
        }
    }

    /// The first finding of these rules beyond those of the unchanged run.
    fn beyond<'j>(&self, judged: &'j Judged, rules: &[RuleName]) -> Option<&'j RuleResult> {
        let worse = |result: &&RuleResult| {
            let known = self.findings.get(&result.rule).copied().unwrap_or(0);
            rules.contains(&result.rule) && result.findings.total > known
        };
        judged.results.iter().find(worse)
    }
}

/// How the line begins by which x86 tells a fault in early boot.
const EARLY_FAULT: &str = "PANIC: early exception";

/// Rules about the content and the pages of preserved memory.
const LOSS: [RuleName; 4] = [
    RuleName::PreservedContent,
    RuleName::DeviceWritesLanded,
    RuleName::NoCpuWriteBeforeRetrieval,
    RuleName::KeptFromAllocator,
];

/// Classes a run by comparison with the unchanged one.
pub fn classify(judged: &Judged, reference: &Reference) -> Classed {
    let evidence = &judged.evidence;
    let complaint = reference.beyond(judged, &[RuleName::KernelQuiet]);
    let warned = complaint.is_some();
    let of = |class, what: String| Classed { class, what, warned };
    let ended = evidence.outcome.text.clone();
    match evidence.outcome.kind {
        OutcomeKind::GuestPanic => return of(Class::Panic, ended),
        // A kernel that faults before it can handle faults says so and halts for ever (arch/x86/kernel/head64.c).
        OutcomeKind::GuestHang => {
            let fault = console(evidence).find(|line| line.starts_with(EARLY_FAULT));
            return match fault {
                Some(line) => of(Class::Panic, line),
                None => of(Class::Hang, ended),
            };
        }
        OutcomeKind::TripleFault | OutcomeKind::UnexpectedReset => return of(Class::Reset, ended),
        kind if kind.is_unjudgeable() => return of(Class::NotJudged, ended),
        _ => {}
    }
    if let Some(result) = complaint {
        let text = first(result);
        let killed = result.findings.kept.iter().find(|finding| is_oops(&finding.text));
        return match killed {
            Some(finding) => of(Class::Oops, finding.text.clone()),
            None => of(Class::Warning, text),
        };
    }
    match evidence.outcome.kind {
        kind if kind == reference.ended => {}
        OutcomeKind::AgentFailed | OutcomeKind::AgentDied => return of(Class::AgentStuck, ended),
        _ => {}
    }
    if reference.revived && !revived(evidence) {
        let said = new_line(evidence, reference);
        return of(
            Class::Refused,
            said.unwrap_or_else(|| "the kernel was handed nothing".into()),
        );
    }
    let failures = evidence
        .retrievals
        .iter()
        .filter_map(|retrieval| retrieval.failure);
    let refused = { failures }.find_map(|failure| evidence.failures.get(failure));
    let whole = retrieved_whole(judged);
    if let (Some(failure), 0) = (refused, whole) {
        return of(Class::SessionLost, failure.to_string());
    }
    // What was refused may be used again by the kernel. That is no loss behind user space's back.
    if refused.is_none()
        && let Some(result) = reference.beyond(judged, &LOSS)
    {
        let class = if only_seen_by_the_agent(result) {
            Class::PartialAsWhole
        } else {
            Class::SilentLoss
        };
        return of(class, first(result));
    }
    if refused.is_some()
        && let Some(result) = loss_of_the_retrieved(judged, reference)
    {
        return of(Class::SilentLoss, result);
    }
    if let Some(failure) = refused {
        return of(Class::RefusedInPart, failure.to_string());
    }
    if let Some(result) = reference.beyond(judged, &[RuleName::NothingLeaked]) {
        return of(Class::Leak, first(result));
    }
    match new_line(evidence, reference) {
        Some(line) => of(Class::RefusedInPart, line),
        None => of(Class::NoEffect, "nothing differs from the unchanged run".into()),
    }
}

/// Whether the last kernel took a handover. Without debugfs that is not known, and LUO is asked.
fn revived(evidence: &Evidence) -> bool {
    let hello = evidence.kernels.last().and_then(|kernel| kernel.hello.as_ref());
    hello.is_some_and(|hello| {
        if hello.kho_debugfs {
            hello.kho_incoming
        } else {
            hello.liveupdate
        }
    })
}

/// Memfds that were retrieved without an error.
fn retrieved_whole(judged: &Judged) -> usize {
    let retrievals = judged.evidence.retrievals.iter();
    retrievals
        .filter(|retrieval| retrieval.object.is_some() && retrieval.failure.is_none())
        .count()
}

/// A finding about the content of an object that was retrieved, in a run that refused another one.
fn loss_of_the_retrieved(judged: &Judged, reference: &Reference) -> Option<String> {
    let evidence = &judged.evidence;
    let refused: Vec<u32> = evidence
        .retrievals
        .iter()
        .filter(|retrieval| retrieval.failure.is_none())
        .filter_map(|retrieval| retrieval.object)
        .collect();
    let owners: Vec<String> = evidence
        .objects
        .iter()
        .filter(|object| refused.contains(&object.id))
        .map(harness::evidence::ObjectEvidence::owner)
        .collect();
    let result = reference.beyond(judged, &LOSS)?;
    let finding = result
        .findings
        .kept
        .iter()
        .find(|finding| owners.contains(&finding.owner))?;
    Some(finding.text.clone())
}

/// Whether all findings are digests of the agent: the preserved memory is as it was, and the file is another.
fn only_seen_by_the_agent(result: &RuleResult) -> bool {
    let digest = |finding: &harness::oracle::Finding| finding.actual.starts_with("digest ");
    result.rule == RuleName::PreservedContent && result.findings.kept.iter().all(digest)
}

/// Whether a finding of `kernel-quiet` is of code that could not go on.
fn is_oops(text: &str) -> bool {
    ["oops", "BUG"].iter().any(|start| text.starts_with(start))
}

fn first(result: &RuleResult) -> String {
    let finding = result.findings.kept.first();
    finding.map_or_else(|| result.rule.to_string(), |finding| finding.text.clone())
}

/// The first console line of the last kernel that the unchanged run has not.
fn new_line(evidence: &Evidence, reference: &Reference) -> Option<String> {
    console(evidence).find(|line| !reference.console.contains(line))
}

/// Lines that the kernels after the first printed, without their time stamps.
fn console(evidence: &Evidence) -> impl Iterator<Item = String> {
    let generation = evidence.kexecs;
    let text = evidence.console_of(generation).1.to_owned();
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .map(
            |line| match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
                Some((_, said)) => said.to_owned(),
                None => line,
            },
        )
        .filter(|line| !line.is_empty())
        .collect();
    lines.into_iter()
}

#[cfg(test)]
mod tests;
