//! Handles the agent's answers: changes the cursor, adds records to the evidence, or ends the run.

use super::asks::{is_last_portion, pages_of};
use super::cursor::{Awaiting, Cursor, Ending, Point};
use super::{given, memory_answers as memory, payload};
use crate::evidence::{
    AgentFailure, ArmedRecord, DigestRecord, DisarmedRecord, Evidence, Hello, Laid, MemfdEnd, Moment,
    ObjectEvidence, ObjectKind, OutcomeKind, Retrieval, Reused,
};
use crate::plan::{ObjectPlan, Plan};
use guest_agent::pagemap;
use guest_agent::protocol::{Change, Chore, Reply, Request, Side, VERSION};
use std::collections::BTreeSet;
use std::mem;

/// Handles a message of the agent.
pub(super) fn message(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    message: Result<Reply, String>,
    at: Point,
) -> Result<(), Ending> {
    match (mem::replace(&mut cursor.awaiting, Awaiting::Nothing), message) {
        (Awaiting::End, message) => Err(went_on(message)),
        (_, Err(reason)) => Err(died(reason)),
        (Awaiting::Greeting { generation }, Ok(Reply::Failed { call, errno, detail }))
            if cursor.generation < generation =>
        {
            jump_failed(plan, cursor, evidence, (call, errno, detail), at)
        }
        (Awaiting::Greeting { generation }, Ok(reply)) => {
            greeting(plan, cursor, evidence, reply)?;
            if cursor.generation != generation {
                let text = format!("generation {} reported, expected {generation}", cursor.generation);
                return Err(Ending::new(OutcomeKind::MachineFailed, text));
            }
            given::jumped(plan, cursor, evidence, at);
            (cursor.step, cursor.part) = (0, 0);
            Ok(())
        }
        (Awaiting::Payload, Ok(reply @ Reply::Hello { .. })) => {
            greeting(plan, cursor, evidence, reply)?;
            (cursor.step, cursor.part) = (0, 0);
            Ok(())
        }
        (Awaiting::Payload, Ok(Reply::Failed { call, errno, detail })) => {
            let text = format!("{call} failed: errno {errno} {detail}");
            Err(Ending::new(unable(cursor.generation), text))
        }
        (Awaiting::Payload, message) => Err(went_on(message)),
        (Awaiting::Answer { request, asked }, Ok(reply)) => {
            let began_anew = asked.moment.generation != cursor.generation;
            if began_anew || matches!(reply, Reply::Hello { .. }) {
                return Err(died("the agent began anew amid its work"));
            }
            answer(plan, cursor, evidence, &request, reply, (asked, at))?;
            cursor.part += 1;
            Ok(())
        }
        (Awaiting::Nothing, Ok(reply)) => {
            Err(died(format!("the agent was asked nothing and said {reply:?}")))
        }
    }
}

/// Handles that the agent could not reboot into the next kernel.
fn jump_failed(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    (call, errno, detail): (String, i32, String),
    at: Point,
) -> Result<(), Ending> {
    let failure = AgentFailure {
        generation: cursor.generation,
        phase: at.phase,
        request: words(&Request::Kexec),
        call,
        errno,
        detail,
    };
    let Some(given) = cursor.given(plan) else {
        let text = failure.to_string();
        evidence.failures.push(failure);
        return Err(Ending::new(unable(cursor.generation), text));
    };
    given::failed(plan, cursor, evidence, &given, failure, at)
}

fn greeting(plan: &Plan, cursor: &Cursor, evidence: &mut Evidence, reply: Reply) -> Result<(), Ending> {
    let Reply::Hello {
        protocol,
        release,
        build_id,
        command_line,
        features,
        unknown_parameters,
        processors,
    } = reply
    else {
        return Err(died("the agent's first message is no greeting"));
    };
    if protocol != VERSION {
        return Err(died(format!(
            "the agent speaks protocol {protocol}, expected {VERSION}"
        )));
    }
    let generation = cursor.generation;
    if let Some(kernel) = evidence.kernels.get_mut(generation as usize) {
        kernel.hello = Some(Hello::new(
            release,
            build_id,
            command_line,
            features,
            unknown_parameters,
            processors,
        ));
    }
    let expected = plan.vcpus;
    if processors == expected {
        return Ok(());
    }
    let text =
        format!("the kernel of generation {generation} brought up {processors} of {expected} processors");
    Err(Ending::new(unable(generation), text))
}

/// Handles the answer to `request`. `asked` is where the request was made, `at` where it was answered.
fn answer(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    request: &Request,
    reply: Reply,
    (asked, at): (Point, Point),
) -> Result<(), Ending> {
    let generation = cursor.generation;
    let failure = |call, errno, detail| AgentFailure {
        generation,
        phase: at.phase,
        request: words(request),
        call,
        errno,
        detail,
    };
    match (request, reply) {
        (_, Reply::Failed { call, errno, detail }) => {
            let failure = failure(call, errno, detail);
            if let Some(given) = cursor.given(plan) {
                given::failed(plan, cursor, evidence, &given, failure.clone(), at)?;
                if given.errno.is_some() || retrieval(plan, request, None, at).is_none() {
                    return Ok(());
                }
            }
            evidence.failures.push(failure);
            let failure = evidence.failures.len() - 1;
            if *request == Request::KernelLog {
                // The run can go on without it, and the rule that needs it says what it could not see.
                cursor.log_read = true;
                return Ok(());
            }
            if plan.is_survey() && generation == 0 && is_offer(request) {
                // What comes of the other objects is still to be seen.
                return Ok(());
            }
            let Some(retrieval) = retrieval(plan, request, Some(failure), at) else {
                let text = evidence.failures[failure].to_string();
                return Err(Ending::new(unable(generation), text));
            };
            cursor.lost = true;
            evidence.retrievals.push(retrieval);
        }
        (Request::ResolveRange { object, .. }, Reply::Pages(runs)) => {
            cursor.resolved.extend(runs);
            return resolved(plan, cursor, evidence, *object);
        }
        (
            Request::Digest {
                object, first_page, ..
            },
            Reply::Digests(values),
        ) => {
            evidence.captures.digests.push(DigestRecord {
                generation,
                object: *object,
                first_page: *first_page,
                values,
                ledger_before: asked.moment.ledger_length,
                ledger_after: at.moment.ledger_length,
                asked_ns: asked.moment.time_ns,
            });
        }
        (
            Request::MemoryInfo,
            Reply::Memory {
                total_pages,
                free_pages,
            },
        ) => memory::free(plan, cursor, evidence, total_pages, free_pages),
        (Request::PageFlags { runs }, Reply::PageFlags(flags)) => {
            return memory::flags(plan, cursor, evidence, (runs, flags), at);
        }
        (Request::TakeMemory { .. }, reply @ Reply::Taken { .. }) => {
            memory::taken(plan, cursor, evidence, &reply, (asked, at));
        }
        (
            Request::StartDma(_),
            Reply::OutOfReach {
                object,
                page,
                address,
                bits,
            },
        ) => {
            let known = plan.object(object);
            let name = known.map_or_else(|| format!("object {object}"), ObjectPlan::words);
            let detail = format!("page {page} of {name} is at {address:#x}; the engine reaches {bits} bits");
            let failure = failure("DMA engine".into(), 0, detail);
            let text = failure.to_string();
            evidence.failures.push(failure);
            return Err(Ending::new(unable(generation), text));
        }
        (Request::ConsumeDma, Reply::Dma { .. }) => {}
        (Request::RunProgram(_), Reply::Ended(end)) => {
            return payload::ended(plan, cursor, evidence, end, at);
        }
        (Request::DisarmInterrupts, Reply::Interrupts { count }) => {
            if let Some(record) = evidence.interrupts.last_mut() {
                record.disarmed = Some(DisarmedRecord {
                    asked: asked.moment,
                    answered: at.moment,
                    count,
                });
            }
        }
        (Request::KernelLog, Reply::KernelLog { records, lost, more }) => {
            cursor.log_read = evidence.kernel_log(generation).add(records, lost) || !more;
        }
        (request, Reply::Done) if expected(request) == "done" => {
            done(cursor, evidence, request, asked, at);
            evidence.retrievals.extend(retrieval(plan, request, None, at));
            if let Some(given) = cursor.given(plan) {
                given::succeeded(plan, cursor, evidence, &given, at);
            }
        }
        (request, _) => {
            let expected = expected(request);
            return Err(died(format!("the agent gave another answer than {expected}")));
        }
    }
    Ok(())
}

/// Whether a request offers something to the kernel, to be preserved.
fn is_offer(request: &Request) -> bool {
    matches!(request, Request::CreateSession { .. } | Request::Preserve { .. })
}

/// The expected kind of reply to a request.
fn expected(request: &Request) -> &'static str {
    match request {
        Request::ResolvePages { .. } | Request::ResolveRange { .. } => "pages",
        Request::Digest { .. } => "digests",
        Request::ConsumeDma => "the state of the DMA engine",
        Request::MemoryInfo => "memory",
        Request::PageFlags { .. } => "flags of pages",
        Request::TakeMemory { .. } => "memory taken",
        Request::DisarmInterrupts => "a number of interrupts",
        Request::KernelLog => "the kernel's log",
        Request::RunProgram(_) => "the end of a program",
        _ => "done",
    }
}

/// Records that the agent has fulfilled `request`.
fn done(cursor: &mut Cursor, evidence: &mut Evidence, request: &Request, asked: Point, at: Point) {
    match request {
        Request::CreateMemfd { object, .. }
        | Request::CreateBuffer { object, .. }
        | Request::RetrieveMemfd { object, .. } => {
            cursor.held.insert(*object);
        }
        Request::CreateSession { name } | Request::RetrieveSession { name } => {
            cursor.sessions.insert(name.clone());
        }
        Request::FinishSession { name, side } | Request::CloseSession { name, side } => match side {
            Side::Incoming => {
                cursor.sessions.remove(name);
                given_back(evidence, name, asked.moment, at.moment);
            }
            Side::Outgoing => taken_back(cursor, evidence, name),
        },
        Request::Preserve {
            session,
            object,
            token,
            ..
        } => {
            cursor.offered.insert((session.clone(), *token, *object));
            known(evidence, *object)
                .filter(|object| !object.preserved_by.contains(&cursor.generation))
                .for_each(|object| object.preserved_by.push(cursor.generation));
        }
        Request::Change { object, change } | Request::Loop(Chore::Change { object, change }) => {
            let (part, seed) = match change {
                Change::Write { part, seed, .. } => (*part, Some(*seed)),
                Change::PunchHole(part) => (*part, None),
                Change::Read(_) | Change::Allocate(_) | Change::Seal(_) | Change::Collapse(_) => return,
            };
            let at = at.moment;
            known(evidence, *object)
                .filter_map(|object| object.laid.as_mut())
                .for_each(|laid| laid.push(Laid { at, part, seed }));
        }
        Request::Close { object } | Request::KeepOpen { object } => {
            cursor.held.remove(object);
            // The kernel keeps what is preserved, whoever else closes it.
            if evidence
                .object(*object)
                .is_some_and(|known| known.preserved_by.contains(&cursor.generation))
            {
                return;
            }
            known(evidence, *object).for_each(|object| object.closed = Some(at.moment));
            if evidence.object(*object).is_some() {
                evidence.reused.push(Reused {
                    object: *object,
                    generation: cursor.generation,
                    since_ns: asked.moment.time_ns,
                    complete: false,
                    pages: Vec::new(),
                });
            }
        }
        Request::StartDma(_) => {
            // The driver enabled the engine before the agent answered, and the ledger has the exact time.
            let enabled = at.engine_event_ns.filter(|time| *time > asked.moment.time_ns);
            let mut started = at.moment;
            started.ledger_length = 0;
            started.time_ns = enabled.unwrap_or(started.time_ns);
            evidence
                .dma
                .iter_mut()
                .for_each(|dma| dma.started = Some(started));
        }
        Request::ArmInterrupts => evidence.interrupts.push(ArmedRecord {
            armed: asked.moment,
            disarmed: None,
        }),
        Request::StopDma => evidence
            .dma
            .iter_mut()
            .for_each(|dma| dma.stopped = Some(at.moment)),
        _ => {}
    }
}

/// A session of this kernel was closed: what it preserved is not preserved any more, unless another one does.
fn taken_back(cursor: &mut Cursor, evidence: &mut Evidence, session: &str) {
    let (gone, left): (BTreeSet<_>, BTreeSet<_>) = mem::take(&mut cursor.offered)
        .into_iter()
        .partition(|(of, _, _)| of == session);
    for (_, _, object) in &gone {
        if !left.iter().any(|(_, _, other)| other == object) {
            known(evidence, *object)
                .for_each(|known| known.preserved_by.retain(|left| *left != cursor.generation));
        }
    }
    cursor.offered = left;
}

/// A session was finished: the memory of its memfds that nobody retrieved is as that of closed ones.
pub(super) fn given_back(evidence: &mut Evidence, session: &str, asked: Moment, finished: Moment) {
    let Evidence { objects, reused, .. } = evidence;
    let of = |object: &&mut ObjectEvidence| {
        let ours = matches!(&object.kind, ObjectKind::Memfd { session: of, .. } if of == session);
        ours && object.end == MemfdEnd::Finished && object.closed.is_none()
    };
    for object in objects.iter_mut().filter(of) {
        object.closed = Some(finished);
        reused.push(Reused {
            object: object.id,
            generation: finished.generation,
            since_ns: asked.time_ns,
            complete: false,
            pages: Vec::new(),
        });
    }
}

fn known(evidence: &mut Evidence, object: u32) -> impl Iterator<Item = &mut ObjectEvidence> {
    evidence
        .objects
        .iter_mut()
        .filter(move |known| known.id == object)
}

/// After the last portion: the number of pages must be that of the object.
fn resolved(plan: &Plan, cursor: &mut Cursor, evidence: &mut Evidence, object: u32) -> Result<(), Ending> {
    let pages = pages_of(plan, object);
    if !is_last_portion(pages, cursor.part) {
        return Ok(());
    }
    let runs = mem::take(&mut cursor.resolved);
    let found = pagemap::page_count(&runs);
    if found != pages {
        let text = format!("the agent resolved {found} pages of object {object}, expected {pages}");
        return Err(Ending::new(OutcomeKind::AgentFailed, text));
    }
    let generation = cursor.generation;
    known(evidence, object).for_each(|object| drop(object.pages.insert(generation, runs.clone())));
    Ok(())
}

/// The record of an attempt to retrieve something; `None` for any other request.
fn retrieval(plan: &Plan, request: &Request, failure: Option<usize>, at: Point) -> Option<Retrieval> {
    let (what, object) = match request {
        Request::RetrieveSession { name } => (format!("session \"{name}\""), None),
        Request::RetrieveMemfd { object, .. } => {
            let known = plan.object(*object);
            (known.map_or(String::new(), ObjectPlan::words), Some(*object))
        }
        _ => return None,
    };
    Some(Retrieval {
        generation: at.moment.generation,
        what,
        object,
        time_ns: at.moment.time_ns,
        ledger_length: at.moment.ledger_length,
        failure,
    })
}

/// Reason of the first failed request.
pub(super) fn first_failure(evidence: &Evidence) -> String {
    let failed = evidence.retrievals.iter().find_map(|retrieval| retrieval.failure);
    let failure = failed.and_then(|failure| evidence.failures.get(failure));
    failure.map_or(String::new(), ToString::to_string)
}

/// The agent sent a message although the guest had been asked to end.
fn went_on(message: Result<Reply, String>) -> Ending {
    let text = match message {
        Ok(Reply::Failed { call, errno, detail }) => format!("{call} failed: errno {errno}, {detail}"),
        Ok(reply) => format!("the agent went on and said {reply:?}"),
        Err(reason) => reason,
    };
    Ending::new(OutcomeKind::AgentFailed, text)
}

pub(super) fn died(text: impl Into<String>) -> Ending {
    Ending::new(OutcomeKind::AgentDied, text)
}

/// Outcome if a generation cannot fulfil a request. In the first one nothing has been tested yet.
pub(super) fn unable(generation: u32) -> OutcomeKind {
    if generation == 0 {
        OutcomeKind::SetupFailed
    } else {
        OutcomeKind::AgentFailed
    }
}

/// A request in words, for failures.
fn words(request: &Request) -> String {
    match request {
        Request::CreateSession { name } => format!("create session \"{name}\""),
        Request::CreateMemfd { object, bytes, .. } => format!("create memfd {object} of {bytes} bytes"),
        Request::CreateBuffer { object, bytes } => format!("create buffer {object} of {bytes} bytes"),
        Request::Fill {
            object,
            first_page,
            pages,
            ..
        } => format!("fill {pages} pages of object {object} from page {first_page}"),
        Request::Preserve {
            session,
            object,
            token,
            ..
        } => {
            format!("preserve memfd {object} in session \"{session}\" under token {token}")
        }
        Request::StartDma(ring) => format!("start DMA with {} descriptors", ring.entries),
        Request::RetrieveSession { name } => format!("retrieve session \"{name}\""),
        Request::RetrieveMemfd { session, token, .. } => {
            format!("retrieve token {token} from session \"{session}\"")
        }
        Request::FinishSession { name, .. } => format!("finish session \"{name}\""),
        Request::Provoke(what) => format!("provoke {}", what.name()),
        Request::LoadKexec { .. } => "load the next kernel".into(),
        Request::StageKernel { offset, .. } => format!("put the next kernel into place from byte {offset}"),
        Request::PageFlags { .. } => "flags of page frames".into(),
        Request::RunProgram(program) => format!("run {}", program.words.join(" ")),
        Request::Become(program) => format!("become {}", program.words.join(" ")),
        Request::ArmInterrupts => "receive the DMA engine's interrupts".into(),
        other => format!("{other:?}"),
    }
}
