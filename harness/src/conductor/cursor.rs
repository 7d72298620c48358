//! Position of a run and its next move: plain data, and one function on it.
//!
//! [`next`] takes the result of the last move and returns the driver's next [`Move`]. It does no I/O and has no access
//! to machine, clock or observer. Therefore a run can be copied, saved and continued between any two moves. The order
//! of calls:
//!
//! ```text
//! Cursor::start -> due: Run ─┐
//!      ┌───────────────────────┘
//!      └> the driver makes the move that is due ─> Said ─> next ─> the next move is due ─> ... ─> End
//! ```
//!
//! `asks.rs` has the moves of each step; `answers.rs` handles answers, `events.rs` events.

use super::regions::{self, Region};
use super::{answers, asks, events};
use crate::evidence::{CheckpointKind, Evidence, Moment, OutcomeKind, Phase};
use crate::plan::{Plan, Step};
use crate::scenario::Given;
use guest_agent::protocol::{PageRun, Reply, Request};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use vmm::machine::Event;

/// Position of a run in its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Kernel that is running, 0 for the first.
    pub generation: u32,
    /// Step of that generation, or of [`Plan::wind_down`].
    pub step: usize,
    /// Part of the step: how many of its moves and requests are done.
    pub part: u64,
    /// Meaning of the agent's next message.
    pub awaiting: Awaiting,
    /// Objects that the running agent holds.
    pub held: BTreeSet<u32>,
    /// Sessions that the running agent holds.
    pub sessions: BTreeSet<String>,
    /// Pages that the running [`Step::ResolvePages`] has found so far.
    pub resolved: Vec<PageRun>,
    /// Whether the running [`Step::KernelLog`] has come to the end of the log.
    pub log_read: bool,
    /// Whether a request of the running step, which the scenario gives, has failed.
    pub failed: bool,
    /// What the running agent has preserved: session, token and object.
    pub offered: BTreeSet<(String, u64, u32)>,
    /// Whether a session or a memfd could not be retrieved.
    pub lost: bool,
    /// Whether the run has left its plan and takes the steps of [`Plan::wind_down`].
    pub winding_down: bool,
    /// The driver's next move. [`next`] replaces it.
    pub due: Move,
}

/// Meaning of the agent's next message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaiting {
    /// No message: the agent waits for a request.
    Nothing,
    /// The greeting.
    Greeting {
        /// Generation that must be running then.
        generation: u32,
    },
    /// The answer to a request.
    Answer {
        /// The request.
        request: Request,
        /// When it was made.
        asked: Point,
    },
    /// The payload is PID 1. The agent of a further kernel may greet, or the payload ends the machine.
    Payload,
    /// No message is allowed: the guest has been asked to end.
    End,
}

/// A move of the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// Answer the agent's message with this request.
    Say(Request),
    /// Answer the agent's message with nothing, so that it does what it was asked for last.
    Release,
    /// Run the guest until there is a message or an event.
    Run,
    /// Let this much guest time pass while the processors stand, in nanoseconds.
    Pass(u64),
    /// Begin a phase.
    Enter(Phase),
    /// Capture the pages of all objects.
    Capture(CheckpointKind),
    /// Read the kernel's table of memory that it has reserved by name.
    FindRegions,
    /// Fill an object with its pattern, from outside.
    Fill(u32),
    /// Fill the engine's own memory, put the ring there, and start the engine, from outside.
    StartDevice,
    /// Stop the engine from outside.
    StopDevice,
    /// Tell the machine that the agent will execute the kexec when it is released.
    ExpectKexec,
    /// Tell the machine that the agent will jump into an image that returns, and not into a kernel.
    ExpectReturn,
    /// Keep page writes until now apart from later ones.
    SplitPageWrites,
    /// Stop: the run has ended.
    End(Ending),
}

/// How a run ended. Generation and phase are in the cursor and the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Kind of outcome.
    pub kind: OutcomeKind,
    /// Explanation, one sentence.
    pub text: String,
    /// Address in the running kernel at which it ended, if that helps to explain the end.
    pub rip: Option<u64>,
}

impl Ending {
    pub(super) fn new(kind: OutcomeKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            rip: None,
        }
    }
}

/// Result of a move, and when it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When it came.
    pub at: Point,
    /// The result.
    pub what: What,
}

/// Result of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The move was made.
    Done,
    /// The agent sent a message; an error says why it cannot be decoded.
    Message(Result<Reply, String>),
    /// An event of the machine other than a message.
    Event {
        /// What.
        event: Event,
        /// The running kernel's panic message, if it has printed one.
        panic: Option<String>,
    },
    /// What [`Move::FindRegions`] found; `None` if the table cannot be read.
    Regions(Option<Vec<Region>>),
    /// The move could not be made.
    Failed(String),
}

/// Position of the machine at a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Generation, guest time and length of the ledger.
    pub moment: Moment,
    /// Phase.
    pub phase: Phase,
    /// Instruction pointer.
    pub rip: Option<u64>,
    /// Guest time of the DMA engine's latest start, stop, wait or fault.
    pub engine_event_ns: Option<u64>,
}

impl Cursor {
    /// The position of a machine at power-on, if this generation is booted.
    pub fn start(generation: u32) -> Self {
        Self {
            generation,
            step: 0,
            part: 0,
            awaiting: Awaiting::Greeting { generation },
            held: BTreeSet::new(),
            sessions: BTreeSet::new(),
            resolved: Vec::new(),
            log_read: false,
            failed: false,
            offered: BTreeSet::new(),
            lost: false,
            winding_down: false,
            due: Move::Run,
        }
    }

    /// The step that the run is at; `None` after the last one.
    pub(super) fn step_of(&self, plan: &Plan) -> Option<Step> {
        if self.winding_down {
            return plan.wind_down().into_iter().nth(self.step);
        }
        plan.steps.get(self.generation as usize)?.get(self.step).cloned()
    }

    /// The step of the scenario's list that the run is at.
    pub(super) fn given(&self, plan: &Plan) -> Option<Given> {
        match self.step_of(plan)? {
            Step::Given(given) => Some(given),
            _ => None,
        }
    }

    /// The move that makes `request`. The agent's next message is then its answer.
    pub(super) fn ask(&mut self, request: Request, asked: Point) -> Move {
        self.awaiting = Awaiting::Answer {
            request: request.clone(),
            asked,
        };
        Move::Say(request)
    }
}

/// Handles the result of the last move and returns the next one, which is also in [`Cursor::due`] until the next call.
/// After [`Move::End`] calls change nothing.
pub fn next(plan: &Plan, cursor: &mut Cursor, evidence: &mut Evidence, said: Said) -> Move {
    let due = match std::mem::replace(&mut cursor.due, Move::Run) {
        ended @ Move::End(_) => ended,
        due => after(plan, cursor, evidence, due, said).unwrap_or_else(Move::End),
    };
    cursor.due = due.clone();
    due
}

/// The move after `due`, whose result is `said`.
fn after(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    due: Move,
    said: Said,
) -> Result<Move, Ending> {
    let Said { at, what } = said;
    match (due, what) {
        (_, What::Failed(text)) => return Err(Ending::new(OutcomeKind::MachineFailed, text)),
        (Move::Say(_) | Move::Release, What::Done) => return Ok(Move::Run),
        (Move::Run, What::Message(message)) => answers::message(plan, cursor, evidence, message, at)?,
        (Move::Run, What::Event { event, panic }) => {
            if !events::event(plan, cursor, &event, panic, at)? {
                return Ok(Move::Run);
            }
        }
        (Move::Pass(_), What::Event { event, panic }) => return Err(events::ended_by(&event, panic, at)),
        (Move::FindRegions, What::Regions(found)) => {
            regions::found(plan, cursor, evidence, found, at)?;
            cursor.part += 1;
        }
        (due @ (Move::StartDevice | Move::StopDevice), What::Done) => {
            if let Some(dma) = &mut evidence.dma {
                let moment = Some(at.moment);
                match due {
                    Move::StartDevice => {
                        dma.started = moment.map(|moment| Moment {
                            ledger_length: 0,
                            ..moment
                        })
                    }
                    _ => dma.stopped = moment,
                }
            }
            cursor.part += 1;
        }
        (
            Move::Pass(_)
            | Move::Fill(_)
            | Move::Enter(_)
            | Move::Capture(_)
            | Move::ExpectKexec
            | Move::ExpectReturn
            | Move::SplitPageWrites,
            What::Done,
        ) => cursor.part += 1,
        (due, what) => {
            let text = format!("{what:?} cannot come of {due:?}");
            return Err(Ending::new(OutcomeKind::MachineFailed, text));
        }
    }
    advance(plan, cursor, evidence, at)
}

/// The next move of the current step, or of the first later step that has one.
fn advance(plan: &Plan, cursor: &mut Cursor, evidence: &mut Evidence, at: Point) -> Result<Move, Ending> {
    while let Some(step) = cursor.step_of(plan) {
        if let Some(due) = asks::part(plan, cursor, evidence, &step, at)? {
            return Ok(due);
        }
        cursor.part = 0;
        cursor.resolved.clear();
        cursor.log_read = false;
        cursor.failed = false;
        // Objects that were lost cannot be preserved again, so this generation is the last.
        let retrieved = step == Step::Capture(CheckpointKind::Retrieved);
        if cursor.lost && retrieved && !cursor.winding_down && cursor.generation < plan.kexecs {
            cursor.winding_down = true;
            cursor.step = 0;
        } else {
            cursor.step += 1;
        }
    }
    Err(if cursor.lost {
        Ending::new(OutcomeKind::SessionLost, answers::first_failure(evidence))
    } else {
        Ending::new(OutcomeKind::Completed, "every step was done")
    })
}
