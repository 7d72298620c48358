//! Talking with the agent, and what may come instead of an answer.

use super::{Break, Run};
use crate::evidence::{AgentFailure, Hello, OutcomeKind, Phase};
use guest_agent::protocol::{Reply, Request, VERSION, decode, encode};
use vmm::machine::Event;

/// What the kernel prints when it panics (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";
/// And in particular when PID 1 has died (kernel/exit.c).
const INIT_DIED: &str = "Attempted to kill init";

impl Run<'_> {
    /// Waits for the agent of the current generation to come up.
    pub(super) fn await_hello(&mut self) -> Result<(), Break> {
        let Reply::Hello {
            protocol,
            release,
            build_id,
            command_line,
            features,
            processors,
        } = self.next_message()?
        else {
            return Err(Break::new(
                OutcomeKind::AgentDied,
                "the agent's first message is no greeting",
            ));
        };
        if protocol != VERSION {
            let text = format!("the agent speaks protocol {protocol}, expected {VERSION}");
            return Err(Break::new(OutcomeKind::AgentDied, text));
        }
        let hello = Hello::new(release, build_id, command_line, features, processors);
        if let Some(kernel) = self.evidence.kernels.get_mut(self.generation as usize) {
            kernel.hello = Some(hello);
        }
        let expected = self.plan.vcpus;
        if processors == expected {
            return Ok(());
        }
        let kind = if self.generation == 0 {
            OutcomeKind::SetupFailed
        } else {
            OutcomeKind::AgentFailed
        };
        let text = format!(
            "the kernel of generation {} brought up {processors} of {expected} processors",
            self.generation
        );
        Err(Break::new(kind, text))
    }

    /// Asks the agent for something that it ought to be able to do; its failure ends the run.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Reply, Break> {
        let failure = match self.try_ask(request)? {
            Ok(reply) => return Ok(reply),
            Err(failure) => failure,
        };
        let kind = if self.generation == 0 {
            OutcomeKind::SetupFailed
        } else {
            OutcomeKind::AgentFailed
        };
        let text = self
            .evidence
            .failures
            .get(failure)
            .map_or(String::new(), ToString::to_string);
        Err(Break::new(kind, text))
    }

    /// Asks the agent for something that it may fail at; a failure is recorded, and its index in the evidence is given.
    pub(super) fn try_ask(&mut self, request: &Request) -> Result<Result<Reply, usize>, Break> {
        self.say(request)?;
        match self.next_message()? {
            Reply::Failed { call, errno, detail } => {
                let phase = self.machine.moment().stamp.phase;
                let (generation, request) = (self.generation, words(request));
                let failures = &mut self.evidence.failures;
                failures.push(AgentFailure {
                    generation,
                    phase,
                    request,
                    call,
                    errno,
                    detail,
                });
                Ok(Err(failures.len() - 1))
            }
            Reply::Hello { .. } => Err(Break::new(
                OutcomeKind::AgentDied,
                "the agent began anew amid its work",
            )),
            reply => Ok(Ok(reply)),
        }
    }

    fn say(&mut self, request: &Request) -> Result<(), Break> {
        let message = encode(request).map_err(|e| Break::new(OutcomeKind::MachineFailed, e.to_string()))?;
        Ok(self.machine.reply(&message)?)
    }

    /// Runs the guest until the agent speaks.
    pub(super) fn next_message(&mut self) -> Result<Reply, Break> {
        loop {
            match self.machine.run()? {
                Event::Message(message) => {
                    let told = decode(&message);
                    return told.map_err(|e| Break::new(OutcomeKind::AgentDied, e.to_string()));
                }
                Event::Jump { .. } => self.tell_observer(),
                Event::KernelEntry {
                    time,
                    boot_params,
                    generation,
                } => {
                    self.take_blob(time, boot_params);
                    self.generation = generation.into();
                    self.held.clear();
                    self.sessions.clear();
                    self.tell_observer();
                }
                event => return Err(self.broken_by(&event)),
            }
        }
    }

    /// Lets the guest run to the end that a request asked for.
    pub(super) fn run_to_end(&mut self) -> Result<Event, Break> {
        match self.machine.run()? {
            Event::Message(message) => {
                let said = decode(&message);
                let text = match said {
                    Ok(Reply::Failed { call, errno, detail }) => {
                        format!("{call} failed: errno {errno}, {detail}")
                    }
                    Ok(reply) => format!("the agent went on and said {reply:?}"),
                    Err(error) => error.to_string(),
                };
                Err(Break::new(OutcomeKind::AgentFailed, text))
            }
            event => Ok(event),
        }
    }

    /// What a final event means.
    pub(super) fn broken_by(&self, event: &Event) -> Break {
        if let Some(line) = self.panic_line() {
            let kind = if line.contains(INIT_DIED) {
                OutcomeKind::AgentDied
            } else {
                OutcomeKind::GuestPanic
            };
            return Break::new(kind, line);
        }
        let kind = match event {
            Event::MessageTooLong { .. } => OutcomeKind::AgentDied,
            Event::PowerOff { .. } | Event::Reset { .. } => OutcomeKind::UnexpectedReset,
            Event::TripleFault { .. } => OutcomeKind::TripleFault,
            Event::DeadHalt { .. } | Event::NoProgress { .. } => OutcomeKind::GuestHang,
            Event::LedgerFull { .. } => OutcomeKind::LedgerFull,
            Event::UnknownInstruction { .. } => OutcomeKind::UnknownInstruction,
            Event::Message(_) | Event::Jump { .. } | Event::KernelEntry { .. } => OutcomeKind::MachineFailed,
        };
        let rip = self.machine.registers().rip;
        let at = self.plan.kernel(self.generation).symbol(rip);
        let at = at.map_or(String::new(), |symbol| format!(", at {symbol}"));
        Break::new(kind, format!("{event}{at}"))
    }

    /// The running kernel's panic message, if it has printed one.
    fn panic_line(&self) -> Option<String> {
        let text = self.console_of_generation();
        let line = &text[text.find(PANIC)?..];
        Some(line.lines().next().unwrap_or_default().trim_end().to_owned())
    }

    /// Tells the observer which phases have passed and which one goes on, and shows the evidence so far to one who keeps it.
    pub(super) fn tell_observer(&mut self) {
        let phases = self.phase_records();
        let Some((current, passed)) = phases.split_last() else {
            return;
        };
        for record in passed.iter().skip(self.reported) {
            self.observer.passed(record);
        }
        self.reported = self.reported.max(passed.len());
        self.observer.phase(current.generation, current.phase);
        if self.observer.keeps() {
            self.show_so_far();
        }
    }

    /// A phase begins.
    pub(super) fn enter_phase(&mut self, phase: Phase) -> Result<(), Break> {
        self.machine.enter_phase(phase)?;
        self.tell_observer();
        Ok(())
    }
}

/// A request in words, for failures.
fn words(request: &Request) -> String {
    match request {
        Request::CreateSession { name } => format!("create session \"{name}\""),
        Request::CreateMemfd { object, bytes, .. } => format!("create memfd {object} of {bytes} bytes"),
        Request::CreateBuffer { object, bytes, .. } => format!("create buffer {object} of {bytes} bytes"),
        Request::Preserve {
            session,
            object,
            token,
        } => {
            format!("preserve memfd {object} in session \"{session}\" under token {token}")
        }
        Request::StartDma { entries, .. } => format!("start DMA with {entries} descriptors"),
        Request::RetrieveSession { name } => format!("retrieve session \"{name}\""),
        Request::RetrieveMemfd { session, token, .. } => {
            format!("retrieve token {token} from session \"{session}\"")
        }
        Request::FinishSession { name } => format!("finish session \"{name}\""),
        Request::LoadKexec { .. } => "load the next kernel".into(),
        other => format!("{other:?}"),
    }
}
