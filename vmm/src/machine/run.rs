//! The run loop: devices, interrupts, processor, in turn.

use super::{Blackout, Cause, Event, Machine, MachineError};
use crate::boot::BootParams;
use crate::boot::layout::ENTRY_64;
use crate::devices::power::PowerRequest;
use crate::phase::{Phase, Stamp};
use crate::vcpu::{RSI, Stop};

/// Index of CS in [`crate::vcpu::Registers::segments`].
const CS: usize = 1;

/// How far the current kernel is on its way to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kexec {
    /// The agent has not spoken yet. A booting kernel runs in the lower half of the address space, so nothing is watched.
    BeforeGreeting,
    /// Kernel code in the lower half of the address space would be the jump.
    Watching,
    /// The old kernel has jumped; the next kernel's entry point comes.
    Jumped,
}

/// Signs of life.
#[derive(Debug)]
pub(super) struct Progress {
    since: u64,
    printed: u64,
    limit: u64,
}

impl Progress {
    pub fn new(limit: u64) -> Self {
        Self {
            since: 0,
            printed: 0,
            limit,
        }
    }

    pub fn mark(&mut self, now: u64) {
        self.since = now;
    }

    fn printed(&mut self, now: u64, total: u64) {
        if total != self.printed {
            self.printed = total;
            self.since = now;
        }
    }

    fn deadline(&self) -> u64 {
        self.since.saturating_add(self.limit)
    }
}

impl Machine {
    /// Runs to the next event.
    pub fn run(&mut self) -> Result<Event, MachineError> {
        loop {
            if let Some(event) = self.run_until(u64::MAX)? {
                return Ok(event);
            }
        }
    }

    /// Runs to the next event, but no further than guest time `limit`; `None` when that came first.
    ///
    /// After an event that is final ([`Event::is_final`]) it only ever returns that again.
    pub fn run_until(&mut self, limit: u64) -> Result<Option<Event>, MachineError> {
        if let Some(event) = &self.ended {
            return Ok(Some(event.clone()));
        }
        if self.reply_owed {
            return Err(MachineError::ReplyOwed);
        }
        loop {
            let now = self.vcpu.now();
            self.bus.advance(now);
            for (address, length) in self.bus.view.take_stale() {
                self.vcpu.memory_written(address, length);
            }
            self.progress.printed(now, self.bus.uart.console.total());
            if let Some(event) = self.device_event(now) {
                return Ok(Some(self.report(event)));
            }
            if now >= limit {
                return Ok(None);
            }
            if let Some(event) = self.step(now, limit) {
                return Ok(Some(self.report(event)));
            }
        }
    }

    /// Engine events from `first` on were made by the access after which the processor stopped.
    fn note_causes(&mut self, first: usize) {
        let events = first..self.bus.view.ledger.events().len();
        if events.is_empty() {
            return;
        }
        let (registers, retired) = (self.vcpu.registers(), self.vcpu.retired());
        let privilege = (registers.segments[CS].selector & 3) as u8;
        let cause = |event| Cause {
            event,
            rip: registers.rip,
            retired,
            privilege,
        };
        self.causes.extend(events.map(cause));
    }

    pub(super) fn report(&mut self, event: Event) -> Event {
        if event.is_final() {
            self.ended = Some(event.clone());
        }
        event
    }

    /// What the devices have to say after an access or a deadline.
    fn device_event(&mut self, now: u64) -> Option<Event> {
        if self.bus.dma.stopped_by_ledger() {
            return Some(Event::LedgerFull { at: self.moment() });
        }
        match self.bus.mailbox.take_message() {
            Some(Ok(message)) => {
                self.reply_owed = true;
                self.progress.mark(now);
                if self.kexec == Kexec::BeforeGreeting {
                    self.kexec = Kexec::Watching;
                    self.vcpu.stop_on_low_supervisor_fetch(true);
                }
                return Some(Event::Message(message));
            }
            Some(Err(too_long)) => {
                return Some(Event::MessageTooLong {
                    at: self.moment(),
                    length: too_long.length,
                });
            }
            None => {}
        }
        match self.bus.power.requested()? {
            PowerRequest::Off => Some(Event::PowerOff { at: self.moment() }),
            PowerRequest::Reset => Some(Event::Reset { at: self.moment() }),
        }
    }

    /// Delivers an interrupt if there is one, then executes or sleeps to the next deadline.
    fn step(&mut self, now: u64, limit: u64) -> Option<Event> {
        if let Err(stop) = self.offer_interrupt() {
            return self.stopped(stop);
        }
        let patience = self.progress.deadline();
        if now >= patience {
            let Progress { since, limit, .. } = self.progress;
            return Some(Event::NoProgress {
                at: self.moment(),
                since,
                limit,
            });
        }
        let next = self.bus.next_event();
        if self.halted {
            let Some(next) = next else {
                return Some(Event::DeadHalt {
                    at: self.moment(),
                    interruptible: true,
                });
            };
            self.sleep_to(next.min(patience).min(limit));
            return None;
        }
        let until = next.unwrap_or(u64::MAX).min(patience).min(limit);
        let events = self.bus.view.ledger.events().len();
        let stop = self.vcpu.run(&mut self.bus, until);
        self.note_causes(events);
        self.stopped(stop)
    }

    fn offer_interrupt(&mut self) -> Result<(), Stop> {
        // Asking for CR8 costs more than looking at the local APIC, which is mostly idle.
        let pending = self.bus.lapic.deliverable(0);
        let vector = pending.and_then(|_| self.bus.lapic.deliverable(self.vcpu.task_priority()));
        let Some(vector) = vector else {
            self.vcpu.request_interrupt_window(false);
            return Ok(());
        };
        if !self.vcpu.can_take_interrupt() {
            self.vcpu.request_interrupt_window(true);
            return Ok(());
        }
        self.bus.lapic.acknowledge(vector);
        self.halted = false;
        // Whether another one waits behind it is looked at after the first instruction of its handler has run.
        self.vcpu
            .request_interrupt_window(self.bus.lapic.deliverable(0).is_some());
        self.vcpu.inject_interrupt(&mut self.bus, vector)
    }

    fn stopped(&mut self, stop: Stop) -> Option<Event> {
        match stop {
            Stop::Deadline | Stop::Bus | Stop::InterruptWindow => None,
            Stop::Halted { interruptible: true } => {
                self.halted = true;
                None
            }
            Stop::Halted { interruptible: false } => Some(Event::DeadHalt {
                at: self.moment(),
                interruptible: false,
            }),
            Stop::LowSupervisorFetch { rip } => self.low_supervisor_fetch(rip),
            Stop::TripleFault { reason } => Some(Event::TripleFault {
                at: self.moment(),
                reason,
            }),
            Stop::UnknownInstruction { bytes, what, .. } => Some(Event::UnknownInstruction {
                at: self.moment(),
                bytes,
                what,
            }),
        }
    }

    fn low_supervisor_fetch(&mut self, rip: u64) -> Option<Event> {
        let time = self.vcpu.now();
        match self.kexec {
            Kexec::BeforeGreeting => None,
            Kexec::Watching => {
                self.kexec = Kexec::Jumped;
                self.close_blackout();
                self.blackouts.push(Blackout {
                    generation: self.stamp.generation + 1,
                    left_user_at: self.vcpu.left_user_at(),
                    entered_user_at: None,
                });
                self.vcpu.reset_user_marks();
                self.enter_phase(Phase::Jump);
                Some(Event::Jump { time })
            }
            Kexec::Jumped => {
                let boot_params = self.kernel_entry(rip)?;
                self.kexec = Kexec::BeforeGreeting;
                self.vcpu.stop_on_low_supervisor_fetch(false);
                let generation = self.stamp.generation + 1;
                self.bus.uart.console.mark(generation);
                self.change_stamp(Stamp {
                    generation,
                    phase: Phase::BootNew,
                });
                Some(Event::KernelEntry {
                    time,
                    boot_params,
                    generation,
                })
            }
        }
    }

    /// The address of the boot parameters if the instruction at `rip` is a kernel's 64-bit entry point: it lies 0x200 bytes
    /// after a load address of the alignment that the boot parameters in RSI name. Both conditions are needed, because on the way
    /// there purgatory may hold a pointer to the boot parameters in RSI, too.
    fn kernel_entry(&self, rip: u64) -> Option<u64> {
        let address = self.vcpu.registers().gpr[RSI];
        let params = BootParams::read(&self.ram, address).ok()?;
        let load_address = rip.checked_sub(ENTRY_64)?;
        let alignment = u64::from(params.kernel_alignment.max(4096));
        load_address.is_multiple_of(alignment).then_some(address)
    }

    /// The new kernel's first user instruction is fixed once another jump begins.
    pub(super) fn close_blackout(&mut self) {
        let entered = self.vcpu.entered_user_at();
        if let Some(last) = self.blackouts.last_mut() {
            last.entered_user_at = last.entered_user_at.or(entered);
        }
    }
}
