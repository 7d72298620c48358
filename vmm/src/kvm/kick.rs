//! Makes KVM_RUN return: sets the vCPU's `immediate_exit` and signals the thread that runs it.
//!
//! KVM tests `kvm_run.immediate_exit` for zero before it enters the guest, and a signal makes it leave the guest. Both
//! are needed, because the thread may be just about to call KVM_RUN when the signal arrives.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Bit of `immediate_exit` set by [`Kick::kick`].
const KICKED: u8 = 1;
/// Bit of `immediate_exit` set by [`Kick::without_entering_guest`].
const COMPLETING: u8 = 2;

/// The signal that interrupts KVM_RUN; its handler does nothing.
fn signal_number() -> i32 {
    SIGRTMIN()
}

extern "C" fn do_nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the signal handler, once per process.
pub(super) fn install_handler() -> Result<(), std::io::Error> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED
        .get_or_init(|| register_signal_handler(signal_number(), do_nothing).map_err(|error| error.errno()));
    installed.map_err(std::io::Error::from_raw_os_error)
}

/// Stops one vCPU from any thread.
#[derive(Debug)]
pub(super) struct Kick<'a> {
    /// `kvm_run.immediate_exit`. Each reason to exit has a bit of its own, so that ending one never cancels another.
    immediate_exit: &'a AtomicU8,
    /// The thread that runs the vCPU.
    thread: Mutex<Option<libc::pthread_t>>,
}

impl<'a> Kick<'a> {
    /// For the vCPU whose `immediate_exit` is at this address.
    ///
    /// # Safety
    /// `immediate_exit` must come from [`immediate_exit_of`], and the vCPU must live for `'a`.
    #[allow(unsafe_code)]
    pub unsafe fn new(immediate_exit: *mut u8) -> Self {
        Self {
            // SAFETY: the pointer is into the kvm_run mapping, which the caller keeps for 'a. KVM reads this byte, and
            // this process accesses it through this atomic only.
            immediate_exit: unsafe { AtomicU8::from_ptr(immediate_exit) },
            thread: Mutex::new(None),
        }
    }

    /// The calling thread runs the vCPU from now on.
    #[allow(unsafe_code)]
    pub fn attach_thread(&self) {
        // SAFETY: has no preconditions.
        let this = unsafe { libc::pthread_self() };
        *self.thread() = Some(this);
    }

    /// The calling thread stops running the vCPU. A kick that it has not taken is dropped.
    pub fn detach_thread(&self) {
        *self.thread() = None;
        self.take();
    }

    /// Makes KVM_RUN return, now or when it is next called, until [`Kick::take`].
    #[allow(unsafe_code)]
    pub fn kick(&self) {
        self.immediate_exit.fetch_or(KICKED, Ordering::AcqRel);
        if let Some(thread) = *self.thread() {
            // SAFETY: the thread is alive, because it detaches itself, under this lock, before it ends.
            unsafe { libc::pthread_kill(thread, signal_number()) };
        }
    }

    /// Lets KVM_RUN enter the guest again. What was written before [`Kick::kick`] is visible after this. Only the
    /// attached thread calls it.
    pub fn take(&self) {
        self.immediate_exit.fetch_and(!KICKED, Ordering::AcqRel);
    }

    /// Calls `run`, in which KVM_RUN completes the last exit and returns before it enters the guest.
    pub fn without_entering_guest<T>(&self, run: impl FnOnce() -> T) -> T {
        self.immediate_exit.fetch_or(COMPLETING, Ordering::AcqRel);
        let result = run();
        self.immediate_exit.fetch_and(!COMPLETING, Ordering::AcqRel);
        result
    }

    /// Processor time of the attached thread so far, in nanoseconds; `None` if no thread is attached.
    #[allow(unsafe_code)]
    pub fn processor_time(&self) -> Option<u64> {
        let guard = self.thread();
        let thread = (*guard)?;
        let mut clock = 0;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the thread is alive, because it detaches itself under the lock that `guard` holds; the pointer is to
        // a local.
        let found = unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) };
        if found != 0 {
            return None;
        }
        // SAFETY: the pointer is to a local.
        let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).ok().filter(|_| read == 0)?;
        Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
    }

    fn thread(&self) -> MutexGuard<'_, Option<libc::pthread_t>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Address of a vCPU's `kvm_run.immediate_exit`.
pub(super) fn immediate_exit_of(vcpu: &mut VcpuFd) -> *mut u8 {
    &raw mut vcpu.get_kvm_run().immediate_exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(unsafe_code)]
    fn with_kick(test: impl FnOnce(&Kick<'_>, &dyn Fn() -> bool)) {
        let byte = AtomicU8::new(0);
        // SAFETY: the byte outlives the handle and is accessed atomically only.
        let kick = unsafe { Kick::new(byte.as_ptr()) };
        test(&kick, &|| byte.load(Ordering::Acquire) != 0);
    }

    #[test]
    fn a_kick_during_completion_is_not_lost() {
        with_kick(|kick, exits| {
            kick.without_entering_guest(|| {
                assert!(exits());
                kick.kick();
            });
            assert!(exits(), "the kick came while an exit was completed");
            kick.take();
            assert!(!exits());
        });
    }

    #[test]
    fn taking_a_kick_does_not_end_a_completion() {
        with_kick(|kick, exits| {
            kick.kick();
            kick.without_entering_guest(|| {
                kick.take();
                assert!(exits());
            });
            assert!(!exits());
        });
    }

    #[test]
    fn a_thread_that_leaves_takes_its_kick_along() {
        install_handler().unwrap();
        with_kick(|kick, exits| {
            kick.attach_thread();
            assert!(kick.processor_time().is_some());
            kick.kick();
            kick.detach_thread();
            assert!(!exits() && kick.processor_time().is_none());
        });
    }
}
