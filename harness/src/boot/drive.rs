//! Runs a machine to its end, types for the guest, and shows its console.

use super::ended::{End, Ended, Generation};
use super::panic::PanicWatch;
use crate::conductor::chain;
use crate::oracle::millis;
use std::time::{Duration, Instant};
use vmm::machine::{Event, Machine, MachineError};

/// Guest time between two looks at keyboard, console and limits, in nanoseconds.
const TURN_NS: u64 = 5_000_000;
/// Most bytes that are typed in one turn: about what a line of 115200 baud carries.
const TYPED_BYTES: usize = 64;
/// Silence after a panic that ends the machine, in nanoseconds of guest time: a kernel that neither resets nor jumps
/// then spins for ever.
const PANIC_SILENCE_NS: u64 = 50_000_000;

/// When a machine is ended although it runs on. All of them are off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Guest time, in nanoseconds.
    pub guest_ns: Option<u64>,
    /// Guest time without console output, in nanoseconds.
    pub silence_ns: Option<u64>,
    /// The same once input has ended. Before that a silent guest may wait for input.
    pub silence_after_input_ns: Option<u64>,
    /// Host time. A run that it ends is not a function of its inputs.
    pub host: Option<Duration>,
}

/// What is typed for the guest at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    /// These bytes.
    pub bytes: Vec<u8>,
    /// Further bytes wait until the guest takes them.
    pub waiting: bool,
    /// The source has ended: nothing comes beside what waits.
    pub ended: bool,
    /// The user ends the machine.
    pub stop: bool,
}

/// The guest's serial console, as its user has it.
pub trait Terminal {
    /// Shows what the guest has printed.
    fn show(&mut self, output: &[u8]);
    /// At most `most` bytes for the guest. Called at each turn of 5 ms of guest time, with 0 while the guest takes
    /// none.
    fn typed(&mut self, most: usize) -> Input;
}

/// Runs the machine until it ends, a limit is reached, or the user ends it. `kexecs_seen` is whether the backend sees
/// every kexec.
pub fn drive(
    machine: &mut Machine,
    limits: &Limits,
    terminal: &mut dyn Terminal,
    kexecs_seen: bool,
) -> Ended {
    let first = Generation {
        began_ns: machine.moment().time,
        jumped_ns: None,
    };
    let mut driven = Driven {
        limits,
        began: Instant::now(),
        shown: machine.console().total(),
        kernels: vec![first],
        between: false,
        reset: false,
        panic: PanicWatch::default(),
        input_ended: false,
    };
    machine.allow_no_progress_for(limits.silence_ns.unwrap_or(u64::MAX));
    let (end, text) = loop {
        match driven.turn(machine, terminal) {
            Ok(None) => {}
            Ok(Some(ended)) => break ended,
            Err(error) => break (End::MachineFailed, chain(&error)),
        }
    };
    let Driven {
        kernels,
        between,
        reset,
        ..
    } = driven;
    Ended {
        end,
        reset,
        text,
        at: machine.moment(),
        kernels,
        between,
        kexecs_seen,
    }
}

/// A machine on its way.
struct Driven<'a> {
    limits: &'a Limits,
    began: Instant,
    /// Bytes of the console that have been shown.
    shown: u64,
    kernels: Vec<Generation>,
    between: bool,
    reset: bool,
    panic: PanicWatch,
    input_ended: bool,
}

impl Driven<'_> {
    /// One turn. Returns why the machine ended, if it did.
    fn turn(
        &mut self,
        machine: &mut Machine,
        terminal: &mut dyn Terminal,
    ) -> Result<Option<(End, String)>, MachineError> {
        if let Some(stopped) = self.read(machine, terminal) {
            return Ok(Some(stopped));
        }
        if machine.user_code_ran() {
            machine.watch_for_kexec();
        }
        let now = machine.moment().time;
        if let Some(ended) = self.over(now) {
            return Ok(Some(ended));
        }
        let turn = (now / TURN_NS + 1).saturating_mul(TURN_NS);
        let event = machine.run_until(turn.min(self.limits.guest_ns.unwrap_or(u64::MAX)))?;
        self.show(machine, terminal);
        match &event {
            // The agent has greeted and waits; an empty reply asks nothing of it.
            Some(Event::Message(_)) => machine.reply(&[])?,
            Some(Event::Jump { time }) => {
                if let Some(last) = self.kernels.last_mut() {
                    last.jumped_ns = Some(*time);
                }
                self.between = true;
            }
            Some(Event::KernelEntry { time, .. }) => {
                self.between = false;
                self.panic = PanicWatch::default();
                self.kernels.push(Generation {
                    began_ns: *time,
                    jumped_ns: None,
                });
            }
            Some(Event::Reset { .. } | Event::TripleFault { .. }) => self.reset = true,
            _ => {}
        }
        Ok(self.ended_by(machine, event.as_ref()))
    }

    /// Types what there is to type. Returns why the machine ends if the user ends it.
    fn read(&mut self, machine: &mut Machine, terminal: &mut dyn Terminal) -> Option<(End, String)> {
        let most = if machine.takes_input() { TYPED_BYTES } else { 0 };
        let input = terminal.typed(most);
        if input.stop {
            return Some((End::Stopped, "ended from the keyboard".into()));
        }
        machine.type_in(&input.bytes);
        if input.ended && !self.input_ended {
            self.input_ended = true;
            let limits = [self.limits.silence_ns, self.limits.silence_after_input_ns];
            if let Some(limit) = limits.into_iter().flatten().min() {
                // The guest may have been silent for long while it waited for input.
                let silent = machine.moment().time.saturating_sub(machine.last_progress());
                machine.allow_no_progress_for(silent.saturating_add(limit));
            }
        }
        machine.expect_input(!input.ended || input.waiting);
        None
    }

    /// Why the machine ends if one of the limits of time is reached at guest time `now`.
    fn over(&self, now: u64) -> Option<(End, String)> {
        if let Some(limit) = self.limits.guest_ns.filter(|limit| now >= *limit) {
            return Some((
                End::Timeout,
                format!("{} of guest time have passed", millis(limit)),
            ));
        }
        let host = self.limits.host.filter(|limit| self.began.elapsed() >= *limit)?;
        let text = format!("{} s of host time have passed", host.as_secs_f64());
        Some((End::Timeout, text))
    }

    fn show(&mut self, machine: &Machine, terminal: &mut dyn Terminal) {
        let console = machine.console();
        if console.total() > self.shown {
            let output = console.text_since(self.shown);
            self.shown = console.total();
            self.panic.print(&output);
            terminal.show(&output);
        }
    }

    /// Why the machine ended, if this event or its silence after a panic ends it.
    fn ended_by(&self, machine: &Machine, event: Option<&Event>) -> Option<(End, String)> {
        let panic = self.panic.panic();
        let silent = machine.moment().time.saturating_sub(machine.last_progress());
        let end = match event {
            Some(event) => End::of(event, panic.is_some())?,
            None if panic.is_some() && silent >= PANIC_SILENCE_NS => End::Panic,
            None => return None,
        };
        let text = match (end, panic, event) {
            (End::Panic, Some(panic), _) => panic,
            (_, _, Some(Event::NoProgress { at, since, limit })) => format!(
                "nothing on the console for {} of guest time, since {} ({at})",
                millis(*limit),
                millis(*since)
            ),
            (_, _, Some(event)) => event.to_string(),
            (_, _, None) => end.name().to_owned(),
        };
        Some((end, text))
    }
}
