//! Checks a list of steps by doing it in mind, and completes it.

use super::super::check::{Problem, require};
use super::super::{Bytes, Memfd, Scenario};
use super::{Deed, Errno, Given, Seal, Step, Verb, shape};
use crate::seed::seed_for;
use guest_agent::protocol::{Change, Part, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use toml::Spanned;

/// Most steps of a scenario, to keep the report readable.
const MAX_STEPS: usize = 1000;
/// LUO's session name is an array of 64 bytes with a terminating NUL.
const MAX_SESSION_NAME: usize = 63;
/// Parts are made of words, so that stores are, too.
const WORD: u64 = 8;
/// MFD_ALLOW_SEALING (include/uapi/linux/memfd.h).
const ALLOW_SEALING: u32 = 2;
/// MFD_HUGETLB and MFD_HUGE_2MB (the same header).
const HUGETLB_2M: u32 = 4 | 21 << 26;

/// Checks `[[step]]`.
pub(in crate::scenario) fn check(scenario: &Scenario) -> Result<(), Problem> {
    let Some(first) = scenario.step.first() else {
        return Ok(());
    };
    let sized = matches!(scenario.run.workload, Some(super::super::Workload::Size(_)));
    require(!sized, &first.verb, || {
        "found steps beside a workload with a size, which belongs to the usual life cycle".into()
    })?;
    for memfd in &scenario.memfd {
        let key = memfd.end.as_ref().map(Spanned::span);
        if let Some(span) = key.or_else(|| memfd.hops.as_ref().map(Spanned::span)) {
            let message = "found it beside steps, which say what becomes of the memfd".into();
            return Err(Problem { span, message });
        }
    }
    require(scenario.step.len() <= MAX_STEPS, &first.verb, || {
        format!(
            "found {} steps, expected at most {MAX_STEPS}",
            scenario.step.len()
        )
    })?;
    resolve(scenario, scenario.seed).map(drop)
}

/// The steps with everything that they need, and the kexecs that the file leaves out.
pub(super) fn resolve(scenario: &Scenario, seed: u64) -> Result<Vec<Given>, Problem> {
    if scenario.step.is_empty() {
        return Ok(Vec::new());
    }
    let mut state = State::new(scenario, seed);
    for (number, step) in (1..).zip(&scenario.step) {
        shape::check(step)?;
        state.enter(step)?;
        let deed = state.deed(step)?;
        let errno = step.errno.as_ref().map(|errno| *errno.get_ref());
        state.keeps_content(step, &deed)?;
        if is_looped(step) {
            state.loops(step, number, deed)?;
        } else {
            state.does(number, deed, errno);
        }
    }
    state.leave_until(*scenario.kexecs.get_ref());
    Ok(state.given)
}

/// What the agents have, if every step does what it should.
struct State<'a> {
    scenario: &'a Scenario,
    seed: u64,
    kexecs: u32,
    given: Vec<Given>,
    generation: u32,
    /// Memfds that were made in any generation.
    made: BTreeSet<u32>,
    /// Memfds that the running agent holds.
    held: BTreeSet<u32>,
    /// Memfds with seals that forbid a writable mapping.
    sealed: BTreeSet<u32>,
    /// Number of writes to each memfd.
    writes: BTreeMap<u32, u64>,
    /// Parts of memfds whose content a process goes on changing.
    looped: Vec<(u32, Part)>,
    /// Sessions that the running agent has created, with the memfds in them.
    outgoing: BTreeMap<String, BTreeSet<u32>>,
    /// Sessions that it has retrieved.
    incoming: BTreeSet<String>,
    /// Sessions that the kernel before has handed over.
    handed: BTreeMap<String, BTreeSet<u32>>,
    loaded: bool,
}

impl<'a> State<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let generation = scenario.first_generation();
        let mut handed: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        // Without a first kernel, all memfds come from before, filled with their patterns.
        for (id, memfd) in (1..).zip(&scenario.memfd).filter(|_| generation > 0) {
            handed.entry(memfd.session.clone()).or_default().insert(id);
        }
        let made: BTreeSet<u32> = handed.values().flatten().copied().collect();
        Self {
            scenario,
            seed,
            kexecs: *scenario.kexecs.get_ref(),
            given: Vec::new(),
            generation,
            held: BTreeSet::new(),
            sealed: BTreeSet::new(),
            writes: made.iter().map(|object| (*object, 1)).collect(),
            made,
            looped: Vec::new(),
            outgoing: BTreeMap::new(),
            incoming: BTreeSet::new(),
            handed,
            loaded: false,
        }
    }

    /// Goes to the generation of a step.
    fn enter(&mut self, step: &Step) -> Result<(), Problem> {
        let Some(wanted) = &step.generation else {
            return Ok(());
        };
        let generation = *wanted.get_ref();
        let (from, to) = (self.generation, self.kexecs);
        require((from..=to).contains(&generation), wanted, || {
            format!(
                "found a step in generation {generation}, expected {from} to {to}: steps are in order, and kexecs = {to}"
            )
        })?;
        self.leave_until(generation);
        Ok(())
    }

    /// Adds the kexecs up to a generation.
    fn leave_until(&mut self, generation: u32) {
        while self.generation < generation {
            if !self.loaded {
                self.does(0, Deed::Load, None);
            }
            self.does(0, Deed::Kexec, None);
        }
    }

    /// What a step does. Refuses what the agent cannot try, and what cannot succeed if it has to.
    fn deed(&mut self, step: &Step) -> Result<Deed, Problem> {
        let must_succeed = step.errno.is_none();
        if let Some(object) = &step.object {
            return self.deed_on_memfd(step, object);
        }
        if let Some(session) = &step.session {
            return self.deed_on_session(step, session);
        }
        Ok(match step.verb.get_ref() {
            Verb::Load => {
                self.require_a_next_kernel(step)?;
                Deed::Load
            }
            Verb::Kexec => {
                self.require_a_next_kernel(step)?;
                require(self.loaded || !must_succeed, &step.verb, || {
                    "no kernel is loaded here, expected a load before it".into()
                })?;
                Deed::Kexec
            }
            Verb::JumpBack => Deed::JumpBack,
            Verb::AbortFinalize => Deed::AbortFinalize,
            Verb::DropCaches => Deed::DropCaches,
            _ => Deed::Wait(step.time.as_ref().map_or(0, |time| time.get_ref().0)),
        })
    }

    fn require_a_next_kernel(&self, step: &Step) -> Result<(), Problem> {
        require(self.generation < self.kexecs, &step.verb, || {
            format!(
                "found it in generation {}, the last one with kexecs = {}",
                self.generation, self.kexecs
            )
        })
    }

    fn deed_on_session(&self, step: &Step, named: &Spanned<String>) -> Result<Deed, Problem> {
        let (session, must_succeed) = (named.get_ref().clone(), step.errno.is_none());
        let side = step.side.as_ref().map(|side| *side.get_ref());
        require((1..=MAX_SESSION_NAME).contains(&session.len()), named, || {
            format!("found session \"{session}\", expected 1 to {MAX_SESSION_NAME} bytes")
        })?;
        Ok(match step.verb.get_ref() {
            Verb::Create => {
                require(
                    !must_succeed || !self.outgoing.contains_key(&session),
                    named,
                    || {
                        format!(
                            "session \"{session}\" is created already in generation {}",
                            self.generation
                        )
                    },
                )?;
                Deed::CreateSession { session }
            }
            Verb::Retrieve => {
                require(!must_succeed || self.handed.contains_key(&session), named, || {
                    format!(
                        "no session \"{session}\" was handed over to generation {}",
                        self.generation
                    )
                })?;
                require(!must_succeed || !self.incoming.contains(&session), named, || {
                    format!("session \"{session}\" is retrieved already")
                })?;
                Deed::RetrieveSession { session }
            }
            Verb::Finish => {
                let side = self.open_session(named, side, Side::Incoming)?;
                Deed::Finish { session, side }
            }
            Verb::Unpreserve => {
                let side = self.open_session(named, None, Side::Outgoing)?;
                Deed::CloseSession { session, side }
            }
            _ => {
                let usual = if self.outgoing.contains_key(&session) {
                    Side::Outgoing
                } else {
                    Side::Incoming
                };
                let side = self.open_session(named, side, usual)?;
                Deed::CloseSession { session, side }
            }
        })
    }

    fn deed_on_memfd(&mut self, step: &Step, named: &Spanned<String>) -> Result<Deed, Problem> {
        let (object, memfd) = self.memfd(named)?;
        let (name, must_succeed, generation) = (named.get_ref(), step.errno.is_none(), self.generation);
        let side = step.side.as_ref().map(|side| *side.get_ref());
        let verb = *step.verb.get_ref();
        if verb == Verb::Create {
            require(!self.made.contains(&object), named, || {
                format!("memfd \"{name}\" is made already: one that is made anew needs a name of its own")
            })?;
            let sealed =
                |other: &Step| *other.verb.get_ref() == Verb::Seal && other.object.as_ref() == Some(named);
            let seals = self.scenario.step.iter().any(sealed);
            let seals = if seals { ALLOW_SEALING } else { 0 };
            let flags = seals | if memfd.is_hugetlb() { HUGETLB_2M } else { 0 };
            return Ok(Deed::CreateMemfd { object, flags });
        }
        if verb != Verb::Retrieve {
            require(self.held.contains(&object), named, || {
                format!("the agent of generation {generation} does not hold memfd \"{name}\" here")
            })?;
        }
        let own = Spanned::new(named.span(), memfd.session.clone());
        let session = step.session.as_ref().unwrap_or(&own);
        let token = *step.token.as_ref().unwrap_or(&memfd.token).get_ref();
        Ok(match verb {
            Verb::Preserve if is_looped(step) => {
                let side = Side::Outgoing;
                let session = session.get_ref().clone();
                require(!self.outgoing.contains_key(&session), named, || {
                    format!(
                        "session \"{session}\" is there, expected a name for one that each round creates and closes"
                    )
                })?;
                Deed::Preserve {
                    object,
                    session,
                    token,
                    side,
                }
            }
            Verb::Preserve => {
                let side = self.open_session(session, side, Side::Outgoing)?;
                let session = session.get_ref().clone();
                Deed::Preserve {
                    object,
                    session,
                    token,
                    side,
                }
            }
            Verb::Retrieve => {
                require(!self.held.contains(&object), named, || {
                    format!("the agent holds memfd \"{name}\" already, expected \"retrieve-again\"")
                })?;
                let side = self.open_session(session, side, Side::Incoming)?;
                let handed = self.handed.get(session.get_ref());
                let there = handed.is_some_and(|memfds| memfds.contains(&object));
                require(!must_succeed || there, named, || {
                    format!(
                        "memfd \"{name}\" was not preserved in session \"{}\"",
                        session.get_ref()
                    )
                })?;
                let session = session.get_ref().clone();
                Deed::Retrieve {
                    object,
                    session,
                    token,
                    side,
                }
            }
            Verb::RetrieveAgain => {
                let side = self.open_session(session, side, Side::Incoming)?;
                let session = session.get_ref().clone();
                Deed::RetrieveAgain {
                    object,
                    session,
                    token,
                    side,
                }
            }
            Verb::Close => Deed::CloseMemfd { object },
            _ => {
                let change = self.change(step, verb, object, memfd)?;
                Deed::Change { object, change }
            }
        })
    }

    fn change(&mut self, step: &Step, verb: Verb, object: u32, memfd: &Memfd) -> Result<Change, Problem> {
        if let Some(seals) = &step.seals {
            require(!seals.get_ref().is_empty(), seals, || {
                "found no seal, expected at least one".into()
            })?;
            let bits = seals.get_ref().iter().fold(0, |bits, seal| bits | seal.bit());
            return Ok(Change::Seal(bits));
        }
        let part = part(step, memfd)?;
        Ok(match verb {
            Verb::Read => Change::Read(part),
            Verb::Allocate => Change::Allocate(part),
            Verb::PunchHole => Change::PunchHole(part),
            Verb::Collapse => Change::Collapse(part),
            _ => {
                let by = step.by.as_ref().map(|by| *by.get_ref()).unwrap_or_default();
                require(
                    by == Default::default() || !self.sealed.contains(&object),
                    &step.verb,
                    || "the memfd's seals forbid the writable mapping that a store needs".into(),
                )?;
                let number = self.writes.entry(object).or_insert(0);
                *number += 1;
                let seed = write_seed(self.seed, memfd.name.get_ref(), *number);
                Change::Write { part, seed, by }
            }
        })
    }

    fn memfd(&self, named: &Spanned<String>) -> Result<(u32, &'a Memfd), Problem> {
        let known = self.scenario.memfd_named(named.get_ref());
        known.ok_or_else(|| Problem {
            span: named.span(),
            message: format!("no [[memfd]] is named \"{}\"", named.get_ref()),
        })
    }

    /// The side of a session that the agent has open.
    fn open_session(
        &self,
        named: &Spanned<String>,
        side: Option<Side>,
        usual: Side,
    ) -> Result<Side, Problem> {
        let (session, side) = (named.get_ref(), side.unwrap_or(usual));
        let (open, how) = match side {
            Side::Outgoing => (self.outgoing.contains_key(session), "created"),
            Side::Incoming => (self.incoming.contains(session), "retrieved"),
        };
        require(open, named, || {
            format!(
                "session \"{session}\" is not {how} and open in generation {} here",
                self.generation
            )
        })?;
        Ok(side)
    }

    /// Adds a step, and does it in mind.
    fn does(&mut self, number: u32, deed: Deed, errno: Option<Errno>) {
        if errno.is_none() {
            self.succeeds(&deed);
        }
        // A kexec is the last step of the generation that it leaves.
        let left = u32::from(deed == Deed::Kexec && errno.is_none());
        self.given.push(Given {
            number,
            generation: self.generation - left,
            deed,
            errno,
            looped: false,
        });
    }

    /// Adds a step that a process of its own goes on doing. It leaves what it makes as it found it, but for content.
    fn loops(&mut self, step: &Step, number: u32, deed: Deed) -> Result<(), Problem> {
        require(step.errno.is_none(), &step.verb, || {
            "found loop beside errno, and a loop begins with a success".into()
        })?;
        self.looped.extend(changed_part(&deed));
        self.given.push(Given {
            number,
            generation: self.generation,
            deed,
            errno: None,
            looped: true,
        });
        Ok(())
    }

    /// Refuses to change what a process goes on changing: nobody could say which comes last.
    fn keeps_content(&self, step: &Step, deed: &Deed) -> Result<(), Problem> {
        let overlap = |one: &Part, other: &Part| {
            one.offset < other.offset + other.bytes && other.offset < one.offset + one.bytes
        };
        let clash = changed_part(deed).is_some_and(|(object, part)| {
            let mut looped = self.looped.iter();
            looped.any(|(of, looped)| *of == object && overlap(looped, &part))
        });
        require(!clash, &step.verb, || {
            "a process goes on changing this part in a loop, so its content would depend on chance".into()
        })
    }

    fn succeeds(&mut self, deed: &Deed) {
        match deed {
            Deed::CreateMemfd { object, .. } => {
                self.made.insert(*object);
                self.held.insert(*object);
            }
            Deed::CreateSession { session } => drop(self.outgoing.insert(session.clone(), BTreeSet::new())),
            Deed::Change { object, change } => {
                if matches!(change, Change::Seal(bits) if bits & Seal::FORBID_WRITING != 0) {
                    self.sealed.insert(*object);
                }
            }
            Deed::Preserve {
                object,
                session,
                side: Side::Outgoing,
                ..
            } => {
                self.outgoing.entry(session.clone()).or_default().insert(*object);
            }
            Deed::RetrieveSession { session } => drop(self.incoming.insert(session.clone())),
            Deed::Retrieve { object, .. } => drop(self.held.insert(*object)),
            Deed::Finish { session, side } | Deed::CloseSession { session, side } => match side {
                Side::Outgoing => drop(self.outgoing.remove(session)),
                Side::Incoming => drop(self.incoming.remove(session)),
            },
            Deed::CloseMemfd { object } => drop(self.held.remove(object)),
            Deed::Load => self.loaded = true,
            Deed::JumpBack => self.loaded = false,
            Deed::Kexec => {
                self.generation += 1;
                self.handed = std::mem::take(&mut self.outgoing);
                self.incoming.clear();
                self.held.clear();
                self.looped.clear();
                self.loaded = false;
            }
            Deed::Preserve { .. }
            | Deed::RetrieveAgain { .. }
            | Deed::DropCaches
            | Deed::AbortFinalize
            | Deed::Wait(_) => {}
        }
    }
}

fn is_looped(step: &Step) -> bool {
    step.looped.as_ref().is_some_and(|looped| *looped.get_ref())
}

/// The part of a memfd that a step gives other content.
fn changed_part(deed: &Deed) -> Option<(u32, Part)> {
    match deed {
        Deed::Change {
            object,
            change: Change::Write { part, .. } | Change::PunchHole(part),
        } => Some((*object, *part)),
        _ => None,
    }
}

/// Seed of the pattern of write `number`, from 1, to a memfd. The first one has the memfd's own.
fn write_seed(seed: u64, memfd: &str, number: u64) -> u64 {
    match number {
        1 => seed_for(seed, &format!("memfd/{memfd}")),
        _ => seed_for(seed, &format!("memfd/{memfd}/write/{number}")),
    }
}

/// The part of a memfd that a step is about.
fn part(step: &Step, memfd: &Memfd) -> Result<Part, Problem> {
    let whole = memfd.size.get_ref().0;
    let offset = step.at.as_ref().map_or(0, |at| at.get_ref().0);
    let bytes = match &step.size {
        Some(size) => size.get_ref().0,
        None => whole.saturating_sub(offset),
    };
    let span: Range<usize> = match (&step.at, &step.size) {
        (Some(at), _) => at.span(),
        (None, Some(size)) => size.span(),
        (None, None) => step.verb.span(),
    };
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= whole);
    if bytes > 0 && inside && offset.is_multiple_of(WORD) && bytes.is_multiple_of(WORD) {
        return Ok(Part { offset, bytes });
    }
    let (offset, bytes, whole) = (Bytes(offset), Bytes(bytes), Bytes(whole));
    Err(Problem {
        span,
        message: format!(
            "found {bytes} from {offset} on, expected a part of memfd \"{}\" of {whole}, in multiples of {WORD} bytes",
            memfd.name.get_ref()
        ),
    })
}
