//! Processors and devices in turn on one thread: a run is a pure function of its inputs.
//!
//! All processors share one time axis. At each nanosecond of it at most one of them executes, and none while all sleep.
//! A turn ends after a fixed number of instructions, when the processor halts, or when it executes PAUSE because it
//! waits for another. Therefore the writes of all processors have one order in time, their time stamp counters always
//! agree, and locked instructions are atomic. A processor takes an interprocessor interrupt when its turn comes.

use std::sync::Arc;

use crate::boot::layout::EXTENDED_START;
use crate::boot::wakeup;
use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Activity, Idle, Processors, ProcessorsState, SteppedState, StopReason, Turn};
use crate::trace;
use crate::vcpu::{BackendError, CpuWrite, Exit, Look, Registers, Shutdown, Translation, Vcpu, WarmCode};

use super::code::SharedCode;
use super::vcpu::SoftVcpu;

/// Processors and the devices, in turn.
pub struct Stepped {
    vcpus: Vec<Box<dyn Vcpu>>,
    activities: Vec<Activity>,
    turn: Turn,
    code: SharedCode,
    idle: Idle,
}

impl Stepped {
    /// Takes at least one processor, with its registers set; `vcpus[i]` has local APIC identity i.
    #[must_use]
    pub fn new(mut vcpus: Vec<Box<dyn Vcpu>>) -> Self {
        let several = vcpus.len() > 1;
        for vcpu in &mut vcpus {
            vcpu.stop_on_pause(several);
        }
        Self {
            activities: vec![Activity::Running; vcpus.len()],
            code: SharedCode::of(&mut vcpus),
            vcpus,
            turn: Turn::of(0, 0),
            idle: Idle::default(),
        }
    }

    /// Processors on `ram`, restored from `state`.
    pub fn from_state(state: &SteppedState, ram: &Arc<GuestRam>) -> Result<Self, BackendError> {
        let SteppedState {
            vcpus,
            activities,
            turn,
            idle,
        } = state;
        let count = vcpus.len();
        if count == 0 || activities.len() != count || turn.processor >= count {
            return Err(BackendError {
                backend: "soft",
                reason: format!(
                    "the state has {count} processors, activities of {}, and the turn of processor {}: expected an \
                     activity for each processor, and the turn of one of them",
                    activities.len(),
                    turn.processor
                ),
            });
        }
        let vcpus: Result<Vec<Box<dyn Vcpu>>, BackendError> = vcpus
            .iter()
            .map(|state| Ok(Box::new(SoftVcpu::from_state(Arc::clone(ram), state)?) as Box<dyn Vcpu>))
            .collect();
        let mut vcpus = vcpus?;
        Ok(Self {
            code: SharedCode::of(&mut vcpus),
            vcpus,
            activities: activities.clone(),
            turn: *turn,
            idle: idle.clone(),
        })
    }

    fn several(&self) -> bool {
        self.vcpus.len() > 1
    }

    /// The processor whose turn it is. Its time is the machine's.
    fn current(&self) -> &dyn Vcpu {
        &*self.vcpus[self.turn.processor]
    }

    fn current_mut(&mut self) -> &mut dyn Vcpu {
        &mut *self.vcpus[self.turn.processor]
    }

    fn is(&self, activity: Activity) -> bool {
        self.activities[self.turn.processor] == activity
    }

    fn set_activity(&mut self, activity: Activity) {
        self.activities[self.turn.processor] = activity;
    }

    fn total_retired(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.retired()).sum()
    }

    /// Lets the devices do what is due, and makes the processors drop code that the devices overwrote.
    fn advance(&mut self, platform: &mut Platform) {
        platform.advance(self.now(), || Some(self.total_retired()));
        let shift = platform.bus.lapics.take_tsc_shift();
        if shift != 0 {
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.shift_tsc(shift));
        }
        for (address, length) in platform.bus.view.take_written() {
            self.vcpus[self.code.holder()].memory_written(address, length);
        }
    }

    /// Whether processor `index` has something to do.
    fn wakes(&self, platform: &Platform, index: usize) -> bool {
        let (vcpu, lapic) = (&self.vcpus[index], platform.bus.lapics.of(index));
        // The local APIC is asked first without CR8: mostly no interrupt is pending, and reading CR8 costs more.
        let interrupt =
            || lapic.deliverable(0).is_some() && lapic.deliverable(vcpu.task_priority()).is_some();
        let nmi = || lapic.nmi_pending() && vcpu.can_take_nmi();
        match self.activities[index] {
            Activity::Running => true,
            Activity::Halted { interruptible: true } => nmi() || interrupt() && vcpu.can_take_interrupt(),
            Activity::Halted { interruptible: false } => nmi(),
            // The firmware has no interrupt descriptor table, so interrupts stay pending until a kernel starts the
            // processor.
            Activity::Waiting => wakeup::is_called(&platform.ram, u8::try_from(index).unwrap_or(u8::MAX)),
        }
    }

    /// Gives the turn to the next processor that can execute, once the current turn is over. Returns whether one can.
    fn take_turn(&mut self, platform: &Platform) -> bool {
        let (now, current) = (self.now(), self.turn.processor);
        if !self.turn.is_over(now) && self.wakes(platform, current) {
            return true;
        }
        let count = self.vcpus.len();
        for index in (current + 1..=current + count).map(|next| next % count) {
            if self.wakes(platform, index) {
                self.vcpus[index].skip_to(now);
                self.turn = Turn::of(index, now);
                return true;
            }
        }
        false
    }

    /// Whether all processors are stopped in a way that no interrupt of a device ends.
    fn nothing_can_wake(&self) -> bool {
        let mut all = self.activities.iter();
        all.all(|activity| {
            matches!(
                activity,
                Activity::Halted { interruptible: false } | Activity::Waiting
            )
        })
    }

    /// Delivers an interrupt if there is one, then executes or sleeps to the next deadline.
    fn step(&mut self, platform: &mut Platform, limit: u64) -> Option<StopReason> {
        if self.several() && self.take_turn(platform) && self.is(Activity::Waiting) {
            self.set_activity(Activity::Running);
        }
        self.code.hand_to(&mut self.vcpus, self.turn.processor);
        platform.bus.lapics.select(self.turn.processor);
        if let Err(shutdown) = self.offer_interrupt(platform) {
            return self.exited(Exit::Shutdown(shutdown));
        }
        let (now, patience) = (self.now(), platform.progress.deadline());
        if now >= patience {
            return Some(StopReason::NoProgress);
        }
        let next = platform.bus.next_event();
        let stand_until = platform.bus.dma.stand_until();
        if now < stand_until {
            let next = next.unwrap_or(u64::MAX).max(now + 1);
            self.sleep_to(next.min(stand_until).min(patience).min(limit));
            return None;
        }
        if !self.is(Activity::Running) {
            if self.nothing_can_wake() {
                return Some(StopReason::DeadHalt { interruptible: false });
            }
            let Some(next) = next else {
                return Some(StopReason::DeadHalt { interruptible: true });
            };
            self.sleep_to(next.min(patience).min(limit));
            return None;
        }
        let mut until = next.unwrap_or(u64::MAX).min(patience).min(limit);
        if self.several() {
            until = until.min(self.turn.end);
        }
        let before = platform.engine_events();
        let exit = self.current_mut().run(&mut platform.bus, until);
        let events = before..platform.engine_events();
        platform.note_causes(events, Some(self.total_retired()), || self.current().registers());
        if self.several() {
            self.code.settle(&mut self.vcpus);
        }
        self.exited(exit)
    }

    fn offer_interrupt(&mut self, platform: &mut Platform) -> Result<(), Shutdown> {
        let current = self.turn.processor;
        let vcpu = &mut self.vcpus[current];
        let lapic = platform.bus.lapics.current_mut();
        if lapic.nmi_pending() && self.activities[current] != Activity::Waiting && vcpu.can_take_nmi() {
            lapic.acknowledge_nmi();
            self.activities[current] = Activity::Running;
            platform.bus.record(vcpu.now(), trace::Kind::Nmi, 0, 0, 0);
            return vcpu.inject_nmi(&mut platform.bus);
        }
        let pending = lapic.deliverable(0);
        let vector = pending.and_then(|_| lapic.deliverable(vcpu.task_priority()));
        let Some(vector) = vector else {
            vcpu.request_interrupt_window(false);
            return Ok(());
        };
        if !vcpu.can_take_interrupt() {
            vcpu.request_interrupt_window(true);
            return Ok(());
        }
        lapic.acknowledge(vector);
        self.activities[current] = Activity::Running;
        // If another interrupt is pending, the processor stops after the first instruction of the handler.
        vcpu.request_interrupt_window(lapic.deliverable(0).is_some());
        platform
            .bus
            .record(vcpu.now(), trace::Kind::Interrupt, 0, 0, vector.into());
        vcpu.inject_interrupt(&mut platform.bus, vector)
    }

    /// Updates turn and activity after an exit of the current processor. Returns why the machine stops; `None` if it
    /// goes on.
    fn exited(&mut self, exit: Exit) -> Option<StopReason> {
        match exit {
            Exit::Deadline | Exit::Bus | Exit::InterruptWindow => None,
            Exit::Pause { rip } => {
                self.turn.yielded = true;
                if wakeup::is_waiting_at(rip) {
                    self.set_activity(Activity::Waiting);
                }
                None
            }
            Exit::Halted { interruptible } => {
                self.set_activity(Activity::Halted { interruptible });
                let dead = !interruptible && self.nothing_can_wake();
                dead.then_some(StopReason::DeadHalt { interruptible })
            }
            // Below 1 MiB are this machine's firmware and the kernel's trampoline. Linux places nothing of a kexec
            // there.
            Exit::LowSupervisorFetch { rip } if self.several() && rip < EXTENDED_START => None,
            Exit::LowSupervisorFetch { rip } => Some(StopReason::LowSupervisorFetch {
                rip,
                not_before: None,
            }),
            Exit::WatchAddress { rip } => Some(StopReason::AwaitedAddress { rip }),
            // This backend watches no page for execution.
            Exit::WatchExecute { .. } => None,
            Exit::Shutdown(Shutdown { vectors, rip, cr2 }) => {
                let [first, second, third] = vectors;
                let reason = format!("exceptions {first}, {second}, {third} from {rip:#x} on, CR2 {cr2:#x}");
                Some(StopReason::TripleFault { reason })
            }
            Exit::Unknown(unknown) => Some(StopReason::UnknownInstruction {
                what: unknown.to_string(),
                bytes: unknown.bytes,
            }),
        }
    }

    /// Lets time pass up to `time` without executing anything.
    fn sleep_to(&mut self, time: u64) {
        let now = self.now();
        self.current_mut().skip_to(time);
        self.idle.add(now, self.now());
    }

    /// Fails if the guest sent an interprocessor interrupt that softcpu does not implement: the guest would wait for
    /// its effect.
    fn check_unserved(&self, platform: &Platform) -> Result<(), BackendError> {
        match platform.bus.lapics.unserved() {
            None => Ok(()),
            Some(ipi) => Err(BackendError {
                backend: "soft",
                reason: format!(
                    "the guest sent an interprocessor interrupt with delivery mode {} to local APIC {}: expected 0 (fixed), 1 \
                     (lowest priority) or 4 (NMI); processors are started through the ACPI wakeup mailbox",
                    ipi.mode, ipi.destination
                ),
            }),
        }
    }
}

impl Processors for Stepped {
    fn run(&mut self, platform: &mut Platform, limit: u64) -> Result<StopReason, BackendError> {
        loop {
            self.advance(platform);
            let now = self.now();
            if let Some(event) = platform.take_event(now) {
                return Ok(StopReason::DeviceEvent(event));
            }
            if now >= limit {
                return Ok(StopReason::Limit);
            }
            let reason = self.step(platform, limit);
            self.check_unserved(platform)?;
            if let Some(reason) = reason {
                return Ok(reason);
            }
        }
    }

    fn stand(&mut self, platform: &mut Platform, until: u64) -> Result<(), BackendError> {
        loop {
            self.advance(platform);
            let now = self.now();
            if now >= until || platform.holds() {
                return Ok(());
            }
            let next = platform.bus.next_event().unwrap_or(until);
            self.sleep_to(next.clamp(now + 1, until));
        }
    }

    fn now(&self) -> u64 {
        self.current().now()
    }

    fn retired(&self) -> Option<u64> {
        Some(self.total_retired())
    }

    fn take_code(&mut self) -> Option<WarmCode> {
        self.vcpus[self.code.holder()].take_code()
    }

    fn give_code(&mut self, code: WarmCode) {
        self.vcpus[self.code.holder()].give_code(code);
    }

    fn translate(&mut self, which: Translation) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.translate(which));
    }

    fn look(&mut self) -> Option<Look> {
        self.current_mut().look()
    }

    fn instructions_at(&self, time: u64) -> Option<u64> {
        time.checked_sub(self.idle.before(time)?)
    }

    fn registers(&self) -> Registers {
        self.current().registers()
    }

    fn all_registers(&self) -> Vec<Registers> {
        self.vcpus.iter().map(|vcpu| vcpu.registers()).collect()
    }

    fn syscall_entries(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.syscall_entry()).collect()
    }

    fn watch_for_kexec(&mut self, wanted: bool) {
        for vcpu in &mut self.vcpus {
            vcpu.stop_on_low_supervisor_fetch(wanted);
        }
    }

    fn await_addresses(&mut self, addresses: &[u64], mask: u64) {
        for vcpu in &mut self.vcpus {
            vcpu.await_addresses(addresses, mask);
        }
    }

    // softcpu stops at the jump itself and needs no address.
    fn expect_kexec(&mut self, _: &GuestRam, _: &dyn Fn() -> Option<u64>) {}

    fn watch_writes(&mut self, pfn: u64, on: bool) {
        for vcpu in &mut self.vcpus {
            vcpu.watch_writes(pfn, on);
        }
    }

    fn last_write(&self, address: u64) -> Option<CpuWrite> {
        let writes = self.vcpus.iter().filter_map(|vcpu| vcpu.last_write(address));
        writes.max_by_key(|write| write.time)
    }

    fn watch_first_access(&mut self, pfn: u64) {
        for vcpu in &mut self.vcpus {
            vcpu.watch_first_access(pfn);
        }
    }

    fn first_access(&self, pfn: u64) -> Option<u64> {
        self.vcpus.iter().filter_map(|vcpu| vcpu.first_access(pfn)).min()
    }

    fn epoch_writes(&mut self, each: &mut dyn FnMut(CpuWrite)) -> Result<(), BackendError> {
        if let [vcpu] = &self.vcpus[..] {
            vcpu.epoch_writes(each);
            return Ok(());
        }
        let mut writes = Vec::new();
        for vcpu in &self.vcpus {
            vcpu.epoch_writes(&mut |write| writes.push(write));
        }
        // Only one processor executes at any time, so the times give the order of the writes.
        writes.sort_by_key(|write| write.time);
        let mut seen = std::collections::HashSet::new();
        for write in writes {
            if seen.insert(write.gpa / crate::memory::PAGE_SIZE) {
                each(write);
            }
        }
        Ok(())
    }

    fn begin_write_epoch(&mut self) -> Result<(), BackendError> {
        for vcpu in &mut self.vcpus {
            vcpu.begin_write_epoch();
        }
        Ok(())
    }

    fn left_user_at(&self) -> Option<u64> {
        self.vcpus.iter().filter_map(|vcpu| vcpu.left_user_at()).max()
    }

    fn entered_user_at(&self) -> Option<u64> {
        self.vcpus.iter().filter_map(|vcpu| vcpu.entered_user_at()).min()
    }

    fn reset_user_marks(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.reset_user_marks();
        }
    }

    fn state(&self) -> ProcessorsState {
        // `code` is a cache of decoded instructions and so no part of the state.
        let Self {
            vcpus,
            activities,
            turn,
            code: _,
            idle,
        } = self;
        ProcessorsState::Soft(SteppedState {
            vcpus: vcpus.iter().map(|vcpu| vcpu.state()).collect(),
            activities: activities.clone(),
            turn: *turn,
            idle: idle.clone(),
        })
    }
}
