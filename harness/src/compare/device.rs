//! Records of the DMA engine and of injections, to be compared.

use super::At;
use super::parts::{at_moment, moment};
use super::records::Fact;
use crate::evidence::{ArmedRecord, Evidence, InjectionEvidence, Moment};

/// When the engine was told to start and to stop.
pub(super) fn dma_moments(evidence: &Evidence) -> Vec<Fact> {
    let moments = evidence.dma.iter().flat_map(|dma| {
        let fact = |value: &str, at: &Moment| Fact {
            at: at_moment(at),
            subject: "DMA engine".into(),
            verb: "was",
            value: format!("told to {value} after {} ledger entries", at.ledger_length),
        };
        let started = dma.started.iter().map(move |at| fact("start", at));
        started.chain(dma.stopped.iter().map(move |at| fact("stop", at)))
    });
    moments.collect()
}

pub(super) fn dma(evidence: &Evidence) -> Vec<Fact> {
    let setup = evidence.dma.as_ref().map(|dma| &dma.setup);
    let value = setup.map_or("none".into(), |setup| format!("{setup:?}"));
    vec![Fact::timeless("set-up of the DMA engine", value)]
}

pub(super) fn injections(evidence: &Evidence) -> Vec<Fact> {
    let all = (0..).zip(&evidence.injections);
    let fact = |(number, injection): (u32, &InjectionEvidence)| {
        let first = injection.firings.first();
        let at = first.map_or(At::default(), |first| {
            moment(first.at.generation, first.at.time_ns)
        });
        Fact {
            at,
            ..Fact::timeless(format!("injection {number}"), format!("{injection:?}"))
        }
    };
    all.map(fact).collect()
}

pub(super) fn interrupts(evidence: &Evidence) -> Vec<Fact> {
    let fact = |record: &ArmedRecord| {
        let (what, at) = match &record.disarmed {
            None => ("interrupts armed".to_owned(), record.armed),
            Some(disarmed) => (
                format!("{} interrupts counted", disarmed.count),
                disarmed.answered,
            ),
        };
        Fact {
            at: At {
                generation: Some(at.generation),
                time_ns: Some(at.time_ns),
                ..At::default()
            },
            ..Fact::timeless("interrupts of the DMA engine", format!("{what} ({record:?})"))
        }
    };
    evidence.interrupts.iter().map(fact).collect()
}
