//! The driver: makes the moves that the cursor names on a machine.

use super::cursor::{Cursor, Move, Point, Said, What, next};
use super::events::panic_line;
use super::memory::GuestMemory;
use super::patience::patience;
use super::setup::{blank, machine_config};
use super::{HostTimes, Observer, WarmRuns, chain};
use crate::evidence::{Evidence, Moment, PAGE, Phase};
use crate::oracle::Question;
use crate::plan::Plan;
use crate::snapshot::RunSnapshot;
use guest_agent::protocol::{Reply, decode, encode};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use vmm::boot::BootParams;
use vmm::machine::{Event, Machine, MachineError};
use vmm::memory::MemoryError;
use vmm::phase::{Generation, Stamp};
use vmm::processors::{Backend, Translation};
use vmm::vcpu::{Look, Registers};

/// Guest time after which a running guest is looked at, in nanoseconds: at each multiple of it.
const TURN_NS: u64 = 50_000_000;

/// The same while a payload may come to run of which no agent tells: what it takes to load a kernel is much longer.
const UNWATCHED_TURN_NS: u64 = 1_000_000;

/// A run: machine, position and evidence. All but the machine is plain data.
pub struct Run {
    pub(super) plan: Arc<Plan>,
    agent: Arc<Vec<u8>>,
    pub(super) machine: Machine,
    pub(super) cursor: Cursor,
    pub(super) evidence: Evidence,
    /// Bytes whose last writer is in question, by checkpoint.
    pub(super) questions: Vec<Question>,
    translation: Translation,
}

/// Where a run is to pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// At its end.
    End,
    /// At a guest time in nanoseconds, or at once if that time has passed.
    Time(u64),
    /// At a number of instructions retired by all processors, or at once if they have retired more. If the backend does
    /// not count instructions, at the end.
    Instructions(u64),
    /// At the beginning of a phase, or at once if the run is there. If it has passed that phase, at the end.
    Phase(Stamp),
}

impl Until {
    /// At the jump out of `generation`.
    pub fn jump(generation: Generation) -> Self {
        let phase = Phase::Jump;
        Self::Phase(Stamp { generation, phase })
    }

    /// At the first instruction of the kernel of `generation`, 1 or later.
    pub fn entry(generation: Generation) -> Self {
        let phase = Phase::BootNew;
        Self::Phase(Stamp { generation, phase })
    }

    /// Lower bound on the guest time of that place; `u64::MAX` if it does not depend on time.
    fn not_before(self, machine: &Machine) -> u64 {
        match self {
            Self::Time(time) => time,
            // An instruction takes 1 ns, so that many instructions take at least as many nanoseconds.
            Self::Instructions(count) => machine.moment().retired.map_or(u64::MAX, |retired| {
                machine
                    .moment()
                    .time
                    .saturating_add(count.saturating_sub(retired))
            }),
            Self::End | Self::Phase(_) => u64::MAX,
        }
    }

    fn is_reached(self, machine: &Machine) -> bool {
        let now = machine.moment().time;
        match self {
            Self::End => false,
            Self::Time(time) => now >= time,
            Self::Instructions(count) => machine.moment().retired.is_some_and(|retired| retired >= count),
            Self::Phase(stamp) => {
                let began =
                    |record: &vmm::machine::PhaseRecord| record.stamp == stamp && record.start_ns == now;
                machine.phases().last().is_some_and(began)
            }
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => write!(f, "the end"),
            Self::Time(time) => write!(f, "guest time {time} ns"),
            Self::Instructions(count) => write!(f, "instruction {count}"),
            Self::Phase(stamp) => write!(f, "{stamp}"),
        }
    }
}

/// Why [`Run::proceed`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The run reached one of the places: index of the first one reached. It can continue.
    Paused(usize),
    /// The run has ended.
    Ended,
}

impl Run {
    /// Makes a machine for `plan`, with `agent` as /init. It records the last writes to the bytes in question, which
    /// costs host time and changes nothing else.
    pub fn new(
        plan: &Plan,
        agent: &[u8],
        backend: &dyn Backend,
        questions: &[Question],
    ) -> Result<Self, MachineError> {
        // Every generation needs the command line of this host's KVM.
        let plan = plan.with_command_line(backend.command_line());
        let mut machine = Machine::new(&machine_config(&plan, agent), backend)?;
        machine.watch(questions.iter().map(|question| question.address / PAGE));
        let mut run = Self {
            evidence: Evidence {
                slowdown: backend.slowdown(),
                ..blank(&plan, backend.name())
            },
            cursor: Cursor::start(plan.first_generation()),
            plan: Arc::new(plan),
            agent: Arc::new(agent.to_vec()),
            machine,
            questions: questions.to_vec(),
            translation: backend.translation(),
        };
        run.hand_over()?;
        Ok(run)
    }

    /// Uses the code that another run has decoded and translated, see [`WarmRuns`].
    pub fn warm_up(&mut self, runs: &WarmRuns) {
        if let Some(code) = runs.take() {
            self.machine.give_code(code);
        }
    }

    /// Leaves this run's code for the next one; to be called before it is finished.
    pub fn leave_code(&mut self, runs: &WarmRuns) {
        if let Some(code) = self.machine.take_code() {
            runs.put(code);
        }
    }

    /// Takes a snapshot. The run continues as if none had been taken. Fails on the `kvm` backend.
    pub fn snapshot(&mut self) -> Result<RunSnapshot, MachineError> {
        Ok(RunSnapshot {
            plan: Arc::clone(&self.plan),
            agent: Arc::clone(&self.agent),
            cursor: self.cursor.clone(),
            evidence: self.evidence.clone(),
            questions: self.questions.clone(),
            machine: self.machine.snapshot()?,
            host_times: HostTimes::default(),
            translation: self.translation,
        })
    }

    /// The plan of this run.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The agent's program.
    #[must_use]
    pub fn agent(&self) -> &Arc<Vec<u8>> {
        &self.agent
    }

    /// Where the machine stands.
    #[must_use]
    pub fn stands_at(&self) -> vmm::machine::Moment {
        self.machine.moment()
    }

    /// Registers of the processor that caused the last event.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.machine.registers()
    }

    /// Instructions retired by all processors; `None` if the backend does not count them.
    #[must_use]
    pub fn retired(&self) -> Option<u64> {
        self.machine.moment().retired
    }

    /// What the processor whose turn it is is about to do, on the `soft` backend.
    pub fn look(&mut self) -> Option<Look> {
        self.machine.look()
    }

    /// Guest memory as it is now.
    #[must_use]
    pub fn memory(&self) -> GuestMemory<'_> {
        GuestMemory(self.machine.ram())
    }

    /// Address of the header of the KHO `setup_data` node that these boot parameters lead to.
    #[must_use]
    pub fn kho_node(&self, boot_params: u64) -> Option<u64> {
        let ram = self.machine.ram();
        let params = BootParams::read(ram, boot_params).ok()?;
        params.kho_node(ram).ok()?
    }

    /// Puts bytes into guest memory: a fault on purpose. Neither the ledger nor any author of bytes knows of it. Fails
    /// without writing if the bytes are not wholly in RAM.
    pub fn put(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.machine.ram().write(address, bytes)
    }

    /// Remembers when each of these page frames is next read or written by a processor; see
    /// [`Machine::watch_first_access`].
    pub fn watch_first_access(&mut self, frames: impl IntoIterator<Item = u64>) {
        self.machine.watch_first_access(frames);
    }

    /// Guest time of the first access to this page frame since it is watched; `None` if there was none.
    #[must_use]
    pub fn first_access(&self, frame: u64) -> Option<u64> {
        self.machine.first_access(frame)
    }

    /// Guest RAM written so far, in bytes: about the size of a snapshot.
    #[must_use]
    pub fn touched_bytes(&self) -> u64 {
        self.machine.ram().touched_pages().len() as u64 * PAGE
    }

    /// A run that continues from `snapshot`. It records the last writes to the bytes in question, as in [`Run::new`].
    pub fn from_snapshot(snapshot: &RunSnapshot, questions: &[Question]) -> Result<Self, MachineError> {
        let mut machine = Machine::from_snapshot(&snapshot.machine)?;
        machine.translate(snapshot.translation);
        machine.watch(questions.iter().map(|question| question.address / PAGE));
        let questions = [&snapshot.questions, questions].concat();
        Ok(Self {
            plan: Arc::clone(&snapshot.plan),
            agent: Arc::clone(&snapshot.agent),
            machine,
            cursor: snapshot.cursor.clone(),
            evidence: snapshot.evidence.clone(),
            questions,
            translation: snapshot.translation,
        })
    }

    /// Continues until the run has ended or one of the places `until` is reached, whichever comes first. The observer
    /// is first told of the current phase, then of each change. Pausing does not change the rest of the run.
    pub fn proceed(&mut self, until: &[Until], observer: &dyn Observer) -> Progress {
        self.tell_phase(observer);
        let mut told = self.machine.console().total();
        while !matches!(self.cursor.due, Move::End(_)) {
            if let Some(reached) = until.iter().position(|until| until.is_reached(&self.machine)) {
                return Progress::Paused(reached);
            }
            let before = self.machine.moment().stamp;
            let what = match self.make(until) {
                Ok(Some(what)) => what,
                Ok(None) => {
                    self.tell_output(&mut told, observer);
                    self.tell_time(observer);
                    continue;
                }
                Err(error) => What::Failed(chain(error.as_ref())),
            };
            self.tell_output(&mut told, observer);
            let at = self.here();
            next(
                &self.plan,
                &mut self.cursor,
                &mut self.evidence,
                Said { at, what },
            );
            if self.machine.moment().stamp != before {
                self.tell_change(observer);
            }
        }
        Progress::Ended
    }

    /// Makes the move that is due. Returns `None` if `until` came first; the rest of the move is then due.
    fn make(&mut self, until: &[Until]) -> Result<Option<What>, Box<dyn Error>> {
        let limits = until.iter().map(|until| until.not_before(&self.machine));
        let limit = limits.min().unwrap_or(u64::MAX);
        self.answer_injections();
        let allowed = patience(&self.plan, &self.cursor);
        let machine = &mut self.machine;
        machine.allow_no_progress_for(allowed);
        match &self.cursor.due {
            Move::Run => {
                let now = machine.moment().time;
                let unwatched = self.plan.payload.is_some() && machine.may_watch_for_kexec();
                let turn_ns = if unwatched { UNWATCHED_TURN_NS } else { TURN_NS };
                let turn = (now / turn_ns + 1).saturating_mul(turn_ns);
                let mut event = machine.run_until(limit.min(turn))?;
                if event.is_none() && machine.moment().time >= turn {
                    if unwatched && machine.user_code_ran() {
                        machine.watch_for_kexec();
                    }
                    event = self.dead_of_panic();
                }
                if let Some(Event::AwaitedAddress { .. }) = event {
                    self.tell_where_the_kernel_lies();
                    return Ok(None);
                }
                if let Some(Event::Reached { .. }) = event {
                    self.asked_for();
                    return Ok(None);
                }
                if let Some(Event::InjectionAsks { .. }) = event {
                    return Ok(None);
                }
                return Ok(event.map(|event| self.told(event)));
            }
            Move::Pass(ns) => {
                let (ns, begin) = (*ns, machine.moment().time);
                let left = limit.saturating_sub(begin);
                match machine.pass(ns.min(left))? {
                    None if left >= ns => {}
                    None | Some(Event::InjectionAsks { .. }) => {
                        let passed = machine.moment().time.saturating_sub(begin);
                        self.cursor.due = Move::Pass(ns.saturating_sub(passed));
                        return Ok(None);
                    }
                    Some(event) => return Ok(Some(self.told(event))),
                }
            }
            Move::Say(request) => machine.reply(&encode(request)?)?,
            Move::Release => machine.reply(&[])?,
            Move::Enter(phase) => machine.enter_phase(*phase)?,
            Move::ExpectKexec => {
                let generation = self.cursor.generation;
                let fit = self.evidence.fit(generation);
                let running = self.plan.kernel(generation);
                machine.expect_kexec(&|| running.address_of(&fit, "machine_kexec"));
            }
            Move::ExpectReturn => machine.expect_return(),
            Move::SplitPageWrites => machine.split_page_writes()?,
            Move::Capture(kind) => self.capture(*kind)?,
            Move::FindRegions => return Ok(Some(What::Regions(self.regions()))),
            Move::Fill(object) => self.fill(*object)?,
            Move::StartDevice => self.start_device()?,
            Move::StopDevice => self.machine.stop_dma(),
            Move::End(_) => {}
        }
        Ok(Some(What::Done))
    }

    /// Turns an event into the result of a move. Finds the kernel's offset at the agent's greeting. Captures the
    /// handover at the new kernel's entry, because guest memory holds it only then.
    fn told(&mut self, event: Event) -> What {
        match event {
            Event::Message(message) => {
                let message = decode(&message);
                if let Ok(Reply::Hello { build_id, .. }) = &message {
                    self.fit_symbols(build_id);
                }
                What::Message(message.map_err(|error| error.to_string()))
            }
            event => {
                self.entered(&event);
                let panic = panic_line(&self.console_of_generation());
                What::Event { event, panic }
            }
        }
    }

    /// If a kernel is entered, captures what it is handed over.
    pub(super) fn entered(&mut self, event: &Event) {
        if let Event::KernelEntry {
            time, boot_params, ..
        } = event
        {
            // The new kernel reads what injections have made of it.
            self.answer_injections();
            self.take_blob(*time, *boot_params);
            self.watch_retrievals();
        }
    }

    /// At the end of a turn: the event that ends the run if the kernel has panicked and said no more since. A kernel
    /// that panics before it has read `panic=-1` would spin for ever. Depends only on the machine's state, so that a
    /// run that is paused elsewhere ends at the same place.
    fn dead_of_panic(&self) -> Option<Event> {
        let (at, since) = (self.machine.moment(), self.machine.last_progress());
        let silent = at.time.saturating_sub(since) >= TURN_NS;
        let panicked = silent && panic_line(&self.console_of_generation()).is_some();
        panicked.then_some(Event::NoProgress {
            at,
            since,
            limit: TURN_NS,
        })
    }

    fn here(&self) -> Point {
        let here = self.machine.moment();
        Point {
            moment: self.moment(),
            phase: here.stamp.phase,
            rip: here.rip,
            engine_event_ns: self.machine.ledger().events().last().map(|event| event.time),
        }
    }

    /// The present moment, for the evidence.
    pub(super) fn moment(&self) -> Moment {
        let here = self.machine.moment();
        Moment {
            generation: here.stamp.generation.into(),
            time_ns: here.time,
            ledger_length: self.machine.ledger().made(),
        }
    }

    /// Passes to the observer what the guest has printed beyond the first `told` bytes of its console.
    fn tell_output(&self, told: &mut u64, observer: &dyn Observer) {
        let console = self.machine.console();
        if observer.listens() && console.total() > *told {
            observer.printed(&console.text_since(*told));
            *told = console.total();
        }
    }

    /// Tells the observer that the phase goes on.
    fn tell_time(&self, observer: &dyn Observer) {
        if let Some(phase) = self.machine.phases().last() {
            observer.goes_on(phase.end_ns.saturating_sub(phase.start_ns));
        }
    }

    /// Tells the observer which phase has ended and which one has begun.
    fn tell_change(&self, observer: &dyn Observer) {
        if let [.., passed, _] = &self.phase_records()[..] {
            observer.passed(passed);
        }
        self.tell_phase(observer);
    }

    /// Tells the observer the current phase, and passes it the evidence so far if it wants that.
    fn tell_phase(&self, observer: &dyn Observer) {
        let Stamp { generation, phase } = self.machine.moment().stamp;
        observer.phase(generation.into(), phase);
        if observer.keeps() {
            observer.so_far(self.so_far());
        }
    }
}
