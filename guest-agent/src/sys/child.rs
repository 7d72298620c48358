//! Processes that share the agent's memory and files: one that writes to a file, for a write that the kernel may not
//! survive in the process that makes it, and those that do something for ever.

use super::clone::{clone, started};
use crate::failure::Failure;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

/// Bytes of the process's stack.
const STACK_BYTES: usize = 64 << 10;
/// CLONE_VM, FS, FILES, and SIGCHLD at its end. It shares the memory, because a copy would make the kernel move the
/// agent's anonymous pages at their next write, and devices write to some of them.
const CLONE_FLAGS: usize = 0x100 | 0x200 | 0x400 | 17;

/// What the process does, and what came of it.
struct Job {
    file: RawFd,
    content: &'static str,
    /// 0: not written yet; [`WROTE`], or a negated errno.
    result: AtomicI32,
}

const WROTE: i32 = 1;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It made the write and exited.
    Wrote,
    /// The kernel refused the write.
    Refused(Errno),
    /// It was killed amid the write.
    Killed,
}

/// Such a process. If it has not ended when this is dropped, its stack stays allocated.
pub struct Child {
    pid: Pid,
    job: ManuallyDrop<Box<Job>>,
    stack: ManuallyDrop<Vec<u128>>,
    ended: Option<Ended>,
}

impl Child {
    /// Starts a process that writes `content` to `file`, which has to stay open until it has ended.
    pub fn writing(file: &OwnedFd, content: &'static str) -> Result<Self, Failure> {
        let mut job = Box::new(Job {
            file: file.as_raw_fd(),
            content,
            result: AtomicI32::new(0),
        });
        let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
        let top = stack.as_mut_ptr_range().end;
        // The flags ask for no word, so the kernel does not touch it.
        let word = AtomicU32::new(0);
        // SAFETY: stack and job are on the heap and are freed only once the process has ended (`drop`); nobody else
        // touches the stack, and of the job only the atomic result is written.
        let result = unsafe {
            clone(
                CLONE_FLAGS,
                top.cast(),
                word.as_ptr(),
                write,
                (&raw mut *job).cast(),
            )
        };
        Ok(Self {
            pid: started(result)?,
            job: ManuallyDrop::new(job),
            stack: ManuallyDrop::new(stack),
            ended: None,
        })
    }

    /// How it ended; `None` while it has not.
    pub fn ended(&mut self) -> Option<Ended> {
        if self.ended.is_none() {
            let status = waitpid(Some(self.pid), WaitOptions::NOHANG).ok()?;
            status?;
            self.ended = Some(match self.job.result.load(Ordering::Acquire) {
                0 => Ended::Killed,
                WROTE => Ended::Wrote,
                errno => Ended::Refused(Errno::from_raw_os_error(-errno)),
            });
        }
        self.ended
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_some() {
            // SAFETY: the process that used it has ended, and it is dropped once.
            unsafe { ManuallyDrop::drop(&mut self.job) };
            // SAFETY: likewise.
            unsafe { ManuallyDrop::drop(&mut self.stack) };
        }
    }
}

/// Starts a process that does `work` again and again until the kernel ends. It shares the caller's thread-local storage,
/// so `work` must not use any; a program without a C library has none.
pub fn forever(work: impl Fn() + Send + 'static) -> Result<(), Failure> {
    let work: Box<Box<dyn Fn() + Send>> = Box::new(Box::new(work));
    let stack = vec![0_u128; STACK_BYTES / size_of::<u128>()].leak();
    let top = stack.as_mut_ptr_range().end;
    // The flags ask for no word, so the kernel does not touch it.
    let word = AtomicU32::new(0);
    let work = Box::into_raw(work);
    // SAFETY: stack and work are on the heap and are never freed, and nobody else touches them.
    let result = unsafe { clone(CLONE_FLAGS, top.cast(), word.as_ptr(), repeat, work.cast()) };
    started(result).map(drop)
}

/// Where a process of [`forever`] begins.
extern "C" fn repeat(work: *mut u8) {
    // SAFETY: `forever` hands over work that nobody else has, and that stays for ever.
    let work = unsafe { &*work.cast::<Box<dyn Fn() + Send>>() };
    loop {
        work();
    }
}

/// Where the process begins. It exits when this returns.
extern "C" fn write(job: *mut u8) {
    // SAFETY: `Child::writing` hands over a Job that stays until this process has ended.
    let job = unsafe { &*job.cast::<Job>() };
    // SAFETY: the caller keeps the file open, and the processes share their files.
    let file = unsafe { BorrowedFd::borrow_raw(job.file) };
    let result = match rustix::io::write(file, job.content.as_bytes()) {
        Ok(_) => WROTE,
        Err(errno) => -errno.raw_os_error(),
    };
    job.result.store(result, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, open};

    fn ending(path: &str, flags: OFlags) -> Ended {
        let file = open(path, flags, Mode::empty()).unwrap();
        let mut child = Child::writing(&file, "content").unwrap();
        loop {
            if let Some(ended) = child.ended() {
                return ended;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_write_is_made_or_refused() {
        assert_eq!(ending("/dev/null", OFlags::WRONLY), Ended::Wrote);
        assert_eq!(ending("/dev/null", OFlags::RDONLY), Ended::Refused(Errno::BADF));
    }
}
