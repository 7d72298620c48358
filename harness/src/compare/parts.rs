//! Compares every kind of record, and returns the earliest difference.

use super::device::{dma, dma_moments, injections, interrupts};
use super::item::diverge;
use super::records::{Bytes, Caused, Fact, Page, Passed, Traced};
use super::{At, Part, RecordDifference};
use crate::evidence::{Checkpoint, Evidence, Moment, Phase, Retrieval, StepRecord, frames_of};
use std::collections::HashSet;
use vmm::trace::TraceRecord;

/// The earliest record that differs. Of several at the same time, the kind listed first in [`Part`] wins. Records
/// without a time come last.
pub(super) fn first(first: &Evidence, second: &Evidence) -> Option<RecordDifference> {
    let mut earliest = all(first, second)
        .into_iter()
        .flatten()
        .min_by_key(|found| (found.at.time_ns.unwrap_or(u64::MAX), found.part))?;
    earliest.trace_ends_ns = trace_end(&first.trace, &second.trace)
        .filter(|end| earliest.at.time_ns.is_none_or(|time| time > *end));
    place(&mut earliest.at, first, second);
    earliest.function = earliest
        .function
        .take()
        .or_else(|| function(&earliest, first).or_else(|| function(&earliest, second)));
    Some(earliest)
}

/// The first difference of each kind.
fn all(first: &Evidence, second: &Evidence) -> Vec<Option<RecordDifference>> {
    // This compiles only if every field of the evidence is in one of the two groups.
    let Evidence {
        // Compared as inputs, or not a result of the run: paths, host times, and last writers from a second run.
        version: _,
        baton: _,
        scenario_file: _,
        scenario_text: _,
        name: _,
        backend: _,
        seed: _,
        overrides: _,
        ram_bytes: _,
        kexecs: _,
        handover: _,
        test_kho: _,
        payload: _,
        authors: _,
        device_lateness_ns: _,
        slowdown: _,
        emulated: _,
        log_symbols: _,
        // Compared here.
        kernels: _,
        phases: _,
        objects: _,
        dma: _,
        injections: _,
        event_causes: _,
        cpu_writes: _,
        cpu_writes_until_ns: _,
        interrupts: _,
        memory: _,
        page_flags: _,
        pressure: _,
        reused: _,
        steps: _,
        retrievals: _,
        failures: _,
        blobs: _,
        blackouts_ns: _,
        blackout_begins_ns: _,
        jumps_not_before: _,
        outcome: _,
        state_hash: _,
        ledger: _,
        trace: _,
        captures: _,
        console: _,
        console_parts: _,
        kernel_logs: _,
    } = first;
    let both = [first, second];
    let frames = both.map(frames_that_matter);
    let facts = |part, facts: fn(&Evidence) -> Vec<Fact>| {
        let [one, other] = both.map(facts);
        diverge(part, one, other)
    };
    vec![
        diverge(Part::Trace, traced(first), traced(second)),
        facts(Part::Trace, dropped),
        diverge(Part::Ledger, &first.ledger.entries, &second.ledger.entries),
        diverge(Part::EngineEvent, &first.ledger.events, &second.ledger.events),
        diverge(Part::EventCause, causes(first), causes(second)),
        diverge(Part::CpuWrite, writes(first, &frames), writes(second, &frames)),
        diverge(
            Part::Phase,
            first.phases.iter().map(Passed),
            second.phases.iter().map(Passed),
        ),
        facts(Part::Step, steps),
        facts(Part::Retrieval, retrievals),
        facts(Part::Blob, handovers),
        diverge(Part::Blob, blob_pages(first), blob_pages(second)),
        diverge(Part::Capture, captured(first), captured(second)),
        diverge(Part::Digest, digests(first), digests(second)),
        facts(Part::Failure, failures),
        facts(Part::Kernel, kernels),
        facts(Part::Object, closings),
        diverge(Part::Object, objects(first), objects(second)),
        facts(Part::Dma, dma_moments),
        facts(Part::Dma, dma),
        facts(Part::Interrupts, interrupts),
        facts(Part::Injection, injections),
        facts(Part::Memory, memory),
        facts(Part::Memory, pressure),
        facts(Part::Memory, page_flags),
        facts(Part::Memory, reused),
        facts(Part::Blackout, blackouts),
        facts(Part::Counters, counters),
        diverge(Part::Console, console(first), console(second)),
        diverge(Part::KernelLog, kernel_logs(first), kernel_logs(second)),
        facts(Part::Outcome, outcome),
        facts(Part::StateHash, |evidence| {
            vec![Fact::timeless("hash of the final state", &evidence.state_hash)]
        }),
    ]
}

/// Guest time of the last record that both traces hold, if one of them dropped records.
fn trace_end(first: &TraceRecord, second: &TraceRecord) -> Option<u64> {
    let end = |trace: &TraceRecord| {
        let last = trace.records.last().map_or(0, |record| record.time);
        (trace.dropped > 0).then_some(last)
    };
    end(first).into_iter().chain(end(second)).min()
}

/// Adds generation and phase if the record has none.
fn place(at: &mut At, first: &Evidence, second: &Evidence) {
    let Some(time) = at.time_ns.filter(|_| at.phase.is_none()) else {
        return;
    };
    let begun = |evidence: &&Evidence| {
        let mut phases = evidence.phases.iter();
        let phase = phases.rfind(|phase| phase.begin_ns <= time)?;
        Some((phase.generation, phase.phase))
    };
    // Before the first difference both runs are in the same phase.
    if let Some((generation, phase)) = [first, second].iter().find_map(begun) {
        at.generation = at.generation.or(Some(generation));
        at.phase = Some(phase);
    }
}

/// The function that made an access, if the access caused an engine event. Evidence has symbols only of those accesses.
fn function(found: &RecordDifference, evidence: &Evidence) -> Option<String> {
    let made_by = found.at.instructions.filter(|_| found.part == Part::Trace)?;
    // A cause is noted after its instruction has retired.
    let cause = evidence
        .event_causes
        .iter()
        .find(|cause| cause.instructions == made_by.checked_add(1))?;
    cause.symbol.clone()
}

fn traced(evidence: &Evidence) -> impl Iterator<Item = Traced> {
    let trace = &evidence.trace;
    (0..trace.records.len()).map(|index| Traced {
        record: trace.records[index],
        instructions: trace.instructions(index),
    })
}

fn dropped(evidence: &Evidence) -> Vec<Fact> {
    let TraceRecord {
        dropped,
        dropped_digest,
        ..
    } = evidence.trace;
    vec![Fact::timeless(
        "rest of the trace, for which there was no room,",
        format!("{dropped} records with digest {dropped_digest:#018x}"),
    )]
}

fn causes(evidence: &Evidence) -> impl Iterator<Item = Caused<'_>> {
    evidence.event_causes.iter().map(|cause| Caused {
        cause,
        event: evidence.ledger.events.get(cause.event),
    })
}

/// Page frames whose CPU writes are in the evidence.
fn frames_that_matter(evidence: &Evidence) -> HashSet<u64> {
    let objects = evidence.objects.iter().flat_map(|object| {
        let generations = object.pages.keys();
        generations.flat_map(|generation| object.frames(*generation))
    });
    let written = evidence.ledger.entries.iter().flat_map(frames_of);
    objects.chain(written).collect()
}

/// CPU writes to page frames of which both runs have evidence. The set of frames is known only at a run's end, so a
/// write that is in only one of the two does not show when they parted.
fn writes<'a>(
    evidence: &'a Evidence,
    frames: &[HashSet<u64>; 2],
) -> impl Iterator<Item = &'a crate::evidence::CpuWrite> {
    let in_both = |address: u64| {
        let frame = address / crate::evidence::PAGE;
        frames.iter().all(|frames| frames.contains(&frame))
    };
    evidence
        .cpu_writes
        .iter()
        .filter(move |write| in_both(write.address))
}

fn steps(evidence: &Evidence) -> Vec<Fact> {
    let fact = |(number, step): (u64, &StepRecord)| Fact {
        at: moment(step.at.generation, step.at.time_ns),
        subject: format!("answer {number} to a step, {},", step.what),
        verb: "was",
        value: step.got(),
    };
    (1..).zip(&evidence.steps).map(fact).collect()
}

fn retrievals(evidence: &Evidence) -> Vec<Fact> {
    let fact = |retrieval: &Retrieval| {
        let failure = retrieval.failure.map(|index| evidence.failures.get(index));
        let result = match failure {
            None => "retrieved".to_owned(),
            Some(failure) => failure.map_or("lost".into(), |failure| format!("lost: {failure}")),
        };
        Fact {
            at: moment(retrieval.generation, retrieval.time_ns),
            subject: retrieval.what.clone(),
            verb: "was",
            value: format!("{result}, after {} ledger entries", retrieval.ledger_length),
        }
    };
    evidence.retrievals.iter().map(fact).collect()
}

pub(super) fn moment(generation: u32, time_ns: u64) -> At {
    At {
        time_ns: Some(time_ns),
        generation: Some(generation),
        ..At::default()
    }
}

/// The jump belongs to the old kernel, and the handover is captured at its end.
fn jump(generation: u32, time_ns: u64) -> At {
    At {
        phase: Some(Phase::Jump),
        ..moment(generation, time_ns)
    }
}

fn handovers(evidence: &Evidence) -> Vec<Fact> {
    let facts = evidence.blobs.iter().flat_map(|blob| {
        let fact = |subject: &str, value: String| Fact {
            at: jump(blob.generation, blob.time_ns),
            subject: format!("{subject} handed over by generation {}", blob.generation),
            verb: "was",
            value,
        };
        let kho = blob.kho.map_or("none".into(), |kho| {
            format!(
                "FDT of {} bytes at {:#x}, scratch areas of {} bytes at {:#x}",
                kho.fdt.size, kho.fdt.start, kho.scratch.size, kho.scratch.start
            )
        });
        [
            fact(
                "address of the boot parameters",
                format!("{:#x}", blob.boot_params),
            ),
            fact("KHO data", kho),
            fact(
                "trouble with KHO data",
                blob.problem.clone().unwrap_or("none".into()),
            ),
            fact("RAM", format!("{:x?}", blob.ram)),
        ]
    });
    facts.collect()
}

fn blob_pages(evidence: &Evidence) -> impl Iterator<Item = Page<'_>> {
    evidence.blobs.iter().flat_map(|blob| {
        blob.pages.iter().map(|(frame, bytes)| Page {
            at: jump(blob.generation, blob.time_ns),
            subject: format!("handover page {frame:#x}"),
            bytes: Bytes::Raw(bytes.into()),
        })
    })
}

fn captured(evidence: &Evidence) -> impl Iterator<Item = Page<'_>> {
    evidence.captures.checkpoints.iter().flat_map(|checkpoint| {
        let pages = object_pages(evidence, checkpoint);
        pages.chain(strays(evidence, checkpoint))
    })
}

fn object_pages<'a>(evidence: &'a Evidence, checkpoint: &'a Checkpoint) -> impl Iterator<Item = Page<'a>> {
    checkpoint.objects.iter().flat_map(move |capture| {
        let object = evidence.object(capture.object);
        let owner = object.map_or_else(|| format!("object {}", capture.object), |object| object.owner());
        let seed = object.map(|object| object.pattern_seed);
        (0_u64..).zip(&capture.pages).map(move |(index, content)| Page {
            at: captured_at(checkpoint),
            subject: format!("page {index} of {owner}"),
            bytes: Bytes::captured(&evidence.captures, *content, seed.map(|seed| (seed, index))),
        })
    })
}

fn strays<'a>(evidence: &'a Evidence, checkpoint: &'a Checkpoint) -> impl Iterator<Item = Page<'a>> {
    checkpoint.strays.iter().map(move |(frame, content)| Page {
        at: captured_at(checkpoint),
        subject: format!("page {frame:#x} of no object"),
        bytes: Bytes::captured(&evidence.captures, *content, None),
    })
}

fn captured_at(checkpoint: &Checkpoint) -> At {
    At {
        phase: Some(checkpoint.phase),
        ..moment(checkpoint.at.generation, checkpoint.at.time_ns)
    }
}

fn digests(evidence: &Evidence) -> impl Iterator<Item = Fact> {
    evidence.captures.digests.iter().flat_map(|record| {
        (record.first_page..)
            .zip(&record.values)
            .map(|(page, value)| Fact {
                at: At {
                    generation: Some(record.generation),
                    ..At::default()
                },
                subject: format!("the agent's digest of page {page} of object {}", record.object),
                verb: "was",
                value: format!(
                    "{value:#018x}, taken between ledger entries {} and {}",
                    record.ledger_before, record.ledger_after
                ),
            })
    })
}

fn failures(evidence: &Evidence) -> Vec<Fact> {
    let fact = |failure: &crate::evidence::AgentFailure| Fact {
        at: At {
            generation: Some(failure.generation),
            phase: Some(failure.phase),
            ..At::default()
        },
        subject: "request to the agent".into(),
        verb: "failed:",
        value: failure.to_string(),
    };
    evidence.failures.iter().map(fact).collect()
}

fn kernels(evidence: &Evidence) -> Vec<Fact> {
    let facts = (0_u32..).zip(&evidence.kernels).map(|(generation, kernel)| {
        let hello = kernel.hello.as_ref().map(|hello| {
            let kho = if hello.kho_incoming { "" } else { "no " };
            let luo = if hello.liveupdate { "" } else { "no " };
            format!(
                "{} with build id {}, {} processors, {kho}KHO data, {luo}/dev/liveupdate, command line {:?}",
                hello.release, hello.build_id, hello.processors, hello.command_line
            )
        });
        let subject = format!("kernel of generation {generation}");
        let offset = kernel.symbols.offset().filter(|offset| *offset != 0);
        let offset = offset.map_or(String::new(), |offset| format!(", {offset:#x} above its symbols"));
        Fact::timeless(subject, hello.unwrap_or("never up".into()) + &offset)
    });
    facts.collect()
}

pub(super) fn at_moment(at: &Moment) -> At {
    moment(at.generation, at.time_ns)
}

/// When objects were closed, in order.
fn closings(evidence: &Evidence) -> Vec<Fact> {
    let closed = evidence.objects.iter().filter_map(|object| {
        let at = object.closed.as_ref()?;
        Some(Fact {
            at: at_moment(at),
            subject: object.owner(),
            verb: "was",
            value: format!("closed after {} ledger entries", at.ledger_length),
        })
    });
    let mut closed: Vec<Fact> = closed.collect();
    closed.sort_by_key(|fact| fact.at.time_ns);
    closed
}

fn objects(evidence: &Evidence) -> impl Iterator<Item = Fact> {
    evidence.objects.iter().flat_map(|object| {
        let owner = object.owner();
        let value = format!(
            "object {} of {} bytes with pattern {:#x}, changed by {} steps, preserved by generations {:?}",
            object.id,
            object.bytes,
            object.pattern_seed,
            object.laid.as_ref().map_or(0, Vec::len),
            object.preserved_by
        );
        let whole = Fact::timeless(owner.clone(), value);
        let runs = object.pages.iter().flat_map(move |(generation, runs)| {
            let owner = owner.clone();
            (0..).zip(runs).map(move |(index, run): (u64, _)| {
                let subject = format!("run {index} of the pages of {owner} in generation {generation}");
                Fact::timeless(subject, format!("{} pages from {:#x} on", run.count, run.first))
            })
        });
        [whole].into_iter().chain(runs)
    })
}

fn memory(evidence: &Evidence) -> Vec<Fact> {
    let fact = |record: &crate::evidence::MemoryRecord| Fact {
        at: At {
            generation: Some(record.generation),
            ..At::default()
        },
        subject: "memory as the agent saw it".into(),
        verb: "was",
        value: format!(
            "{} of {} pages free, {} held by objects",
            record.free_pages, record.total_pages, record.held_pages
        ),
    };
    evidence.memory.iter().map(fact).collect()
}

fn pressure(evidence: &Evidence) -> Vec<Fact> {
    let fact = |record: &crate::evidence::PressureRecord| Fact {
        at: At {
            generation: Some(record.generation),
            time_ns: Some(record.begin_ns),
            ..At::default()
        },
        subject: "all memory".into(),
        verb: "was",
        value: format!("taken: {record:?}"),
    };
    evidence.pressure.iter().map(fact).collect()
}

fn page_flags(evidence: &Evidence) -> Vec<Fact> {
    let of = |record: &crate::evidence::PageFlagsRecord| {
        let (at, object, point) = (record.generation, record.object, record.at);
        let at = At {
            generation: Some(at),
            time_ns: Some(record.time_ns),
            ..At::default()
        };
        let runs = (0usize..).zip(record.flags.clone());
        let fact = move |(index, run): (usize, guest_agent::protocol::FlagRun)| Fact {
            at,
            subject: format!("run {index} of the flags of object {object} ({point:?})"),
            verb: "was",
            value: format!("{} pages of {:#x}", run.count, run.flags),
        };
        runs.map(fact).collect::<Vec<_>>()
    };
    evidence.page_flags.iter().flat_map(of).collect()
}

fn reused(evidence: &Evidence) -> Vec<Fact> {
    let of = |record: &crate::evidence::Reused| {
        let (generation, object) = (record.generation, record.object);
        let runs = (0usize..).zip(record.pages.clone());
        let fact = move |(index, run): (usize, guest_agent::protocol::PageRun)| Fact {
            at: At {
                generation: Some(generation),
                ..At::default()
            },
            subject: format!("run {index} of the pages of closed object {object} in use again"),
            verb: "was",
            value: format!("{} pages from {:#x}", run.count, run.first),
        };
        runs.map(fact).collect::<Vec<_>>()
    };
    evidence.reused.iter().flat_map(of).collect()
}

fn blackouts(evidence: &Evidence) -> Vec<Fact> {
    let lengths = evidence.blackouts_ns.iter().map(|ns| format!("{ns} ns"));
    let jumps = evidence.jumps_not_before.iter().map(|at| match at {
        None => "seen as it happened".into(),
        Some(ns) => format!("not before {ns} ns"),
    });
    let blackouts = lengths.map(|value| Fact::timeless("blackout", value));
    blackouts
        .chain(jumps.map(|value| Fact::timeless("jump", value)))
        .collect()
}

fn counters(evidence: &Evidence) -> Vec<Fact> {
    let counters = evidence.ledger.counters.iter().map(|(stamp, counters)| Fact {
        at: At {
            generation: Some(stamp.generation.into()),
            phase: Some(stamp.phase),
            ..At::default()
        },
        ..Fact::timeless(format!("device in {stamp}"), format!("{counters:?}"))
    });
    let recorded = match evidence.cpu_writes_until_ns {
        None => "complete".to_owned(),
        Some(until) => format!("complete until {until} ns"),
    };
    let further = [
        Fact::timeless("number of ledger entries made", evidence.ledger.made.to_string()),
        Fact::timeless("digest of the ledger", evidence.ledger_digest()),
        Fact::timeless("record of CPU writes", recorded),
    ];
    counters.chain(further).collect()
}

fn console(evidence: &Evidence) -> impl Iterator<Item = Fact> {
    let lines = (1..).zip(evidence.console.split('\n'));
    let lines = lines.map(|(number, line): (u64, _)| {
        Fact::timeless(format!("line {number} of the console"), format!("{line:?}"))
    });
    lines.chain(evidence.console_parts.iter().map(|part| Fact {
        at: At {
            generation: Some(part.generation),
            phase: Some(part.phase),
            ..At::default()
        },
        ..Fact::timeless(
            format!(
                "console output in {} of generation {}",
                part.phase, part.generation
            ),
            format!("from byte {}, {} bytes not kept", part.begin, part.lost),
        )
    }))
}

fn kernel_logs(evidence: &Evidence) -> impl Iterator<Item = Fact> {
    evidence.kernel_logs.iter().flat_map(|log| {
        let generation = log.generation;
        let fact = move |what, value| Fact {
            at: At {
                generation: Some(generation),
                ..At::default()
            },
            ..Fact::timeless(what, value)
        };
        let records = (1..).zip(&log.records).map(move |(number, record): (u64, _)| {
            let value = format!("{} us, level {}: {:?}", record.time_us, record.level, record.text);
            fact(
                format!("record {number} of the log of generation {generation}"),
                value,
            )
        });
        let lost = fact(
            format!("records missing in the log of generation {generation}"),
            log.lost.to_string(),
        );
        records.chain([lost])
    })
}

fn outcome(evidence: &Evidence) -> Vec<Fact> {
    let outcome = &evidence.outcome;
    let value = format!(
        "{} in {} of generation {}: {}",
        outcome.kind.name(),
        outcome.phase,
        outcome.generation,
        outcome.text
    );
    vec![Fact::timeless("outcome", value)]
}
