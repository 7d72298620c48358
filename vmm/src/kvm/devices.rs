//! The device thread: an event loop that drives the devices in real time, so that their writes race the vCPUs.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::timerfd::TimerFd;

use super::Refused;
use super::emulating::tick::LOOK_EVERY;
use super::interrupts::signal;
use super::sandbox::{Role, violation};
use super::shared::{EndsRun, Shared, glance, lock};
use crate::processors::Happening;

/// Shortest sleep: a fast engine does several blocks in one go rather than waking for each.
const QUANTUM: Duration = Duration::from_micros(100);
/// Longest sleep, after which vCPUs that show no sign of life are looked at.
const GLANCE_EVERY: Duration = Duration::from_millis(100);
/// Processor time in [`GLANCE_EVERY`] below which a vCPU is taken to sleep.
const ASLEEP_NS: u64 = 1_000_000;

/// Drives the devices until the run is over. This is the thread's body.
pub(super) fn run(shared: &Shared<'_>, vcpus_run: bool) {
    let guard = EndsRun(shared);
    if let Err(refused) = drive(shared, vcpus_run) {
        shared.finish(None, Err(refused));
    }
    drop(guard);
}

fn drive(shared: &Shared<'_>, vcpus_run: bool) -> Result<(), Refused> {
    shared.sandbox.enter(Role::Devices)?;
    let failed = |error: &dyn std::fmt::Display| Refused::text("event loop", &error.to_string());
    let mut manager = EventManager::new().map_err(|error| failed(&error))?;
    let timer = TimerFd::new().map_err(|error| failed(&error))?;
    manager.add_subscriber(DeviceLoop {
        shared,
        timer,
        vcpus_run,
        watched: vec![Watched::default(); shared.kicks.len()],
        last_glance: Instant::now(),
        failure: None,
    });
    // The first look is not an event.
    shared.wake_devices();
    while !shared.is_over() {
        manager.run().map_err(|error| failed(&error))?;
        violation()?;
    }
    Ok(())
}

/// What a vCPU had done when it was last looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    exits: u64,
    spent: u64,
    asked: bool,
}

struct DeviceLoop<'a, 'b> {
    shared: &'a Shared<'b>,
    timer: TimerFd,
    vcpus_run: bool,
    watched: Vec<Watched>,
    last_glance: Instant,
    failure: Option<Refused>,
}

impl MutEventSubscriber for DeviceLoop<'_, '_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for added in [
            ops.add(Events::new(&self.timer, EventSet::IN)),
            ops.add(Events::new(self.shared.wake, EventSet::IN)),
        ] {
            if let Err(error) = added {
                self.failure = Some(Refused::text("event loop", &error.to_string()));
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let drained = if events.fd() == std::os::fd::AsRawFd::as_raw_fd(self.shared.wake) {
            self.shared
                .wake
                .read()
                .map(drop)
                .map_err(|error| Refused::io("eventfd", &error))
        } else {
            let read = self.timer.wait().map(drop);
            read.map_err(|error| Refused::text("timerfd", &error.to_string()))
        };
        let looked = self
            .failure
            .take()
            .map_or(drained, Err)
            .and_then(|()| self.look());
        match looked {
            Ok(None) => {}
            Ok(Some(happening)) => self.shared.finish(None, Ok(happening)),
            Err(refused) => self.shared.finish(None, Err(refused)),
        }
    }
}

impl DeviceLoop<'_, '_> {
    /// Does what is due and sets the timer for what comes next.
    fn look(&mut self) -> Result<Option<Happening>, Refused> {
        let shared = self.shared;
        if shared.is_over() {
            return Ok(None);
        }
        let mut platform = lock(&shared.platform);
        let now = shared.clock.now();
        if let Some(late) = platform.bus.next_event().and_then(|due| now.checked_sub(due)) {
            let mut marks = lock(&shared.marks);
            marks.lateness = marks.lateness.max(late);
        }
        platform.advance(now);
        shared.send_interrupts(&mut platform)?;
        if self.vcpus_run {
            if let Some(news) = platform.take_news(now) {
                return Ok(Some(Happening::News(news)));
            }
            if now >= platform.progress.deadline() {
                return Ok(Some(Happening::Stuck));
            }
        } else if platform.bus.dma.stopped_by_ledger() {
            return Ok(Some(Happening::Limit));
        }
        if now >= shared.limit {
            return Ok(Some(Happening::Limit));
        }
        let next = platform.bus.next_event();
        let patience = platform.progress.deadline();
        let wake = next.unwrap_or(u64::MAX).min(patience).min(shared.limit);
        shared.sleeping_to.store(wake, Ordering::Release);
        drop(platform);
        let mut wait = shared.clock.until(wake).clamp(QUANTUM, GLANCE_EVERY);
        if self.vcpus_run {
            if let Some(tick) = self.ticks()? {
                wait = wait.min(tick.max(QUANTUM));
            }
            if let Some(dead) = self.glance(next.is_none()) {
                return Ok(Some(dead));
            }
        }
        self.timer
            .reset(wait, None)
            .map_err(|error| Refused::text("timerfd", &error.to_string()))?;
        Ok(None)
    }

    /// Sends timer interrupts whose time has come; says when to look again.
    fn ticks(&self) -> Result<Option<Duration>, Refused> {
        let mut soonest: Option<Duration> = None;
        let ticks = self.shared.ticks.iter().zip(&self.shared.kicks);
        for (apic_id, (tick, kick)) in (0..).zip(ticks) {
            let mut tick = lock(tick);
            if !tick.is_armed() {
                continue;
            }
            let spent = kick.processor_time().unwrap_or(0);
            if let Some(msi) = tick.take(apic_id, spent) {
                signal(self.shared.vm, msi)?;
            }
            let wait = tick.wait().map(|wait| wait.max(LOOK_EVERY));
            soonest = soonest.into_iter().chain(wait).min();
        }
        Ok(soonest)
    }

    /// Looks after vCPUs that do nothing: when all of them are halted and nothing can wake one, the guest is dead.
    fn glance(&mut self, devices_are_idle: bool) -> Option<Happening> {
        let shared = self.shared;
        if self.last_glance.elapsed() < GLANCE_EVERY {
            return None;
        }
        self.last_glance = Instant::now();
        for (index, watched) in self.watched.iter_mut().enumerate() {
            let look = &shared.glances[index];
            let exits = look.exits.load(Ordering::Relaxed);
            let spent = shared.kicks[index].processor_time().unwrap_or(0);
            let still = spent.saturating_sub(watched.spent) < ASLEEP_NS;
            // The look itself is an exit.
            let moved = exits > watched.exits + u64::from(watched.asked);
            if moved || !still {
                look.dead.store(glance::ALIVE, Ordering::Release);
                *watched = Watched {
                    exits,
                    spent,
                    asked: false,
                };
            } else if !watched.asked {
                watched.asked = true;
                look.wanted.store(true, Ordering::Release);
                shared.kicks[index].kick();
            }
        }
        let dead: Vec<u64> = shared
            .glances
            .iter()
            .map(|glance| glance.dead.load(Ordering::Acquire))
            .collect();
        let all_dead = !dead.contains(&glance::ALIVE);
        let interruptible = dead.contains(&glance::WAITING);
        (all_dead && (devices_are_idle || !interruptible)).then_some(Happening::DeadHalt { interruptible })
    }
}
