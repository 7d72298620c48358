//! Stopping a vCPU that is in the guest: its immediate_exit flag is set and its thread is sent a signal.

use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The signal that ends KVM_RUN; its handler does nothing.
fn signal_number() -> i32 {
    SIGRTMIN()
}

extern "C" fn do_nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler, once for the process.
pub(super) fn install_handler() -> Result<(), std::io::Error> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED
        .get_or_init(|| register_signal_handler(signal_number(), do_nothing).map_err(|error| error.errno()));
    installed.map_err(std::io::Error::from_raw_os_error)
}

/// A handle on one vCPU and the thread that runs it now.
#[derive(Debug)]
pub(super) struct Kick<'a> {
    flag: &'a AtomicU8,
    thread: Mutex<Option<libc::pthread_t>>,
}

impl<'a> Kick<'a> {
    /// For a vCPU whose mapping of kvm_run lives as long as this.
    ///
    /// # Safety
    /// `flag` must come from [`flag_of`], and the vCPU must live for `'a`.
    #[allow(unsafe_code)]
    pub unsafe fn new(flag: *mut u8) -> Self {
        Self {
            // SAFETY: the pointer is into the kvm_run mapping, which the caller keeps for 'a. KVM reads this byte, and this process writes it
            // through this atomic only.
            flag: unsafe { AtomicU8::from_ptr(flag) },
            thread: Mutex::new(None),
        }
    }

    /// The calling thread runs the vCPU from now on.
    #[allow(unsafe_code)]
    pub fn enter(&self) {
        // SAFETY: has no preconditions.
        let this = unsafe { libc::pthread_self() };
        *self
            .thread
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(this);
    }

    /// It does so no more.
    pub fn leave(&self) {
        *self
            .thread
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.clear();
    }

    /// Makes KVM_RUN return, now or when it is next called, until [`Kick::clear`].
    #[allow(unsafe_code)]
    pub fn kick(&self) {
        self.flag.store(1, Ordering::Release);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the thread is alive: it takes its identity back, under this lock, before it ends.
            unsafe { libc::pthread_kill(thread, signal_number()) };
        }
    }

    /// KVM_RUN may run again.
    pub fn clear(&self) {
        self.flag.store(0, Ordering::Release);
    }

    /// Processor time that the thread has taken so far, in nanoseconds; `None` when nobody runs the vCPU.
    #[allow(unsafe_code)]
    pub fn processor_time(&self) -> Option<u64> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let thread = (*thread)?;
        let mut clock = 0;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the thread is alive, see above, and the pointer is to a local.
        let found = unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) };
        if found != 0 {
            return None;
        }
        // SAFETY: the pointer is to a local.
        let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).ok().filter(|_| read == 0)?;
        Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
    }
}

/// Where a vCPU's immediate_exit flag is.
#[allow(unsafe_code)]
pub(super) fn flag_of(vcpu: &mut VcpuFd) -> *mut u8 {
    &raw mut vcpu.get_kvm_run().immediate_exit
}
