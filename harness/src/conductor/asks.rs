//! The moves and requests of each step of a plan, part by part.

use super::cursor::{Awaiting, Cursor, Ending, Move, Point};
use super::{given, payload};
use crate::evidence::{Evidence, MemfdEnd, MemoryPoint, OutcomeKind, PAGE, Phase};
use crate::plan::{ObjectPlan, Plan, Step, WORKLOAD_OBJECT, preserves};
use guest_agent::pagemap::push_frame;
use guest_agent::protocol::{Request, Side};

/// Most pages in one request. The reply about them fits the mailbox, and comes soon enough on a busy host with an emulated
/// KVM, where two processors need up to 14 seconds for eight times as many.
pub(super) const PAGES_AT_ONCE: u64 = 1024;
/// Most bytes of the next kernel's image in one request, which fits the mailbox.
const STAGED_AT_ONCE: u64 = 96 << 10;
/// Number of turns in which a wait passes if the engine waits for its consumer.
const TURNS: u64 = 8;

/// The move for the part of `step` at which the cursor is; `None` if the step has no such part and so is done.
///
/// Parts are counted from 0. A request is one part together with its answer; every other move is a part of its own.
pub(super) fn part(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    step: &Step,
    at: Point,
) -> Result<Option<Move>, Ending> {
    let part = cursor.part;
    let request = match step {
        Step::Given(given) => return Ok(given::part(plan, cursor, evidence, given, at)),
        Step::Phase(phase) => return Ok((part == 0).then_some(Move::Enter(*phase))),
        Step::Capture(kind) => return Ok((part == 0).then_some(Move::Capture(*kind))),
        Step::FindRegions => return Ok((part == 0).then_some(Move::FindRegions)),
        Step::StartDevice => return Ok((part == 0).then_some(Move::StartDevice)),
        Step::StopDevice => return Ok((part == 0).then_some(Move::StopDevice)),
        Step::Payload => return Ok(payload::part(plan, cursor, at)),
        Step::FillRegion(object) => return Ok((part == 0).then_some(Move::Fill(*object))),
        Step::StageKernel => stage(plan, cursor.generation.saturating_add(1), part),
        // Beside a payload no driver consumes.
        Step::Pass(ns) if plan.payload.is_some() => return Ok((part == 0).then_some(Move::Pass(*ns))),
        Step::Pass(ns) => return Ok(wait(cursor, evidence, *ns, false, at)),
        Step::AwaitInterrupts(ns) => return Ok(wait(cursor, evidence, *ns, true, at)),
        Step::RetrieveSession(_) | Step::Retrieve(_) if part == 1 => {
            // The agent answers for what is written from now on.
            return Ok(Some(Move::SplitPageWrites));
        }
        Step::Close(object) | Step::KeepOpen(object) if part == 0 && cursor.held.contains(object) => {
            // Who writes from now on uses the memory again.
            return Ok(Some(Move::SplitPageWrites));
        }
        Step::FinishSession(name) if gives_back(plan, name) && cursor.sessions.contains(name) => match part {
            0 => return Ok(Some(Move::SplitPageWrites)),
            1 => whole(plan, cursor, step)?,
            _ => None,
        },
        Step::Close(_) | Step::KeepOpen(_) if part == 1 => whole(plan, cursor, step)?,
        Step::ReleaseMemory if part == 0 => {
            // On KVM a page write has no time of its own, and later ones must not count as made meanwhile.
            return Ok(Some(Move::SplitPageWrites));
        }
        Step::ReleaseMemory if part == 1 => whole(plan, cursor, step)?,
        Step::TakeMemory(point) => return Ok(take_memory(cursor, evidence, *point, at)),
        Step::PageFlags(point, object) => page_flags(cursor, evidence, *point, *object),
        Step::Kexec | Step::PowerOff | Step::Misbehave(_) if part > 0 => {
            return Ok(announced(cursor, step, part));
        }
        Step::ResolvePages(object) | Step::Digest(object) => portion(plan, cursor, step, *object),
        Step::Create(_) | Step::UseMemory(_) if part > 0 => fill(plan, cursor, step)?,
        Step::KernelLog => (!cursor.log_read).then_some(Request::KernelLog),
        Step::StartDma if part == 0 => evidence
            .dma
            .as_ref()
            // An engine whose memory was refused would write to what the next kernel uses.
            .filter(|dma| !was_refused(plan, cursor, evidence, dma.setup.ring.list.object))
            .map(|dma| Request::StartDma(dma.setup.ring.clone())),
        Step::StopDma if evidence.dma.as_ref().is_none_or(|dma| dma.started.is_none()) => None,
        Step::RetrieveSession(name) if plan.is_survey() && !was_preserved(plan, evidence, name) => None,
        _ if part == 0 => whole(plan, cursor, step)?,
        _ => None,
    };
    Ok(request.map(|request| cursor.ask(request, at)))
}

/// The request of a step that is one request; `None` if there is nothing to do, because the agent has no such object or
/// session.
fn whole(plan: &Plan, cursor: &Cursor, step: &Step) -> Result<Option<Request>, Ending> {
    Ok(Some(match step {
        Step::Create(object) => create(planned(plan, *object)?),
        Step::CreateSession(name) => Request::CreateSession { name: name.clone() },
        Step::Preserve(object) => match planned(plan, *object)?.preserve() {
            Some((session, _)) if plan.is_survey() && !cursor.sessions.contains(session) => return Ok(None),
            Some((session, token)) => Request::Preserve {
                session: session.clone(),
                object: *object,
                token,
                side: Side::Outgoing,
            },
            None => return Ok(None),
        },
        Step::LoadKexec => Request::LoadKexec {
            command_line: plan.command_line(cursor.generation.saturating_add(1)).to_owned(),
        },
        Step::RetrieveSession(name) => Request::RetrieveSession { name: name.clone() },
        Step::Retrieve(object) => match planned(plan, *object)?.preserve() {
            Some((session, token)) if cursor.sessions.contains(session) => Request::RetrieveMemfd {
                session: session.clone(),
                token,
                object: *object,
                side: Side::Incoming,
            },
            _ => return Ok(None),
        },
        Step::FinishSession(name) if cursor.sessions.contains(name) => {
            let (name, side) = (name.clone(), Side::Incoming);
            Request::FinishSession { name, side }
        }
        Step::UseMemory(bytes) => Request::CreateMemfd {
            object: WORKLOAD_OBJECT,
            bytes: bytes.div_ceil(PAGE).saturating_mul(PAGE),
            flags: 0,
        },
        Step::StopDma => Request::StopDma,
        Step::ArmInterrupts => Request::ArmInterrupts,
        Step::DisarmInterrupts => Request::DisarmInterrupts,
        Step::Close(object) if cursor.held.contains(object) => Request::Close { object: *object },
        Step::KeepOpen(object) if cursor.held.contains(object) => Request::KeepOpen { object: *object },
        Step::ReleaseMemory => Request::ReleaseMemory,
        Step::Memory(_) => Request::MemoryInfo,
        Step::Misbehave(how) => Request::Misbehave(*how),
        Step::Provoke(what) => Request::Provoke(*what),
        Step::Kexec => Request::Kexec,
        Step::PowerOff => Request::PowerOff,
        _ => return Ok(None),
    }))
}

fn planned(plan: &Plan, object: u32) -> Result<&ObjectPlan, Ending> {
    let missing = || format!("the plan has no object {object}");
    plan.object(object)
        .ok_or_else(|| Ending::new(OutcomeKind::MachineFailed, missing()))
}

fn create(planned: &ObjectPlan) -> Request {
    let (object, bytes) = (planned.id, planned.bytes);
    match planned.preserve() {
        Some(_) => Request::CreateMemfd {
            object,
            bytes,
            flags: 0,
        },
        None => Request::CreateBuffer { object, bytes },
    }
}

/// Whether the kernel gives memory back when this session is finished, because nobody has retrieved it.
fn gives_back(plan: &Plan, session: &String) -> bool {
    let mut of = plan
        .objects
        .iter()
        .filter(|object| object.end == MemfdEnd::Finished);
    of.any(|object| object.preserve().is_some_and(|(of, _)| of == session))
}

/// Whether the kernel was asked to preserve this object in an earlier step of this generation, and has not.
fn was_refused(plan: &Plan, cursor: &Cursor, evidence: &Evidence, object: u32) -> bool {
    let offers = |step: &Step| match step {
        Step::Preserve(of) => *of == object,
        Step::Given(given) => preserves(given, object),
        _ => false,
    };
    let steps = plan.steps.get(cursor.generation as usize);
    let mut earlier = steps.into_iter().flatten().take(cursor.step);
    earlier.any(offers) && !is_preserved(evidence, object)
}

/// Whether the running kernel has accepted this object.
fn is_preserved(evidence: &Evidence, object: u32) -> bool {
    let known = evidence.object(object);
    known.is_some_and(|object| !object.preserved_by.is_empty())
}

/// Whether any kernel has accepted an object of this session.
fn was_preserved(plan: &Plan, evidence: &Evidence, session: &String) -> bool {
    let of = |object: &&ObjectPlan| object.preserve().is_some_and(|(of, _)| of == session);
    plan.objects
        .iter()
        .filter(of)
        .any(|object| is_preserved(evidence, object.id))
}

/// The request with part `number` of the image of a generation's kernel; `None` after the last one.
fn stage(plan: &Plan, generation: u32, number: u64) -> Option<Request> {
    let offset = number.checked_mul(STAGED_AT_ONCE)?;
    let rest = plan
        .kernel(generation)
        .image
        .get(usize::try_from(offset).ok()?..)?;
    let part = rest
        .len()
        .min(usize::try_from(STAGED_AT_ONCE).unwrap_or(usize::MAX));
    (part > 0).then(|| Request::StageKernel {
        offset,
        bytes: rest[..part].to_vec(),
    })
}

/// The request that fills the next portion of a new object, part 1 and later; `None` after the last one.
fn fill(plan: &Plan, cursor: &Cursor, step: &Step) -> Result<Option<Request>, Ending> {
    let (object, bytes, seed) = match step {
        Step::Create(object) => {
            let ObjectPlan { id, bytes, seed, .. } = *planned(plan, *object)?;
            (id, bytes, seed)
        }
        Step::UseMemory(bytes) => (WORKLOAD_OBJECT, *bytes, WORKLOAD_OBJECT.into()),
        _ => return Ok(None),
    };
    let portion = portion_of(bytes.div_ceil(PAGE), cursor.part.saturating_sub(1));
    Ok(portion.map(|(first_page, pages)| Request::Fill {
        object,
        first_page,
        pages,
        seed,
    }))
}

/// First page and number of pages of portion `number` of an object of `pages` pages; `None` after the last one.
fn portion_of(pages: u64, number: u64) -> Option<(u64, u64)> {
    let first_page = number.checked_mul(PAGES_AT_ONCE)?;
    let left = pages.checked_sub(first_page).filter(|left| *left > 0)?;
    Some((first_page, left.min(PAGES_AT_ONCE)))
}

/// The parts after the request of a step that ends this kernel: the machine is told of a kexec, and the agent is
/// released.
pub(super) fn announced(cursor: &mut Cursor, step: &Step, part: u64) -> Option<Move> {
    let due = match (step, part) {
        (Step::Kexec, 1) => Move::Enter(Phase::Handover),
        (Step::Kexec, 2) => Move::ExpectKexec,
        (Step::Kexec, 3) => {
            let generation = cursor.generation.saturating_add(1);
            cursor.awaiting = Awaiting::Greeting { generation };
            Move::Release
        }
        (Step::PowerOff | Step::Misbehave(_), 1) => {
            cursor.awaiting = Awaiting::End;
            Move::Release
        }
        _ => return None,
    };
    Some(due)
}

/// The next portion of pages to ask about; `None` after the last one, or if the agent does not hold the object.
fn portion(plan: &Plan, cursor: &Cursor, step: &Step, object: u32) -> Option<Request> {
    let (first_page, pages) = portion_of(pages_of(plan, object), cursor.part)?;
    if !cursor.held.contains(&object) {
        return None;
    }
    Some(match step {
        Step::Digest(_) => Request::Digest {
            object,
            first_page,
            pages,
        },
        _ => Request::ResolveRange {
            object,
            first_page,
            pages,
        },
    })
}

/// Splits page writes, then asks for more memory until there is none.
fn take_memory(cursor: &mut Cursor, evidence: &Evidence, point: MemoryPoint, at: Point) -> Option<Move> {
    if cursor.part == 0 {
        return Some(Move::SplitPageWrites);
    }
    let last = evidence.pressure.last();
    let last = last.filter(|last| last.generation == cursor.generation && last.at == point);
    if last.is_some_and(|last| last.end_ns.is_some()) {
        return None;
    }
    let pages = PAGES_AT_ONCE;
    Some(cursor.ask(Request::TakeMemory { pages }, at))
}

/// The next portion of an object's page frames to ask about; `None` after the last one, or if they are none of the
/// kernel's business: not preserved or not closed.
fn page_flags(cursor: &Cursor, evidence: &Evidence, point: MemoryPoint, object: u32) -> Option<Request> {
    let known = evidence.object(object)?;
    let asked = match point {
        MemoryPoint::BeforeRetrieval => true,
        MemoryPoint::Retrieved | MemoryPoint::Held => cursor.held.contains(&object),
        MemoryPoint::AfterClose => known
            .closed
            .is_some_and(|closed| closed.generation == cursor.generation),
    };
    let first_page = cursor.part.checked_mul(PAGES_AT_ONCE)?;
    let portion = |count| usize::try_from(count).unwrap_or(usize::MAX);
    let frames = known
        .frames(cursor.generation)
        .into_iter()
        .skip(portion(first_page));
    let mut runs = Vec::new();
    for frame in frames.take(portion(PAGES_AT_ONCE)) {
        push_frame(&mut runs, frame);
    }
    (asked && !runs.is_empty()).then_some(Request::PageFlags { runs })
}

/// Whether `part` is the last portion of an object of `pages` pages.
pub(super) fn is_last_portion(pages: u64, part: u64) -> bool {
    part.saturating_add(1).saturating_mul(PAGES_AT_ONCE) >= pages
}

pub(super) fn pages_of(plan: &Plan, object: u32) -> u64 {
    plan.object(object).map_or(0, |object| object.bytes / PAGE)
}

/// One part of a wait.
enum Turn {
    Pass(u64),
    Consume,
}

/// The part of a wait at which the cursor is; `None` if it is over. `asleep` is whether the agent sleeps meanwhile, so
/// that interrupts can come.
pub(super) fn wait(
    cursor: &mut Cursor,
    evidence: &Evidence,
    ns: u64,
    asleep: bool,
    at: Point,
) -> Option<Move> {
    Some(match pass(evidence, ns, cursor.part)? {
        Turn::Pass(ns) if !asleep => Move::Pass(ns),
        Turn::Pass(ns) => cursor.ask(Request::AwaitInterrupts { ns }, at),
        Turn::Consume => cursor.ask(Request::ConsumeDma, at),
    })
}

/// If there is an engine, a wait passes in turns, and after each turn the consumer releases blocks. Otherwise an engine
/// that waits for its consumer would be idle most of the time.
fn pass(evidence: &Evidence, ns: u64, part: u64) -> Option<Turn> {
    let Some(dma) = evidence.dma.as_ref().filter(|dma| dma.started.is_some()) else {
        return (part == 0).then_some(Turn::Pass(ns));
    };
    let turns = if dma.setup.ring.free_run { 1 } else { TURNS };
    let turn = if part.is_multiple_of(2) {
        Turn::Pass(ns / turns)
    } else {
        Turn::Consume
    };
    (part < 2 * turns).then_some(turn)
}
