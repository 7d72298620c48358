//! A run with programs of the user's own: what is asked of the agent for them, and what becomes of it.

use super::cursor::{Awaiting, Cursor, Ending, Move, Point};
use crate::evidence::{Evidence, OutcomeKind, PayloadEnd};
use crate::plan::Plan;
use guest_agent::protocol::{ProgramEnd, Request};
use vmm::machine::Event;

/// The moves of [`crate::plan::Step::Payload`]: the agent runs the program and answers when that has ended, or becomes it.
pub(super) fn part(plan: &Plan, cursor: &mut Cursor, at: Point) -> Option<Move> {
    let payload = plan.payload.as_ref()?;
    let program = payload.program(cursor.generation)?.clone();
    match (payload.is_init, cursor.part) {
        (false, 0) => Some(cursor.ask(Request::RunProgram(program), at)),
        (true, 0) => Some(cursor.ask(Request::Become(program), at)),
        (true, 1) => {
            cursor.awaiting = Awaiting::Payload;
            Some(Move::Release)
        }
        _ => None,
    }
}

/// Records how the program of the running generation ended. What it should have led to cannot come then.
pub(super) fn ended(
    plan: &Plan,
    cursor: &Cursor,
    evidence: &mut Evidence,
    end: ProgramEnd,
    at: Point,
) -> Result<(), Ending> {
    let generation = cursor.generation;
    if let Some(payload) = &mut evidence.payload {
        payload.ends.push(PayloadEnd {
            generation,
            time_ns: at.moment.time_ns,
            end,
        });
    }
    let kexecs = plan
        .payload
        .as_ref()
        .is_some_and(|payload| payload.kexecs_from(generation, plan.kexecs));
    let why = match end {
        _ if generation == plan.kexecs => return Ok(()),
        ProgramEnd::Exit(0) if !kexecs => return Ok(()),
        ProgramEnd::Exit(0) => "before its kexec",
        _ => "before the kexec",
    };
    let text = format!("the payload of generation {generation} ended with {end}, {why}");
    Err(Ending::new(OutcomeKind::PayloadFailed, text))
}

/// Handles an event other than a message while the payload runs. `None` if it is nothing of the payload's.
pub(super) fn event(plan: &Plan, cursor: &mut Cursor, event: &Event) -> Option<Result<bool, Ending>> {
    let payload = plan.payload.as_ref()?;
    let runs = matches!(
        &cursor.awaiting,
        Awaiting::Payload
            | Awaiting::Answer {
                request: Request::RunProgram(_),
                ..
            }
    );
    if !runs {
        return None;
    }
    let generation = cursor.generation;
    let failed = |text: String| Some(Err(Ending::new(OutcomeKind::PayloadFailed, text)));
    match event {
        Event::Jump { .. } if !payload.kexecs_from(generation, plan.kexecs) => {
            failed(format!("the payload of generation {generation} kexeced unasked"))
        }
        Event::Jump { .. } => Some(Ok(false)),
        Event::KernelEntry { generation, .. } => {
            cursor.generation = (*generation).into();
            (cursor.step, cursor.part) = (0, 0);
            cursor.awaiting = if payload.is_init {
                // Its own initramfs may have no agent.
                Awaiting::Payload
            } else {
                Awaiting::Greeting {
                    generation: (*generation).into(),
                }
            };
            Some(Ok(false))
        }
        Event::PowerOff { .. } | Event::Reset { .. } if payload.is_init => {
            if generation == plan.kexecs {
                let text = format!("the payload ended the machine: {event}");
                return Some(Err(Ending::new(OutcomeKind::Completed, text)));
            }
            failed(format!(
                "the payload of generation {generation} ended the machine before its kexec: {event}"
            ))
        }
        _ => None,
    }
}
