//! The machine: its processors, its devices, and what the host wants to know about them.

pub(crate) mod config;
mod event;
mod record;
mod run;
#[cfg(test)]
mod snapshot_tests;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use guest_agent::device::mailbox::WINDOW_SIZE;

pub use crate::platform::Cause;
pub use config::{MAX_RATE, MAX_VCPUS, MIN_RATE, MachineConfig, MachineError};
pub use event::{Event, Moment};
pub use record::{Blackout, PhaseRecord};
pub use state::{MachineState, Snapshot};

use crate::acpi;
use crate::boot::{BootRequest, load, wakeup};
use crate::console::Console;
use crate::devices::SystemBus;
use crate::dma_view::DmaView;
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::phase::{Phase, Stamp};
use crate::platform::{Platform, Progress};
use crate::processors::{Backend, PowerOn, Processors};
use crate::provenance::Provenance;
use crate::trace::{self, Trace, TraceRecord};
use crate::vcpu::{CpuWrite, Registers};
use record::Phases;
use state::Records;

/// A machine with a kernel in it.
pub struct Machine {
    platform: Platform,
    processors: Box<dyn Processors>,
    records: Records,
}

impl Machine {
    /// Makes a machine on `backend` and loads the kernel.
    pub fn new(config: &MachineConfig, backend: &dyn Backend) -> Result<Self, MachineError> {
        config.check()?;
        let ram = GuestRam::new(config.ram_bytes)?;
        if backend.logs_whole_pages() {
            ram.forbid_huge_pages()?;
        }
        let mailbox = config.vcpus > 1 && backend.starts_by_mailbox();
        if mailbox {
            wakeup::write(&ram)?;
        }
        let rsdp = acpi::write(&ram, config.vcpus, mailbox)?;
        let request = BootRequest {
            kernel: &config.kernel,
            initramfs: &config.initramfs,
            command_line: &config.command_line,
            rng_seed: config.rng_seed(),
            rsdp,
            gigabyte_pages: backend.gigabyte_pages(),
            wakeup: mailbox,
        };
        let registers = load(&ram, &request)?;
        let view = DmaView::new(Arc::clone(&ram), Ledger::new(config.ledger_entries));
        let mut platform = Platform {
            ram: Arc::clone(&ram),
            bus: SystemBus::new(config.dma, view),
            causes: Vec::new(),
            progress: Progress::new(config.progress_limit_ns),
        };
        if backend.is_repeatable() {
            platform.bus.trace = Trace::new(trace::CAPACITY);
        }
        let power_on = PowerOn {
            count: config.vcpus,
            registers,
        };
        let processors = backend.power_on(ram, &mut platform, &power_on)?;
        Ok(Self {
            platform,
            processors,
            records: Records::new(),
        })
    }

    /// Answers the agent's message, so that it runs on. An empty answer tells it nothing.
    pub fn reply(&mut self, message: &[u8]) -> Result<(), MachineError> {
        let length = message.len();
        if !self.records.reply_owed {
            return Err(MachineError::NothingAsked { length });
        }
        let too_long = MachineError::ReplyTooLong {
            length,
            window: WINDOW_SIZE,
        };
        self.platform.bus.mailbox.reply(message).map_err(|_| too_long)?;
        self.trace_message(trace::Kind::Answer, message);
        self.records.reply_owed = false;
        Ok(())
    }

    /// Begins a phase. The machine itself begins [`Phase::Jump`] and [`Phase::BootNew`].
    pub fn enter_phase(&mut self, phase: Phase) -> Result<(), MachineError> {
        self.change_stamp(Stamp {
            phase,
            ..self.records.stamp
        })
    }

    /// The next kernel is loaded and the agent's answer will make it jump. `machine_kexec` is the address of that function in
    /// the running kernel, where symbols are at hand: a backend that cannot see the jump itself finds it by that.
    pub fn expect_kexec(&mut self, machine_kexec: &dyn Fn() -> Option<u64>) {
        self.processors.expect_kexec(&self.platform.ram, machine_kexec);
    }

    /// Something happened in mid-phase that page writes have to be told apart by. Where the backend knows when each was made there is
    /// nothing to do; elsewhere what was written so far is put on record now.
    pub fn part_page_writes(&mut self) -> Result<(), MachineError> {
        if self.processors.writes_are_exact() {
            return Ok(());
        }
        self.collect_page_writes()
    }

    /// Most that the host was late in serving a device, in guest nanoseconds.
    #[must_use]
    pub fn device_lateness(&self) -> u64 {
        self.processors.device_lateness()
    }

    /// How often each instruction was executed by softcpu because KVM could not, by mnemonic.
    #[must_use]
    pub fn emulated(&self) -> Vec<(String, u64)> {
        self.processors.emulated()
    }

    /// Ends the run: the current phase is closed, so that all that was recorded in it is there to be read.
    pub fn finish(&mut self) -> Result<(), MachineError> {
        let now = self.processors.now();
        self.platform.bus.dma.end_phase(now, &mut self.platform.bus.view);
        self.collect_page_writes()?;
        self.close_blackout();
        Ok(())
    }

    fn change_stamp(&mut self, stamp: Stamp) -> Result<(), MachineError> {
        let now = self.processors.now();
        let bus = &mut self.platform.bus;
        bus.dma.end_phase(now, &mut bus.view);
        bus.view.set_stamp(stamp);
        bus.record(
            now,
            trace::Kind::Phase,
            0,
            stamp.generation.into(),
            stamp.phase as u64,
        );
        self.collect_page_writes()?;
        self.records.stamp = stamp;
        self.records.phases.change(stamp, now, self.processors.retired());
        self.records.provenance.begin(stamp);
        self.platform.progress.mark(now);
        Ok(())
    }

    /// Moves the processors' log of first writes into the provenance of the phase that made them.
    fn collect_page_writes(&mut self) -> Result<(), MachineError> {
        let (provenance, ram) = (&mut self.records.provenance, &self.platform.ram);
        self.processors.epoch_writes(&mut |write| {
            ram.mark(write.gpa, write.len.into());
            provenance.add(write);
        })?;
        Ok(self.processors.begin_write_epoch()?)
    }

    /// Here and now.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            time: self.processors.now(),
            retired: self.processors.retired(),
            rip: self.processors.registers().known_rip(),
            stamp: self.records.stamp,
        }
    }

    /// Guest RAM.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.platform.ram
    }

    /// The processor's registers.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.processors.registers()
    }

    /// The ledger of device writes.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.platform.bus.view.ledger
    }

    /// What passed between the processors and everything else. Empty on a backend whose runs cannot be repeated.
    #[must_use]
    pub fn trace(&self) -> TraceRecord {
        self.platform
            .bus
            .trace
            .to_record(|time| self.processors.instructions_at(time))
    }

    /// Engine events in the ledger that the processor made happen by an access, in order.
    #[must_use]
    pub fn causes(&self) -> &[Cause] {
        &self.platform.causes
    }

    /// What the guest printed.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.platform.bus.uart.console
    }

    /// Types for the guest; returns how many bytes were taken.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        self.platform.bus.type_in(bytes)
    }

    /// Instructions retired when the one at guest time `time` was executed, where the backend counts them.
    #[must_use]
    pub fn instructions_at(&self, time: u64) -> Option<u64> {
        self.processors.instructions_at(time)
    }

    /// The phases so far, the current one as if it ended now.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseRecord> {
        self.records
            .phases
            .all(self.processors.now(), self.processors.retired())
    }

    /// The pages that the processor wrote in each phase that has ended.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.records.provenance
    }

    /// One entry per kexec.
    #[must_use]
    pub fn blackouts(&self) -> Vec<Blackout> {
        let mut blackouts = self.records.blackouts.clone();
        if let Some(last) = blackouts.last_mut() {
            last.entered_user_at = last.entered_user_at.or(self.processors.entered_user_at());
        }
        blackouts
    }

    /// Keeps, from now on, the last write of the processor to each byte of these page frames.
    pub fn watch(&mut self, pfns: impl IntoIterator<Item = u64>) {
        pfns.into_iter()
            .for_each(|pfn| self.processors.watch_writes(pfn, true));
    }

    /// Takes these page frames off watch, which leaves the state as if they had never been on it.
    pub fn unwatch(&mut self, pfns: impl IntoIterator<Item = u64>) {
        pfns.into_iter()
            .for_each(|pfn| self.processors.watch_writes(pfn, false));
    }

    /// The processors' last write to the byte at `address`, and the phase in which it was made; `None` if the page is not
    /// watched or no write to the byte was seen.
    #[must_use]
    pub fn last_write(&self, address: u64) -> Option<(CpuWrite, Stamp)> {
        let write = self.processors.last_write(address)?;
        Some((write, self.records.phases.stamp_at(write.time)))
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("moment", &self.moment())
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}
