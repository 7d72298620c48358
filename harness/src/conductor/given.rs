//! Steps that the scenario gives: their requests, and what the answers mean.

use super::answers::unable;
use super::asks::{self, PAGES_AT_ONCE, announced};
use super::cursor::{Cursor, Ending, Move, Point};
use crate::evidence::{AgentFailure, Evidence, PAGE, StepFailure, StepRecord};
use crate::plan::{Plan, Step};
use crate::scenario::{Deed, Errno, Given};
use guest_agent::protocol::{Change, Chore, Part, Request};

/// Most bytes of a part that one request writes or reads.
const BYTES_AT_ONCE: u64 = PAGES_AT_ONCE * PAGE;

/// The move for the part of a given step at which the cursor is; `None` if the step is done.
pub(super) fn part(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &Evidence,
    given: &Given,
    at: Point,
) -> Option<Move> {
    if cursor.failed {
        return None;
    }
    let part = cursor.part;
    match (&given.deed, part) {
        (Deed::Wait(ns), _) => {
            let armed = evidence.interrupts.last();
            let armed = armed.is_some_and(|record| {
                record.armed.generation == cursor.generation && record.disarmed.is_none()
            });
            return asks::wait(cursor, evidence, *ns, armed, at);
        }
        // Else the machine would take it for the jump into the next kernel.
        (Deed::JumpBack, 0) => return Some(Move::ExpectReturn),
        (Deed::Kexec, 1..) => return announced(cursor, &Step::Kexec, part),
        // The agent answers for what is written from now on.
        (Deed::RetrieveSession { .. } | Deed::Retrieve { .. }, 1) => return Some(Move::SplitPageWrites),
        // Who writes from now on may use the memory again.
        (Deed::Finish { .. } | Deed::CloseSession { .. } | Deed::CloseMemfd { .. }, 0) => {
            return Some(Move::SplitPageWrites);
        }
        _ => {}
    }
    let request = request(plan, cursor.generation, given, part)?;
    Some(cursor.ask(request, at))
}

/// The request of a part; `None` if there is none.
fn request(plan: &Plan, generation: u32, given: &Given, part: u64) -> Option<Request> {
    let first = (part == 0).then_some(());
    let second = (part == 1).then_some(());
    if given.looped {
        first?;
        return chore(given).map(Request::Loop);
    }
    Some(match given.deed.clone() {
        Deed::CreateMemfd { object, flags } => {
            first?;
            let bytes = plan.object(object)?.bytes;
            Request::CreateMemfd { object, bytes, flags }
        }
        Deed::CreateSession { session } => {
            first?;
            Request::CreateSession { name: session }
        }
        Deed::Change { object, change } => {
            let change = portion(change, part)?;
            Request::Change { object, change }
        }
        Deed::Preserve {
            object,
            session,
            token,
            side,
        } => {
            first?;
            Request::Preserve {
                session,
                object,
                token,
                side,
            }
        }
        Deed::RetrieveSession { session } => {
            first?;
            Request::RetrieveSession { name: session }
        }
        Deed::Retrieve {
            object,
            session,
            token,
            side,
        } => {
            first?;
            Request::RetrieveMemfd {
                session,
                token,
                object,
                side,
            }
        }
        Deed::RetrieveAgain {
            object,
            session,
            token,
            side,
        } => {
            first?;
            Request::RetrieveAgain {
                session,
                token,
                object,
                side,
            }
        }
        Deed::Finish { session, side } => {
            second?;
            Request::FinishSession { name: session, side }
        }
        Deed::CloseSession { session, side } => {
            second?;
            Request::CloseSession { name: session, side }
        }
        Deed::CloseMemfd { object } => {
            second?;
            Request::Close { object }
        }
        Deed::JumpBack => {
            second?;
            Request::JumpBack
        }
        Deed::AbortFinalize => {
            first?;
            Request::AbortFinalize
        }
        Deed::DropCaches => {
            first?;
            Request::DropCaches
        }
        Deed::Load => {
            first?;
            Request::LoadKexec {
                command_line: plan.command_line(generation.saturating_add(1)).to_owned(),
            }
        }
        Deed::Kexec => {
            first?;
            Request::Kexec
        }
        Deed::Wait(_) => return None,
    })
}

/// What a process of its own does for a step in a loop; `None` if there can be no such process.
fn chore(given: &Given) -> Option<Chore> {
    Some(match given.deed.clone() {
        Deed::Change { object, change } => Chore::Change { object, change },
        Deed::CreateSession { session } => Chore::Session { name: session },
        Deed::Preserve {
            object,
            session,
            token,
            ..
        } => Chore::Preserve {
            session,
            object,
            token,
        },
        _ => return None,
    })
}

/// Portion `number` of a change. Those that touch each page come in several, so that each is progress.
fn portion(change: Change, number: u64) -> Option<Change> {
    let of = |part: Part| {
        let skip = number.checked_mul(BYTES_AT_ONCE)?;
        let left = part.bytes.checked_sub(skip).filter(|left| *left > 0)?;
        let (offset, bytes) = (part.offset.checked_add(skip)?, left.min(BYTES_AT_ONCE));
        Some(Part { offset, bytes })
    };
    match change {
        Change::Write { part, seed, by } => of(part).map(|part| Change::Write { part, seed, by }),
        Change::Read(part) => of(part).map(Change::Read),
        whole => (number == 0).then_some(whole),
    }
}

/// Records that the agent has fulfilled a request of a given step. The step is done with its last request; a kexec is
/// done when the next kernel's agent greets.
pub(super) fn succeeded(plan: &Plan, cursor: &Cursor, evidence: &mut Evidence, given: &Given, at: Point) {
    // A wait is no answer of the kernel's.
    if matches!(given.deed, Deed::Wait(_)) {
        return;
    }
    let more = request(plan, cursor.generation, given, cursor.part.saturating_add(1)).is_some();
    if !more && given.deed != Deed::Kexec {
        record(plan, evidence, given, None, at);
    }
}

/// Records that the next kernel's agent has greeted, if a given kexec led to it.
pub(super) fn jumped(plan: &Plan, cursor: &Cursor, evidence: &mut Evidence, at: Point) {
    let left = cursor.generation.checked_sub(1).map(|left| left as usize);
    let steps = left.and_then(|left| plan.steps.get(left));
    if let Some(Step::Given(given)) = steps.and_then(|steps| steps.get(cursor.step)) {
        record(plan, evidence, given, None, at);
    }
}

/// Handles that a request of a given step has failed. The run goes on, unless what follows would be of no use. Returns
/// whether the failure is of the kind that the scenario expects.
pub(super) fn failed(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    given: &Given,
    failure: AgentFailure,
    at: Point,
) -> Result<(), Ending> {
    cursor.failed = true;
    let reason = StepFailure {
        call: failure.call.clone(),
        errno: Some(failure.errno).filter(|errno| *errno != 0).map(Errno::of),
        detail: failure.detail.clone(),
    };
    record(plan, evidence, given, Some(reason), at);
    if given.errno.is_some() {
        return Ok(());
    }
    let text = failure.to_string();
    let offers = matches!(given.deed, Deed::CreateSession { .. } | Deed::Preserve { .. });
    if plan.is_survey() && cursor.generation == 0 && offers {
        // What comes of the other objects is still to be seen.
        evidence.failures.push(failure);
        return Ok(());
    }
    match &given.deed {
        Deed::CreateMemfd { .. } | Deed::CreateSession { .. } | Deed::Load | Deed::Kexec => {
            evidence.failures.push(failure);
            Err(Ending::new(unable(cursor.generation), text))
        }
        _ => Ok(()),
    }
}

fn record(plan: &Plan, evidence: &mut Evidence, given: &Given, failure: Option<StepFailure>, at: Point) {
    evidence.steps.push(StepRecord {
        number: given.number,
        what: plan.given_words(given),
        expected: given.errno,
        failure,
        fills: given.fills().map(str::to_owned),
        at: at.moment,
    });
}
