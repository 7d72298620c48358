//! The conductor: takes a machine through a plan and returns evidence, even if the run ends early.
//!
//! A [`Run`] is a machine, a [`Cursor`] and evidence. The cursor holds the next move. The driver ([`Run::proceed`])
//! makes it on the machine and passes the result to [`next`], a pure function that advances the cursor and adds the
//! agent's answers to the evidence. A run can be paused between any two moves, and at any guest time. The guest is
//! stopped while the conductor works, so the conductor takes no guest time.
//!
//! | file | job |
//! | --- | --- |
//! | `cursor.rs` | position, moves, inputs; [`next`] |
//! | `asks.rs` | the moves of each step |
//! | `answers.rs` | handling of answers |
//! | `memory_answers.rs` | handling of answers about the kernel's memory |
//! | `events.rs` | handling of events |
//! | `found.rs` | the objects of a payload, and their retrieval |
//! | `handed.rs` | the handover of a run that begins with the second kernel |
//! | `inject.rs` | answers to injections, and what became of each |
//! | `payload.rs` | programs of the user's own |
//! | `patience.rs` | how long the guest may be silent |
//! | `regions.rs` | memory that the kernel reserves by name: where it is, its pattern, its retrieval |
//! | `run.rs` | the driver |
//! | `warm.rs` | decoded and translated code that runs leave for each other |
//! | `collect.rs` | evidence from the machine |
//! | `page_writes.rs` | choice of the CPU writes that become evidence |
//! | `setup.rs` | configuration of the machine, and empty evidence |
//! | `stopwatch.rs` | host time of the phases |

mod answers;
mod asks;
mod collect;
mod cursor;
mod events;
mod found;
mod given;
mod handed;
mod inject;
mod logs;
mod memory;
mod memory_answers;
mod page_writes;
mod patience;
mod payload;
mod regions;
mod run;
mod setup;
mod stopwatch;
#[cfg(test)]
mod talks;
mod warm;

pub use cursor::{Awaiting, Cursor, Ending, Move, Point, Said, What, next};
pub(crate) use events::PANIC;
pub use memory::GuestMemory;
pub use run::{Progress, Run, Until};
pub use stopwatch::{HostTimes, Stopwatch};
pub use warm::WarmRuns;

use crate::evidence::{Evidence, Phase, PhaseRecord};
use crate::oracle::Question;
use crate::plan::Plan;
use vmm::machine::MachineError;
use vmm::processors::Backend;

/// Observer of a run. It sees the run and cannot change it. Records have no host time ([`PhaseRecord::wall_us`] is 0)
/// unless a [`Stopwatch`] passes them on.
pub trait Observer {
    /// A phase begins, or a run that was paused in it continues.
    fn phase(&self, generation: u32, phase: Phase);
    /// A phase has ended.
    fn passed(&self, record: &PhaseRecord);
    /// The phase goes on: guest time since its beginning, in nanoseconds. Called several times a second of guest time.
    fn goes_on(&self, _: u64) {}
    /// Whether [`Observer::so_far`] is to be called. Its argument costs time to make at each phase change.
    fn keeps(&self) -> bool {
        false
    }
    /// A phase has begun; the evidence covers all phases before it.
    fn so_far(&self, _: Evidence) {}
    /// Whether [`Observer::printed`] is to be called.
    fn listens(&self) -> bool {
        false
    }
    /// The guest has printed this on its console.
    fn printed(&self, _: &[u8]) {}
}

/// The observer that ignores everything.
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

/// Runs `plan` on `backend` with `agent` as /init, to its end. `questions` are those of [`Run::new`]. Fails only if the
/// machine cannot be made.
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
