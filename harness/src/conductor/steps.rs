//! The plan's steps, each as requests to the agent and entries in the evidence.

use super::{Break, Run};
use crate::evidence::{
    CheckpointKind, DigestRecord, MemoryPoint, MemoryRecord, Moment, OutcomeKind, PAGE, Phase, Retrieval,
};
use crate::plan::{ObjectPlan, Step, WORKLOAD_OBJECT, place_ring, ring_pages};
use guest_agent::protocol::{PageRun, Place, Reply, Request};
use vmm::machine::Event;

/// Pages that the agent is asked about at once; a reply about them fits the mailbox.
const PAGES_AT_ONCE: u64 = 8192;
/// Into how many turns a wait is cut so that the consumer keeps up.
const TURNS: u64 = 8;

impl<'a> Run<'a> {
    /// Takes the machine through all generations.
    pub(super) fn all(&mut self) -> Result<(), Break> {
        let plan = self.plan;
        for (generation, steps) in (0..).zip(&plan.steps) {
            self.await_hello()?;
            if self.generation != generation {
                let text = format!("generation {} reported, expected {generation}", self.generation);
                return Err(Break::new(OutcomeKind::MachineFailed, text));
            }
            for step in steps {
                self.step(step)?;
                // What was lost cannot be handed on: this generation is the last.
                if self.lost && *step == Step::Capture(CheckpointKind::Retrieved) && generation < plan.kexecs
                {
                    return self.wind_down();
                }
            }
        }
        Ok(())
    }

    /// The end of a run that cannot go on as planned.
    fn wind_down(&mut self) -> Result<(), Break> {
        self.step(&Step::Phase(Phase::Done))?;
        if self.plan.dma.is_some() {
            self.step(&Step::StopDma)?;
        }
        self.step(&Step::Capture(CheckpointKind::End))?;
        self.step(&Step::PowerOff)
    }

    fn step(&mut self, step: &Step) -> Result<(), Break> {
        match step {
            Step::Phase(phase) => self.enter_phase(*phase)?,
            Step::Create(object) => self.create(self.planned(*object)?)?,
            Step::CreateSession(name) => {
                self.ask(&Request::CreateSession { name: name.clone() })?;
                self.sessions.insert(name.clone());
            }
            Step::Preserve(object) => self.preserve(self.planned(*object)?)?,
            Step::ResolvePages(object) => self.resolve(*object)?,
            Step::StartDma => self.start_dma()?,
            Step::LoadKexec => {
                let command_line = self.plan.command_line(self.generation + 1).to_owned();
                self.ask(&Request::LoadKexec { command_line })?;
            }
            Step::Pass(ns) => self.pass(*ns)?,
            Step::Kexec => self.kexec()?,
            Step::RetrieveSession(name) => self.retrieve_session(name)?,
            Step::Retrieve(object) => self.retrieve(self.planned(*object)?)?,
            Step::Capture(kind) => self.capture(*kind)?,
            Step::Digest(object) => self.digest(*object)?,
            Step::FinishSession(name) => {
                if self.sessions.remove(name) {
                    self.ask(&Request::FinishSession { name: name.clone() })?;
                }
            }
            Step::UseMemory(bytes) => {
                let (object, bytes) = (WORKLOAD_OBJECT, bytes.next_multiple_of(PAGE));
                let seed = u64::from(object);
                self.ask(&Request::CreateMemfd { object, bytes, seed })?;
                self.held.insert(object);
            }
            Step::StopDma => {
                self.ask(&Request::StopDma)?;
                let now = self.now();
                self.evidence
                    .dma
                    .iter_mut()
                    .for_each(|dma| dma.stopped = Some(now));
            }
            Step::Close(object) => self.close(*object)?,
            Step::Memory(at) => self.memory(*at)?,
            Step::Misbehave(how) => return self.misbehave(Request::Misbehave(*how)),
            Step::PowerOff => {
                self.ask(&Request::PowerOff)?;
                self.machine.reply(&[])?;
                let event = self.run_to_end()?;
                if !matches!(event, Event::PowerOff { .. }) {
                    return Err(self.broken_by(&event));
                }
            }
        }
        Ok(())
    }

    fn create(&mut self, object: &ObjectPlan) -> Result<(), Break> {
        let ObjectPlan { id, bytes, seed, .. } = *object;
        self.ask(&match object.preserve {
            Some(_) => Request::CreateMemfd {
                object: id,
                bytes,
                seed,
            },
            None => Request::CreateBuffer {
                object: id,
                bytes,
                seed,
            },
        })?;
        self.held.insert(id);
        Ok(())
    }

    fn preserve(&mut self, object: &ObjectPlan) -> Result<(), Break> {
        let Some((session, token)) = object.preserve.clone() else {
            return Ok(());
        };
        self.ask(&Request::Preserve {
            session,
            object: object.id,
            token,
        })?;
        let generation = self.generation;
        let known = self
            .evidence
            .objects
            .iter_mut()
            .filter(|known| known.id == object.id);
        known.for_each(|known| known.preserved_by.push(generation));
        Ok(())
    }

    fn resolve(&mut self, object: u32) -> Result<(), Break> {
        if !self.held.contains(&object) {
            return Ok(());
        }
        let (pages, mut runs) = (self.pages_of(object), Vec::<PageRun>::new());
        for (first_page, pages) in portions(pages) {
            let Reply::Pages(more) = self.ask(&Request::ResolveRange {
                object,
                first_page,
                pages,
            })?
            else {
                return Err(nonsense("pages"));
            };
            runs.extend(more);
        }
        let found = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.count));
        if found != pages {
            let text = format!("the agent resolved {found} pages of object {object}, expected {pages}");
            return Err(Break::new(OutcomeKind::AgentFailed, text));
        }
        let generation = self.generation;
        let known = self
            .evidence
            .objects
            .iter_mut()
            .filter(|known| known.id == object);
        known.for_each(|known| drop(known.pages.insert(generation, runs.clone())));
        Ok(())
    }

    fn start_dma(&mut self) -> Result<(), Break> {
        let (generation, Some(dma)) = (self.generation, &mut self.evidence.dma) else {
            return Ok(());
        };
        let frames = |id| {
            let object = self.evidence.objects.iter().find(|object| object.id == id);
            object.map_or(Vec::new(), |object| object.frames(generation))
        };
        let buffer_pages = (u64::from(dma.entries) * u64::from(dma.buffer_bytes)).div_ceil(PAGE);
        let behind = if dma.buffer_object == dma.ring_object {
            buffer_pages + 1
        } else {
            1
        };
        let Some(page) = place_ring(&frames(dma.ring_object), dma.entries, behind) else {
            let text = format!(
                "no {} physically contiguous pages for the ring in object {}",
                ring_pages(dma.entries),
                dma.ring_object
            );
            return Err(Break::new(OutcomeKind::SetupFailed, text));
        };
        dma.ring_offset = page * PAGE;
        dma.completion_offset = dma.ring_offset + ring_pages(dma.entries) * PAGE;
        dma.buffer_offset = if dma.buffer_object == dma.ring_object {
            dma.completion_offset + PAGE
        } else {
            0
        };
        let request = Request::StartDma {
            ring: Place {
                object: dma.ring_object,
                offset: dma.ring_offset,
            },
            entries: dma.entries,
            completion: Place {
                object: dma.ring_object,
                offset: dma.completion_offset,
            },
            buffers: Place {
                object: dma.buffer_object,
                offset: dma.buffer_offset,
            },
            buffer_bytes: dma.buffer_bytes,
            free_run: dma.free_run,
            wild_addresses: dma.wild_addresses.clone(),
        };
        let enabled = self.machine.ledger().events().len();
        self.ask(&request)?;
        // The engine runs from the moment that the driver enabled it, which the agent's answer comes after.
        let mut started = self.now();
        started.ledger_length = 0;
        let last = self.machine.ledger().events()[enabled..].last();
        started.time_ns = last.map_or(started.time_ns, |event| event.time);
        self.evidence
            .dma
            .iter_mut()
            .for_each(|dma| dma.started = Some(started));
        Ok(())
    }

    /// Lets time pass. A consumer that the engine would wait for takes turns meanwhile.
    fn pass(&mut self, ns: u64) -> Result<(), Break> {
        let Some(dma) = &self.evidence.dma else {
            return self.pass_once(ns);
        };
        let turns = if dma.free_run { 1 } else { TURNS };
        for _ in 0..turns {
            self.pass_once(ns / turns)?;
            self.ask(&Request::ConsumeDma)?;
        }
        Ok(())
    }

    fn pass_once(&mut self, ns: u64) -> Result<(), Break> {
        match self.machine.pass(ns)? {
            Some(event) => Err(self.broken_by(&event)),
            None => Ok(()),
        }
    }

    fn kexec(&mut self) -> Result<(), Break> {
        self.ask(&Request::Kexec)?;
        self.enter_phase(Phase::Handover)?;
        let running = self.plan.kernel(self.generation);
        self.machine.expect_kexec(&|| running.address_of("machine_kexec"));
        Ok(self.machine.reply(&[])?)
    }

    fn misbehave(&mut self, request: Request) -> Result<(), Break> {
        self.ask(&request)?;
        self.machine.reply(&[])?;
        let event = self.run_to_end()?;
        Err(self.broken_by(&event))
    }

    fn retrieve_session(&mut self, name: &str) -> Result<(), Break> {
        let answer = self.try_ask(&Request::RetrieveSession {
            name: name.to_owned(),
        })?;
        if answer.is_ok() {
            self.sessions.insert(name.to_owned());
        }
        self.retrieved(format!("session \"{name}\""), None, answer.err())
    }

    fn retrieve(&mut self, object: &ObjectPlan) -> Result<(), Break> {
        let Some((session, token)) = object.preserve.clone() else {
            return Ok(());
        };
        if !self.sessions.contains(&session) {
            return Ok(());
        }
        let answer = self.try_ask(&Request::RetrieveMemfd {
            session,
            token,
            object: object.id,
        })?;
        if answer.is_ok() {
            self.held.insert(object.id);
        }
        self.retrieved(
            format!("memfd \"{}\"", object.name),
            Some(object.id),
            answer.err(),
        )
    }

    fn retrieved(&mut self, what: String, object: Option<u32>, failure: Option<usize>) -> Result<(), Break> {
        // What is written from now on is the agent's to write.
        self.machine.part_page_writes()?;
        let Moment {
            time_ns,
            ledger_length,
            generation,
        } = self.now();
        self.lost |= failure.is_some();
        self.evidence.retrievals.push(Retrieval {
            generation,
            what,
            object,
            time_ns,
            ledger_length,
            failure,
        });
        Ok(())
    }

    fn digest(&mut self, object: u32) -> Result<(), Break> {
        if !self.held.contains(&object) {
            return Ok(());
        }
        let total = self.pages_of(object);
        for (first_page, pages) in portions(total) {
            let ledger_before = self.now().ledger_length;
            let Reply::Digests(values) = self.ask(&Request::Digest {
                object,
                first_page,
                pages,
            })?
            else {
                return Err(nonsense("digests"));
            };
            let (generation, ledger_after) = (self.generation, self.now().ledger_length);
            let record = DigestRecord {
                generation,
                object,
                first_page,
                values,
                ledger_before,
                ledger_after,
            };
            self.evidence.captures.digests.push(record);
        }
        Ok(())
    }

    fn close(&mut self, object: u32) -> Result<(), Break> {
        if !self.held.remove(&object) {
            return Ok(());
        }
        self.ask(&Request::Close { object })?;
        let now = self.now();
        let known = self
            .evidence
            .objects
            .iter_mut()
            .filter(|known| known.id == object);
        known.for_each(|known| known.closed = Some(now));
        Ok(())
    }

    fn memory(&mut self, at: MemoryPoint) -> Result<(), Break> {
        let Reply::Memory {
            total_pages,
            free_pages,
        } = self.ask(&Request::MemoryInfo)?
        else {
            return Err(nonsense("memory"));
        };
        let generation = self.generation;
        let held = |object: &&crate::evidence::ObjectEvidence| match at {
            MemoryPoint::BeforeRetrieval => object.preserved_by.contains(&(generation - 1)),
            MemoryPoint::AfterClose => self.held.contains(&object.id),
        };
        let held_pages = self
            .evidence
            .objects
            .iter()
            .filter(held)
            .map(|object| object.bytes / PAGE)
            .sum();
        self.evidence.memory.push(MemoryRecord {
            generation,
            at,
            total_pages,
            free_pages,
            held_pages,
        });
        Ok(())
    }

    fn planned(&self, object: u32) -> Result<&'a ObjectPlan, Break> {
        let missing = || {
            Break::new(
                OutcomeKind::MachineFailed,
                format!("the plan has no object {object}"),
            )
        };
        self.plan.object(object).ok_or_else(missing)
    }

    fn pages_of(&self, object: u32) -> u64 {
        self.plan.object(object).map_or(0, |object| object.bytes / PAGE)
    }

    /// Here and now.
    pub(super) fn now(&self) -> Moment {
        let moment = self.machine.moment();
        Moment {
            generation: self.generation,
            time_ns: moment.time,
            ledger_length: self.machine.ledger().made(),
        }
    }
}

/// First page and number of pages of each portion that the agent is asked about.
fn portions(pages: u64) -> impl Iterator<Item = (u64, u64)> {
    let first_pages = (0..pages.div_ceil(PAGES_AT_ONCE)).map(|portion| portion * PAGES_AT_ONCE);
    first_pages.map(move |first| (first, PAGES_AT_ONCE.min(pages - first)))
}

fn nonsense(expected: &str) -> Break {
    Break::new(
        OutcomeKind::AgentDied,
        format!("the agent gave another answer than {expected}"),
    )
}
