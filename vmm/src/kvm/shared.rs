//! What the threads of a running machine share, and how one of them ends the run for all.
//!
//! Locks are taken in the order of the fields: whoever holds one takes only those behind it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::Refused;
use super::clock::Clock;
use super::dirty::Dirty;
use super::emulating::tick::Tick;
use super::interrupts::Interrupts;
use super::kick::Kick;
use super::sandbox::{Sandbox, cause};
use crate::platform::Platform;
use crate::processors::Happening;

/// When the guest was seen running, as far as exits tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marks {
    /// Last exit from user mode.
    pub last: Option<u64>,
    /// First exit from user mode since the marks were reset.
    pub first: Option<u64>,
    /// Last access to a device, from whatever mode.
    pub last_access: Option<u64>,
    /// Most that a device was served late, in guest nanoseconds.
    pub lateness: u64,
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct End {
    /// The vCPU that had to do with it.
    pub vcpu: Option<usize>,
    /// What happened.
    pub happening: Result<Happening, Refused>,
}

/// What a vCPU can be found to be.
pub(super) mod glance {
    /// It runs, or something will wake it.
    pub const ALIVE: u64 = 0;
    /// Halted with interrupts disabled.
    pub const HALTED: u64 = 1;
    /// Halted with interrupts enabled and no timer armed: only a device could wake it.
    pub const WAITING: u64 = 2;
    /// Never started.
    pub const OFF: u64 = 3;
}

/// What one vCPU is found doing when somebody looks.
#[derive(Debug, Default)]
pub(super) struct Glance {
    /// Somebody wants to know.
    pub wanted: AtomicBool,
    /// What it was found to be, in the codes of [`glance`].
    pub dead: AtomicU64,
    /// Exits so far.
    pub exits: AtomicU64,
}

/// Everything that the threads share.
pub(super) struct Shared<'a> {
    pub platform: Mutex<&'a mut Platform>,
    pub interrupts: Mutex<&'a mut Interrupts>,
    pub dirty: Mutex<&'a mut Dirty>,
    pub marks: Mutex<&'a mut Marks>,
    pub ticks: &'a [Mutex<Tick>],
    /// Why the run ends: several threads may have a reason at once.
    pub ends: Mutex<Vec<End>>,
    pub stopping: AtomicBool,
    pub kicks: Vec<Kick<'a>>,
    pub glances: Vec<Glance>,
    /// Wakes the device thread.
    pub wake: &'a EventFd,
    /// Guest time to which the device thread sleeps at most.
    pub sleeping_to: AtomicU64,
    pub vm: &'a VmFd,
    pub sandbox: &'a Sandbox,
    pub clock: Clock,
    pub limit: u64,
}

/// The lock, whoever may have panicked with it: the run ends then in any case.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parts what ends a run from what has to be told when it goes on: a thread may have taken a device's message in the moment in which
/// another one ended the run, and it must not be lost. That time is up counts only when nothing else is there.
pub(super) fn first_and_rest(mut ends: Vec<End>) -> (Option<End>, Vec<End>) {
    let idle = |end: &End| matches!(end.happening, Ok(Happening::Limit | Happening::Stuck));
    if ends.iter().all(idle) {
        ends.truncate(1);
    } else {
        ends.retain(|end| !idle(end));
    }
    if ends.is_empty() {
        return (None, ends);
    }
    let first = ends.remove(0);
    (Some(first), ends)
}

impl Shared<'_> {
    /// Whether the run is over.
    pub fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends the run.
    pub fn finish(&self, vcpu: Option<usize>, happening: Result<Happening, Refused>) {
        let happening = happening.map_err(cause);
        lock(&self.ends).push(End { vcpu, happening });
        self.stop();
    }

    /// Makes every thread come back.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.kicks.iter().for_each(Kick::kick);
        self.wake_devices();
    }

    /// Makes the device thread look again.
    pub fn wake_devices(&self) {
        // It fails only when the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    /// After an access: sends what the devices have to send, and wakes their thread if one has something to do earlier than it
    /// thinks.
    pub fn settle(&self, platform: &mut Platform) -> Result<(), Refused> {
        self.send_interrupts(platform)?;
        let next = platform.bus.next_event().unwrap_or(u64::MAX);
        if next < self.sleeping_to.load(Ordering::Acquire) {
            self.wake_devices();
        }
        Ok(())
    }

    /// Sends what waits in the outbox.
    pub fn send_interrupts(&self, platform: &mut Platform) -> Result<(), Refused> {
        let Some(outbox) = &mut platform.bus.outbox else {
            return Ok(());
        };
        if outbox.is_empty() {
            return Ok(());
        }
        let mut interrupts = lock(&self.interrupts);
        outbox.drain(..).try_for_each(|msi| interrupts.send(self.vm, msi))
    }
}

/// Ends the run when its thread does, even by a panic.
pub(super) struct EndsRun<'a, 'b>(pub &'a Shared<'b>);

impl Drop for EndsRun<'_, '_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processors::News;

    fn end(happening: Happening) -> End {
        End {
            vcpu: None,
            happening: Ok(happening),
        }
    }

    #[test]
    fn no_message_is_lost_to_what_ended_the_run() {
        let message = || end(Happening::News(News::Message(Ok(vec![1]))));
        let kinds = |ends: Vec<End>| {
            let (first, rest) = first_and_rest(ends);
            (
                first.and_then(|end| end.happening.ok()),
                rest.into_iter().filter_map(|end| end.happening.ok()).count(),
            )
        };
        let told = message().happening.ok();
        assert_eq!(kinds(vec![end(Happening::Limit), message()]), (told.clone(), 0));
        assert_eq!(kinds(vec![message(), end(Happening::Stuck)]), (told.clone(), 0));
        let halt = || end(Happening::DeadHalt { interruptible: true });
        assert_eq!(kinds(vec![message(), halt()]), (told, 1));
        assert_eq!(
            kinds(vec![end(Happening::Limit), end(Happening::Limit)]),
            (Some(Happening::Limit), 0)
        );
        assert_eq!(kinds(Vec::new()), (None, 0));
    }
}
