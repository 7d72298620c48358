//! The x87 instructions that are implemented.

use super::env::{ENVIRONMENT, STATE};
use super::{F80, X87, status};
use crate::core::{Core, Ctx, Faulted};
use crate::op::{Op, family};
use crate::registers::{CR0_MP, CR0_NE, CR0_TS};
use crate::sse::Form;
use crate::sse::softfloat::{Context, F32, F64, flag};

family! {
    /// x87 instructions.
    X87Op {
        Wait: Wait,
        Fninit: Fninit, Fnclex: Fnclex, Fnop: Fnop,
        Fnstcw: Fnstcw_m2byte, Fldcw: Fldcw_m2byte, Fnstsw: Fnstsw_m2byte, FnstswAx: Fnstsw_AX,
        Fnstenv: Fnstenv_m28byte, Fldenv: Fldenv_m28byte, Fnsave: Fnsave_m108byte, Frstor: Frstor_m108byte,
        Fld32: Fld_m32fp, Fld64: Fld_m64fp, Fld80: Fld_m80fp, FldSt: Fld_sti,
        Fst32: Fst_m32fp, Fst64: Fst_m64fp, Fstp32: Fstp_m32fp, Fstp64: Fstp_m64fp, Fstp80: Fstp_m80fp,
        FstSt: Fst_sti, FstpSt: Fstp_sti,
        Fild16: Fild_m16int, Fild32: Fild_m32int, Fild64: Fild_m64int,
        Fist16: Fist_m16int, Fist32: Fist_m32int,
        Fistp16: Fistp_m16int, Fistp32: Fistp_m32int, Fistp64: Fistp_m64int,
        Fxch: Fxch_st0_sti, Fchs: Fchs, Fabs: Fabs, Fld1: Fld1, Fldz: Fldz,
        Ffree: Ffree_sti, Fincstp: Fincstp, Fdecstp: Fdecstp,
    }
}

impl X87Op {
    /// Whether the instruction first raises a pending exception.
    fn waits(self) -> bool {
        use X87Op as O;
        !matches!(
            self,
            O::Fninit | O::Fnclex | O::Fnstcw | O::Fnstsw | O::FnstswAx | O::Fnstenv | O::Fnsave
        )
    }
}

pub(crate) fn execute(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: X87Op,
) -> Result<(), Faulted> {
    use X87Op as O;
    if operation == O::Wait {
        if core.cr0 & CR0_TS != 0 && core.cr0 & CR0_MP != 0 {
            return Err(core.raise(7, None));
        }
    } else {
        core.x87_available()?;
    }
    if operation.waits() {
        core.raise_pending()?;
    }
    let va = if form.memory() { core.ea(op) } else { 0 };
    // Number of ST(i), which is the second operand of FXCH and the first of all others.
    let i = if operation == O::Fxch { op.b } else { op.a } & 7;
    match operation {
        O::Wait | O::Fnop => {}
        O::Fninit => core.fpu.initialise(),
        O::Fnclex => core.fpu.clear_exceptions(),
        O::Fnstcw => core.write(cx, va, core.fpu.control)?,
        O::Fldcw => {
            core.fpu.control = core.read(cx, va)?;
            core.fpu.normalise();
        }
        O::Fnstsw => core.write(cx, va, core.fpu.status)?,
        O::FnstswAx => core.set(crate::registers::RAX, core.fpu.status),
        O::Fnstenv => {
            core.write_bytes(cx, va, &core.fpu.environment())?;
            core.fpu.mask_all();
        }
        O::Fldenv => {
            let mut image = [0; ENVIRONMENT];
            core.read_bytes(cx, va, &mut image)?;
            core.fpu.set_environment(&image);
        }
        O::Fnsave => {
            core.write_bytes(cx, va, &core.fpu.whole_state())?;
            core.fpu.initialise();
        }
        O::Frstor => {
            let mut image = [0; STATE];
            core.read_bytes(cx, va, &mut image)?;
            core.fpu.set_whole_state(&image);
        }
        O::Fld32 | O::Fld64 | O::Fld80 | O::Fild16 | O::Fild32 | O::Fild64 => load(core, cx, operation, va)?,
        O::FldSt => {
            let (value, empty) = (F80(core.fpu.st(i)), !core.fpu.is_full(i));
            core.fpu.push(value, empty, 0);
        }
        O::Fld1 => core.fpu.push(F80::ONE, false, 0),
        O::Fldz => core.fpu.push(F80::ZERO, false, 0),
        O::Fst32
        | O::Fst64
        | O::Fstp32
        | O::Fstp64
        | O::Fstp80
        | O::Fist16
        | O::Fist32
        | O::Fistp16
        | O::Fistp32
        | O::Fistp64 => store(core, cx, operation, va)?,
        O::FstSt | O::FstpSt => core.fpu.copy_to(i, operation == O::FstpSt),
        O::Fxch => core.fpu.exchange(i),
        O::Fchs => core.fpu.change_sign(|sign| !sign),
        O::Fabs => core.fpu.change_sign(|_| false),
        O::Ffree => {
            core.fpu.set_c1(false);
            core.fpu.set_full(i, false);
        }
        O::Fincstp => core.fpu.turn(1),
        O::Fdecstp => core.fpu.turn(7),
    }
    Ok(())
}

impl Core {
    /// Raises #MF if an x87 exception is pending. Without CR0.NE a processor would assert FERR# instead and wait for an
    /// interrupt, which no machine here has.
    pub(crate) fn raise_pending(&mut self) -> Result<(), Faulted> {
        if self.fpu.status & status::ES == 0 {
            Ok(())
        } else if self.cr0 & CR0_NE == 0 {
            Err(self.unknown("an x87 exception with CR0.NE clear: the machine has no FERR# signal"))
        } else {
            Err(self.raise(16, None))
        }
    }
}

/// Loads: the operand is converted exactly to extended precision and pushed.
fn load(core: &mut Core, cx: &mut Ctx<'_>, operation: X87Op, va: u64) -> Result<(), Faulted> {
    let mut context = Context::from_control_word(core.fpu.control);
    let value = match operation {
        X87Op::Fld32 => F80::widen(&mut context, F32, u64::from(core.read::<u32>(cx, va)?)),
        X87Op::Fld64 => F80::widen(&mut context, F64, core.read(cx, va)?),
        X87Op::Fild16 => F80::from_integer(i64::from(core.read::<u16>(cx, va)?.cast_signed())),
        X87Op::Fild32 => F80::from_integer(i64::from(core.read::<u32>(cx, va)?.cast_signed())),
        X87Op::Fild64 => F80::from_integer(core.read::<u64>(cx, va)?.cast_signed()),
        _ => {
            let mut bytes = [0; 16];
            core.read_bytes(cx, va, &mut bytes[..10])?;
            F80(u128::from_le_bytes(bytes))
        }
    };
    core.fpu.push(value, false, low16(context.raised));
    Ok(())
}

/// Stores of ST(0), rounded to the destination, most of which pop.
fn store(core: &mut Core, cx: &mut Ctx<'_>, operation: X87Op, va: u64) -> Result<(), Faulted> {
    use X87Op as O;
    let pop = !matches!(operation, O::Fst32 | O::Fst64 | O::Fist16 | O::Fist32);
    let mut context = Context::from_control_word(core.fpu.control);
    let empty = !core.fpu.is_full(0);
    let value = if empty {
        F80::DEFAULT_NAN
    } else {
        F80(core.fpu.st(0))
    };
    let (bytes, len) = match operation {
        O::Fst32 | O::Fstp32 => (u128::from(value.narrow(&mut context, F32)), 4),
        O::Fst64 | O::Fstp64 => (u128::from(value.narrow(&mut context, F64)), 8),
        O::Fist16 | O::Fistp16 => (integer(value, &mut context, 16), 2),
        O::Fist32 | O::Fistp32 => (integer(value, &mut context, 32), 4),
        O::Fistp64 => (integer(value, &mut context, 64), 8),
        _ => (value.0, 10),
    };
    let mut flags = low16(context.raised);
    if empty {
        flags = low16(flag::IE) | status::SF;
    }
    // If only the precision exception is unmasked, the result is stored all the same. With any other unmasked
    // exception nothing is stored and the precision flag is not set. As on AMD, a page fault comes before all of
    // them; Intel does not look at the page if nothing is stored.
    let unmasked = flags & !core.fpu.control & 0x3f;
    let stored = unmasked & !low16(flag::PE) == 0;
    if stored {
        core.write_bytes(cx, va, &bytes.to_le_bytes()[..len])?;
    } else {
        core.check_write(cx, va, len as u64)?;
        flags &= !low16(flag::PE);
    }
    core.fpu
        .set_c1(!empty && context.rounded_up && flags & low16(flag::PE) != 0);
    core.fpu.signal(flags);
    if pop && stored {
        core.fpu.pop();
    }
    Ok(())
}

fn integer(value: F80, context: &mut Context, bits: u32) -> u128 {
    u128::from(value.to_integer(context, bits).cast_unsigned())
}

fn low16(flags: u32) -> u16 {
    u16::try_from(flags & flag::ALL).unwrap_or(0)
}

impl X87 {
    /// Pushes a value that was made with `flags`, or that came from an empty register.
    fn push(&mut self, value: F80, from_empty: bool, flags: u16) {
        let overflow = self.is_full(7);
        let stack_fault = overflow || from_empty;
        self.set_c1(overflow && !from_empty);
        let flags = if stack_fault {
            low16(flag::IE) | status::SF
        } else {
            flags
        };
        self.signal(flags);
        // A denormal operand is pushed even if the exception is unmasked.
        if flags & !self.control & low16(flag::IE) != 0 {
            return;
        }
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, if stack_fault { F80::DEFAULT_NAN.0 } else { value.0 });
        self.set_full(0, true);
    }

    fn pop(&mut self) {
        self.set_full(0, false);
        self.set_top(self.top() + 1);
    }

    /// Raises a stack underflow. Returns true if it is masked; the instruction then continues with a NaN.
    fn underflow(&mut self) -> bool {
        self.set_c1(false);
        !self.signal(low16(flag::IE) | status::SF)
    }

    /// FST and FSTP to a register.
    fn copy_to(&mut self, i: u8, pop: bool) {
        let mut value = self.st(0);
        if !self.is_full(0) {
            if !self.underflow() {
                return;
            }
            value = F80::DEFAULT_NAN.0;
        }
        self.set_c1(false);
        self.set_st(i, value);
        self.set_full(i, true);
        if pop {
            self.pop();
        }
    }

    fn exchange(&mut self, i: u8) {
        if !self.is_full(0) || !self.is_full(i) {
            if !self.underflow() {
                return;
            }
            for st in [0, i] {
                if !self.is_full(st) {
                    self.set_st(st, F80::DEFAULT_NAN.0);
                    self.set_full(st, true);
                }
            }
        }
        self.set_c1(false);
        let (top, other) = (self.st(0), self.st(i));
        self.set_st(0, other);
        self.set_st(i, top);
    }

    fn change_sign(&mut self, f: impl Fn(bool) -> bool) {
        if !self.is_full(0) {
            if self.underflow() {
                self.set_st(0, F80::DEFAULT_NAN.0);
                self.set_full(0, true);
            }
            return;
        }
        self.set_c1(false);
        let value = F80(self.st(0));
        self.set_st(0, value.with_sign(f(value.sign())).0);
    }

    /// Moves TOP, as FINCSTP and FDECSTP do.
    fn turn(&mut self, by: u8) {
        self.set_c1(false);
        self.set_top(self.top() + by);
    }
}
