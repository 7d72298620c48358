//! Evidence that the conductor takes from the machine, not from the agent: pages, blobs, CPU writes, and at the end all
//! records.

use super::answers::unable;
use super::cursor::{Awaiting, Ending, Move};
use super::events::no_mailbox;
use super::memory::GuestMemory;
use super::page_writes::{MAX_CPU_WRITES, keep};
use super::{Observer, Run, chain};
use crate::evidence::{
    Author, BlobEvidence, Checkpoint, CheckpointKind, CpuWrite, EventCause, Evidence, NOT_ENDED,
    ObjectCapture, ObjectEvidence, Outcome, OutcomeKind, PAGE, PageContent, PhaseRecord, PoolFull, Staged,
    frames_of,
};
use crate::kernel::{Fit, RunningKernel};
use crate::oracle::Question;
use guest_agent::pagemap::push_frame;
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use guest_agent::protocol::Request;
use std::collections::{BTreeSet, HashMap, HashSet};
use vmm::boot::BootParams;
use vmm::boot::layout::{BOOT_PARAMS_SIZE, ENTRY_64};
use vmm::machine::Machine;
use vmm::phase::{Phase, Stamp};
use vmm::provenance::PageWrite;
use vmm::translate::AddressSpace;
use vmm::vcpu::Registers;

/// End of the lower half of the address space, with four levels of page tables.
const LOWER_HALF: u64 = 1 << 47;
/// Most pages captured that belong to no object, but to which the device wrote.
const MAX_STRAYS: usize = 16_384;

/// Page frames to which the device has written, once for each write.
fn frames_written(machine: &Machine) -> impl Iterator<Item = u64> {
    machine.ledger().entries().iter().flat_map(frames_of)
}

impl Run {
    /// Captures the pages of all objects, and records the last writers of the bytes in question.
    pub(super) fn capture(&mut self, kind: CheckpointKind) -> Result<(), PoolFull> {
        let (at, stamp) = (self.moment(), self.machine.moment().stamp);
        let ram = std::sync::Arc::clone(self.machine.ram());
        let mut page = [0; PAGE_BYTES];
        let (mut objects, mut known) = (Vec::new(), HashSet::new());
        let Evidence {
            objects: all,
            captures,
            ..
        } = &mut self.evidence;
        // What a payload has preserved has no pattern to compare it with.
        let compared = |object: &&ObjectEvidence| object.closed.is_none() && !object.is_found();
        for object in all.iter().filter(compared) {
            let (pattern, frames) = (Pattern::new(object.pattern_seed), object.frames(at.generation));
            let mut pages = Vec::with_capacity(frames.len());
            for (index, frame) in (0..).zip(&frames) {
                pages.push(match ram.read(frame.saturating_mul(PAGE), &mut page) {
                    Ok(()) => captures.take(&pattern, index, &page)?,
                    Err(_) => PageContent::Unreadable,
                });
            }
            known.extend(frames);
            objects.push(ObjectCapture {
                object: object.id,
                pages,
            });
        }
        let written: BTreeSet<u64> = frames_written(&self.machine)
            .filter(|frame| !known.contains(frame))
            .collect();
        let strays_left_out = written.len().saturating_sub(MAX_STRAYS) as u64;
        let mut strays = Vec::new();
        for frame in written.into_iter().take(MAX_STRAYS) {
            if ram.read(frame.saturating_mul(PAGE), &mut page).is_ok() {
                strays.push((frame, captures.take_stray(&page)?));
            }
        }
        let checkpoint = captures.checkpoints.len();
        captures.checkpoints.push(Checkpoint {
            kind,
            phase: stamp.phase,
            at,
            objects,
            strays,
            strays_left_out,
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
                .map(|(write, stamp)| self.cpu_write(stamp, write.into(), Some(write.len.into())));
            self.evidence.authors.push(Author {
                checkpoint,
                address: *address,
                write,
            });
        }
    }

    fn cpu_write(&self, stamp: Stamp, write: PageWrite, length: Option<u32>) -> CpuWrite {
        let generation = u32::from(stamp.generation);
        let rip = Some(write.rip).filter(|rip| *rip != 0);
        let cpl = if write.by_user() { 3 } else { 0 };
        CpuWrite {
            generation,
            phase: stamp.phase,
            address: write.address(),
            length,
            rip,
            symbol: rip.and_then(|rip| self.symbol(generation, rip, cpl)),
            time_ns: write.time,
            instructions: self.machine.instructions_at(write.time),
            cpl,
        }
    }

    /// Symbol of an address in a kernel.
    pub(super) fn symbol(&self, generation: u32, rip: u64, cpl: u8) -> Option<String> {
        let fit = &self.evidence.kernels.get(generation as usize)?.symbols;
        let kernel = self.plan.kernel(generation);
        (cpl == 0).then(|| kernel.symbol(fit, rip))?
    }

    /// Tells the machine where the running kernel lies, which it asks at an instruction that an injection may wait for.
    pub(super) fn tell_where_the_kernel_lies(&mut self) {
        let fit = self.fit_of_running(self.machine.moment().stamp.generation.into(), "");
        self.machine.kernel_lies_at(fit.offset());
    }

    /// Compares the running kernel with its symbol file. `build_id` is the kernel's, as its agent says.
    pub(super) fn fit_symbols(&mut self, build_id: &str) {
        let generation = self.cursor.generation;
        let fit = self.fit_of_running(generation, build_id);
        if let Some(kernel) = self.evidence.kernels.get_mut(generation as usize) {
            kernel.symbols = fit;
        }
    }

    pub(super) fn fit_of_running(&self, generation: u32, build_id: &str) -> Fit {
        let spaces = AddressSpace::all_of(&self.machine.registers());
        let ram = self.machine.ram();
        let kernel = RunningKernel {
            syscall_entries: self.machine.syscall_entries(),
            read: &|address, buffer| spaces.iter().any(|space| space.read(ram, address, buffer)),
            build_id,
        };
        self.plan.kernel(generation).fit(&kernel)
    }

    /// The same for a kernel that has ended before its agent came up. It may have ended before its tables were set up,
    /// so what does not fit is no proof that the file is another kernel's.
    fn fit_symbols_of_the_dead(&mut self) {
        let generation = self.cursor.generation;
        if self.evidence.fit(generation) != Fit::Unknown {
            return;
        }
        self.fit_symbols("");
        if let Some(kernel) = self.evidence.kernels.get_mut(generation as usize)
            && kernel.symbols.offset().is_none()
        {
            kernel.symbols = Fit::Unknown;
        }
    }

    /// Captures the handover from the old kernel. To be called at the new kernel's first instruction.
    pub(super) fn take_blob(&mut self, time_ns: u64, boot_params: u64) {
        let ram = self.machine.ram();
        let params = BootParams::read(ram, boot_params);
        let staged = params.as_ref().map_or_else(
            |_| Vec::new(),
            |params| staged(params, self.machine.registers().rip),
        );
        let found = params.and_then(|params| params.kho_data(ram));
        let (kho, problem) = match found {
            Ok(kho) => (kho, None),
            Err(error) => (None, Some(chain(&error))),
        };
        let (pages, complete) = kho.map_or_else(
            || (Default::default(), true),
            |kho| crate::blob::capture(&GuestMemory(ram), kho),
        );
        let ram = ram
            .regions()
            .iter()
            .map(|range| (range.start, range.end - range.start))
            .collect();
        // The machine's generation is already the new kernel's.
        let generation = self.moment().generation.saturating_sub(1);
        let blob = BlobEvidence {
            generation,
            time_ns,
            boot_params,
            kho,
            problem,
            ram,
            staged,
            complete,
            pages,
        };
        if self.plan.payload.is_some() {
            self.find_objects(&blob);
        }
        self.evidence.blobs.push(blob);
    }

    /// Phases so far. The last one has not ended.
    pub(super) fn phase_records(&self) -> Vec<PhaseRecord> {
        let record = |record: &vmm::machine::PhaseRecord| PhaseRecord {
            generation: record.stamp.generation.into(),
            phase: record.stamp.phase,
            begin_ns: record.start_ns,
            guest_ns: record.end_ns.saturating_sub(record.start_ns),
            instructions: record.instructions,
            wall_us: 0,
        };
        self.machine.phases().iter().map(record).collect()
    }

    /// Console output of the running kernel.
    pub(super) fn console_of_generation(&self) -> String {
        let generation = self.machine.moment().stamp.generation;
        String::from_utf8_lossy(&self.machine.console().text_of(generation)).into_owned()
    }

    /// Ends the run at its present position, and returns its evidence.
    pub fn finish(self, observer: &dyn Observer) -> Evidence {
        self.end(observer, true)
    }

    /// The same without the hash of the machine's state, which takes most of the time: for many short runs of which
    /// nobody keeps the evidence.
    pub fn finish_unhashed(self, observer: &dyn Observer) -> Evidence {
        self.end(observer, false)
    }

    fn end(mut self, observer: &dyn Observer, hashed: bool) -> Evidence {
        self.fit_symbols_of_the_dead();
        let (generation, phase) = (self.cursor.generation, self.machine.moment().stamp.phase);
        let Ending {
            mut kind,
            mut text,
            rip,
        } = match &self.cursor.due {
            Move::End(ending) => ending.clone(),
            _ => Ending::new(OutcomeKind::Unfinished, NOT_ENDED),
        };
        if let Some(place) = rip.and_then(|rip| self.place(rip)) {
            text = format!("{text}, {place}");
        }
        if kind == OutcomeKind::GuestHang {
            text.push_str(&self.where_it_hangs());
        }
        if kind == OutcomeKind::UnexpectedReset
            && let Some(reason) = no_mailbox(&self.console_of_generation())
        {
            (kind, text) = (unable(generation), format!("the agent gave up: {reason}"));
        }
        // What the agent was told to close may be in use again already.
        if let Awaiting::Answer {
            request: Request::Close { object },
            asked,
        } = &self.cursor.awaiting
        {
            let closing = self.evidence.objects.iter_mut();
            closing
                .filter(|known| known.id == *object)
                .for_each(|known| known.closed = Some(asked.moment));
        }
        if let Awaiting::Answer {
            request: Request::FinishSession { name, .. },
            asked,
        } = &self.cursor.awaiting
        {
            super::answers::given_back(&mut self.evidence, name, asked.moment, asked.moment);
        }
        // A run that ended early has no checkpoint at its end, but its memory can be captured now.
        let captured = self.evidence.captures.checkpoints.last();
        let at_the_end = captured.is_some_and(|last| last.kind == CheckpointKind::End);
        if generation > 0
            && !at_the_end
            && let Err(more) = self.capture(CheckpointKind::End)
        {
            text = format!("{text}; {more}");
        }
        if let Err(error) = self.machine.finish() {
            (kind, text) = (OutcomeKind::MachineFailed, format!("{text}; {}", chain(&error)));
        }
        let mut evidence = self.so_far();
        if let Some(last) = evidence.phases.last() {
            observer.passed(last);
        }
        // Watches are not part of the state, which must be equal with and without them.
        self.machine
            .unwatch(self.questions.iter().map(|question| question.address / PAGE));
        match hashed.then(|| self.machine.state_hash()).transpose() {
            Ok(None) => {}
            Ok(Some(hash)) => evidence.state_hash = format!("{hash:032x}"),
            Err(error) => {
                (kind, text) = (OutcomeKind::MachineFailed, format!("{text}; {}", chain(&error)));
            }
        }
        evidence.outcome = Outcome {
            kind,
            generation,
            phase,
            text,
        };
        evidence
    }

    /// What the agent has not done, and where each processor is if there are several, in words to append.
    fn where_it_hangs(&self) -> String {
        let generation = self.cursor.generation;
        let asked = matches!(self.cursor.awaiting, Awaiting::Answer { .. });
        let step = asked.then(|| self.cursor.step_of(&self.plan)).flatten();
        let step = step.map_or(String::new(), |step| {
            format!("; not done: {}", self.plan.step_words(generation, &step))
        });
        let all = self.machine.all_registers();
        if all.len() < 2 {
            return step;
        }
        let place = |(number, registers): (usize, &Registers)| {
            let place = registers.known_rip().map_or("an unknown place".into(), |rip| {
                let symbol = self.symbol(generation, rip, registers.privilege());
                symbol.unwrap_or_else(|| format!("{rip:#x}"))
            });
            format!("vCPU {number} at {place}")
        };
        let places: Vec<String> = all.iter().enumerate().map(place).collect();
        format!("{step}; {}", places.join(", "))
    }

    /// What an address in the running guest is, in words.
    fn place(&self, rip: u64) -> Option<String> {
        if let Some(symbol) = self.symbol(self.cursor.generation, rip, 0) {
            return Some(format!("at {symbol}"));
        }
        let booting = matches!(self.cursor.awaiting, Awaiting::Greeting { .. })
            && matches!(self.machine.moment().stamp.phase, Phase::BootOld | Phase::BootNew);
        let privilege = self.machine.registers().privilege();
        // The decompressor runs where it is loaded. The kernel proper leaves these addresses with its first
        // instructions.
        let low = booting && privilege == 0 && rip < LOWER_HALF;
        low.then(|| "still in the image's decompressor".to_owned())
    }

    /// The evidence with the machine's records until now. Page writes are those of phases that have ended.
    pub(super) fn so_far(&self) -> Evidence {
        let (mut evidence, machine) = (self.evidence.clone(), &self.machine);
        evidence.outcome.generation = self.cursor.generation;
        evidence.outcome.phase = machine.moment().stamp.phase;
        evidence.phases = self.phase_records();
        (evidence.cpu_writes, evidence.cpu_writes_until_ns) = self.cpu_writes(&evidence);
        self.fill_reused(&mut evidence);
        evidence.event_causes = self.event_causes();
        evidence.injections = self.injection_evidence();
        let blackouts = machine.blackouts();
        evidence.blackouts_ns = blackouts.iter().filter_map(|one| one.nanoseconds()).collect();
        let measured = blackouts.iter().filter(|one| one.nanoseconds().is_some());
        evidence.blackout_begins_ns = measured.filter_map(|one| one.left_user_at).collect();
        evidence.jumps_not_before = blackouts.iter().map(|one| one.jump_not_before).collect();
        evidence.device_lateness_ns = machine.device_lateness();
        evidence.emulated = machine.emulated();
        evidence.ledger = machine.ledger().to_record();
        evidence.trace = machine.trace();
        self.take_console(&mut evidence);
        evidence
    }

    /// First CPU writes of each phase from the first jump on, to pages of objects that are not closed yet and pages
    /// that the device wrote to; and the guest time from which writes are missing, if any is.
    fn cpu_writes(&self, evidence: &Evidence) -> (Vec<CpuWrite>, Option<u64>) {
        // Until when a write to a page matters.
        let mut matter: HashMap<u64, u64> = HashMap::new();
        for object in &evidence.objects {
            let closed = evidence.reused.iter().find(|reused| reused.object == object.id);
            let until = closed.map_or(u64::MAX, |reused| reused.since_ns);
            for generation in object.pages.keys() {
                for frame in object.frames(*generation) {
                    let known = matter.entry(frame).or_insert(until);
                    *known = until.max(*known);
                }
            }
        }
        matter.extend(frames_written(&self.machine).map(|frame| (frame, u64::MAX)));
        let matters = |write: &PageWrite| matter.get(&write.pfn()).is_some_and(|until| write.time < *until);
        let kept = keep(self.machine.provenance().phases(), matters, MAX_CPU_WRITES);
        let writes = kept.writes.into_iter();
        let writes = writes.map(|(stamp, write)| self.cpu_write(stamp, write, None));
        (writes.collect(), kept.until_ns)
    }

    /// Finds the pages of closed objects that were written to again.
    fn fill_reused(&self, evidence: &mut Evidence) {
        let objects = &evidence.objects;
        for reused in &mut evidence.reused {
            let object = objects.iter().find(|object| object.id == reused.object);
            let frames = object.map_or(Vec::new(), |object| object.frames(reused.generation));
            let frames: HashSet<u64> = frames.into_iter().collect();
            let here = |stamp: &Stamp| {
                u32::from(stamp.generation) == reused.generation && stamp.phase != Phase::Jump
            };
            let phases = self.machine.provenance().phases().iter();
            let writes = phases
                .clone()
                .filter(|phase| here(&phase.stamp))
                .flat_map(|phase| &phase.writes)
                .filter(|write| write.time >= reused.since_ns && frames.contains(&write.pfn()));
            reused.complete = phases
                .clone()
                .all(|phase| phase.dropped == 0 || u32::from(phase.stamp.generation) > reused.generation);
            let again: BTreeSet<u64> = writes.map(PageWrite::pfn).collect();
            reused.pages.clear();
            for frame in again {
                push_frame(&mut reused.pages, frame);
            }
        }
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

/// What was put where for the kernel that is entered at `entry`, by its boot parameters.
fn staged(params: &BootParams, entry: u64) -> Vec<Staged> {
    let kernel = (entry.saturating_sub(ENTRY_64), u64::from(params.init_size));
    let initrd = (params.initrd_address, params.initrd_bytes);
    let itself = (params.address, BOOT_PARAMS_SIZE as u64);
    let parts = [
        ("kernel", kernel),
        ("initrd", initrd),
        ("boot parameters", itself),
    ];
    let present = parts.into_iter().filter(|(_, (_, bytes))| *bytes > 0);
    let part = |(what, (address, bytes)): (&str, (u64, u64))| Staged {
        what: what.into(),
        address,
        bytes,
    };
    present.map(part).collect()
}
