//! What became of each kind of object over the first kexec of a run, from its evidence: kept, lost, refused.
//!
//! The rules say whether a run is as it should be. A matrix of kernels asks something else: what a pair of kernels does
//! with memfds, with memory reserved by name, and with the data of the kernel's own test.

use crate::cause;
use crate::evidence::{Evidence, MemfdEnd, ObjectEvidence, ObjectKind, OutcomeKind};
use crate::oracle::RuleName;
use crate::oracle::rules::session_retrieved::test_restored;
use crate::plan::preserves;
use crate::scenario;
use crate::verdict::Judged;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Level of a warning in the kernel's log.
const WARNING: u8 = 4;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Memfds, preserved in sessions of LUO.
    Memfd,
    /// Memory that the kernel reserves by name.
    ReserveMem,
    /// Data of the kernel's own test of Kexec HandOver.
    TestKho,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Memfd, Self::ReserveMem, Self::TestKho];

    /// The name in reports: the one that the kernel uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memfd => "memfd",
            Self::ReserveMem => "reserve_mem",
            Self::TestKho => "test_kho",
        }
    }
}

/// What became of the objects of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The new kernel gave all of them back, with their content.
    Kept,
    /// A kernel declined: the first one to preserve them or to load the next kernel, or the new one to take the
    /// handover.
    Refused,
    /// The new kernel took the handover without them. It logged that, or a call that asked for them failed.
    LostAndSaid,
    /// They are missing, damaged or in use by the new kernel, and nothing says so.
    LostSilently,
    /// A kernel panicked, hung or reset the machine.
    Panic,
}

impl Fate {
    /// All, from best to worst.
    pub const ALL: [Self; 5] = [
        Self::Kept,
        Self::Refused,
        Self::LostAndSaid,
        Self::LostSilently,
        Self::Panic,
    ];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Refused => "refused",
            Self::LostAndSaid => "lost-and-said",
            Self::LostSilently => "lost-silently",
            Self::Panic => "panic",
        }
    }
}

/// The fate of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindFate {
    /// The kind.
    pub kind: Kind,
    /// What became of it.
    pub fate: Fate,
    /// What shows that, in one sentence; empty if it was kept.
    pub why: String,
}

/// What became of each kind that the scenario has. The error says why the run shows nothing.
pub fn fates(judged: &Judged) -> Result<Vec<KindFate>, String> {
    let evidence = &judged.evidence;
    let outcome = &evidence.outcome;
    let begun = outcome.generation > 0;
    if outcome.kind.is_unjudgeable() && outcome.kind != OutcomeKind::SetupFailed {
        return Err(format!(
            "the run ended as {}: {}",
            outcome.kind.name(),
            outcome.text
        ));
    }
    let offered = offered(evidence)?;
    let has = |kind: Kind| match kind {
        Kind::TestKho => evidence.test_kho,
        kind => of_kind(evidence, kind, &offered).next().is_some(),
    };
    let all = Kind::ALL.into_iter().filter(|kind| has(*kind));
    let fate = |kind| {
        let (fate, why) = if begun {
            after_the_jump(judged, kind, &offered)
        } else if outcome.kind == OutcomeKind::SetupFailed {
            (Fate::Refused, format!("by the first kernel: {}", outcome.text))
        } else {
            (Fate::Panic, format!("of the first kernel: {}", outcome.text))
        };
        KindFate { kind, fate, why }
    };
    Ok(all.map(fate).collect())
}

/// The memfds that are to be preserved over the first kexec. Steps of the scenario's own may leave others out.
fn offered(evidence: &Evidence) -> Result<BTreeSet<u32>, String> {
    let scenario = scenario::parse(&evidence.scenario_file, &evidence.scenario_text);
    let scenario = scenario.map_err(|error| error.to_string())?;
    let given = scenario.given(evidence.seed);
    let first: Vec<_> = given.iter().filter(|given| given.generation == 0).collect();
    let objects = evidence.objects.iter().map(|object| object.id);
    let offers =
        |object: &u32| !scenario.gives_steps() || first.iter().any(|given| preserves(given, *object));
    Ok(objects.filter(offers).collect())
}

/// The objects of a kind that the agent or the host looks after, of memfds those in `offered`.
fn of_kind<'a>(
    evidence: &'a Evidence,
    kind: Kind,
    offered: &'a BTreeSet<u32>,
) -> impl Iterator<Item = &'a ObjectEvidence> {
    evidence.objects.iter().filter(move |object| match object.kind {
        ObjectKind::Memfd { .. } => kind == Kind::Memfd && offered.contains(&object.id),
        ObjectKind::ReserveMem => kind == Kind::ReserveMem,
        ObjectKind::Anonymous | ObjectKind::Device | ObjectKind::Found { .. } => false,
    })
}

/// The fate of a kind in a run that came to the new kernel.
fn after_the_jump(judged: &Judged, kind: Kind, offered: &BTreeSet<u32>) -> (Fate, String) {
    let evidence = &judged.evidence;
    if let Some(why) = not_handed_over(evidence, kind, offered) {
        return (Fate::Refused, format!("by the first kernel: {why}"));
    }
    let outcome = &evidence.outcome;
    let died = [
        OutcomeKind::GuestPanic,
        OutcomeKind::GuestHang,
        OutcomeKind::TripleFault,
        OutcomeKind::UnexpectedReset,
        OutcomeKind::AgentDied,
    ];
    if died.contains(&outcome.kind) {
        return (Fate::Panic, format!("{}: {}", outcome.kind.name(), outcome.text));
    }
    let Some(why) = not_kept(judged, kind, offered) else {
        return (Fate::Kept, String::new());
    };
    if let Some(line) = refusal(evidence) {
        return (Fate::Refused, format!("by the new kernel: {line}"));
    }
    let failed = || {
        let failed = evidence
            .retrievals
            .iter()
            .filter_map(|retrieval| retrieval.failure);
        // The host's own look-up is no word of the kernel's.
        let calls = failed.filter_map(|failure| evidence.failures.get(failure));
        let mut calls = calls.filter(|failure| kind == Kind::Memfd && failure.errno != 0);
        calls.next().map(ToString::to_string)
    };
    match warning(evidence, kind).or_else(failed) {
        Some(said) => (Fate::LostAndSaid, format!("{why}; {said}")),
        None => (Fate::LostSilently, why),
    }
}

/// Why objects of this kind are not in what the first kernel handed over; `None` if all are.
fn not_handed_over(evidence: &Evidence, kind: Kind, offered: &BTreeSet<u32>) -> Option<String> {
    let blob = evidence.blobs.first().filter(|blob| blob.kho.is_some());
    let Some(blob) = blob else {
        return Some("it handed nothing over".into());
    };
    let handed = crate::blob::decode(blob);
    if kind == Kind::TestKho {
        return match handed {
            Ok(handed) if handed.test_folios.is_none() => {
                Some("it has no data of its own test (CONFIG_TEST_KEXEC_HANDOVER)".into())
            }
            _ => None,
        };
    }
    let first = evidence.first_generation().saturating_sub(1);
    let mut missing = of_kind(evidence, kind, offered).filter(|object| !object.preserved_by.contains(&first));
    if let Some(object) = missing.next() {
        let mut failures = evidence.failures.iter().filter(|failure| failure.generation == 0);
        let why = failures.next().map(ToString::to_string);
        return Some(why.unwrap_or_else(|| format!("{} was not preserved", object.owner())));
    }
    // If its record cannot be read, the new kernel is the one to say so.
    let named = handed.ok()?.reserve_mem?;
    let unnamed = |object: &&ObjectEvidence| kind == Kind::ReserveMem && !named.contains(&object.name);
    let mut unnamed = of_kind(evidence, kind, offered).filter(unnamed);
    let object = unnamed.next()?;
    Some(format!("{} is not in the handover", object.owner()))
}

/// What shows that objects of this kind are not in the new kernel as they were; `None` if all are.
fn not_kept(judged: &Judged, kind: Kind, offered: &BTreeSet<u32>) -> Option<String> {
    let evidence = &judged.evidence;
    if kind == Kind::TestKho {
        return match test_restored(evidence, 1) {
            Some(true) => None,
            Some(false) => Some("the new kernel's test does not say that it has its data again".into()),
            None => Some("the new kernel's log was not read".into()),
        };
    }
    let wanted = of_kind(evidence, kind, offered).filter(|object| object.end == MemfdEnd::Retrieved);
    for object in wanted {
        let mut tried = evidence
            .retrievals
            .iter()
            .filter(|retrieval| retrieval.generation == 1);
        match tried.find(|retrieval| retrieval.object == Some(object.id)) {
            Some(retrieval) => {
                if let Some(failure) = retrieval
                    .failure
                    .and_then(|failure| evidence.failures.get(failure))
                {
                    return Some(failure.to_string());
                }
            }
            None => return Some(format!("{} was never retrieved", object.owner())),
        }
        if let Some(damage) = damage(judged, object) {
            return Some(damage);
        }
    }
    None
}

/// What rules found wrong with the memory of an object, the first of it.
fn damage(judged: &Judged, object: &ObjectEvidence) -> Option<String> {
    let about_memory = [
        RuleName::PreservedContent,
        RuleName::NoCpuWriteBeforeRetrieval,
        RuleName::KeptFromAllocator,
        RuleName::MapCoversPreserved,
    ];
    let results = judged.results.iter();
    let mut results = results.filter(|result| about_memory.contains(&result.rule));
    results.find_map(|result| {
        let owner = object.owner();
        let found = result.findings.kept.iter().find(|finding| finding.owner == owner);
        let more = result.findings.total > result.findings.kept.len() as u64;
        found.map(|finding| finding.text.clone()).or_else(|| {
            more.then(|| {
                let (kept, rule) = (result.findings.kept.len(), result.rule.name());
                format!(
                    "{rule} has {} findings, and the {kept} that are kept are about other objects",
                    result.findings.total
                )
            })
        })
    })
}

/// The line with which the new kernel declines the whole handover.
fn refusal(evidence: &Evidence) -> Option<String> {
    let (_, console) = evidence.console_of(1);
    let printed = cause::kernel_lines(console).map(cause::message);
    let mut all = logged(evidence).map(|(_, text)| text).chain(printed);
    all.find(|line| cause::is_refusal(line)).map(str::to_owned)
}

/// What the new kernel logged, with its level.
fn logged(evidence: &Evidence) -> impl Iterator<Item = (u8, &str)> {
    let logs = evidence.kernel_logs.iter().filter(|log| log.generation == 1);
    logs.flat_map(|log| &log.records)
        .map(|record| (record.level, record.text.as_str()))
}

/// A warning of the new kernel about live update, or about the kind.
fn warning(evidence: &Evidence, kind: Kind) -> Option<String> {
    let words: &[&str] = match kind {
        Kind::Memfd => &["memfd"],
        Kind::ReserveMem => &["'memblock'", "reserve-mem", "reserve_mem"],
        Kind::TestKho => &["kho_test", "test_kho"],
    };
    // Lines about another kind's sub-blob say nothing of this one.
    let others = Kind::ALL
        .into_iter()
        .filter(|other| *other != kind)
        .map(Kind::name);
    let others: Vec<&str> = others.collect();
    let about = |line: &str| {
        let of_kind = words.iter().any(|word| line.contains(word));
        let of_other = others.iter().any(|other| line.contains(other));
        of_kind || (cause::is_of_live_update(line) && !of_other)
    };
    let mut lines = logged(evidence).filter(|(level, line)| *level <= WARNING && about(line));
    lines
        .next()
        .map(|(_, line)| format!("the new kernel says: {line}"))
}

#[cfg(test)]
mod tests;
