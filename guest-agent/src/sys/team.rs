//! Threads, one per processor, for work that can be divided.

use super::clone::clone;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use rustix::thread::futex;

/// Bytes of a thread's stack.
const STACK_BYTES: usize = 64 << 10;
/// CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PARENT_SETTID, CHILD_CLEARTID: a thread whose identity is in a word
/// until it has ended.
const CLONE_FLAGS: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x10_0000 | 0x20_0000;

/// What a thread is to do.
struct Job<'a, T> {
    index: usize,
    share: &'a mut T,
    work: &'a (dyn Fn(usize, &mut T) + Sync),
}

/// Runs `work` on each share with its index: the first on the calling thread, the others on threads of their own, in
/// parallel. Returns when all are done. If a thread cannot be started, the caller does its share.
///
/// These are bare kernel threads that share the caller's thread-local storage, so `work` must not use any. A program
/// without a C library has none.
pub fn run<T: Send>(shares: &mut [T], work: &(dyn Fn(usize, &mut T) + Sync)) {
    let mut shares = shares.iter_mut().enumerate();
    let first = shares.next();
    let threads: Vec<Thread<'_, T>> = shares
        .map(|(index, share)| Thread::start(Job { index, share, work }))
        .collect();
    if let Some((index, share)) = first {
        work(index, share);
    }
    threads.into_iter().for_each(Thread::join);
}

/// A thread, or what one was wanted for.
struct Thread<'a, T> {
    /// The thread's identity, set by the kernel when it begins and cleared when it ends.
    identity: Box<AtomicU32>,
    _stack: Vec<u128>,
    job: Box<Job<'a, T>>,
    started: bool,
}

impl<'a, T: Send> Thread<'a, T> {
    fn start(job: Job<'a, T>) -> Self {
        let mut job = Box::new(job);
        let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
        let identity = Box::new(AtomicU32::new(0));
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: the stack, the word and the job are on the heap and stay there until `join`, which every Thread comes
        // to before they are freed; nobody else touches stack and job meanwhile. What the job borrows outlives 'a, and
        // so this Thread. T and the work may be used on another thread.
        let result = unsafe {
            clone(
                CLONE_FLAGS,
                top.cast(),
                identity.as_ptr(),
                enter::<T>,
                (&raw mut *job).cast(),
            )
        };
        Self {
            identity,
            _stack: stack,
            job,
            started: result > 0,
        }
    }

    fn join(self) {
        if !self.started {
            let Job { index, share, work } = *self.job;
            return work(index, share);
        }
        loop {
            let identity = self.identity.load(Ordering::Acquire);
            if identity == 0 {
                return;
            }
            // Woken, changed before the wait, or interrupted: the loop reads the word again.
            let _ = futex::wait(&self.identity, futex::Flags::empty(), identity, None);
        }
    }
}

/// Where a thread begins.
extern "C" fn enter<T>(job: *mut u8) {
    // SAFETY: `Thread::start` hands over a Job<T> that nobody else touches while the thread runs.
    let Job { index, share, work } = unsafe { &mut *job.cast::<Job<'_, T>>() };
    work(*index, share);
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;

    #[test]
    fn every_share_is_worked_on_once() {
        let mut shares = [0_u64; 5];
        let all = AtomicU64::new(0);
        run(&mut shares, &|index, share| {
            for _ in 0..10_000 {
                *share += index as u64 + 1;
                all.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(shares, [10_000, 20_000, 30_000, 40_000, 50_000]);
        assert_eq!(all.into_inner(), 50_000);
    }

    #[test]
    fn shares_run_at_the_same_time() {
        // Each waits until the others have begun, which would never end if they ran one after another.
        let begun = AtomicU64::new(0);
        run(&mut [(), (), ()], &|_, ()| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 3 {
                core::hint::spin_loop();
            }
        });
        assert_eq!(begun.into_inner(), 3);
    }

    #[test]
    fn no_share_is_no_work() {
        run(&mut [], &|_, (): &mut ()| unreachable!());
    }
}
