//! The register stack: pushing, popping, and what happens at its ends.

use super::{F80, X87, low16, status};
use crate::sse::softfloat::{Context, flag};

impl X87 {
    /// Ends an instruction that computed something: sets C1 and the flags. Returns whether its result is written.
    ///
    /// An unmasked exception that is detected before the computation (invalid, denormal, zero divide) prevents that,
    /// and the flags that depend on the result are not set. Any other only makes the next instruction raise #MF.
    pub(super) fn conclude(&mut self, context: &Context) -> bool {
        let before = flag::IE | flag::DE | flag::ZE;
        let prevented = context.raised & before & !context.masked != 0;
        let raised = if prevented {
            context.raised & before
        } else {
            context.raised
        };
        self.set_c1(context.rounded_up && raised & flag::PE != 0);
        self.signal(low16(raised));
        !prevented
    }

    /// Writes a result to ST(i), which is full afterwards.
    pub(super) fn put(&mut self, i: u8, value: F80) {
        self.set_st(i, value.0);
        self.set_full(i, true);
    }

    pub(super) fn pop(&mut self) {
        self.set_full(0, false);
        self.set_top(self.top() + 1);
    }

    pub(super) fn pop_times(&mut self, times: u8) {
        for _ in 0..times {
            self.pop();
        }
    }

    /// Pushes a value; there must be room.
    pub(super) fn push(&mut self, value: F80) {
        self.set_top(self.top().wrapping_sub(1));
        self.put(0, value);
    }

    /// Whether there is no room for a push.
    pub(super) fn is_at_limit(&self) -> bool {
        self.is_full(7)
    }

    /// Raises a stack underflow. Returns true if it is masked; the instruction then continues with a NaN.
    pub(super) fn underflow(&mut self) -> bool {
        self.set_c1(false);
        !self.signal(low16(flag::IE) | status::SF)
    }

    /// Raises a stack overflow. Returns true if it is masked; a NaN is then pushed.
    pub(super) fn overflow(&mut self) -> bool {
        self.set_c1(true);
        !self.signal(low16(flag::IE) | status::SF)
    }

    /// A load: pushes a value that was made with `flags`, or that came from an empty register.
    pub(super) fn load(&mut self, value: F80, from_empty: bool, flags: u16) {
        if from_empty || self.is_at_limit() {
            let masked = if from_empty {
                self.underflow()
            } else {
                self.overflow()
            };
            if masked {
                self.push(F80::DEFAULT_NAN);
            }
            return;
        }
        self.set_c1(false);
        self.signal(flags);
        // A denormal operand is pushed even if the exception is unmasked.
        if flags & !self.control & low16(flag::IE) == 0 {
            self.push(value);
        }
    }

    /// FST and FSTP to a register.
    pub(super) fn copy_to(&mut self, i: u8, pops: u8) {
        let mut value = F80(self.st(0));
        if !self.is_full(0) {
            if !self.underflow() {
                return;
            }
            value = F80::DEFAULT_NAN;
        }
        self.set_c1(false);
        self.put(i, value);
        self.pop_times(pops);
    }

    pub(super) fn exchange(&mut self, i: u8) {
        if !self.is_full(0) || !self.is_full(i) {
            if !self.underflow() {
                return;
            }
            for st in [0, i] {
                if !self.is_full(st) {
                    self.put(st, F80::DEFAULT_NAN);
                }
            }
        }
        self.set_c1(false);
        let (top, other) = (self.st(0), self.st(i));
        self.set_st(0, other);
        self.set_st(i, top);
    }

    /// FCHS and FABS.
    pub(super) fn change_sign(&mut self, f: impl Fn(bool) -> bool) {
        if !self.is_full(0) {
            if self.underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        }
        self.set_c1(false);
        let value = F80(self.st(0));
        self.set_st(0, value.with_sign(f(value.sign())).0);
    }

    /// FCMOVcc: copies ST(i) if the condition `holds`. Both registers must be full in any case.
    pub(super) fn copy_if(&mut self, i: u8, holds: bool) {
        if !self.is_full(0) || !self.is_full(i) {
            if self.underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        }
        if holds {
            self.set_st(0, self.st(i));
        }
    }

    /// Moves TOP, as FINCSTP and FDECSTP do.
    pub(super) fn turn(&mut self, by: u8) {
        self.set_c1(false);
        self.set_top(self.top() + by);
    }
}
