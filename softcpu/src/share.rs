//! Several processors on one RAM: what one has decoded, the others must not change behind its back.
//!
//! Processors run in turn, so nothing has to happen while one runs. Afterwards, whoever runs them takes the pages that it decoded
//! code from and lets the others guard them; and takes its writes to pages that it guards, and tells the others
//! ([`Cpu::memory_written`]). A page that nobody guards is written at full speed.

use crate::cpu::Cpu;
use crate::memory::{PAGE_SIZE, Ram};

impl Cpu {
    /// Remembers from now on which pages code is decoded from, for [`Cpu::take_new_code`].
    pub fn share_code(&mut self) {
        self.core.hooks.share_code = true;
    }

    /// Guest physical addresses of pages that code was decoded from, each once since it was last without decoded code.
    pub fn take_new_code(&mut self, ram: &Ram) -> Vec<u64> {
        let mut pages = std::mem::take(&mut self.core.hooks.new_code);
        for page in &mut pages {
            *page = ram.address_of(*page);
        }
        pages
    }

    /// Whether code decoded from the page of `gpa` is at hand.
    #[must_use]
    pub fn has_code(&self, ram: &Ram, gpa: u64) -> bool {
        ram.page_offset(gpa)
            .is_some_and(|page| self.core.hooks.has_code(page))
    }

    /// Whether writes to the page of `gpa` are to be kept for [`Cpu::take_guarded_writes`].
    pub fn guard(&mut self, ram: &Ram, gpa: u64, on: bool) {
        self.core.hooks.cover(ram);
        let Some(page) = ram.page_offset(gpa) else { return };
        if self.core.hooks.is_guarded(page) != on {
            self.core.hooks.guard(page, on);
            self.core.revoke_writes(page);
        }
    }

    /// Where guarded pages were written since the last time: guest physical address and length, each within one page. The
    /// bytes between two writes to a page may be included.
    pub fn take_guarded_writes(&mut self, ram: &Ram) -> Vec<(u64, u64)> {
        let mut writes = std::mem::take(&mut self.core.hooks.guarded_writes);
        for (offset, _) in &mut writes {
            *offset = ram.address_of(*offset & !(PAGE_SIZE - 1)) + *offset % PAGE_SIZE;
        }
        writes
    }
}
