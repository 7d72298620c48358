//! Steps in words, for people.

use super::{Plan, Step};
use crate::evidence::CheckpointKind;
use crate::scenario::{Bytes, Deed, Given};
use guest_agent::protocol::{By, Change, Part, Side};

/// Names of the seals (include/uapi/linux/fcntl.h), by bit.
const SEALS: [&str; 6] = ["seal", "shrink", "grow", "write", "future-write", "exec"];

impl Plan {
    /// A step of a generation in words.
    pub fn step_words(&self, generation: u32, step: &Step) -> String {
        let name = |object: &u32| self.object_words(*object);
        match step {
            Step::Phase(phase) => format!("phase {}", phase.name()),
            Step::Create(object) => format!("create {}, filled with its pattern", name(object)),
            Step::CreateSession(session) => format!("create session \"{session}\""),
            Step::Preserve(object) => format!("preserve {}", name(object)),
            Step::ResolvePages(object) => format!("find the pages of {}", name(object)),
            Step::StartDma => "start the DMA engine".into(),
            Step::StartDevice => "start the DMA engine in memory of its own, from outside".into(),
            Step::StopDevice => "stop the DMA engine, from outside".into(),
            Step::Payload => self.payload_words(generation),
            Step::FindRegions => "find the memory that the kernel has reserved by name".into(),
            Step::FillRegion(object) => format!("fill {} with its pattern, from outside", name(object)),
            Step::StageKernel => "give the agent the next kernel".into(),
            Step::LoadKexec => "load the next kernel".into(),
            Step::Pass(ns) => format!("wait {}", time(*ns)),
            Step::ArmInterrupts => "receive the engine's interrupts".into(),
            Step::AwaitInterrupts(ns) => format!("wait {} for interrupts", time(*ns)),
            Step::DisarmInterrupts => "end the interrupts, and count them".into(),
            Step::Kexec => "kexec".into(),
            Step::RetrieveSession(session) => format!("retrieve session \"{session}\""),
            Step::Retrieve(object) => format!("retrieve {}", name(object)),
            Step::Capture(CheckpointKind::Retrieved) => "capture all pages, after the retrieval".into(),
            Step::Capture(CheckpointKind::End) => "capture all pages, at the end".into(),
            Step::Digest(object) => format!("digest {}", name(object)),
            Step::FinishSession(session) => format!("finish session \"{session}\""),
            Step::UseMemory(bytes) => format!("fill a file of {}", Bytes(*bytes)),
            Step::StopDma => "stop the DMA engine".into(),
            Step::Close(object) => format!("close {}", name(object)),
            Step::KeepOpen(object) => format!("unmap {}, and keep it open", name(object)),
            Step::Memory(_) => "ask for free memory".into(),
            Step::PageFlags(_, object) => {
                format!("ask what the kernel says of the pages of {}", name(object))
            }
            Step::TakeMemory(_) => "take all free memory".into(),
            Step::ReleaseMemory => "give it back".into(),
            Step::Misbehave(how) => format!("let the guest die: {how:?}").to_lowercase(),
            Step::Provoke(what) => format!("provoke {}", what.name()),
            Step::KernelLog => "read the kernel's log".into(),
            Step::PowerOff => "power off".into(),
            Step::Given(given) => self.given_words(given),
        }
    }

    fn payload_words(&self, generation: u32) -> String {
        let payload = self.payload.as_ref();
        let program = payload.and_then(|payload| payload.program(generation));
        let words = program.iter().flat_map(|program| &program.words);
        let command: Vec<String> = words.map(|word| quoted(word)).collect();
        let command = command.join(" ");
        match payload {
            Some(payload) if payload.is_init => format!("let the payload be PID 1: {command}"),
            _ => format!("run the payload's program: {command}"),
        }
    }

    /// What a given step does, in words.
    pub fn given_words(&self, given: &Given) -> String {
        let deed = self.deed_words(&given.deed);
        if given.looped {
            format!("{deed}; and again and again, in a process of its own")
        } else {
            deed
        }
    }

    fn deed_words(&self, deed: &Deed) -> String {
        let name = |object: &u32| self.object_words(*object);
        match deed {
            Deed::CreateMemfd { object, .. } => format!("create {} without pages", name(object)),
            Deed::CreateSession { session } => format!("create session \"{session}\""),
            Deed::Change { object, change } => change_words(&name(object), change),
            Deed::Preserve {
                object,
                session,
                token,
                side,
            } => format!(
                "preserve {} in {} under token {token}",
                name(object),
                session_words(session, *side, Side::Outgoing)
            ),
            Deed::RetrieveSession { session } => format!("retrieve session \"{session}\""),
            Deed::Retrieve {
                object,
                session,
                token,
                side,
            } => format!(
                "retrieve {} from {}, token {token}",
                name(object),
                session_words(session, *side, Side::Incoming)
            ),
            Deed::RetrieveAgain {
                object,
                session,
                token,
                side,
            } => format!(
                "retrieve {} again from {}, token {token}",
                name(object),
                session_words(session, *side, Side::Incoming)
            ),
            Deed::Finish { session, side } => {
                format!("finish {}", session_words(session, *side, Side::Incoming))
            }
            Deed::CloseSession { session, side } => {
                let what = match side {
                    Side::Outgoing => ", which preserves nothing then",
                    Side::Incoming => " without finishing it",
                };
                format!("close session \"{session}\"{what}")
            }
            Deed::CloseMemfd { object } => format!("close {}", name(object)),
            Deed::DropCaches => "let the kernel drop caches".into(),
            Deed::Load => "load the next kernel".into(),
            Deed::Kexec => "kexec".into(),
            Deed::JumpBack => "jump into an image that returns at once, and come back".into(),
            Deed::AbortFinalize => "take KHO's finalization back".into(),
            Deed::Wait(ns) => format!("wait {}", time(*ns)),
        }
    }

    fn object_words(&self, object: u32) -> String {
        let known = self.object(object);
        known.map_or_else(|| format!("object {object}"), super::ObjectPlan::words)
    }
}

fn change_words(object: &str, change: &Change) -> String {
    match change {
        Change::Write {
            part, by: By::Write, ..
        } => format!("write to {object}, {}", part_words(*part)),
        Change::Write { part, .. } => format!("store to {object}, {}", part_words(*part)),
        Change::Read(part) => format!("read {object}, {}", part_words(*part)),
        Change::Allocate(part) => format!("allocate {object}, {}", part_words(*part)),
        Change::PunchHole(part) => format!("punch a hole into {object}, {}", part_words(*part)),
        Change::Collapse(part) => format!("collapse {object} to huge pages, {}", part_words(*part)),
        Change::Seal(bits) => {
            let set = (0..).zip(SEALS).filter(|(bit, _)| bits & (1 << bit) != 0);
            let names: Vec<&str> = set.map(|(_, name)| name).collect();
            format!("seal {object}: {}", names.join(", "))
        }
    }
}

fn part_words(part: Part) -> String {
    format!("{} from {} on", Bytes(part.bytes), Bytes(part.offset))
}

fn session_words(session: &str, side: Side, usual: Side) -> String {
    match side {
        side if side == usual => format!("session \"{session}\""),
        Side::Outgoing => format!("the created session \"{session}\""),
        Side::Incoming => format!("the retrieved session \"{session}\""),
    }
}

/// A word of a command, in quotes if one could not tell otherwise where it ends.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !"\"'\\".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("{word:?}")
    }
}

fn time(ns: u64) -> String {
    crate::scenario::Span(ns).to_string()
}
