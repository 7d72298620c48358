//! What the harness may watch on a processor. Nothing here changes what the guest does.

use crate::cpu::Cpu;
use crate::hooks::CpuWrite;
use crate::memory::{PAGE_SIZE, Ram};

impl Cpu {
    /// Makes [`Cpu::run`] return [`crate::Exit::LowSupervisorFetch`] before kernel-mode code in the lower half of the
    /// address space runs: at least once for each page after this call and after each TLB flush. Running again goes
    /// on past it.
    pub fn stop_on_low_supervisor_fetch(&mut self, on: bool) {
        self.core.hooks.low_supervisor_fetch = on;
        self.core.withhold_all_code();
        for entry in &mut self.core.code_tlb {
            entry.passed = false;
        }
    }

    /// Makes [`Cpu::run`] return [`crate::Exit::WatchExecute`] before each instruction in the page of `gpa`.
    pub fn watch_execution(&mut self, ram: &Ram, gpa: u64, on: bool) {
        self.core.hooks.cover(ram);
        if let Some(page) = ram.page_offset(gpa) {
            self.core.hooks.watch_execution(page, on);
        }
        self.core.withhold_all_code();
    }

    /// Makes [`Cpu::run`] return [`crate::Exit::WatchAddress`] before each instruction in kernel mode whose virtual
    /// address is one of these in the bits of `mask`. It costs time only in pages where such an address can lie. It is
    /// not part of the state.
    pub fn await_addresses(&mut self, addresses: &[u64], mask: u64) {
        self.core.hooks.await_addresses(addresses, mask);
        self.core.withhold_all_code();
    }

    /// Keeps, for each 8 bytes of the page of `gpa`, which CPU write came last.
    pub fn watch_writes(&mut self, ram: &Ram, gpa: u64, on: bool) {
        self.core.hooks.cover(ram);
        if let Some(page) = ram.page_offset(gpa) {
            self.core.hooks.watch_writes(page, on);
            self.core.revoke_writes(page);
        }
    }

    /// The last CPU write to the 8 bytes around `gpa`, if its page is watched and there was one.
    #[must_use]
    pub fn last_write(&self, ram: &Ram, gpa: u64) -> Option<CpuWrite> {
        self.core
            .hooks
            .last_write(ram.page_offset(gpa)? + gpa % PAGE_SIZE)
    }

    /// Remembers when the page of `gpa` is next read or written, which [`Cpu::first_access`] tells. Unlike other
    /// watches this one drops cached translations of the page, so that a guest which uses stale ones may see a
    /// difference. It is not part of the state.
    pub fn watch_first_access(&mut self, ram: &Ram, gpa: u64) {
        self.core.hooks.cover(ram);
        if let Some(page) = ram.page_offset(gpa) {
            self.core.hooks.watch_first_access(page);
            self.core.forget_page(page);
        }
    }

    /// Guest time of the first access to the page of `gpa` since [`Cpu::watch_first_access`], in ticks. Fetches of
    /// instructions and walks of page tables do not count.
    #[must_use]
    pub fn first_access(&self, ram: &Ram, gpa: u64) -> Option<u64> {
        self.core.hooks.first_access(ram.page_offset(gpa)?)
    }

    /// Begins a new epoch: the next CPU write to each page is its first again.
    pub fn begin_write_epoch(&mut self, ram: &Ram) {
        self.core.hooks.cover(ram);
        self.core.hooks.begin_epoch(ram);
        self.core.revoke_all_writes();
    }

    /// The first CPU write to each page written since the epoch began, in order of time.
    #[must_use]
    pub fn epoch_writes(&self) -> &[CpuWrite] {
        self.core.hooks.epoch()
    }

    /// When user mode was last left.
    #[must_use]
    pub fn left_user_at(&self) -> Option<u64> {
        self.core.hooks.left_user
    }

    /// When user mode was first entered since [`Cpu::reset_user_marks`].
    #[must_use]
    pub fn entered_user_at(&self) -> Option<u64> {
        self.core.hooks.entered_user
    }

    /// Forgets both marks.
    pub fn reset_user_marks(&mut self) {
        self.core.hooks.left_user = None;
        self.core.hooks.entered_user = None;
    }
}
