//! One instruction in user mode, on the host's processor and on softcpu.
//!
//! The first two bytes of an input choose the form of the instruction. The rest is what the generator of the
//! differential test takes for random numbers: operands, prefixes, registers and memory. So a changed byte changes one
//! of these, and every input is safe to run.

use iced_x86::Code;

use crate::compare;
use crate::generate::{self, Case};
use crate::native::Native;
use crate::rng::Rng;
use crate::soft::{Ran, Soft};
use crate::{catalog, state};

/// Both processors.
pub struct Both {
    codes: Vec<Code>,
    native: Native,
    soft: Soft,
}

impl Both {
    /// Takes over the signals of this process. To be made once, by the thread that runs the cases.
    pub fn new() -> Self {
        Self {
            codes: catalog::runnable(),
            native: Native::new(),
            soft: Soft::new(),
        }
    }

    /// The case that an input makes; `None` if it makes none that may be run.
    pub fn case(&self, input: &[u8]) -> Option<Case> {
        let (form, numbers) = input.split_first_chunk()?;
        let code = self.codes[usize::from(u16::from_le_bytes(*form)) % self.codes.len()];
        let case = generate::case(
            code,
            &mut Rng::from_input(numbers),
            self.native.fs_base(),
            state::GS_BASE,
        )?;
        let decoded = case.insn.code();
        (catalog::offered(decoded) && catalog::excluded(decoded).is_none()).then_some(case)
    }

    /// What the two processors do differently, in words; empty if nothing.
    pub fn differences(&mut self, case: &Case) -> String {
        self.differences_between(case, case)
    }

    /// The same, if softcpu is given another case than the host's processor.
    pub fn differences_between(&mut self, case: &Case, soft: &Case) -> String {
        let expected = self.native.run(case);
        match self.soft.run(soft) {
            Ran::Done(outcome) => compare::differences(case, &expected, &outcome),
            Ran::Odd(what) => format!("  native ran it (fault {:x?}), softcpu: {what}\n", expected.fault),
        }
    }
}

impl Default for Both {
    fn default() -> Self {
        Self::new()
    }
}
