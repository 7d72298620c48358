//! Running a machine: turns the processors' stop reasons into events, and follows a kexec.

use serde::{Deserialize, Serialize};

use super::{Blackout, Event, Machine, MachineError};
use crate::boot::BootParams;
use crate::boot::layout::ENTRY_64;
use crate::devices::power::PowerRequest;
use crate::injection::SAME_BITS;
use crate::phase::{Phase, Stamp};
use crate::processors::{DeviceEvent, StopReason};
use crate::trace;
use crate::vcpu::RSI;
use xxhash_rust::xxh3::xxh3_64;

/// How far the current kernel has come towards a kexec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kexec {
    /// The agent has not greeted yet, and [`Machine::watch_for_kexec`] was not called; or it has not come back from a
    /// jump that [`Machine::expect_return`] has announced. Nothing is watched, because a booting kernel executes in the
    /// lower half of the address space, and so do such a jump and the processors that it starts anew.
    NotWatching,
    /// User code runs. The first kernel code in the lower half of the address space is the jump.
    Watching,
    /// The old kernel has jumped. The next kernel's entry point has not been reached.
    Jumped,
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

    /// Runs to the next event, but at most to guest time `limit`; `None` if that came first.
    ///
    /// After a final event ([`Event::is_final`]) every call returns that event again.
    pub fn run_until(&mut self, limit: u64) -> Result<Option<Event>, MachineError> {
        if let Some(event) = &self.records.ended {
            return Ok(Some(event.clone()));
        }
        if self.records.reply_owed {
            return Err(MachineError::ReplyOwed);
        }
        loop {
            let event = match self.processors.run(&mut self.platform, limit)? {
                StopReason::Limit => return Ok(None),
                StopReason::LowSupervisorFetch { rip, not_before } => {
                    self.low_supervisor_fetch(rip, not_before)?
                }
                StopReason::AwaitedAddress { rip } => self.awaited_address(rip),
                StopReason::DeviceEvent(event) => Some(self.device_event(event)),
                StopReason::NoProgress => {
                    let (at, (since, limit)) = (self.moment(), self.platform.progress.since_and_limit());
                    Some(Event::NoProgress { at, since, limit })
                }
                StopReason::DeadHalt { interruptible: true } if self.input_may_come => {
                    self.processors.stand(&mut self.platform, limit)?;
                    return Ok(None);
                }
                StopReason::DeadHalt { interruptible } => {
                    let at = self.moment();
                    Some(Event::DeadHalt { at, interruptible })
                }
                StopReason::TripleFault { reason } => {
                    let at = self.moment();
                    Some(Event::TripleFault { at, reason })
                }
                StopReason::UnknownInstruction { bytes, what } => {
                    let at = self.moment();
                    Some(Event::UnknownInstruction { at, bytes, what })
                }
            };
            if let Some(event) = event {
                return Ok(Some(self.report(event)));
            }
        }
    }

    /// Lets `ns` nanoseconds of guest time pass: devices work, processors do not. Returns an event only if it ends the
    /// run, or if an injection asks what to do; the rest of the time has then not passed.
    pub fn pass(&mut self, ns: u64) -> Result<Option<Event>, MachineError> {
        if let Some(event) = &self.records.ended {
            return Ok(Some(event.clone()));
        }
        let end = self.processors.now().saturating_add(ns);
        self.processors.stand(&mut self.platform, end)?;
        if self.platform.bus.dma.stopped_by_ledger() {
            let event = Event::LedgerFull { at: self.moment() };
            return Ok(Some(self.report(event)));
        }
        self.platform.progress.mark(self.processors.now());
        let asks = self.platform.bus.view.injections.asks();
        Ok(asks.map(|number| Event::InjectionAsks {
            at: self.moment(),
            number,
        }))
    }

    fn report(&mut self, event: Event) -> Event {
        if event.is_final() {
            self.records.ended = Some(event.clone());
        }
        event
    }

    fn device_event(&mut self, event: DeviceEvent) -> Event {
        match event {
            DeviceEvent::LedgerFull => Event::LedgerFull { at: self.moment() },
            DeviceEvent::Message(Ok(message)) => {
                self.trace_message(trace::Kind::Message, &message);
                self.records.reply_owed = true;
                self.watch_for_kexec();
                Event::Message(message)
            }
            DeviceEvent::Message(Err(too_long)) => Event::MessageTooLong {
                at: self.moment(),
                length: too_long.length,
            },
            DeviceEvent::InjectionAsks(number) => Event::InjectionAsks {
                at: self.moment(),
                number,
            },
            DeviceEvent::Power(request, by) => {
                let at = self.moment();
                match request {
                    PowerRequest::Off => Event::PowerOff { at, by },
                    PowerRequest::Reset => Event::Reset { at, by },
                }
            }
        }
    }

    fn awaited_address(&mut self, rip: u64) -> Option<Event> {
        let (now, generation) = (self.processors.now(), self.records.stamp.generation);
        if self
            .platform
            .bus
            .view
            .injections
            .kernel_offset_of(generation)
            .is_none()
        {
            let injections = &self.platform.bus.view.injections;
            let (awaited, mask) = injections.awaited_addresses(generation);
            if awaited.iter().any(|address| (address ^ rip) & mask == 0) {
                return Some(Event::AwaitedAddress { at: self.moment() });
            }
        } else {
            self.executes(now, rip);
        }
        let mut stops = self.records.stops.iter();
        let reached = stops.any(|stop| (stop ^ rip) & SAME_BITS == 0);
        reached.then(|| Event::Reached { at: self.moment() })
    }

    /// Puts a message between agent and host into the trace.
    pub(super) fn trace_message(&mut self, kind: trace::Kind, message: &[u8]) {
        let (now, bus) = (self.processors.now(), &mut self.platform.bus);
        bus.record(now, kind, 0, message.len() as u64, xxh3_64(message));
    }

    fn low_supervisor_fetch(
        &mut self,
        rip: u64,
        not_before: Option<u64>,
    ) -> Result<Option<Event>, MachineError> {
        let time = self.processors.now();
        match self.records.kexec {
            Kexec::NotWatching => Ok(None),
            Kexec::Watching => {
                self.records.kexec = Kexec::Jumped;
                self.close_blackout();
                self.records.blackouts.push(Blackout {
                    generation: self.records.stamp.generation + 1,
                    left_user_at: self.processors.left_user_at(),
                    entered_user_at: None,
                    jump_not_before: not_before,
                });
                self.processors.reset_user_marks();
                self.enter_phase(Phase::Jump)?;
                Ok(Some(Event::Jump { time }))
            }
            Kexec::Jumped => {
                let Some(boot_params) = self.kernel_entry(rip) else {
                    return Ok(None);
                };
                self.records.kexec = Kexec::NotWatching;
                self.processors.watch_for_kexec(false);
                self.enter_kernel(time, boot_params).map(Some)
            }
        }
    }

    /// The next generation's kernel is about to execute its first instruction.
    pub(super) fn enter_kernel(&mut self, time: u64, boot_params: u64) -> Result<Event, MachineError> {
        let generation = self.records.stamp.generation + 1;
        self.platform.bus.uart.console.mark(generation);
        self.change_stamp(Stamp {
            generation,
            phase: Phase::BootNew,
        })?;
        Ok(Event::KernelEntry {
            time,
            boot_params,
            generation,
        })
    }

    /// The address of the boot parameters if the instruction at `rip` is a kernel's 64-bit entry point. RSI must point
    /// to boot parameters, and `rip` must be 0x200 bytes after an address of the alignment that they name. RSI alone is
    /// not enough, because purgatory may hold the same pointer there before the kernel's entry.
    fn kernel_entry(&self, rip: u64) -> Option<u64> {
        let address = self.processors.registers().gpr[RSI];
        let params = BootParams::read(&self.platform.ram, address).ok()?;
        let load_address = rip.checked_sub(ENTRY_64)?;
        let alignment = u64::from(params.kernel_alignment.max(4096));
        load_address.is_multiple_of(alignment).then_some(address)
    }

    /// Fixes the time of the last new kernel's first user instruction, because another jump begins or the run ends.
    pub(super) fn close_blackout(&mut self) {
        let entered = self.processors.entered_user_at();
        if let Some(last) = self.records.blackouts.last_mut() {
            last.entered_user_at = last.entered_user_at.or(entered);
        }
    }
}
