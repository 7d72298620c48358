//! Keeps all vCPUs out of the guest while one thread needs guest RAM for itself, as `start_exclusive` does in QEMU.
//!
//! softcpu reads and writes guest RAM with plain accesses. An instruction with a LOCK prefix is atomic there only if no
//! vCPU executes guest code meanwhile.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Counts the threads inside KVM_RUN and grants one thread exclusive access to guest RAM.
#[derive(Debug, Default)]
pub(super) struct GuestAccess {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Threads between [`GuestAccess::enter_guest`] and the drop of what it returned.
    in_guest: usize,
    /// A thread has exclusive access, or waits for the others to leave the guest.
    exclusive: bool,
}

/// Held by a thread around KVM_RUN.
#[derive(Debug)]
pub(super) struct InGuest<'a>(&'a GuestAccess);

/// Proof that no vCPU executes guest code; it lasts until this is dropped.
#[derive(Debug)]
pub(super) struct Exclusive<'a>(&'a GuestAccess);

impl GuestAccess {
    /// Call before KVM_RUN. Blocks while another thread has exclusive access.
    pub fn enter_guest(&self) -> InGuest<'_> {
        let mut state = self.wait_while(self.lock(), |state| state.exclusive);
        state.in_guest += 1;
        InGuest(self)
    }

    /// Waits until no vCPU is in the guest and keeps them out. `kick_others` has to make every other vCPU leave
    /// KVM_RUN. The caller itself must not hold an [`InGuest`].
    pub fn start_exclusive(&self, kick_others: impl FnOnce()) -> Exclusive<'_> {
        let mut state = self.wait_while(self.lock(), |state| state.exclusive);
        state.exclusive = true;
        if state.in_guest > 0 {
            kick_others();
            drop(self.wait_while(state, |state| state.in_guest > 0));
        }
        Exclusive(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        guard: MutexGuard<'a, State>,
        condition: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed
            .wait_while(guard, |state| condition(state))
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InGuest<'_> {
    fn drop(&mut self) {
        self.0.lock().in_guest -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.0.lock().exclusive = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn nobody_is_in_the_guest_during_exclusive_access() {
        const ROUNDS: u64 = 2000;
        let access = GuestAccess::default();
        let (in_guest, kicked) = (AtomicU64::new(0), AtomicBool::new(false));
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while done.load(Ordering::SeqCst) < 2 {
                        let _guest = access.enter_guest();
                        in_guest.fetch_add(1, Ordering::SeqCst);
                        // A guest that spins until it is kicked.
                        while !kicked.load(Ordering::SeqCst) && done.load(Ordering::SeqCst) < 2 {
                            thread::yield_now();
                        }
                        in_guest.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS / 2 {
                        let exclusive = access.start_exclusive(|| kicked.store(true, Ordering::SeqCst));
                        assert_eq!(in_guest.load(Ordering::SeqCst), 0);
                        kicked.store(false, Ordering::SeqCst);
                        drop(exclusive);
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
    }

    #[test]
    fn without_vcpus_in_the_guest_nobody_is_kicked() {
        let access = GuestAccess::default();
        drop(access.enter_guest());
        drop(access.start_exclusive(|| panic!("kicked")));
        drop(access.enter_guest());
    }
}
