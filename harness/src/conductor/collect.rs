//! What the conductor takes from the machine itself: pages, blobs, CPU writes, and at the end everything else.

use super::memory::GuestMemory;
use super::{Break, Run};
use crate::evidence::{
    Author, BlobEvidence, Checkpoint, CheckpointKind, CpuWrite, EventCause, Evidence, KhoPointers,
    ObjectCapture, Outcome, OutcomeKind, PAGE, PageContent, PhaseRecord, PoolFull, empty_ledger, frames_of,
};
use crate::oracle::Question;
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use std::collections::{BTreeSet, HashSet};
use vmm::boot::BootParams;
use vmm::machine::StampedWrite;
use vmm::phase::{Phase, Stamp};

/// Most pages that belong to no object and are yet captured, because the device wrote to them.
const MAX_STRAYS: usize = 4096;
/// Most CPU writes that are kept as evidence.
const MAX_CPU_WRITES: usize = 200_000;

impl Run<'_> {
    /// Captures the pages of all objects, and asks who wrote the bytes in question.
    pub(super) fn capture(&mut self, kind: CheckpointKind) -> Result<(), Break> {
        let full = |error: PoolFull| Break::new(OutcomeKind::MachineFailed, error.to_string());
        let (at, stamp) = (self.now(), self.machine.moment().stamp);
        let ram = std::sync::Arc::clone(self.machine.ram());
        let mut page = [0; PAGE_BYTES];
        let (mut objects, mut known) = (Vec::new(), HashSet::new());
        let Evidence {
            objects: all,
            captures,
            ..
        } = &mut self.evidence;
        for object in all.iter().filter(|object| object.closed.is_none()) {
            let (pattern, frames) = (Pattern::new(object.pattern_seed), object.frames(self.generation));
            let mut pages = Vec::with_capacity(frames.len());
            for (index, frame) in (0..).zip(&frames) {
                pages.push(match ram.read(frame.saturating_mul(PAGE), &mut page) {
                    Ok(()) => captures.take(&pattern, index, &page).map_err(full)?,
                    Err(_) => PageContent::Unreadable,
                });
            }
            known.extend(frames);
            objects.push(ObjectCapture {
                object: object.id,
                pages,
            });
        }
        let written: BTreeSet<u64> = self
            .machine
            .ledger()
            .entries()
            .iter()
            .flat_map(frames_of)
            .collect();
        let mut strays = Vec::new();
        for frame in written
            .into_iter()
            .filter(|frame| !known.contains(frame))
            .take(MAX_STRAYS)
        {
            if ram.read(frame.saturating_mul(PAGE), &mut page).is_ok() {
                strays.push((frame, captures.take_stray(&page).map_err(full)?));
            }
        }
        let checkpoint = captures.checkpoints.len();
        captures.checkpoints.push(Checkpoint {
            kind,
            phase: stamp.phase,
            at,
            objects,
            strays,
        });
        self.answer_questions(checkpoint);
        Ok(())
    }

    fn answer_questions(&mut self, checkpoint: usize) {
        for Question { address, .. } in self
            .questions
            .iter()
            .filter(|question| question.checkpoint == checkpoint)
        {
            let write = self
                .machine
                .last_write(*address)
                .map(|StampedWrite { write, stamp }| {
                    let length = Some(write.length);
                    self.cpu_write(
                        stamp,
                        write.address,
                        length,
                        write.rip,
                        write.time,
                        write.privilege,
                    )
                });
            self.evidence.authors.push(Author {
                checkpoint,
                address: *address,
                write,
            });
        }
    }

    fn cpu_write(
        &self,
        stamp: Stamp,
        address: u64,
        length: Option<u32>,
        rip: u64,
        time: u64,
        cpl: u8,
    ) -> CpuWrite {
        let generation = u32::from(stamp.generation);
        let rip = Some(rip).filter(|rip| *rip != 0);
        CpuWrite {
            generation,
            phase: stamp.phase,
            address,
            length,
            rip,
            symbol: rip.and_then(|rip| self.symbol(generation, rip, cpl)),
            time_ns: time,
            instructions: self.machine.instructions_at(time),
            cpl,
        }
    }

    /// Symbol of an address in a kernel.
    fn symbol(&self, generation: u32, rip: u64, cpl: u8) -> Option<String> {
        if cpl == 0 {
            self.plan.kernel(generation).symbol(rip)
        } else {
            None
        }
    }

    /// Takes what the old kernel hands to the new one, as it stands at the new one's first instruction.
    pub(super) fn take_blob(&mut self, time_ns: u64, boot_params: u64) {
        let ram = self.machine.ram();
        let found = BootParams::read(ram, boot_params).and_then(|params| params.kho_data(ram));
        let (kho, problem) = match found {
            Ok(kho) => (kho, None),
            Err(error) => (None, Some(super::chain(&error))),
        };
        let kho = kho.map(|kho| KhoPointers {
            fdt_address: kho.fdt_addr,
            fdt_bytes: kho.fdt_size,
            scratch_address: kho.scratch_addr,
            scratch_bytes: kho.scratch_size,
        });
        let pages = kho
            .map(|kho| crate::blob::capture(&GuestMemory(ram), kho))
            .unwrap_or_default();
        let ram = ram
            .regions()
            .iter()
            .map(|range| (range.start, range.end - range.start))
            .collect();
        let generation = self.generation;
        self.evidence.blobs.push(BlobEvidence {
            generation,
            time_ns,
            boot_params,
            kho,
            problem,
            ram,
            pages,
        });
    }

    /// Phases so far; the last one still goes on.
    pub(super) fn phase_records(&self) -> Vec<PhaseRecord> {
        let record = |record: &vmm::machine::PhaseRecord| PhaseRecord {
            generation: record.stamp.generation.into(),
            phase: record.stamp.phase,
            begin_ns: record.start_ns,
            guest_ns: record.end_ns.saturating_sub(record.start_ns),
            instructions: record.instructions,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a time of this process
            wall_us: (record.wall_ms * 1000.0) as u64,
        };
        self.machine.phases().iter().map(record).collect()
    }

    /// What the running kernel has printed.
    pub(super) fn console_of_generation(&self) -> String {
        let generation = self.machine.moment().stamp.generation;
        String::from_utf8_lossy(&self.machine.console().text_of(generation)).into_owned()
    }

    /// Ends the run and gives its evidence.
    pub(super) fn finish(mut self, ended: Result<(), Break>) -> Evidence {
        let moment = self.machine.moment();
        let (mut kind, mut text) = match ended {
            Ok(()) if self.lost => (OutcomeKind::SessionLost, self.first_failure()),
            Ok(()) => (OutcomeKind::Completed, "every step was done".into()),
            Err(Break { kind, text }) => (kind, text),
        };
        // Wherever a run breaks off, memory can be looked at.
        let captured = self.evidence.captures.checkpoints.last();
        let at_the_end = captured.is_some_and(|last| last.kind == CheckpointKind::End);
        if self.generation > 0
            && !at_the_end
            && let Err(more) = self.capture(CheckpointKind::End)
        {
            text = format!("{text}; {}", more.text);
        }
        if let Err(error) = self.machine.finish() {
            (kind, text) = (
                OutcomeKind::MachineFailed,
                format!("{text}; {}", super::chain(&error)),
            );
        }
        self.collect();
        if let Some(last) = self.evidence.phases.last() {
            self.observer.passed(last);
        }
        let compacted: u64 = self
            .evidence
            .ledger
            .counters
            .iter()
            .map(|(_, counters)| counters.compacted)
            .sum();
        if compacted > 0 && kind == OutcomeKind::Completed {
            kind = OutcomeKind::LedgerFull;
            text = format!("the ledger had to drop {compacted} entries: raise ledger in [limits]");
        }
        match self.machine.state_hash() {
            Ok(hash) => self.evidence.state_hash = format!("{hash:032x}"),
            Err(error) => {
                (kind, text) = (
                    OutcomeKind::MachineFailed,
                    format!("{text}; {}", super::chain(&error)),
                );
            }
        }
        let phase = moment.stamp.phase;
        self.evidence.outcome = Outcome {
            kind,
            generation: self.generation,
            phase,
            text,
        };
        self.evidence
    }

    /// Takes in what the machine has kept until now.
    fn collect(&mut self) {
        self.evidence.phases = self.phase_records();
        self.evidence.cpu_writes = self.cpu_writes();
        self.evidence.cpu_writes_recorded = self
            .machine
            .provenance()
            .phases()
            .iter()
            .all(|phase| phase.dropped == 0);
        self.evidence.event_causes = self.event_causes();
        self.evidence.blackouts_ns = self
            .machine
            .blackouts()
            .iter()
            .filter_map(|one| one.nanoseconds())
            .collect();
        self.evidence.jumps_not_before = self
            .machine
            .blackouts()
            .iter()
            .map(|one| one.jump_not_before)
            .collect();
        self.evidence.device_lateness_ns = self.machine.device_lateness();
        self.evidence.emulated = self.machine.emulated();
        self.evidence.ledger = self.machine.ledger().to_record();
        self.evidence.console = String::from_utf8_lossy(&self.machine.console().text()).into_owned();
    }

    /// Shows evidence of all phases that have ended.
    pub(super) fn show_so_far(&mut self) {
        self.collect();
        self.evidence.outcome.generation = self.generation;
        self.evidence.outcome.phase = self.machine.moment().stamp.phase;
        self.observer.so_far(&self.evidence);
        // A second copy of the ledger for the rest of the run would be a waste.
        self.evidence.ledger = empty_ledger();
    }

    fn first_failure(&self) -> String {
        let failed = self
            .evidence
            .retrievals
            .iter()
            .find_map(|retrieval| retrieval.failure);
        let failure = failed.and_then(|failure| self.evidence.failures.get(failure));
        failure.map_or(String::new(), ToString::to_string)
    }

    /// First CPU writes of each phase from the first jump on, to pages of objects and pages that the device wrote to.
    fn cpu_writes(&self) -> Vec<CpuWrite> {
        let mut matter: HashSet<u64> = self
            .machine
            .ledger()
            .entries()
            .iter()
            .flat_map(frames_of)
            .collect();
        for object in &self.evidence.objects {
            object
                .pages
                .keys()
                .for_each(|generation| matter.extend(object.frames(*generation)));
        }
        let after_jump = |stamp: Stamp| stamp.generation > 0 || stamp.phase == Phase::Jump;
        let phases = self
            .machine
            .provenance()
            .phases()
            .iter()
            .filter(|phase| after_jump(phase.stamp));
        let writes = phases.flat_map(|phase| phase.writes.iter().map(|write| (phase.stamp, write)));
        let writes = writes
            .filter(|(_, write)| matter.contains(&write.pfn()))
            .take(MAX_CPU_WRITES);
        let kept = writes.map(|(stamp, write)| {
            let cpl = if write.by_user() { 3 } else { 0 };
            self.cpu_write(stamp, write.address(), None, write.rip, write.time, cpl)
        });
        kept.collect()
    }

    fn event_causes(&self) -> Vec<EventCause> {
        let events = self.machine.ledger().events();
        let causes = self.machine.causes().iter().filter_map(|cause| {
            let generation = events.get(cause.event)?.stamp.generation.into();
            Some(EventCause {
                event: cause.event,
                rip: cause.rip,
                symbol: self.symbol(generation, cause.rip, cause.privilege),
                instructions: cause.retired,
                cpl: cause.privilege,
            })
        });
        causes.collect()
    }
}
