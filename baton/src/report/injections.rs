//! What became of injections, as text and as JSON.

use harness::evidence::{Evidence, InjectedAt};
use harness::oracle::{RuleResult, first_consequence};
use harness::verdict::Judged;
use serde::Serialize;
use std::fmt::Write;

/// Most firings, and most reasons why one could not fire, that the text shows of an injection.
const SHOWN: usize = 3;

/// An injection, and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Injection {
    pub(super) number: u32,
    /// Trigger and deed in words.
    pub(super) injection: String,
    pub(super) armed: Option<Moment>,
    pub(super) fired: u64,
    pub(super) firings: Vec<Firing>,
    /// Why it could not fire when it was due.
    pub(super) unable: Vec<String>,
    pub(super) first_consequence: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Moment {
    pub(super) generation: u32,
    pub(super) phase: &'static str,
    pub(super) time_ns: u64,
    pub(super) instructions: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Firing {
    #[serde(flatten)]
    pub(super) at: Moment,
    pub(super) what: String,
}

impl From<InjectedAt> for Moment {
    fn from(at: InjectedAt) -> Self {
        Self {
            generation: at.generation,
            phase: at.phase.name(),
            time_ns: at.time_ns,
            instructions: at.instructions,
        }
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            generation,
            phase,
            time_ns,
            instructions,
        } = self;
        let time = super::text::thousandths(time_ns / 1000);
        write!(f, "in {phase} of generation {generation}, at {time} ms")?;
        instructions.map_or(Ok(()), |count| write!(f, ", instruction {count}"))
    }
}

/// All injections of a run.
pub(super) fn all(evidence: &Evidence, results: &[RuleResult]) -> Vec<Injection> {
    let all = (0..).zip(&evidence.injections);
    let one = |(number, injection): (u32, &harness::evidence::InjectionEvidence)| Injection {
        number,
        injection: injection.words.clone(),
        armed: injection.armed.map(Moment::from),
        fired: injection.fired,
        firings: injection
            .firings
            .iter()
            .map(|firing| Firing {
                at: firing.at.into(),
                what: firing.what.clone(),
            })
            .collect(),
        unable: injection.unable.clone(),
        first_consequence: first_consequence(evidence, results, number),
    };
    all.map(one).collect()
}

impl Injection {
    /// How often it fired, in words.
    pub(super) fn times(&self) -> String {
        match self.fired {
            0 => "never fired".to_owned(),
            1 => "fired once".to_owned(),
            times => format!("fired {times} times"),
        }
    }
}

/// Writes what became of each injection.
pub(super) fn write(judged: &Judged, out: &mut String) -> std::fmt::Result {
    for injection in all(&judged.evidence, &judged.results) {
        writeln!(out, "  injection {} - {}", injection.number, injection.injection)?;
        match &injection.armed {
            Some(at) => writeln!(out, "    armed {at}")?,
            None => writeln!(out, "    never armed")?,
        }
        writeln!(out, "    {}", injection.times())?;
        for firing in injection.firings.iter().take(SHOWN) {
            writeln!(out, "      {}: {}", firing.at, firing.what)?;
        }
        for reason in injection.unable.iter().take(SHOWN) {
            writeln!(out, "      could not fire {reason}")?;
        }
        if let Some(consequence) = &injection.first_consequence {
            writeln!(out, "    first consequence: {consequence}")?;
        }
    }
    Ok(())
}
