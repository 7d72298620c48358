//! Code that runs leave for the next: many branches of one run need not decode and translate the kernel each.

use std::sync::{Mutex, PoisonError};

use vmm::processors::WarmCode;

/// Code of runs, as much as runs go on at the same time. Nothing but speed depends on who gets which.
#[derive(Debug, Default)]
pub struct WarmRuns {
    code: Mutex<Vec<WarmCode>>,
}

impl WarmRuns {
    pub(super) fn take(&self) -> Option<WarmCode> {
        self.code.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn put(&self, code: WarmCode) {
        self.code
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(code);
    }
}
