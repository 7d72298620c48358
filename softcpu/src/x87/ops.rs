//! The x87 instructions: which there are, and what each does with registers and memory.

use super::arithmetic::Operand;
use super::env::{ENVIRONMENT, SHORT_ENVIRONMENT, SHORT_STATE, STATE};
use super::round::FULL;
use super::shape::{Kind, Shape};
use super::{F80, decimal, low16, status};
use crate::core::{Core, Ctx, Faulted};
use crate::flags::{CF, PF, ZF};
use crate::op::{Op, family};
use crate::registers::{CR0_MP, CR0_NE, CR0_TS};
use crate::sse::Form;
use crate::sse::softfloat::{Context, Exact, F32, F64, Relation, flag};

family! {
    /// x87 instructions. The operand in memory and the number of pops are in the instruction's [`Shape`].
    X87Op {
        Wait: Wait,
        Fnop: Fnop,
        // Instructions of the 8087 and the 80287, which do nothing since.
        Ignored: Fneni | Fndisi | Fnsetpm,
        Fninit: Fninit, Fnclex: Fnclex,
        Fnstcw: Fnstcw_m2byte, Fldcw: Fldcw_m2byte, Fnstsw: Fnstsw_m2byte, FnstswAx: Fnstsw_AX,
        Fnstenv: Fnstenv_m28byte, Fldenv: Fldenv_m28byte, Fnsave: Fnsave_m108byte, Frstor: Frstor_m108byte,
        FnstenvShort: Fnstenv_m14byte, FldenvShort: Fldenv_m14byte,
        FnsaveShort: Fnsave_m94byte, FrstorShort: Frstor_m94byte,
        Fld: Fld_m32fp | Fld_m64fp | Fld_m80fp | Fild_m16int | Fild_m32int | Fild_m64int | Fbld_m80bcd,
        FldSt: Fld_sti,
        Fld1: Fld1, Fldl2t: Fldl2t, Fldl2e: Fldl2e, Fldpi: Fldpi, Fldlg2: Fldlg2, Fldln2: Fldln2, Fldz: Fldz,
        Fst: Fst_m32fp | Fst_m64fp | Fstp_m32fp | Fstp_m64fp | Fstp_m80fp | Fist_m16int | Fist_m32int
            | Fistp_m16int | Fistp_m32int | Fistp_m64int | Fbstp_m80bcd,
        FstSt: Fst_sti | Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8,
        Fstpnce: Fstpnce_sti,
        Fxch: Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8,
        Fchs: Fchs, Fabs: Fabs, Ffree: Ffree_sti | Ffreep_sti, Fincstp: Fincstp, Fdecstp: Fdecstp,
        Fcmovb: Fcmovb_st0_sti, Fcmove: Fcmove_st0_sti, Fcmovbe: Fcmovbe_st0_sti, Fcmovu: Fcmovu_st0_sti,
        Fcmovnb: Fcmovnb_st0_sti, Fcmovne: Fcmovne_st0_sti, Fcmovnbe: Fcmovnbe_st0_sti, Fcmovnu: Fcmovnu_st0_sti,
        Fadd: Fadd_m32fp | Fadd_m64fp | Fadd_st0_sti | Fadd_sti_st0 | Faddp_sti_st0 | Fiadd_m16int | Fiadd_m32int,
        Fmul: Fmul_m32fp | Fmul_m64fp | Fmul_st0_sti | Fmul_sti_st0 | Fmulp_sti_st0 | Fimul_m16int | Fimul_m32int,
        Fsub: Fsub_m32fp | Fsub_m64fp | Fsub_st0_sti | Fsub_sti_st0 | Fsubp_sti_st0 | Fisub_m16int | Fisub_m32int,
        Fsubr: Fsubr_m32fp | Fsubr_m64fp | Fsubr_st0_sti | Fsubr_sti_st0 | Fsubrp_sti_st0 | Fisubr_m16int
            | Fisubr_m32int,
        Fdiv: Fdiv_m32fp | Fdiv_m64fp | Fdiv_st0_sti | Fdiv_sti_st0 | Fdivp_sti_st0 | Fidiv_m16int | Fidiv_m32int,
        Fdivr: Fdivr_m32fp | Fdivr_m64fp | Fdivr_st0_sti | Fdivr_sti_st0 | Fdivrp_sti_st0 | Fidivr_m16int
            | Fidivr_m32int,
        Fcom: Fcom_m32fp | Fcom_m64fp | Fcom_st0_sti | Fcom_st0_sti_DCD0 | Fcomp_m32fp | Fcomp_m64fp
            | Fcomp_st0_sti | Fcomp_st0_sti_DCD8 | Fcomp_st0_sti_DED0 | Fcompp | Ficom_m16int | Ficom_m32int
            | Ficomp_m16int | Ficomp_m32int,
        Fucom: Fucom_st0_sti | Fucomp_st0_sti | Fucompp,
        Fcomi: Fcomi_st0_sti | Fcomip_st0_sti,
        Fucomi: Fucomi_st0_sti | Fucomip_st0_sti,
        Ftst: Ftst, Fxam: Fxam,
        Fsqrt: Fsqrt, Frndint: Frndint, F2xm1: F2xm1,
        Fscale: Fscale, Fprem: Fprem, Fprem1: Fprem1,
        Fyl2x: Fyl2x, Fyl2xp1: Fyl2xp1, Fpatan: Fpatan,
        Fxtract: Fxtract, Fsin: Fsin, Fcos: Fcos, Fsincos: Fsincos, Fptan: Fptan,
    }
}

impl X87Op {
    /// Whether the instruction first raises a pending exception.
    fn waits(self) -> bool {
        use X87Op as O;
        !matches!(
            self,
            O::Ignored
                | O::Fninit
                | O::Fnclex
                | O::Fnstcw
                | O::Fnstsw
                | O::FnstswAx
                | O::Fnstenv
                | O::FnstenvShort
                | O::Fnsave
                | O::FnsaveShort
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
    let shape = Shape::from_byte(form.imm8());
    // Number of ST(i). The other register, or the only one, is ST(0).
    let i = (op.a | op.b) & 7;
    match operation {
        O::Wait | O::Fnop | O::Ignored => {}
        O::Fninit => core.fpu.initialise(),
        O::Fnclex => core.fpu.clear_exceptions(),
        O::Fnstcw => core.write(cx, va, core.fpu.control)?,
        O::Fldcw => {
            core.fpu.control = core.read(cx, va)?;
            core.fpu.normalise();
        }
        O::Fnstsw => core.write(cx, va, core.fpu.status)?,
        O::FnstswAx => core.set(crate::registers::RAX, core.fpu.status),
        O::Fnstenv
        | O::FnstenvShort
        | O::Fldenv
        | O::FldenvShort
        | O::Fnsave
        | O::FnsaveShort
        | O::Frstor
        | O::FrstorShort => state(core, cx, operation, va)?,
        O::Fld => load(core, cx, shape.kind(), va)?,
        O::FldSt => {
            let (value, empty) = (F80(core.fpu.st(i)), !core.fpu.is_full(i));
            core.fpu.load(value, empty, 0);
        }
        O::Fld1 | O::Fldl2t | O::Fldl2e | O::Fldpi | O::Fldlg2 | O::Fldln2 | O::Fldz => {
            let value = constant(operation, core.fpu.control);
            core.fpu.load(value, false, 0);
        }
        O::Fst => store(core, cx, shape, va)?,
        O::FstSt => core.fpu.copy_to(i, shape.pops()),
        O::Fstpnce => {
            // As FSTP, but an empty ST(0) is no exception and is not copied.
            core.fpu.set_c1(false);
            if core.fpu.is_full(0) {
                core.fpu.put(i, F80(core.fpu.st(0)));
            }
            core.fpu.pop();
        }
        O::Fxch => core.fpu.exchange(i),
        O::Fchs => core.fpu.change_sign(|sign| !sign),
        O::Fabs => core.fpu.change_sign(|_| false),
        O::Ffree => {
            core.fpu.set_c1(false);
            core.fpu.set_full(i, false);
            core.fpu.pop_times(shape.pops());
        }
        O::Fincstp => core.fpu.turn(1),
        O::Fdecstp => core.fpu.turn(7),
        O::Fcmovb
        | O::Fcmove
        | O::Fcmovbe
        | O::Fcmovu
        | O::Fcmovnb
        | O::Fcmovne
        | O::Fcmovnbe
        | O::Fcmovnu => {
            let holds = condition(operation, core.lazy.image());
            core.fpu.copy_if(i, holds);
        }
        O::Fadd | O::Fmul | O::Fsub | O::Fsubr | O::Fdiv | O::Fdivr => {
            let source = source(core, cx, shape.kind(), va)?;
            let (to, from) = if op.a & 7 != 0 { (i, 0) } else { (0, i) };
            core.fpu.combine(operation, to, from, source, shape.pops());
        }
        O::Fcom | O::Fucom => {
            let source = source(core, cx, shape.kind(), va)?;
            // FCOMPP and FUCOMPP have no register operand: it is ST(1).
            let i = if shape.pops() == 2 { 1 } else { i };
            core.fpu.compare(i, source, operation == O::Fucom, shape.pops());
        }
        O::Ftst => core.fpu.compare(0, Some(Operand::integer(0)), false, 0),
        O::Fcomi | O::Fucomi => {
            let relation = core.fpu.relate(i, None, operation == O::Fucomi, shape.pops());
            core.set_flags_explicit(match relation {
                Relation::Unordered => ZF | PF | CF,
                Relation::Greater => 0,
                Relation::Less => CF,
                Relation::Equal => ZF,
            });
        }
        O::Fxam => core.fpu.examine(),
        O::Fsqrt | O::Frndint | O::F2xm1 => core.fpu.replace(operation),
        O::Fscale | O::Fprem | O::Fprem1 => core.fpu.replace_by_second(operation),
        O::Fyl2x | O::Fyl2xp1 | O::Fpatan => core.fpu.join(operation),
        O::Fxtract => core.fpu.split(),
        O::Fsin | O::Fcos | O::Fsincos | O::Fptan => core.fpu.turn_angle(operation),
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

/// FNSTENV, FLDENV, FNSAVE and FRSTOR.
fn state(core: &mut Core, cx: &mut Ctx<'_>, operation: X87Op, va: u64) -> Result<(), Faulted> {
    use X87Op as O;
    match operation {
        O::Fnstenv | O::FnstenvShort => {
            let (long, short) = (core.fpu.environment(), core.fpu.short_environment());
            let image = if operation == O::Fnstenv {
                &long[..]
            } else {
                &short[..]
            };
            core.write_bytes(cx, va, image)?;
            core.fpu.mask_all();
        }
        O::Fldenv => {
            let mut image = [0; ENVIRONMENT];
            core.read_bytes(cx, va, &mut image)?;
            core.fpu.set_environment(&image);
        }
        O::FldenvShort => {
            let mut image = [0; SHORT_ENVIRONMENT];
            core.read_bytes(cx, va, &mut image)?;
            core.fpu.set_short_environment(&image);
        }
        O::Fnsave | O::FnsaveShort => {
            let (long, short) = (core.fpu.whole_state(), core.fpu.whole_short_state());
            let image = if operation == O::Fnsave {
                &long[..]
            } else {
                &short[..]
            };
            core.write_bytes(cx, va, image)?;
            core.fpu.initialise();
        }
        O::Frstor => {
            let mut image = [0; STATE];
            core.read_bytes(cx, va, &mut image)?;
            core.fpu.set_whole_state(&image);
        }
        _ => {
            let mut image = [0; SHORT_STATE];
            core.read_bytes(cx, va, &mut image)?;
            core.fpu.set_whole_short_state(&image);
        }
    }
    Ok(())
}

/// The operand in memory; `None` if there is none.
fn source(core: &mut Core, cx: &mut Ctx<'_>, kind: Kind, va: u64) -> Result<Option<Operand>, Faulted> {
    Ok(Some(match kind {
        Kind::None => return Ok(None),
        Kind::Single => Operand::float(F32, u64::from(core.read::<u32>(cx, va)?)),
        Kind::Double => Operand::float(F64, core.read(cx, va)?),
        Kind::Integer16 => Operand::integer(i64::from(core.read::<u16>(cx, va)?.cast_signed())),
        Kind::Integer32 => Operand::integer(i64::from(core.read::<u32>(cx, va)?.cast_signed())),
        Kind::Integer64 => Operand::integer(core.read::<u64>(cx, va)?.cast_signed()),
        Kind::Extended | Kind::Decimal => {
            let mut bytes = [0; 16];
            core.read_bytes(cx, va, &mut bytes[..10])?;
            let bits = u128::from_le_bytes(bytes);
            Operand::register(if kind == Kind::Decimal {
                decimal::load(bits).0
            } else {
                bits
            })
        }
    }))
}

/// Loads: the operand is converted exactly to extended precision and pushed.
fn load(core: &mut Core, cx: &mut Ctx<'_>, kind: Kind, va: u64) -> Result<(), Faulted> {
    let mut context = Context::from_control_word(core.fpu.control);
    let value = match kind {
        // Unlike the others these raise exceptions.
        Kind::Single => F80::widen(&mut context, F32, u64::from(core.read::<u32>(cx, va)?)),
        Kind::Double => F80::widen(&mut context, F64, core.read(cx, va)?),
        _ => source(core, cx, kind, va)?.map_or(F80::ZERO, |operand| operand.value),
    };
    core.fpu.load(value, false, low16(context.raised));
    Ok(())
}

/// Stores of ST(0), rounded to the destination, most of which pop.
fn store(core: &mut Core, cx: &mut Ctx<'_>, shape: Shape, va: u64) -> Result<(), Faulted> {
    let mut context = Context::from_control_word(core.fpu.control);
    let empty = !core.fpu.is_full(0);
    let value = if empty {
        F80::DEFAULT_NAN
    } else {
        F80(core.fpu.st(0))
    };
    let integer = |context: &mut Context, bits| u128::from(value.to_integer(context, bits).cast_unsigned());
    let (kind, len) = (shape.kind(), shape.kind().bytes());
    let bytes = match kind {
        Kind::Single => u128::from(value.narrow(&mut context, F32)),
        Kind::Double => u128::from(value.narrow(&mut context, F64)),
        Kind::Integer16 => integer(&mut context, 16),
        Kind::Integer32 => integer(&mut context, 32),
        Kind::Integer64 => integer(&mut context, 64),
        Kind::Decimal => decimal::store(&mut context, value),
        Kind::Extended | Kind::None => value.0,
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
    if stored {
        core.fpu.pop_times(shape.pops());
    }
    Ok(())
}

/// A constant. Those that are irrational are rounded, but raise no exception.
fn constant(operation: X87Op, control: u16) -> F80 {
    use X87Op as O;
    // The 128 leading bits, and the exponent of the first.
    let (exponent, significand) = match operation {
        O::Fldl2t => (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c),
        O::Fldl2e => (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88),
        O::Fldpi => (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
        O::Fldlg2 => (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
        O::Fldln2 => (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
        O::Fld1 => return F80::ONE,
        _ => return F80::ZERO,
    };
    Context::from_control_word(control).extended(
        FULL,
        Exact::Finite {
            sign: false,
            exponent: exponent - 127,
            significand,
        },
    )
}

/// Whether the condition of an FCMOVcc holds.
fn condition(operation: X87Op, flags: u64) -> bool {
    use X87Op as O;
    match operation {
        O::Fcmovb => flags & CF != 0,
        O::Fcmove => flags & ZF != 0,
        O::Fcmovbe => flags & (CF | ZF) != 0,
        O::Fcmovu => flags & PF != 0,
        O::Fcmovnb => flags & CF == 0,
        O::Fcmovne => flags & ZF == 0,
        O::Fcmovnbe => flags & (CF | ZF) == 0,
        _ => flags & PF == 0,
    }
}
