//! See `softcpu_fuzz::target`.
#![no_main]

use std::cell::RefCell;

use softcpu_fuzz::target::Both;

thread_local! {
    /// Made once: the target takes over this thread's signals.
    static BOTH: RefCell<Both> = RefCell::new(Both::new());
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    BOTH.with_borrow_mut(|both| {
        if let Some(case) = both.case(input) {
            let found = both.differences(&case);
            assert!(found.is_empty(), "{}{found}", softcpu_fuzz::tell::case(&case));
        }
    });
});
