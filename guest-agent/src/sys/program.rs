//! A process that executes a program.

use super::call::{Strings, execve};
use super::clone::{clone, started};
use crate::failure::Failure;
use alloc::vec;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use rustix::io::Errno;
use rustix::process::Pid;

/// Bytes of the process's stack until it executes the program.
const STACK_BYTES: usize = 64 << 10;
/// CLONE_VM and CLONE_VFORK, and SIGCHLD at its end. The agent stands until the program is executed, so that both can
/// use one memory.
const CLONE_FLAGS: usize = 0x100 | 0x4000 | 17;

/// What the process executes, and why it could not.
struct Job<'a> {
    words: &'a Strings,
    environment: &'a Strings,
    /// errno of execve(2); 0 if it did not fail.
    errno: AtomicI32,
}

/// Starts a program in a process of its own. It has the agent's standard streams and no other file of the agent's.
pub fn start(words: &Strings, environment: &Strings) -> Result<Pid, Failure> {
    let job = Job {
        words,
        environment,
        errno: AtomicI32::new(0),
    };
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    // The flags ask for no word, so the kernel does not touch it.
    let word = AtomicU32::new(0);
    // SAFETY: with CLONE_VFORK this returns only once the process has left this memory, by execve or by its exit; until
    // then job and stack exist, and nobody else uses them. Of the job only the atomic number is written.
    let result = unsafe {
        clone(
            CLONE_FLAGS,
            top.cast(),
            word.as_ptr(),
            execute,
            (&raw const job).cast_mut().cast(),
        )
    };
    let failed = |errno| Failure::of("execve", Errno::from_raw_os_error(errno));
    match job.errno.load(Ordering::Acquire) {
        0 => {}
        errno => return Err(failed(errno)),
    }
    started(result)
}

/// Where the process begins. It exits when this returns.
extern "C" fn execute(job: *mut u8) {
    // SAFETY: `start` hands over a Job that stays until this process has left its memory.
    let job = unsafe { &*job.cast::<Job<'_>>() };
    let errno = execve(job.words, job.environment);
    job.errno.store(errno.raw_os_error(), Ordering::Release);
}
