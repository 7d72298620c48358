//! What instructions compute from registers, with the stack's checks before and its changes after.

use super::arithmetic::{self, Binary, Operand};
use super::f80::Class;
use super::ops::X87Op;
use super::remainder::{self, Division, Progress};
use super::round;
use super::transcendental::{self, Trigonometric, Wanted};
use super::{F80, X87, status};
use crate::sse::softfloat::{Context, Kind, Relation};

impl X87 {
    fn context(&self) -> Context {
        Context::from_control_word(self.control)
    }

    fn operand(&self, i: u8) -> Operand {
        Operand::register(self.st(i))
    }

    /// FADD and its like: ST(`to`) becomes its combination with `source`, or with ST(`from`) if there is none.
    pub(super) fn combine(&mut self, operation: X87Op, to: u8, from: u8, source: Option<Operand>, pops: u8) {
        use X87Op as O;
        if !self.is_full(to) || source.is_none() && !self.is_full(from) {
            if self.underflow() {
                self.put(to, F80::DEFAULT_NAN);
                self.pop_times(pops);
            }
            return;
        }
        let (mut a, mut b) = (self.operand(to), source.unwrap_or(self.operand(from)));
        if matches!(operation, O::Fsubr | O::Fdivr) {
            (a, b) = (b, a);
        }
        let operation = match operation {
            O::Fadd => Binary::Add,
            O::Fmul => Binary::Multiply,
            O::Fsub | O::Fsubr => Binary::Subtract,
            _ => Binary::Divide,
        };
        let mut context = self.context();
        let result = arithmetic::binary(&mut context, operation, round::precision(self.control), a, b);
        if self.conclude(&context) {
            self.put(to, result);
            self.pop_times(pops);
        }
    }

    /// FCOM and its like: the relation of ST(0) to `source`, or to ST(`i`) if there is none, goes to C3, C2 and C0.
    pub(super) fn compare(&mut self, i: u8, source: Option<Operand>, quiet: bool, pops: u8) {
        let relation = self.relate(i, source, quiet, pops);
        self.set_relation(relation);
    }

    /// Compares as [`Self::compare`] does. An unmasked exception only prevents that registers are popped.
    pub(super) fn relate(&mut self, i: u8, source: Option<Operand>, quiet: bool, pops: u8) -> Relation {
        if !self.is_full(0) || source.is_none() && !self.is_full(i) {
            if self.underflow() {
                self.pop_times(pops);
            }
            return Relation::Unordered;
        }
        let mut context = self.context();
        let other = source.unwrap_or(self.operand(i));
        let relation = arithmetic::compare(&mut context, self.operand(0), other, quiet);
        if self.conclude(&context) {
            self.pop_times(pops);
        }
        relation
    }

    fn set_relation(&mut self, relation: Relation) {
        self.set_conditions(match relation {
            Relation::Greater => 0,
            Relation::Less => status::C0,
            Relation::Equal => status::C3,
            Relation::Unordered => status::C3 | status::C2 | status::C0,
        });
    }

    /// Sets C3, C2 and C0.
    fn set_conditions(&mut self, conditions: u16) {
        self.status = self.status & !(status::C3 | status::C2 | status::C0) | conditions;
    }

    /// FXAM.
    pub(super) fn examine(&mut self) {
        let value = F80(self.st(0));
        self.set_c1(value.sign());
        let conditions = if self.is_full(0) {
            match value.classify() {
                Class::Unsupported => 0,
                Class::Nan { .. } => status::C0,
                Class::Number(number) => match number.kind {
                    Kind::Zero => status::C3,
                    Kind::Infinity => status::C2 | status::C0,
                    Kind::Finite { .. } if value.is_denormal() => status::C3 | status::C2,
                    Kind::Finite { .. } => status::C2,
                },
            }
        } else {
            status::C3 | status::C0
        };
        self.set_conditions(conditions);
    }

    /// FSQRT, FRNDINT and F2XM1: ST(0) becomes a function of itself.
    pub(super) fn replace(&mut self, operation: X87Op) {
        if !self.is_full(0) {
            if self.underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        }
        let mut context = self.context();
        let a = self.operand(0);
        let result = match operation {
            X87Op::Fsqrt => arithmetic::square_root(&mut context, round::precision(self.control), a),
            X87Op::Frndint => arithmetic::round_to_integer(&mut context, a),
            _ => transcendental::exp2_minus_one(&mut context, a),
        };
        if self.conclude(&context) {
            self.put(0, result);
        }
    }

    /// FSCALE, FPREM and FPREM1: ST(0) becomes a function of itself and ST(1).
    pub(super) fn replace_by_second(&mut self, operation: X87Op) {
        if operation != X87Op::Fscale {
            self.status &= !status::C2;
        }
        if !self.is_full(0) || !self.is_full(1) {
            if self.underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        }
        let mut context = self.context();
        let (a, b) = (self.operand(0), self.operand(1));
        let division = match operation {
            X87Op::Fscale => {
                let result = arithmetic::scale(&mut context, a, b);
                if self.conclude(&context) {
                    self.put(0, result);
                }
                return;
            }
            X87Op::Fprem => Division::Truncated,
            _ => Division::Nearest,
        };
        let remainder = remainder::remainder(&mut context, a, b, division);
        if !self.conclude(&context) {
            return;
        }
        self.put(0, remainder.value);
        let bit = |quotient: u64, bit: u32, condition| if quotient >> bit & 1 != 0 { condition } else { 0 };
        match remainder.progress {
            Progress::NotANumber => {}
            Progress::Partial => {
                self.set_c1(false);
                self.set_conditions(status::C2);
            }
            Progress::Complete { quotient } => {
                self.set_c1(quotient & 1 != 0);
                self.set_conditions(bit(quotient, 2, status::C0) | bit(quotient, 1, status::C3));
            }
        }
    }

    /// FYL2X, FYL2XP1 and FPATAN: ST(1) becomes a function of ST(0) and itself, and ST(0) is popped.
    pub(super) fn join(&mut self, operation: X87Op) {
        if !self.is_full(0) || !self.is_full(1) {
            if self.underflow() {
                self.put(1, F80::DEFAULT_NAN);
                self.pop();
            }
            return;
        }
        let mut context = self.context();
        let (a, b) = (self.operand(0), self.operand(1));
        let result = match operation {
            X87Op::Fyl2x => transcendental::logarithm(&mut context, a, b),
            X87Op::Fyl2xp1 => transcendental::logarithm_of_one_plus(&mut context, a, b),
            _ => transcendental::arc_tangent(&mut context, b, a),
        };
        if self.conclude(&context) {
            self.put(1, result);
            self.pop();
        }
    }

    /// Whether there is an operand in ST(0) and room for one more; if not and that is masked, both become NaNs.
    fn can_become_two(&mut self) -> bool {
        let (empty, full) = (!self.is_full(0), self.is_at_limit());
        if !empty && !full {
            return true;
        }
        let masked = if empty { self.underflow() } else { self.overflow() };
        if masked {
            self.put(0, F80::DEFAULT_NAN);
            self.push(F80::DEFAULT_NAN);
        }
        false
    }

    /// FXTRACT: ST(0) becomes its exponent, and its significand is pushed.
    pub(super) fn split(&mut self) {
        if !self.can_become_two() {
            return;
        }
        let mut context = self.context();
        let (exponent, significand) = arithmetic::extract(&mut context, self.operand(0));
        if self.conclude(&context) {
            self.put(0, exponent);
            self.push(significand);
        }
    }

    /// FSIN, FCOS, FSINCOS and FPTAN. C2 says that the operand is out of range.
    pub(super) fn turn_angle(&mut self, operation: X87Op) {
        use X87Op as O;
        let two = matches!(operation, O::Fsincos | O::Fptan);
        self.status &= !status::C2;
        if two {
            if !self.can_become_two() {
                return;
            }
        } else if !self.is_full(0) {
            if self.underflow() {
                self.put(0, F80::DEFAULT_NAN);
            }
            return;
        }
        let wanted = Wanted {
            sine: matches!(operation, O::Fsin | O::Fsincos),
            cosine: matches!(operation, O::Fcos | O::Fsincos),
            tangent: operation == O::Fptan,
        };
        let mut context = self.context();
        let (first, second) = match transcendental::trigonometric(&mut context, self.operand(0), wanted) {
            Trigonometric::OutOfRange => {
                self.status |= status::C2;
                self.set_c1(false);
                return;
            }
            Trigonometric::Nan(nan) => (nan, nan),
            Trigonometric::Values { cosine, .. } if operation == O::Fcos => (cosine, F80::ZERO),
            Trigonometric::Values { tangent, .. } if operation == O::Fptan => (tangent, F80::ONE),
            Trigonometric::Values { sine, cosine, .. } => (sine, cosine),
        };
        if self.conclude(&context) {
            self.put(0, first);
            if two {
                self.push(second);
            }
        }
    }
}
