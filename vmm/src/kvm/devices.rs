//! The device thread: an event loop that drives the devices in real time. Their writes race with the vCPUs, as on
//! hardware.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::timerfd::TimerFd;

use super::error::KvmError;
use super::msi::signal;
use super::sandbox::{Role, violation};
use super::shared::{Liveness, LivenessCheck, Shared, StopOnDrop, lock};
use super::workarounds::deadline::POLL_INTERVAL;
use crate::processors::StopReason;

/// Shortest sleep, in guest time for devices. A fast DMA engine then writes several blocks per wake-up, and a slow host
/// spends no more of its time on waking up than a fast one.
const MIN_SLEEP: Duration = Duration::from_micros(100);
/// Time between two checks whether the vCPUs are alive, and so the longest sleep.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(100);
/// A vCPU that used less processor time than this in [`LIVENESS_INTERVAL`] is asked whether it is halted. The time is
/// longer if guest code is slow on this host, because the question costs processor time, too.
const HALTED_BELOW_NS: u64 = 1_000_000;
/// The longest such time: a vCPU that runs uses more on a busy host.
const HALTED_BELOW_AT_MOST_NS: u64 = 20_000_000;

/// Drives the devices until the run is over. This is the thread's body.
pub(super) fn run(shared: &Shared<'_>, vcpus_run: bool) {
    let guard = StopOnDrop(shared);
    if let Err(error) = drive(shared, vcpus_run) {
        shared.finish(None, Err(error));
    }
    drop(guard);
}

fn drive(shared: &Shared<'_>, vcpus_run: bool) -> Result<(), KvmError> {
    shared.sandbox.enter(Role::Devices)?;
    let failed = |error: &dyn std::fmt::Display| KvmError::new("event loop", error);
    let mut manager = EventManager::new().map_err(|error| failed(&error))?;
    let timer = TimerFd::new().map_err(|error| failed(&error))?;
    manager.add_subscriber(DeviceLoop {
        shared,
        timer,
        vcpus_run,
        last_active: vec![LastActive::default(); shared.kicks.len()],
        last_check: Instant::now(),
        failure: None,
    });
    // The devices are served once before anything has happened.
    shared.wake_devices();
    while !shared.is_over() {
        manager.run().map_err(|error| failed(&error))?;
        violation()?;
    }
    Ok(())
}

/// A vCPU's state at the last liveness check at which it was active.
#[derive(Debug, Clone, Copy, Default)]
struct LastActive {
    exits: u64,
    /// Processor time of its thread in nanoseconds.
    spent: u64,
    /// Its thread has been asked for its liveness since.
    asked: bool,
}

struct DeviceLoop<'a, 'b> {
    shared: &'a Shared<'b>,
    timer: TimerFd,
    vcpus_run: bool,
    last_active: Vec<LastActive>,
    last_check: Instant,
    failure: Option<KvmError>,
}

impl MutEventSubscriber for DeviceLoop<'_, '_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for added in [
            ops.add(Events::new(&self.timer, EventSet::IN)),
            ops.add(Events::new(self.shared.wake, EventSet::IN)),
        ] {
            if let Err(error) = added {
                self.failure = Some(KvmError::new("event loop", error));
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let drained = if events.fd() == std::os::fd::AsRawFd::as_raw_fd(self.shared.wake) {
            self.shared
                .wake
                .read()
                .map(drop)
                .map_err(|error| KvmError::new("eventfd", error))
        } else {
            let read = self.timer.wait().map(drop);
            read.map_err(|error| KvmError::new("timerfd", error))
        };
        let ready = self.failure.take().map_or(drained, Err);
        match ready.and_then(|()| self.serve()) {
            Ok(None) => {}
            Ok(Some(reason)) => self.shared.finish(None, Ok(reason)),
            Err(error) => self.shared.finish(None, Err(error)),
        }
    }
}

impl DeviceLoop<'_, '_> {
    /// Serves the devices and timers that are due and sets the timer for the next one. Returns what ends the run.
    fn serve(&mut self) -> Result<Option<StopReason>, KvmError> {
        let shared = self.shared;
        if shared.is_over() {
            return Ok(None);
        }
        let (mut platform, now) = shared.platform_now()?;
        if self.vcpus_run {
            if let Some(event) = platform.take_event(now) {
                return Ok(Some(StopReason::DeviceEvent(event)));
            }
            if now >= platform.progress.deadline() {
                return Ok(Some(StopReason::NoProgress));
            }
        } else if platform.holds() {
            return Ok(Some(StopReason::Limit));
        }
        if now >= shared.limit {
            return Ok(Some(StopReason::Limit));
        }
        let next = platform.bus.next_event();
        let patience = platform.progress.deadline();
        let wake = next.unwrap_or(u64::MAX).min(patience).min(shared.limit);
        shared.devices_sleep_until.store(wake, Ordering::Release);
        drop(platform);
        let shortest = MIN_SLEEP.saturating_mul(shared.clock.slowdown());
        let mut wait = shared.clock.until(wake).max(shortest).min(LIVENESS_INTERVAL);
        if self.vcpus_run {
            if let Some(timer) = self.serve_timers()? {
                wait = wait.min(timer.max(MIN_SLEEP));
            }
            if let Some(dead) = self.check_liveness(next.is_none()) {
                return Ok(Some(dead));
            }
        }
        self.timer
            .reset(wait, None)
            .map_err(|error| KvmError::new("timerfd", error))?;
        Ok(None)
    }

    /// Sends the timer interrupts that are due. Returns how long until the next one may be; `None` if no timer is
    /// armed.
    fn serve_timers(&self) -> Result<Option<Duration>, KvmError> {
        let mut soonest: Option<Duration> = None;
        let timers = self.shared.timers.iter().zip(&self.shared.kicks);
        for (apic_id, (timer, kick)) in (0..).zip(timers) {
            let mut timer = lock(timer);
            if !timer.is_armed() {
                continue;
            }
            let spent = kick.processor_time().unwrap_or(0);
            if let Some(msi) = timer.take(apic_id, spent) {
                signal(self.shared.vm, msi)?;
            }
            let wait = timer.wait().map(|wait| wait.max(POLL_INTERVAL));
            soonest = soonest.into_iter().chain(wait).min();
        }
        Ok(soonest)
    }

    /// Detects a dead guest: all vCPUs are halted and nothing can wake one. A vCPU that neither exited nor used
    /// processor time since the last check is kicked, so that its own thread finds out.
    fn check_liveness(&mut self, devices_are_idle: bool) -> Option<StopReason> {
        let shared = self.shared;
        if self.last_check.elapsed() < LIVENESS_INTERVAL {
            return None;
        }
        self.last_check = Instant::now();
        let halted_below = shared
            .clock
            .host_time(HALTED_BELOW_NS)
            .min(HALTED_BELOW_AT_MOST_NS);
        for (index, last) in self.last_active.iter_mut().enumerate() {
            let check = &shared.liveness[index];
            let exits = check.exits.load(Ordering::Relaxed);
            let spent = shared.kicks[index].processor_time().unwrap_or(0);
            let idle = spent.saturating_sub(last.spent) < halted_below;
            // The kick itself is an exit.
            let exited = exits > last.exits + u64::from(last.asked);
            if exited || !idle {
                check.set(Liveness::Alive);
                *last = LastActive {
                    exits,
                    spent,
                    asked: false,
                };
            } else if !last.asked {
                last.asked = true;
                check.requested.store(true, Ordering::Release);
                shared.kicks[index].kick();
            }
        }
        let found: Vec<Liveness> = shared.liveness.iter().map(LivenessCheck::get).collect();
        let all_dead = !found.contains(&Liveness::Alive);
        let interruptible = found.contains(&Liveness::WaitsForDevice);
        (all_dead && (devices_are_idle || !interruptible)).then_some(StopReason::DeadHalt { interruptible })
    }
}
