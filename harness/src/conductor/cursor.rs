//! Where a run is, and what comes next: plain data, and one function on it.
//!
//! [`next`] takes what the agent or the machine said and returns the driver's next [`Move`]. It does no I/O and knows neither machine,
//! clock nor observer, so that a run can be copied, saved and continued between any two moves. The order of calls:
//!
//! ```text
//! Cursor::start() -> due: Run ─┐
//!      ┌───────────────────────┘
//!      └> the driver makes the move that is due ─> Said ─> next ─> the next move is due ─> ... ─> End
//! ```
//!
//! `asks.rs` has what each step asks for, `answers.rs` what an answer means, `events.rs` what an event means.

use super::{answers, asks, events};
use crate::evidence::{CheckpointKind, Evidence, Moment, OutcomeKind, Phase};
use crate::plan::{Plan, Step};
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
    /// A session or a memfd could not be retrieved.
    pub lost: bool,
    /// The run cannot go on as planned and takes the steps of [`Plan::wind_down`].
    pub winding_down: bool,
    /// What the driver does next; [`next`] replaces it.
    pub due: Move,
}

/// Meaning of the agent's next message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaiting {
    /// None: the agent stands until it is asked for something.
    Nothing,
    /// It greets.
    Greeting {
        /// Generation that must be running then.
        generation: u32,
    },
    /// It answers a request.
    Answer {
        /// The request.
        request: Request,
        /// When it was made.
        asked: Point,
    },
    /// None must come: the guest has been asked to end.
    End,
}

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// Answer the agent's message with this request.
    Say(Request),
    /// Answer the agent's message with nothing, so that it does what it has announced.
    Release,
    /// Run the guest until the agent speaks or an event comes.
    Run,
    /// Let this much guest time pass while the processors stand, in nanoseconds.
    Pass(u64),
    /// Begin a phase.
    Enter(Phase),
    /// Capture the pages of all objects.
    Capture(CheckpointKind),
    /// Tell the machine that the agent's release will lead to a kexec.
    ExpectKexec,
    /// Split page writes: those made before now and those made later are told apart.
    SplitPageWrites,
    /// Stop: the run has ended.
    End(Ending),
}

/// How a run ended. Its generation and phase are those of the cursor and the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// In which way.
    pub kind: OutcomeKind,
    /// One sentence with what is known.
    pub text: String,
    /// Address in the running kernel at which it ended, where that tells something.
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

/// What came of a move, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When it came.
    pub at: Point,
    /// What came.
    pub what: What,
}

/// What came of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The move is made.
    Done,
    /// The agent spoke; an error says why its message cannot be decoded.
    Message(Result<Reply, String>),
    /// Something else happened to the guest.
    Event {
        /// What.
        event: Event,
        /// The running kernel's panic message, if it has printed one.
        panic: Option<String>,
    },
    /// The move could not be made.
    Failed(String),
}

/// Where the machine stood when something was said.
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
    /// The position of a machine that was just switched on.
    pub fn start() -> Self {
        Self {
            generation: 0,
            step: 0,
            part: 0,
            awaiting: Awaiting::Greeting { generation: 0 },
            held: BTreeSet::new(),
            sessions: BTreeSet::new(),
            resolved: Vec::new(),
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

    /// Makes `request`, whose answer is awaited from then on.
    pub(super) fn ask(&mut self, request: Request, asked: Point) -> Move {
        self.awaiting = Awaiting::Answer {
            request: request.clone(),
            asked,
        };
        Move::Say(request)
    }
}

/// Takes in what was said and returns what the driver does next, which also stays in [`Cursor::due`] until the next call. After
/// [`Move::End`] nothing changes any more.
pub fn next(plan: &Plan, cursor: &mut Cursor, evidence: &mut Evidence, said: Said) -> Move {
    let due = match std::mem::replace(&mut cursor.due, Move::Run) {
        ended @ Move::End(_) => ended,
        due => after(plan, cursor, evidence, due, said).unwrap_or_else(Move::End),
    };
    cursor.due = due.clone();
    due
}

/// The move that follows when `due` was made and led to `said`.
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
        (
            Move::Pass(_) | Move::Enter(_) | Move::Capture(_) | Move::ExpectKexec | Move::SplitPageWrites,
            What::Done,
        ) => cursor.part += 1,
        (due, what) => {
            let text = format!("{what:?} cannot come of {due:?}");
            return Err(Ending::new(OutcomeKind::MachineFailed, text));
        }
    }
    advance(plan, cursor, evidence, at)
}

/// The next move of the step that the run is at, or of the first step after it that has one.
fn advance(plan: &Plan, cursor: &mut Cursor, evidence: &mut Evidence, at: Point) -> Result<Move, Ending> {
    while let Some(step) = cursor.step_of(plan) {
        if let Some(due) = asks::part(plan, cursor, evidence, &step, at)? {
            return Ok(due);
        }
        cursor.part = 0;
        cursor.resolved.clear();
        // Objects that were lost cannot be handed on: this generation is the last.
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
