//! The machine: processors, devices, and the records of a run.

#[cfg(test)]
mod completeness_tests;
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
use crate::devices::dma::Programmed;
use crate::dma_view::DmaView;
use crate::injection::{Deed, Injection, Injections, Running, SAME_BITS};
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::phase::{Phase, Stamp};
use crate::platform::{Platform, Progress};
use crate::processors::{Backend, PowerOn, Processors};
use crate::provenance::Provenance;
use crate::trace::{self, Trace, TraceRecord};
use crate::vcpu::{CpuWrite, Look, RSI, Registers, Translation, WarmCode};
use record::Phases;
use run::Kexec;
use state::Records;

/// Gives a type a function that makes a value for each field, in which that field is another value's. A field that is
/// not named does not compile.
#[cfg(test)]
macro_rules! parts_of {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl $type {
            pub(crate) fn each_part(&self, other: &Self) -> Vec<(&'static str, Self)> {
                let $type { $($field),* } = other;
                vec![$((stringify!($field), {
                    let mut changed = self.clone();
                    changed.$field = $field.clone();
                    changed
                })),*]
            }
        }
    };
}
#[cfg(test)]
pub(crate) use parts_of;

/// A machine with a kernel in it.
pub struct Machine {
    platform: Platform,
    processors: Box<dyn Processors>,
    records: Records,
    /// Whether somebody may type. It belongs to whoever drives the machine, not to its state.
    input_may_come: bool,
}

impl Machine {
    /// Makes a machine on `backend` and loads the kernel.
    pub fn new(config: &MachineConfig, backend: &dyn Backend) -> Result<Self, MachineError> {
        config.check(backend)?;
        let ram = GuestRam::new(config.ram_bytes)?;
        if backend.logs_whole_pages() {
            ram.forbid_huge_pages()?;
        } else {
            ram.want_huge_pages()?;
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
            handover: config.handover.as_ref(),
            device_memory: config.device_memory.as_ref(),
        };
        let registers = load(&ram, &request)?;
        let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(config.ledger_entries));
        view.injections = Injections::new(&config.injections);
        let stamp = match &config.handover {
            Some(_) => Stamp::BETWEEN,
            None => Stamp::START,
        };
        view.set_stamp(stamp);
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
        let mut machine = Self {
            platform,
            processors,
            records: Records::new(stamp),
            input_may_come: false,
        };
        machine.await_addresses();
        Ok(machine)
    }

    /// Answers the agent's message, so that the machine can run on. An empty answer only lets the agent continue.
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

    /// Starts the DMA engine as a driver would have, for a kernel that is handed a running device.
    pub fn start_dma(&mut self, programmed: &Programmed) {
        let now = self.processors.now();
        let bus = &mut self.platform.bus;
        bus.dma.start(now, &mut bus.view, programmed);
    }

    /// Disables the DMA engine as a driver would.
    pub fn stop_dma(&mut self) {
        let now = self.processors.now();
        let bus = &mut self.platform.bus;
        bus.dma.stop(now, &mut bus.view);
    }

    /// Begins the boot of a kernel that is handed something over, once all of that is in memory. To be called before
    /// the machine runs, if [`MachineConfig::handover`] is given. It is as if another kernel had jumped just now.
    pub fn enter(&mut self) -> Result<Event, MachineError> {
        if self.records.stamp != Stamp::BETWEEN || self.processors.now() > 0 {
            return Err(MachineError::NothingHanded);
        }
        let boot_params = self.processors.registers().gpr[RSI];
        self.enter_kernel(0, boot_params)
    }

    /// Begins a phase. The machine itself begins [`Phase::Jump`] and [`Phase::BootNew`].
    pub fn enter_phase(&mut self, phase: Phase) -> Result<(), MachineError> {
        self.change_stamp(Stamp {
            phase,
            ..self.records.stamp
        })
    }

    /// To be called before the answer that makes the agent execute the kexec. `machine_kexec` returns the address of
    /// that function in the running kernel, if its symbols are known. KVM needs it to stop at the jump.
    pub fn expect_kexec(&mut self, machine_kexec: &dyn Fn() -> Option<u64>) {
        self.processors.expect_kexec(&self.platform.ram, machine_kexec);
    }

    /// To be called before the request that makes the agent jump into an image that returns (KEXEC_PRESERVE_CONTEXT).
    /// Until the agent's next message, no jump counts as a kexec.
    pub fn expect_return(&mut self) {
        if self.records.kexec == Kexec::Watching {
            self.records.kexec = Kexec::NotWatching;
            self.processors.watch_for_kexec(false);
        }
    }

    /// Begins to watch for a kexec, as the agent's greeting does. To be called once user code runs
    /// ([`Machine::user_code_ran`]): a booting kernel executes in the lower half of the address space, too. KVM sees a
    /// kexec only if it was announced by [`Machine::expect_kexec`].
    pub fn watch_for_kexec(&mut self) {
        if self.records.kexec == Kexec::NotWatching {
            self.records.kexec = Kexec::Watching;
            self.processors.watch_for_kexec(true);
        }
    }

    /// Whether a kexec of the running kernel would be seen if [`Machine::watch_for_kexec`] were called, and is not seen
    /// yet. Never on KVM.
    #[must_use]
    pub fn may_watch_for_kexec(&self) -> bool {
        self.records.kexec == Kexec::NotWatching && self.processors.sees_unannounced_kexec()
    }

    /// Whether the running kernel has executed user code.
    #[must_use]
    pub fn user_code_ran(&self) -> bool {
        self.records.kexec != Kexec::Jumped && self.processors.entered_user_at().is_some()
    }

    /// Whether somebody may type. While that is so, a guest that sleeps without a timer sleeps on, because input can
    /// wake it; it is not [`Event::DeadHalt`].
    pub fn expect_input(&mut self, expected: bool) {
        self.input_may_come = expected;
    }

    /// Keeps page writes until now apart from later ones within the same phase: the next write to each page is recorded
    /// although the page has been written to before.
    pub fn split_page_writes(&mut self) -> Result<(), MachineError> {
        self.collect_page_writes()
    }

    /// Sets the guest time without progress after which the run ends, in nanoseconds. It is part of the state.
    pub fn allow_no_progress_for(&mut self, limit: u64) {
        self.platform.progress.allow(limit);
    }

    /// Guest time of the last progress in nanoseconds: a message, console output, a phase change or a jump.
    #[must_use]
    pub fn last_progress(&self) -> u64 {
        self.platform.progress.since_and_limit().0
    }

    /// Longest delay between a device's due time and its service, in guest nanoseconds.
    #[must_use]
    pub fn device_lateness(&self) -> u64 {
        self.processors.device_lateness()
    }

    /// How many instructions softcpu executed because KVM could not, by mnemonic.
    #[must_use]
    pub fn emulated(&self) -> Vec<(String, u64)> {
        self.processors.emulated()
    }

    /// Ends the run: closes the current phase, so that its page writes and counters are complete.
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
        let printed = self.platform.bus.uart.console.total();
        let retired = self.processors.retired();
        self.records.phases.change(stamp, now, retired, printed);
        self.records.provenance.begin(stamp);
        self.platform.progress.mark(now);
        self.begin_injections(now, stamp);
        Ok(())
    }

    /// Arms the injections that wait for a phase, and does what is due at its beginning.
    fn begin_injections(&mut self, now: u64, stamp: Stamp) {
        self.platform
            .count_instructions(now, || self.processors.retired());
        self.platform.bus.view.injections.begin(now, stamp);
        self.platform.bus.inject(now);
        self.await_addresses();
    }

    /// The injections, and what has become of each.
    #[must_use]
    pub fn injections(&self) -> &[Running] {
        self.platform.bus.view.injections.all()
    }

    /// The number of the first injection that asks what to do, from 0. The machine does not run on before
    /// [`Machine::answer_injection`].
    #[must_use]
    pub fn injection_asks(&self) -> Option<usize> {
        self.platform.bus.view.injections.asks()
    }

    /// Answers injection `number`: with the deed, which is done at once if the injection is due, or with the reason why
    /// there is none. Returns whether it asked.
    pub fn answer_injection(&mut self, number: usize, answer: Result<Deed, String>) -> bool {
        let now = self.processors.now();
        let asked = self.platform.bus.view.injections.answer(number, now, answer);
        self.platform.bus.inject(now);
        self.await_addresses();
        asked
    }

    /// Adds injections. If one waits for the beginning of the current phase, that counts if no time has passed since:
    /// then the machine goes on as if it had had them from power-on on.
    pub fn add_injections(&mut self, added: &[Injection]) -> Result<(), MachineError> {
        let first = self.injections().len();
        let (vcpus, soft) = (
            self.platform.bus.lapics.count(),
            self.processors.retired().is_some(),
        );
        for (number, injection) in (first..).zip(added) {
            config::check_injection(number, injection, vcpus, soft)?;
        }
        let (now, stamp) = (self.processors.now(), self.records.stamp);
        let began = self.phases().last().map_or(0, |phase| phase.start_ns);
        self.platform.bus.view.injections.add(added);
        // A delay in instructions begins at their present number.
        self.platform
            .count_instructions(now, || self.processors.retired());
        self.platform
            .bus
            .view
            .injections
            .arm_added(first, now, stamp, began);
        self.platform.bus.inject(now);
        self.await_addresses();
        Ok(())
    }

    /// Has the machine stop with [`Event::Reached`] before the running kernel executes one of these instructions, wherever
    /// it lies. They are named by the addresses that the kernel was linked for. Takes the place of those named before.
    /// Only `soft` can.
    pub fn stop_before(&mut self, linked: &[u64]) {
        self.records.stops = linked.to_vec();
        self.await_addresses();
    }

    /// Tells the processors which instructions injections wait for.
    pub(super) fn await_addresses(&mut self) {
        let injections = &self.platform.bus.view.injections;
        let (mut addresses, mut mask) = injections.awaited_addresses(self.records.stamp.generation);
        if !self.records.stops.is_empty() {
            addresses.extend(&self.records.stops);
            mask &= SAME_BITS;
        }
        self.processors.await_addresses(&addresses, mask);
    }

    /// Answers [`Event::AwaitedAddress`]: how far the running kernel lies above the addresses that it was linked for,
    /// or `None` if that cannot be told yet.
    pub fn kernel_lies_at(&mut self, offset: Option<u64>) {
        let (now, generation) = (self.processors.now(), self.records.stamp.generation);
        if let Some(offset) = offset {
            self.platform.bus.view.injections.kernel_found(generation, offset);
        }
        self.executes(now, self.registers().rip);
    }

    /// A processor is about to execute an instruction that injections may wait for.
    pub(super) fn executes(&mut self, now: u64, rip: u64) {
        let generation = self.records.stamp.generation;
        self.platform
            .count_instructions(now, || self.processors.retired());
        self.platform.bus.view.injections.on_execute(now, generation, rip);
        self.platform.bus.inject(now);
        self.await_addresses();
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

    /// Time, position and phase now.
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

    /// Registers of the processor that caused the last event.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.processors.registers()
    }

    /// Registers of every processor, in the order of their numbers.
    #[must_use]
    pub fn all_registers(&self) -> Vec<Registers> {
        self.processors.all_registers()
    }

    /// IA32_LSTAR of each processor, where SYSCALL goes; 0 if its kernel has not set it yet.
    #[must_use]
    pub fn syscall_entries(&self) -> Vec<u64> {
        self.processors.syscall_entries()
    }

    /// The ledger of device writes.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.platform.bus.view.ledger
    }

    /// The trace. Empty on a backend whose runs cannot be repeated.
    #[must_use]
    pub fn trace(&self) -> TraceRecord {
        self.platform
            .bus
            .trace
            .to_record(|time| self.processors.instructions_at(time))
    }

    /// Causes of engine events in the ledger: those that a processor's access caused, in order.
    #[must_use]
    pub fn causes(&self) -> &[Cause] {
        &self.platform.causes
    }

    /// Console output.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.platform.bus.uart.console
    }

    /// Whether the guest's driver waits for input and has read all that was typed. What is typed before that is lost,
    /// because a driver empties the port when it starts.
    #[must_use]
    pub fn takes_input(&self) -> bool {
        self.platform.bus.uart.takes_input()
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

    /// The phases so far. The end of the current one is now.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseRecord> {
        self.records
            .phases
            .all(self.processors.now(), self.processors.retired())
    }

    /// The pages that processors wrote in each phase that has ended.
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

    /// Page frames that nobody has written to since power-on, in ascending order: neither loader, processor, device nor
    /// injection. A page does not count if one of the 16 around it was written to.
    pub fn never_written(&mut self) -> Result<Vec<u64>, MachineError> {
        self.mark_page_writes()?;
        Ok(self.platform.ram.untouched_groups())
    }

    /// Starts recording the last write to each byte of these page frames.
    pub fn watch(&mut self, pfns: impl IntoIterator<Item = u64>) {
        pfns.into_iter()
            .for_each(|pfn| self.processors.watch_writes(pfn, true));
    }

    /// Stops that and drops the record, so that the state equals that of a machine that never watched these page
    /// frames.
    pub fn unwatch(&mut self, pfns: impl IntoIterator<Item = u64>) {
        pfns.into_iter()
            .for_each(|pfn| self.processors.watch_writes(pfn, false));
    }

    /// The code that the processors have decoded and translated, for a machine that branches off the same run. The
    /// machine goes on as before, and makes its code anew.
    pub fn take_code(&mut self) -> Option<WarmCode> {
        self.processors.take_code()
    }

    /// Uses such code wherever RAM holds the same bytes. Nothing but speed depends on it.
    pub fn give_code(&mut self, code: WarmCode) {
        self.processors.give_code(code);
    }

    /// Chooses which guest code is translated to host code from now on, on the `soft` backend.
    pub fn translate(&mut self, which: Translation) {
        self.processors.translate(which);
    }

    /// What the processor whose turn it is is about to do, on the `soft` backend.
    pub fn look(&mut self) -> Option<Look> {
        self.processors.look()
    }

    /// Remembers when each of these page frames is next read or written by a processor, where the backend can tell.
    ///
    /// For runs that only search for such a moment: watching drops cached translations, which a guest that uses stale
    /// ones may notice, and is not part of the state.
    pub fn watch_first_access(&mut self, pfns: impl IntoIterator<Item = u64>) {
        pfns.into_iter()
            .for_each(|pfn| self.processors.watch_first_access(pfn));
    }

    /// Guest time of the first access to this page frame since it is watched; `None` if there was none.
    #[must_use]
    pub fn first_access(&self, pfn: u64) -> Option<u64> {
        self.processors.first_access(pfn)
    }

    /// The processors' last write to the byte at `address`, and the phase in which it was made; `None` if the page is
    /// not watched or no write to the byte was seen.
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
