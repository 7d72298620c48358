//! The conductor: takes a machine through a plan and comes back with evidence, whatever happens on the way.
//!
//! A [`Run`] is a machine, a [`Cursor`] and evidence. The cursor says what is due; the driver ([`Run::proceed`]) does that on the machine
//! and hands what came of it to [`next`], a pure function that moves the cursor on and writes the agent's answers into the evidence.
//! A run can be paused between any two moves, and at any guest time. The guest stands whenever the conductor works, so that nothing
//! here takes guest time.
//!
//! | file | job |
//! | --- | --- |
//! | `cursor.rs` | position, moves, inputs; [`next`] |
//! | `asks.rs` | what each step asks for |
//! | `answers.rs` | what the agent's answers mean |
//! | `events.rs` | what the machine's events mean |
//! | `run.rs` | the driver |
//! | `collect.rs` | what is taken from the machine itself |
//! | `setup.rs` | the machine's configuration and evidence to begin with |
//! | `stopwatch.rs` | host time, which is no part of a run |

mod answers;
mod asks;
mod collect;
mod cursor;
mod events;
mod memory;
mod run;
mod setup;
mod stopwatch;
#[cfg(test)]
mod talks;

pub use cursor::{Awaiting, Cursor, Ending, Move, Point, Said, What, next};
pub use run::{Progress, Run, Until};
pub use stopwatch::{HostTimes, Stopwatch};

use crate::evidence::{Evidence, Phase, PhaseRecord};
use crate::oracle::Question;
use crate::plan::Plan;
use vmm::machine::MachineError;
use vmm::processors::Backend;

/// Who wants to know how a run goes on. It sees the run and changes nothing in it. Records have no host time in them
/// ([`PhaseRecord::wall_us`] is 0) unless a [`Stopwatch`] stands in front.
pub trait Observer {
    /// A phase begins, or a run that was paused in it goes on.
    fn phase(&self, generation: u32, phase: Phase);
    /// A phase is over.
    fn passed(&self, record: &PhaseRecord);
    /// Whether [`Observer::so_far`] is wanted, which costs time at each phase change.
    fn keeps(&self) -> bool {
        false
    }
    /// A phase has begun, and this is the evidence of all before.
    fn so_far(&self, _: Evidence) {}
}

/// Nobody wants to know.
impl Observer for () {
    fn phase(&self, _: u32, _: Phase) {}
    fn passed(&self, _: &PhaseRecord) {}
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs `plan` on `backend` with `agent` as /init, to its end. `questions` are those of [`Run::new`]. An error means that there was no
/// machine to begin with.
pub fn conduct(
    plan: &Plan,
    agent: &[u8],
    backend: &dyn Backend,
    observer: &dyn Observer,
    questions: &[Question],
) -> Result<Evidence, MachineError> {
    let mut run = Run::new(plan, agent, backend, questions)?;
    let watch = Stopwatch::new(observer);
    run.proceed(&[], &watch);
    let mut evidence = run.finish(&watch);
    watch.fill(&mut evidence);
    Ok(evidence)
}
