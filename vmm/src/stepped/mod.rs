//! Processors and devices in turn on one thread: a run is a pure function of its inputs.

mod idle;

use xxhash_rust::xxh3::Xxh3;

use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Happening, Processors};
use crate::vcpu::{BackendError, CpuWrite, Registers, Stop, Vcpu};
use idle::Idle;

/// One processor and the devices, in turn.
pub struct Stepped {
    vcpu: Box<dyn Vcpu>,
    idle: Idle,
    halted: bool,
}

impl Stepped {
    /// Takes a processor that has its registers.
    #[must_use]
    pub fn new(vcpu: Box<dyn Vcpu>) -> Self {
        Self {
            vcpu,
            idle: Idle::default(),
            halted: false,
        }
    }

    /// Lets the devices do what is due, and tells the processor what they wrote.
    fn advance(&mut self, platform: &mut Platform) {
        platform.advance(self.vcpu.now());
        for (address, length) in platform.bus.view.take_stale() {
            self.vcpu.memory_written(address, length);
        }
    }

    /// Delivers an interrupt if there is one, then executes or sleeps to the next deadline.
    fn step(&mut self, platform: &mut Platform, limit: u64) -> Option<Happening> {
        if let Err(stop) = self.offer_interrupt(platform) {
            return self.stopped(stop);
        }
        let patience = platform.progress.deadline();
        if self.vcpu.now() >= patience {
            return Some(Happening::Stuck);
        }
        let next = platform.bus.next_event();
        if self.halted {
            let Some(next) = next else {
                return Some(Happening::DeadHalt { interruptible: true });
            };
            self.sleep_to(next.min(patience).min(limit));
            return None;
        }
        let until = next.unwrap_or(u64::MAX).min(patience).min(limit);
        let before = platform.engine_events();
        let stop = self.vcpu.run(&mut platform.bus, until);
        let events = before..platform.engine_events();
        platform.note_causes(events, Some(self.vcpu.retired()), || self.vcpu.registers());
        self.stopped(stop)
    }

    fn offer_interrupt(&mut self, platform: &mut Platform) -> Result<(), Stop> {
        // Asking for CR8 costs more than looking at the local APIC, which is mostly idle.
        let pending = platform.bus.lapic.deliverable(0);
        let vector = pending.and_then(|_| platform.bus.lapic.deliverable(self.vcpu.task_priority()));
        let Some(vector) = vector else {
            self.vcpu.request_interrupt_window(false);
            return Ok(());
        };
        if !self.vcpu.can_take_interrupt() {
            self.vcpu.request_interrupt_window(true);
            return Ok(());
        }
        platform.bus.lapic.acknowledge(vector);
        self.halted = false;
        // Whether another one waits behind it is looked at after the first instruction of its handler has run.
        self.vcpu
            .request_interrupt_window(platform.bus.lapic.deliverable(0).is_some());
        self.vcpu.inject_interrupt(&mut platform.bus, vector)
    }

    fn stopped(&mut self, stop: Stop) -> Option<Happening> {
        match stop {
            Stop::Deadline | Stop::Bus | Stop::InterruptWindow => None,
            Stop::Halted { interruptible: true } => {
                self.halted = true;
                None
            }
            Stop::Halted { interruptible } => Some(Happening::DeadHalt { interruptible }),
            Stop::LowSupervisorFetch { rip } => Some(Happening::LowSupervisorFetch {
                rip,
                not_before: None,
            }),
            Stop::TripleFault { reason } => Some(Happening::TripleFault { reason }),
            Stop::UnknownInstruction { bytes, what, .. } => {
                Some(Happening::UnknownInstruction { bytes, what })
            }
        }
    }

    /// Lets time pass up to `time` without executing anything.
    fn sleep_to(&mut self, time: u64) {
        let now = self.vcpu.now();
        self.vcpu.skip_to(time);
        self.idle.add(now, self.vcpu.now());
    }
}

impl Processors for Stepped {
    fn run(&mut self, platform: &mut Platform, limit: u64) -> Result<Happening, BackendError> {
        loop {
            self.advance(platform);
            let now = self.vcpu.now();
            if let Some(news) = platform.take_news(now) {
                return Ok(Happening::News(news));
            }
            if now >= limit {
                return Ok(Happening::Limit);
            }
            if let Some(happening) = self.step(platform, limit) {
                return Ok(happening);
            }
        }
    }

    fn stand(&mut self, platform: &mut Platform, until: u64) -> Result<(), BackendError> {
        loop {
            self.advance(platform);
            let now = self.vcpu.now();
            if now >= until || platform.bus.dma.stopped_by_ledger() {
                return Ok(());
            }
            let next = platform.bus.next_event().unwrap_or(until);
            self.sleep_to(next.clamp(now + 1, until));
        }
    }

    fn now(&self) -> u64 {
        self.vcpu.now()
    }

    fn retired(&self) -> Option<u64> {
        Some(self.vcpu.retired())
    }

    fn instructions_at(&self, time: u64) -> Option<u64> {
        time.checked_sub(self.idle.before(time))
    }

    fn registers(&self) -> Registers {
        self.vcpu.registers()
    }

    fn watch_for_kexec(&mut self, wanted: bool) {
        self.vcpu.stop_on_low_supervisor_fetch(wanted);
    }

    // The processor sees the jump itself.
    fn expect_kexec(&mut self, _: &GuestRam, _: &dyn Fn() -> Option<u64>) {}

    fn watch_writes(&mut self, pfn: u64) {
        self.vcpu.watch_writes(pfn);
    }

    fn last_write(&self, address: u64) -> Option<CpuWrite> {
        self.vcpu.last_write(address)
    }

    fn epoch_writes(&mut self, each: &mut dyn FnMut(CpuWrite)) -> Result<(), BackendError> {
        self.vcpu.epoch_writes(each);
        Ok(())
    }

    fn writes_are_exact(&self) -> bool {
        true
    }

    fn begin_write_epoch(&mut self) -> Result<(), BackendError> {
        self.vcpu.begin_write_epoch();
        Ok(())
    }

    fn left_user_at(&self) -> Option<u64> {
        self.vcpu.left_user_at()
    }

    fn entered_user_at(&self) -> Option<u64> {
        self.vcpu.entered_user_at()
    }

    fn reset_user_marks(&mut self) {
        self.vcpu.reset_user_marks();
    }

    fn hash_state(&self, hash: &mut Xxh3) {
        self.vcpu.hash_state(hash);
    }
}
