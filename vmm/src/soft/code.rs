//! Which processor has the decoded code that all have in common: the one whose turn it is.

use crate::vcpu::Vcpu;

/// Where the code is.
#[derive(Debug, Default)]
pub(super) struct SharedCode {
    holder: usize,
}

impl SharedCode {
    /// The code of processors that have none yet, or one of them alone.
    pub fn of(vcpus: &mut [Box<dyn Vcpu>]) -> Self {
        if vcpus.len() > 1 {
            vcpus.iter_mut().for_each(|vcpu| vcpu.share_code());
        }
        Self::default()
    }

    /// The processor that has it.
    pub fn holder(&self) -> usize {
        self.holder
    }

    /// Gives the code to the processor that executes next.
    pub fn hand_to(&mut self, vcpus: &mut [Box<dyn Vcpu>], next: usize) {
        if next == self.holder {
            return;
        }
        self.settle(vcpus);
        let code = vcpus[self.holder].lend_code();
        vcpus[next].receive_code(code);
        self.holder = next;
    }

    /// Tells the others what the holder did to the code.
    pub fn settle(&self, vcpus: &mut [Box<dyn Vcpu>]) {
        let changes = vcpus[self.holder].take_code_changes();
        if changes.is_empty() {
            return;
        }
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            if index != self.holder {
                vcpu.follow_code(&changes);
            }
        }
    }
}
