//! The machine: one processor, its devices, and what the host wants to know about them.

pub(crate) mod config;
mod event;
mod idle;
mod record;
mod run;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use guest_agent::device::mailbox::WINDOW_SIZE;
use xxhash_rust::xxh3::Xxh3;

pub use config::{MAX_RATE, MIN_RATE, MachineConfig, MachineError};
pub use event::{Cause, Event, Moment};
pub use record::{Blackout, PhaseRecord};

use crate::acpi;
use crate::boot::{BootRequest, load};
use crate::console::{Console, Sink};
use crate::devices::SystemBus;
use crate::dma_view::DmaView;
use crate::ledger::Ledger;
use crate::memory::{GuestRam, PAGE_BYTES, PAGE_SIZE};
use crate::phase::{Phase, Stamp};
use crate::provenance::Provenance;
use crate::vcpu::{Backend, CpuWrite, Registers, Vcpu};
use idle::Idle;
use record::Phases;
use run::{Kexec, Progress};

/// A write of the processor, with the phase it was made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampedWrite {
    /// The write.
    pub write: CpuWrite,
    /// Generation and phase.
    pub stamp: Stamp,
}

/// A machine with a kernel in it.
pub struct Machine {
    ram: Arc<GuestRam>,
    bus: SystemBus,
    vcpu: Box<dyn Vcpu>,
    stamp: Stamp,
    phases: Phases,
    provenance: Provenance,
    blackouts: Vec<Blackout>,
    causes: Vec<Cause>,
    idle: Idle,
    kexec: Kexec,
    progress: Progress,
    halted: bool,
    reply_owed: bool,
    ended: Option<Event>,
}

impl Machine {
    /// Makes a machine on `backend` and loads the kernel.
    pub fn new(config: &MachineConfig, backend: &dyn Backend) -> Result<Self, MachineError> {
        config.check()?;
        let ram = GuestRam::new(config.ram_bytes)?;
        let rsdp = acpi::write(&ram, config.vcpus)?;
        let request = BootRequest {
            kernel: &config.kernel,
            initramfs: &config.initramfs,
            command_line: &config.command_line,
            rng_seed: config.rng_seed(),
            rsdp,
        };
        let registers = load(&ram, &request)?;
        let mut vcpu = backend.create_vcpu(Arc::clone(&ram), 0)?;
        vcpu.set_registers(&registers);
        vcpu.begin_write_epoch();
        let view = DmaView::new(Arc::clone(&ram), Ledger::new(config.ledger_entries));
        let mut provenance = Provenance::default();
        provenance.begin(Stamp::START);
        Ok(Self {
            ram,
            bus: SystemBus::new(config.dma, view),
            vcpu,
            stamp: Stamp::START,
            phases: Phases::new(Stamp::START),
            provenance,
            blackouts: Vec::new(),
            causes: Vec::new(),
            idle: Idle::default(),
            kexec: Kexec::BeforeGreeting,
            progress: Progress::new(config.progress_limit_ns),
            halted: false,
            reply_owed: false,
            ended: None,
        })
    }

    /// Answers the agent's message, so that it runs on. An empty answer tells it nothing.
    pub fn reply(&mut self, message: &[u8]) -> Result<(), MachineError> {
        let length = message.len();
        if !self.reply_owed {
            return Err(MachineError::NothingAsked { length });
        }
        let too_long = MachineError::ReplyTooLong {
            length,
            window: WINDOW_SIZE,
        };
        self.bus.mailbox.reply(message).map_err(|_| too_long)?;
        self.reply_owed = false;
        Ok(())
    }

    /// Begins a phase. The machine itself begins [`Phase::Jump`] and [`Phase::BootNew`].
    pub fn enter_phase(&mut self, phase: Phase) {
        self.change_stamp(Stamp { phase, ..self.stamp });
    }

    /// Ends the run: the current phase is closed, so that all that was recorded in it is there to be read.
    pub fn finish(&mut self) {
        let now = self.vcpu.now();
        self.bus.dma.end_phase(now, &mut self.bus.view);
        self.collect_page_writes();
        self.close_blackout();
    }

    fn change_stamp(&mut self, stamp: Stamp) {
        let now = self.vcpu.now();
        self.bus.dma.end_phase(now, &mut self.bus.view);
        self.collect_page_writes();
        self.stamp = stamp;
        self.bus.view.set_stamp(stamp);
        self.phases.change(stamp, now, self.vcpu.retired());
        self.provenance.begin(stamp);
        self.progress.mark(now);
    }

    /// Moves the processor's log of first writes into the provenance of the phase that made them.
    fn collect_page_writes(&mut self) {
        let (provenance, ram) = (&mut self.provenance, &self.ram);
        self.vcpu.epoch_writes(&mut |write| {
            ram.mark(write.address, write.length.into());
            provenance.add(write);
        });
        self.vcpu.begin_write_epoch();
    }

    /// Here and now.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            time: self.vcpu.now(),
            retired: self.vcpu.retired(),
            rip: self.vcpu.registers().rip,
            stamp: self.stamp,
        }
    }

    /// Guest RAM.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The processor's registers.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.vcpu.registers()
    }

    /// The ledger of device writes.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.bus.view.ledger
    }

    /// Engine events in the ledger that the processor made happen by an access, in order.
    #[must_use]
    pub fn causes(&self) -> &[Cause] {
        &self.causes
    }

    /// What the guest printed.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.bus.uart.console
    }

    /// Hands what the guest prints to `sink`, too.
    pub fn set_console_sink(&mut self, sink: Sink) {
        self.bus.uart.console.set_sink(sink);
    }

    /// Types for the guest; returns how many bytes were taken.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        self.bus.type_in(bytes)
    }

    /// The phases so far, the current one as if it ended now.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseRecord> {
        self.phases.all(self.vcpu.now(), self.vcpu.retired())
    }

    /// The pages that the processor wrote in each phase that has ended.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// One entry per kexec.
    #[must_use]
    pub fn blackouts(&self) -> Vec<Blackout> {
        let mut blackouts = self.blackouts.clone();
        if let Some(last) = blackouts.last_mut() {
            last.entered_user_at = last.entered_user_at.or(self.vcpu.entered_user_at());
        }
        blackouts
    }

    /// Keeps, from now on, the last write of the processor to each byte of these page frames.
    pub fn watch(&mut self, pfns: impl IntoIterator<Item = u64>) {
        pfns.into_iter().for_each(|pfn| self.vcpu.watch_writes(pfn));
    }

    /// The processor's last write to the byte at `address`, if its page is watched and it wrote there.
    #[must_use]
    pub fn last_write(&self, address: u64) -> Option<StampedWrite> {
        let write = self.vcpu.last_write(address)?;
        Some(StampedWrite {
            write,
            stamp: self.phases.stamp_at(write.time),
        })
    }

    /// XXH3-128 over the whole state: every page that is not all zero with its number, processor, devices. Equal states have
    /// equal hashes whatever led to them.
    pub fn state_hash(&mut self) -> u128 {
        let ram = &self.ram;
        self.vcpu
            .epoch_writes(&mut |write| ram.mark(write.address, write.length.into()));
        let mut hash = Xxh3::new();
        let mut page = [0; PAGE_BYTES];
        for pfn in ram.touched_pages() {
            if ram.read(pfn * PAGE_SIZE, &mut page).is_ok() && page.iter().any(|&byte| byte != 0) {
                hash.update(&pfn.to_le_bytes());
                hash.update(&page);
            }
        }
        self.vcpu.hash_state(&mut hash);
        self.bus.hash_state(&mut hash);
        hash.digest128()
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("moment", &self.moment())
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}
