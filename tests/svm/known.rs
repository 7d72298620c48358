//! What QEMU's emulation of SVM gets wrong (as of 10.0), and which tests are left out for it. On other hosts nothing is.

/// A test that is left out.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// Its name in the program of the tiny guests.
    pub test: &'static str,
    /// What is wrong.
    pub reason: &'static str,
}

const ON_QEMU: [Gap; 4] = [
    Gap {
        test: "differential::integer_sequences_do_the_same",
        reason: "TCG takes F7 /1, an alias of TEST, for an unknown instruction",
    },
    Gap {
        test: "differential::vector_sequences_do_the_same",
        reason: "one result of SSE differs",
    },
    Gap {
        test: "emulated::their_faults",
        reason: "CMPXCHG16B of an unaligned operand does not fault",
    },
    Gap {
        test: "exits::model_specific",
        reason: "WRMSR takes a GS base that is not canonical",
    },
];

/// What is left out, on this machine's own KVM or on emulated SVM.
pub fn of(here: bool) -> &'static [Gap] {
    if here { &[] } else { &ON_QEMU }
}
