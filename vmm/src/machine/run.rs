//! Running: what happens to the processors becomes events, and the kexec is followed.

use serde::{Deserialize, Serialize};

use super::{Blackout, Event, Machine, MachineError};
use crate::boot::BootParams;
use crate::boot::layout::ENTRY_64;
use crate::devices::power::PowerRequest;
use crate::phase::{Phase, Stamp};
use crate::processors::{DeviceEvent, StopReason};
use crate::trace;
use crate::vcpu::RSI;
use xxhash_rust::xxh3::xxh3_64;

/// How far the current kernel is on its way to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kexec {
    /// The agent has not spoken yet. A booting kernel runs in the lower half of the address space, so nothing is watched.
    BeforeGreeting,
    /// Kernel code in the lower half of the address space would be the jump.
    Watching,
    /// The old kernel has jumped; the next kernel's entry point comes.
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

    /// Runs to the next event, but no further than guest time `limit`; `None` when that came first.
    ///
    /// After an event that is final ([`Event::is_final`]) it only ever returns that again.
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
                StopReason::DeviceEvent(event) => Some(self.device_event(event)),
                other => Some(self.death(other)),
            };
            if let Some(event) = event {
                return Ok(Some(self.report(event)));
            }
        }
    }

    /// Lets `ns` nanoseconds of guest time pass while the processors stand, as they do while a message is not answered:
    /// devices go on. An event is one that ends the run.
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
        Ok(None)
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
                if self.records.kexec == Kexec::BeforeGreeting {
                    self.records.kexec = Kexec::Watching;
                    self.processors.watch_for_kexec(true);
                }
                Event::Message(message)
            }
            DeviceEvent::Message(Err(too_long)) => Event::MessageTooLong {
                at: self.moment(),
                length: too_long.length,
            },
            DeviceEvent::Power(PowerRequest::Off) => Event::PowerOff { at: self.moment() },
            DeviceEvent::Power(PowerRequest::Reset) => Event::Reset { at: self.moment() },
        }
    }

    /// Puts a message between agent and host into the trace.
    pub(super) fn trace_message(&mut self, kind: trace::Kind, message: &[u8]) {
        let (now, bus) = (self.processors.now(), &mut self.platform.bus);
        bus.record(now, kind, 0, message.len() as u64, xxh3_64(message));
    }

    /// What ends a run without a device's doing.
    fn death(&self, reason: StopReason) -> Event {
        let at = self.moment();
        match reason {
            StopReason::DeadHalt { interruptible } => Event::DeadHalt { at, interruptible },
            StopReason::TripleFault { reason } => Event::TripleFault { at, reason },
            StopReason::UnknownInstruction { bytes, what } => Event::UnknownInstruction { at, bytes, what },
            // The others have been dealt with before.
            _ => {
                let (since, limit) = self.platform.progress.since_and_limit();
                Event::NoProgress { at, since, limit }
            }
        }
    }

    fn low_supervisor_fetch(
        &mut self,
        rip: u64,
        not_before: Option<u64>,
    ) -> Result<Option<Event>, MachineError> {
        let time = self.processors.now();
        match self.records.kexec {
            Kexec::BeforeGreeting => Ok(None),
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
                self.records.kexec = Kexec::BeforeGreeting;
                self.processors.watch_for_kexec(false);
                let generation = self.records.stamp.generation + 1;
                self.platform.bus.uart.console.mark(generation);
                self.change_stamp(Stamp {
                    generation,
                    phase: Phase::BootNew,
                })?;
                Ok(Some(Event::KernelEntry {
                    time,
                    boot_params,
                    generation,
                }))
            }
        }
    }

    /// The address of the boot parameters if the instruction at `rip` is a kernel's 64-bit entry point: it lies 0x200 bytes
    /// after a load address of the alignment that the boot parameters in RSI name. Both conditions are needed, because on the way
    /// there purgatory may hold a pointer to the boot parameters in RSI, too.
    fn kernel_entry(&self, rip: u64) -> Option<u64> {
        let address = self.processors.registers().gpr[RSI];
        let params = BootParams::read(&self.platform.ram, address).ok()?;
        let load_address = rip.checked_sub(ENTRY_64)?;
        let alignment = u64::from(params.kernel_alignment.max(4096));
        load_address.is_multiple_of(alignment).then_some(address)
    }

    /// The new kernel's first user instruction is fixed once another jump begins.
    pub(super) fn close_blackout(&mut self) {
        let entered = self.processors.entered_user_at();
        if let Some(last) = self.records.blackouts.last_mut() {
            last.entered_user_at = last.entered_user_at.or(entered);
        }
    }
}
