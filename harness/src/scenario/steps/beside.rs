//! Checks what a scenario has beside its steps: an engine that runs while they are done, and faults.

use super::super::check::{Problem, dma_memfd, dma_room, require};
use super::super::{Dma, Scenario, Start};
use super::{Deed, Given, Seal};
use crate::plan::{first_preserved, preserves};
use guest_agent::protocol::{Change, Part};
use toml::Spanned;

/// Checks that the steps go with `[dma]` and `[fault]`. Both have passed their own checks.
pub(in crate::scenario) fn check(scenario: &Scenario) -> Result<(), Problem> {
    if !scenario.gives_steps() {
        return Ok(());
    }
    let given = scenario.given(scenario.seed);
    if let Some(kept) = scenario
        .fault
        .as_ref()
        .and_then(|fault| fault.get_ref().keep.as_ref())
    {
        let object = scenario.memfd_named(kept.get_ref()).map(|(id, _)| id);
        let closes =
            |given: &Given| matches!(given.deed, Deed::CloseMemfd { object: of } if Some(of) == object);
        require(given.iter().any(closes), kept, || {
            format!(
                "no step closes memfd \"{}\", so none can keep it open instead",
                kept.get_ref()
            )
        })?;
    }
    let Some(dma) = &scenario.dma else { return Ok(()) };
    let Some(memfd) = dma_memfd(scenario, dma.get_ref()) else {
        return Ok(());
    };
    let name = memfd.name.get_ref();
    let Some((object, _)) = scenario.memfd_named(name) else {
        return Ok(());
    };
    let ring = Ring {
        scenario,
        dma,
        name,
        object,
    };
    let running = ring.carried(&given)?;
    ring.kept(&given, running)
}

/// The memfd that holds the ring.
struct Ring<'a> {
    scenario: &'a Scenario,
    dma: &'a Spanned<Dma>,
    name: &'a str,
    object: u32,
}

impl Ring<'_> {
    /// Checks that the memfd goes over every kexec from the engine's start on. Returns the place of the step with which
    /// the engine starts.
    fn carried(&self, given: &[Given]) -> Result<usize, Problem> {
        let (name, last) = (self.name, *self.scenario.kexecs.get_ref());
        let handed = self.scenario.handover.is_some();
        let first = first_preserved(given, self.object);
        let from = match first {
            _ if handed => 0,
            Some(given) => given.generation,
            None => last,
        };
        require(from < last, self.dma, || {
            format!("memfd \"{name}\" holds the ring, and no step preserves it before the last kexec")
        })?;
        for generation in from..last {
            let of = |given: &Given| given.generation == generation && preserves(given, self.object);
            let preserved = handed && generation == 0 || given.iter().any(of);
            require(preserved, self.dma, || {
                format!(
                    "memfd \"{name}\" holds the ring, so it goes over every kexec: expected a step that preserves it in \
                     generation {generation}"
                )
            })?;
            let next = generation + 1;
            let of = |given: &Given| {
                let retrieves = matches!(given.deed, Deed::Retrieve { object, .. } if object == self.object);
                given.generation == next && retrieves && given.errno.is_none()
            };
            require(given.iter().any(of), self.dma, || {
                format!(
                    "memfd \"{name}\" holds the ring, so it has to be retrieved: expected such a step in generation {next}"
                )
            })?;
        }
        let start = first.filter(|_| !handed);
        let start = start.and_then(|first| given.iter().position(|given| given == first));
        Ok(start.unwrap_or(0))
    }

    /// Checks that no step takes the ring away from the engine, or writes where the engine does: nobody could say what
    /// is there then. `running` is the place of the first step beside which it runs.
    fn kept(&self, given: &[Given], running: usize) -> Result<(), Problem> {
        let (name, last) = (self.name, *self.scenario.kexecs.get_ref());
        let early = self.dma.get_ref().start == Start::BeforePreservation;
        let room = dma_room(self.dma.get_ref());
        let of_ring = given
            .iter()
            .enumerate()
            .filter(|(_, given)| given.errno.is_none());
        for (place, given) in of_ring {
            let runs = place > running || early && place == running || self.scenario.handover.is_some();
            let refused = match &given.deed {
                Deed::CloseMemfd { object } if *object == self.object && runs && given.generation < last => {
                    Some("the agent needs it, as long as the engine runs")
                }
                Deed::Change { object, change } if *object == self.object => match change {
                    Change::Seal(bits) if bits & Seal::FORBID_WRITING != 0 && !runs => {
                        Some("the seals forbid the writable mapping through which the ring is set up")
                    }
                    Change::Write { part, .. } | Change::PunchHole(part) | Change::Collapse(part)
                        if (runs || given.looped) && overlaps(*part, room) =>
                    {
                        Some("the engine writes there, so what it holds would depend on chance")
                    }
                    _ => None,
                },
                _ => None,
            };
            let Some(why) = refused else { continue };
            let step = (given.number as usize)
                .checked_sub(1)
                .and_then(|at| self.scenario.step.get(at));
            let span = step.map_or_else(|| self.dma.span(), |step| step.verb.span());
            return Err(Problem {
                span,
                message: format!("memfd \"{name}\" holds the engine's ring here: {why}"),
            });
        }
        Ok(())
    }
}

/// Whether a part reaches into the first `room` bytes, which are the engine's.
fn overlaps(part: Part, room: u64) -> bool {
    part.offset < room
}
