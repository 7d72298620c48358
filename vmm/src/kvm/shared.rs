//! What the threads of a running machine share, and how one of them ends the run for all.
//!
//! Locks are taken in the order of the fields of [`Shared`]: a thread that holds one takes only later ones.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::clock::GuestClock;
use super::dirty::DirtyLog;
use super::error::KvmError;
use super::exclusive::GuestAccess;
use super::kick::Kick;
use super::msi::MsiRoutes;
use super::sandbox::{Sandbox, cause};
use super::workarounds::deadline::DeadlineTimer;
use crate::platform::Platform;
use crate::processors::StopReason;

/// Guest times that the vCPUs' exits and the device thread record, in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Recorded {
    /// Last device access from user mode.
    pub last_user_access: Option<u64>,
    /// First device access from user mode since this was reset.
    pub first_user_access: Option<u64>,
    /// Last device access from any mode.
    pub last_access: Option<u64>,
    /// Longest delay between a device's due time and its service.
    pub lateness: u64,
}

impl Recorded {
    /// Records that a device is served at `now` that was to be served at `due`; `None` if no device was to be.
    fn serve(&mut self, due: Option<u64>, now: u64) {
        let late = due.and_then(|due| now.checked_sub(due));
        self.lateness = self.lateness.max(late.unwrap_or(0));
    }
}

/// One thread's reason to end the run.
#[derive(Debug)]
pub(super) struct Ending {
    /// Index of the vCPU that exited; `None` if the device thread ended the run.
    pub vcpu: Option<usize>,
    /// What `Processors::run` returns for it.
    pub result: Result<StopReason, KvmError>,
}

/// Whether a vCPU can still make progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Liveness {
    /// It runs, or a timer will wake it.
    Alive,
    /// Halted with interrupts disabled.
    Halted,
    /// Halted with interrupts enabled and no timer armed: only a device can wake it.
    WaitsForDevice,
    /// Never started.
    NotStarted,
}

/// How the device thread checks whether one vCPU is alive.
#[derive(Debug, Default)]
pub(super) struct LivenessCheck {
    /// The device thread wants the vCPU's own thread to find out.
    pub requested: AtomicBool,
    /// The [`Liveness`] found last.
    found: AtomicU8,
    /// Exits of the vCPU so far.
    pub exits: AtomicU64,
}

impl LivenessCheck {
    pub fn set(&self, liveness: Liveness) {
        self.found.store(liveness as u8, Ordering::Release);
    }

    pub fn get(&self) -> Liveness {
        use Liveness::{Alive, Halted, NotStarted, WaitsForDevice};
        let found = self.found.load(Ordering::Acquire);
        [Halted, WaitsForDevice, NotStarted]
            .into_iter()
            .find(|liveness| *liveness as u8 == found)
            .unwrap_or(Alive)
    }
}

/// Everything that the threads share.
pub(super) struct Shared<'a> {
    pub platform: Mutex<&'a mut Platform>,
    /// Held by vCPU threads in KVM_RUN, and exclusively by a thread that executes an instruction on softcpu.
    pub guest_access: GuestAccess,
    pub msi_routes: Mutex<&'a mut MsiRoutes>,
    pub dirty: Mutex<&'a mut DirtyLog>,
    pub recorded: Mutex<&'a mut Recorded>,
    /// One per vCPU, as are `kicks` and `liveness`.
    pub timers: &'a [Mutex<DeadlineTimer>],
    /// Why the run ends. Several threads may have a reason at the same time.
    pub endings: Mutex<Vec<Ending>>,
    pub stopping: AtomicBool,
    pub kicks: Vec<Kick<'a>>,
    pub liveness: Vec<LivenessCheck>,
    /// Wakes the device thread.
    pub wake: &'a EventFd,
    /// Guest time at which the device thread wakes up by itself, at the latest.
    pub devices_sleep_until: AtomicU64,
    pub vm: &'a VmFd,
    pub sandbox: &'a Sandbox,
    pub clock: GuestClock,
    /// Guest time at which the run ends, in nanoseconds.
    pub limit: u64,
}

/// Locks `mutex`, ignoring poison: if a thread panicked, the run ends anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Splits the reasons into the one that ends this run and those that the next runs return at once. A device's message
/// is never dropped, even if another thread ended the run at the same time. `Limit` and `NoProgress` are kept only if
/// there is no other reason.
pub(super) fn first_and_rest(mut endings: Vec<Ending>) -> (Option<Ending>, Vec<Ending>) {
    let idle = |ending: &Ending| matches!(ending.result, Ok(StopReason::Limit | StopReason::NoProgress));
    if endings.iter().all(idle) {
        endings.truncate(1);
    } else {
        endings.retain(|ending| !idle(ending));
    }
    if endings.is_empty() {
        return (None, endings);
    }
    let first = endings.remove(0);
    (Some(first), endings)
}

impl<'a> Shared<'a> {
    /// Whether the threads have to come back.
    pub fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends the run with this result.
    pub fn finish(&self, vcpu: Option<usize>, result: Result<StopReason, KvmError>) {
        let result = result.map_err(cause);
        lock(&self.endings).push(Ending { vcpu, result });
        self.stop();
    }

    /// Makes every thread come back.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.kicks.iter().for_each(Kick::kick);
        self.wake_devices();
    }

    /// Makes the device thread look for work.
    pub fn wake_devices(&self) {
        // The write fails only if the counter is full; the thread has then been woken already.
        let _ = self.wake.write(1);
    }

    /// Call after an access to a device. Sends the interrupts that it caused, and wakes the device thread if a device
    /// is now due before that thread would wake up.
    pub fn after_access(&self, platform: &mut Platform) -> Result<(), KvmError> {
        self.send_interrupts(platform)?;
        let next = platform.bus.next_event().unwrap_or(u64::MAX);
        if next < self.devices_sleep_until.load(Ordering::Acquire) {
            self.wake_devices();
        }
        Ok(())
    }

    /// Locks the platform once every device has done what is due by now, and returns that time, too. An access that
    /// stops a device must not undo what the device thread is late with.
    pub fn platform_now(&self) -> Result<(MutexGuard<'_, &'a mut Platform>, u64), KvmError> {
        let mut platform = lock(&self.platform);
        let now = self.clock.now();
        self.advance(&mut platform, now)?;
        Ok((platform, now))
    }

    /// Serves the devices that are due by guest time `now`, and records how late that is.
    pub fn advance(&self, platform: &mut Platform, now: u64) -> Result<(), KvmError> {
        lock(&self.recorded).serve(platform.bus.next_event(), now);
        platform.advance(now, || None);
        self.send_interrupts(platform)
    }

    /// Sends the interrupt messages in the bus's outbox.
    pub fn send_interrupts(&self, platform: &mut Platform) -> Result<(), KvmError> {
        let Some(outbox) = &mut platform.bus.outbox else {
            return Ok(());
        };
        if outbox.is_empty() {
            return Ok(());
        }
        let mut routes = lock(&self.msi_routes);
        outbox.drain(..).try_for_each(|msi| routes.send(self.vm, msi))
    }

    /// Kicks every vCPU but this one.
    pub fn kick_others(&self, index: usize) {
        let others = self.kicks.iter().enumerate().filter(|(other, _)| *other != index);
        others.for_each(|(_, kick)| kick.kick());
    }
}

/// Ends the run when its thread ends, even by a panic.
pub(super) struct StopOnDrop<'a, 'b>(pub &'a Shared<'b>);

impl Drop for StopOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processors::DeviceEvent;

    fn ending(reason: StopReason) -> Ending {
        Ending {
            vcpu: None,
            result: Ok(reason),
        }
    }

    #[test]
    fn no_message_is_lost_to_what_ended_the_run() {
        let message = || ending(StopReason::DeviceEvent(DeviceEvent::Message(Ok(vec![1]))));
        let split = |endings: Vec<Ending>| {
            let (first, rest) = first_and_rest(endings);
            (
                first.and_then(|ending| ending.result.ok()),
                rest.into_iter().filter_map(|ending| ending.result.ok()).count(),
            )
        };
        let told = message().result.ok();
        assert_eq!(
            split(vec![ending(StopReason::Limit), message()]),
            (told.clone(), 0)
        );
        assert_eq!(
            split(vec![message(), ending(StopReason::NoProgress)]),
            (told.clone(), 0)
        );
        let halt = || ending(StopReason::DeadHalt { interruptible: true });
        assert_eq!(split(vec![message(), halt()]), (told, 1));
        assert_eq!(
            split(vec![ending(StopReason::Limit), ending(StopReason::Limit)]),
            (Some(StopReason::Limit), 0)
        );
        assert_eq!(split(Vec::new()), (None, 0));
    }

    #[test]
    fn the_longest_delay_is_kept() {
        let mut recorded = Recorded::default();
        for (due, now, longest) in [
            (None, 100, 0),
            (Some(90), 100, 10),
            (Some(200), 100, 10),
            (Some(99), 100, 10),
            (Some(0), 100, 100),
        ] {
            recorded.serve(due, now);
            assert_eq!(recorded.lateness, longest, "due at {due:?}");
        }
    }

    #[test]
    fn liveness_is_stored_and_read_back() {
        let check = LivenessCheck::default();
        assert_eq!(check.get(), Liveness::Alive);
        for liveness in [
            Liveness::Halted,
            Liveness::WaitsForDevice,
            Liveness::NotStarted,
            Liveness::Alive,
        ] {
            check.set(liveness);
            assert_eq!(check.get(), liveness);
        }
    }
}
