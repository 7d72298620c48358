//! Which injections explain a finding, and what came of an injection first.
//!
//! An injection explains a finding if
//! - it is the finding's last writer;
//! - the finding is about what a kernel handed over, or about what became of memory that no injection wrote, and the
//!   injection wrote to pages of that handover;
//! - the finding is a complaint of a kernel, and the injection acted on the machine before;
//! - the finding's last writer is a write that the device made after its driver had stopped it, and the injection acted
//!   on the device before;
//! - the finding is that something was never retrieved, and the injection acted on the machine in a run that was cut
//!   short;
//! - the finding is that something was never retrieved, and the injection wrote to memory of no object: a kernel may
//!   work with it.

use super::content::Context;
use super::finding::{Finding, Writer};
use super::{RuleName, RuleResult};
use crate::evidence::{Evidence, OutcomeKind, PAGE, Phase, frames_of, injected};
use crate::kernel_log::of_generation;
use std::collections::BTreeSet;
use vmm::ledger::EngineEventKind;

/// Says of each finding of a rule which injections explain it.
pub(super) fn explain(context: &Context<'_>, result: &mut RuleResult) {
    if context.evidence.injections.is_empty() {
        return;
    }
    // What becomes of preserved memory follows from a bent handover, too.
    let about_memory = matches!(
        result.rule,
        RuleName::PreservedContent
            | RuleName::NoCpuWriteBeforeRetrieval
            | RuleName::KeptFromAllocator
            | RuleName::NothingLeaked
    );
    let about_handover = about_memory
        || matches!(
            result.rule,
            RuleName::BlobWellFormed | RuleName::MapCoversPreserved | RuleName::SessionRetrieved
        );
    let handover = if about_handover {
        of_handover(context)
    } else {
        BTreeSet::new()
    };
    let mut everywhere = BTreeSet::new();
    if result.rule == RuleName::SessionRetrieved {
        everywhere.extend(of_no_object(context));
        if was_cut_short(context.evidence) {
            everywhere.extend(acted_before(
                context.evidence,
                context.evidence.outcome.generation,
                None,
            ));
        }
    }
    for finding in &mut result.findings.kept {
        let known = std::mem::take(&mut finding.explained_by);
        let follows = !about_memory || by_writer(finding).is_none();
        let by: BTreeSet<u32> = by_writer(finding)
            .into_iter()
            .chain(after_stop(context.evidence, finding))
            .chain(known)
            .chain(handover.iter().copied().filter(|_| follows))
            .chain(everywhere.iter().copied())
            .collect();
        finding.explained_by = by.into_iter().collect();
    }
}

fn by_writer(finding: &Finding) -> Option<u32> {
    match finding.last_writer {
        Writer::Injected { injection, .. } => Some(injection),
        _ => None,
    }
}

/// Whether the run came to no planned end.
fn was_cut_short(evidence: &Evidence) -> bool {
    !matches!(
        evidence.outcome.kind,
        OutcomeKind::Completed | OutcomeKind::SessionLost
    )
}

/// The injection without which the device would not have made the finding's last write, because its driver had stopped
/// it.
fn after_stop(evidence: &Evidence, finding: &Finding) -> Option<u32> {
    let Writer::Device { time_ns, .. } = finding.last_writer else {
        return None;
    };
    let events = evidence.ledger.events.iter();
    let before = events.rev().skip_while(|event| event.time > time_ns);
    let told = evidence.dma.as_ref().and_then(|dma| dma.stopped);
    let mut stopped = told.is_some_and(|told| told.time_ns < time_ns);
    for event in before {
        match event.kind {
            EngineEventKind::Start if !stopped => return None,
            EngineEventKind::Stop => stopped = true,
            EngineEventKind::Injected { injection } if stopped => return Some(injection.into()),
            _ => {}
        }
    }
    None
}

/// Injections that had acted on the machine by this phase of a generation; `None` is its end.
pub(super) fn acted_before(evidence: &Evidence, generation: u32, phase: Option<Phase>) -> Vec<u32> {
    let all = (0..).zip(&evidence.injections);
    let acted = all.filter(|(_, injection)| {
        let first = injection.firings.first().filter(|_| injection.acts_on_machine);
        first.is_some_and(|first| {
            let at = first.at;
            at.generation < generation
                || at.generation == generation && phase.is_none_or(|phase| at.phase <= phase)
        })
    });
    acted.map(|(number, _)| number).collect()
}

/// Pages from the boot parameters on in which the old kernel places the `setup_data` nodes: behind the parameters and
/// the command line (arch/x86/kernel/kexec-bzimage64.c, `bzImage64_load`).
const PARAMETER_PAGES: u64 = 4;

/// Injections that wrote to pages of a handover, or of the boot parameters that announce it.
fn of_handover(context: &Context<'_>) -> BTreeSet<u32> {
    let ledger = &context.evidence.ledger;
    let blobs = &context.evidence.blobs;
    let handed = |frame: u64| {
        blobs.iter().any(|blob| {
            let first = blob.boot_params / PAGE;
            blob.pages.contains_key(&frame) || (first..first + PARAMETER_PAGES).contains(&frame)
        })
    };
    let entries = ledger.entries.iter();
    let acted = entries.filter_map(|entry| {
        let by = injected(ledger, entry)?.injection;
        frames_of(entry).any(handed).then_some(by.into())
    });
    acted.collect()
}

/// Injections that wrote to guest memory that was no object's at that time.
fn of_no_object(context: &Context<'_>) -> BTreeSet<u32> {
    let (evidence, ledger) = (context.evidence, &context.evidence.ledger);
    let made = ledger.entries.iter().filter(|entry| entry.was_made());
    let acted = made.filter_map(|entry| {
        let by = injected(ledger, entry)?.injection;
        let generation = u32::from(entry.stamp.generation);
        let owned = |frame: u64| {
            let mut objects = evidence.objects.iter();
            objects.any(|object| object.frames(generation).contains(&frame))
        };
        let outside = frames_of(entry).any(|frame| evidence.is_ram(frame) && !owned(frame));
        outside.then_some(by.into())
    });
    acted.collect()
}

/// The first consequence of injection `number`, in words: the first finding that it explains; else the first complaint
/// of a kernel in the phase in which it first fired, or later; else the end of the run, unless that was completed.
pub fn first_consequence(evidence: &Evidence, results: &[RuleResult], number: u32) -> Option<String> {
    let injection = evidence.injections.get(number as usize)?;
    let fired = injection.firings.first()?.at;
    let mut findings = results.iter().flat_map(|result| &result.findings.kept);
    if let Some(finding) = findings.find(|finding| finding.explained_by.contains(&number)) {
        return Some(format!("{}: {}", finding.rule, finding.text));
    }
    for generation in fired.generation..=evidence.outcome.generation {
        let log = of_generation(evidence, generation);
        let later = log.kept.iter().find(|complaint| {
            let phase = complaint.at.and_then(|at| evidence.phase_printed(at));
            generation > fired.generation || phase.is_some_and(|phase| phase >= fired.phase)
        });
        if let Some(complaint) = later {
            return Some(format!(
                "the kernel of generation {generation}: {}",
                complaint.headline
            ));
        }
    }
    let outcome = &evidence.outcome;
    (outcome.kind != OutcomeKind::Completed)
        .then(|| format!("the run ended as {}: {}", outcome.kind.name(), outcome.text))
}
