//! Several processors on one RAM have their decoded and translated code in common.
//!
//! Processors run in turn, so one of them has the code at a time: whoever runs them hands it on with the turn
//! ([`Cpu::lend_code`], [`Cpu::receive_code`]). Each processor keeps for itself which pages of RAM hold decoded
//! instructions, so that its writes there are noticed, and where its own virtual addresses lead. So what one processor
//! changes about the code the others are told before they run ([`Cpu::take_code_changes`], [`Cpu::follow`]).

use std::fmt;

use crate::code::CodeCache;
use crate::core::Core;
use crate::cpu::Cpu;
use crate::memory::{PAGE_SIZE, Ram};
use crate::translate::Translator;

/// Decoded and translated code on its way from one processor to another on the same RAM.
#[derive(Default)]
pub struct LentCode {
    cache: CodeCache,
    translator: Option<Translator>,
}

impl fmt::Debug for LentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentCode")
            .field("pages", &self.cache.pages.len())
            .finish_non_exhaustive()
    }
}

/// What happened to the code that processors have in common. Pages are offsets in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeChange {
    /// These 64-byte granules of a page, a bit for each, hold decoded instructions.
    Marked {
        /// RAM offset of the page.
        page: u64,
        /// The granules.
        granules: u64,
    },
    /// No part of the page does any more.
    Cleared {
        /// RAM offset of the page.
        page: u64,
    },
    /// What is known of the code page with this number holds no longer.
    Detached {
        /// Number of the code page.
        number: u32,
    },
    /// The same for all code pages.
    AllDetached,
    /// There is no code any more.
    AllCleared,
}

/// Keeps a change, if there are processors to tell.
pub(crate) fn note(changes: &mut Option<Vec<CodeChange>>, change: CodeChange) {
    if let Some(changes) = changes {
        changes.push(change);
    }
}

impl Core {
    /// Does what a change of the code, whoever made it, means for a processor.
    fn follow(&mut self, change: CodeChange) {
        match change {
            CodeChange::Marked { page, granules } => {
                if self.hooks.mark_granules(page, granules) {
                    self.revoke_writes(page);
                }
            }
            CodeChange::Cleared { page } => self.hooks.clear_code(page),
            CodeChange::Detached { number } => self.detach_code(number),
            CodeChange::AllDetached => self.detach_all_code(),
            CodeChange::AllCleared => {
                self.hooks.clear_all_code();
                self.detach_all_code();
            }
        }
    }
}

impl Cpu {
    /// Remembers from now on what happens to the code, for [`Cpu::take_code_changes`].
    pub fn share_code(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// Gives the code away, with which this processor then cannot run on.
    pub fn lend_code(&mut self) -> LentCode {
        LentCode {
            cache: std::mem::take(&mut self.cache),
            translator: self.translator.take(),
        }
    }

    /// Takes the code of a processor on the same RAM. This one has followed all changes of the code.
    pub fn receive_code(&mut self, code: LentCode) {
        let LentCode { cache, translator } = code;
        if let Some(translator) = &translator {
            translator.attach(&mut self.core);
        }
        (self.cache, self.translator) = (cache, translator);
        // What was noted without the code is not about it.
        if let Some(changes) = &mut self.changes {
            changes.clear();
        }
    }

    /// What happened to the code since this was last asked, in order.
    pub fn take_code_changes(&mut self) -> Vec<CodeChange> {
        match &mut self.changes {
            Some(changes) if !changes.is_empty() => std::mem::take(changes),
            _ => Vec::new(),
        }
    }

    /// Does for this processor what another one's changes of the code ask for.
    pub fn follow(&mut self, ram: &Ram, changes: &[CodeChange]) {
        self.core.hooks.cover(ram);
        for change in changes {
            self.core.follow(*change);
        }
    }

    /// Makes a change of the code, which the others are told.
    pub(crate) fn change_code(&mut self, change: CodeChange) {
        note(&mut self.changes, change);
        self.core.follow(change);
    }

    /// Whether decoded instructions lie in the page of `gpa`.
    #[must_use]
    pub fn has_code(&self, ram: &Ram, gpa: u64) -> bool {
        ram.page_offset(gpa)
            .is_some_and(|page| self.core.hooks.has_code(page & !(PAGE_SIZE - 1)))
    }
}
