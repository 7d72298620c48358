//! Code that runs leave for the next: many branches of one run need not decode and translate the kernel each.

use std::sync::{Mutex, PoisonError};

use vmm::processors::WarmCode;

/// Sets of code, as many as runs go on at the same time. Nothing but speed depends on who gets which.
#[derive(Debug, Default)]
pub struct WarmRuns {
    sets: Mutex<Vec<Vec<WarmCode>>>,
}

impl WarmRuns {
    pub(super) fn take(&self) -> Option<Vec<WarmCode>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn put(&self, code: Vec<WarmCode>) {
        if !code.is_empty() {
            let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
            sets.push(code);
        }
    }
}
