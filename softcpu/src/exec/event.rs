//! Delivery of exceptions and interrupts, and the ways into and out of the kernel (SDM volume 3, chapter 6; volume 2,
//! SYSCALL, SYSRET, IRET).

use super::control::{load_flags, null_stack_segment};
use super::descriptor::{as_supervisor, load_code_segment, set_privilege};
use crate::core::{Core, Ctx, Exception, Faulted};
use crate::flags::{FIXED, IF, NT, RF, TF};
use crate::mmu::canonical;
use crate::op::Op;
use crate::registers::{CODE64, CS, DATA, EFER_SCE, R11, RCX, RSP, SS, Segment};
use crate::word::Word;

/// Origin of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The processor itself, or an interrupt controller.
    Hardware,
    /// INT n, INT3 or INT1.
    Software {
        /// INT1: the gate's DPL is not checked.
        ignores_privilege: bool,
    },
}

/// Gate types in an IDT entry.
const INTERRUPT_GATE: u64 = 0xe;
const TRAP_GATE: u64 = 0xf;

/// Error code of a fault on IDT entry `vector`: its index, the IDT bit, and whether the event was external.
fn idt_error(vector: u8, source: Source) -> u32 {
    u32::from(vector) << 3 | 2 | u32::from(source == Source::Hardware)
}

/// Delivers an event through the IDT. The handler returns to [`Core::rip`].
pub(crate) fn deliver(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    vector: u8,
    error: Option<u32>,
    source: Source,
) -> Result<(), Faulted> {
    let offset = u64::from(vector) * 16;
    if offset + 15 > u64::from(core.idtr.limit) {
        return Err(core.raise(13, Some(idt_error(vector, source))));
    }
    let at = core.idtr.base.wrapping_add(offset);
    let (low, high) = as_supervisor(core, |core| {
        Ok((
            core.read::<u64>(cx, at)?,
            core.read::<u64>(cx, at.wrapping_add(8))?,
        ))
    })?;
    let kind = low >> 40 & 0x1f;
    if !matches!(kind, INTERRUPT_GATE | TRAP_GATE) {
        return Err(core.raise(13, Some(idt_error(vector, source))));
    }
    let gate_dpl = low >> 45 & 3;
    if source
        == (Source::Software {
            ignores_privilege: false,
        })
        && u64::from(core.cpl()) > gate_dpl
    {
        return Err(core.raise(13, Some(idt_error(vector, source))));
    }
    if low >> 47 & 1 == 0 {
        return Err(core.raise(11, Some(idt_error(vector, source))));
    }
    let target = (low & 0xffff) | (low >> 32 & 0xffff_0000) | (high & 0xffff_ffff) << 32;
    if !canonical(target) {
        return Err(core.protection());
    }
    let selector = u16::cut(low >> 16);
    let ist = low >> 32 & 7;

    let old = (
        core.segments[CS],
        core.segments[SS],
        core.get::<u64>(RSP),
        core.rflags(),
        core.cpl(),
    );
    let mut stack = if ist != 0 {
        task_stack(core, cx, 0x24 + 8 * (ist - 1))?
    } else if old.4 != 0 {
        task_stack(core, cx, 4)?
    } else {
        old.2
    };
    stack &= !15;
    let frame = [
        u64::from(old.1.selector),
        old.2,
        old.3,
        u64::from(old.0.selector),
        core.rip,
    ];
    let saved_tag = core.mode_tag;
    let result = as_supervisor(core, |core| {
        load_code_segment(core, cx, selector, 0)?;
        for value in frame.into_iter().chain(error.map(u64::from)) {
            stack = stack.wrapping_sub(8);
            core.write(cx, stack, value)?;
        }
        Ok(())
    });
    if let Err(faulted) = result {
        core.segments[CS] = old.0;
        core.mode_tag = saved_tag;
        return Err(faulted);
    }
    if old.4 != 0 {
        null_stack_segment(core, 0);
        set_privilege(core, 0);
    }
    core.set(RSP, stack);
    let mut cleared = TF | NT;
    if kind == INTERRUPT_GATE {
        cleared |= IF;
    }
    core.flags &= !cleared;
    core.set_resume_flag(false);
    core.trap_due = false;
    core.rip = target;
    Ok(())
}

/// A stack pointer from the 64-bit TSS.
fn task_stack(core: &mut Core, cx: &mut Ctx<'_>, offset: u64) -> Result<u64, Faulted> {
    if offset + 7 > u64::from(core.tr.limit) {
        return Err(core.raise(10, Some(u32::from(core.tr.selector & !3))));
    }
    let at = core.tr.base.wrapping_add(offset);
    let stack = as_supervisor(core, |core| core.read::<u64>(cx, at))?;
    if canonical(stack) {
        Ok(stack)
    } else {
        Err(core.raise(12, Some(0)))
    }
}

/// Cause of a shutdown (triple fault).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// Vectors of the exceptions that led to the shutdown, in order.
    pub vectors: [u8; 3],
    /// The instruction that faulted first.
    pub rip: u64,
    /// CR2 at the end.
    pub cr2: u64,
}

/// Whether an exception during the delivery of another becomes a double fault (SDM volume 3, table 6-5).
fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// Delivers [`Core::fault`], an exception of the class of faults: RF is set in the RFLAGS that it pushes, so that an
/// instruction breakpoint does not hit again (SDM volume 3, "Instruction-Breakpoint Exception Condition").
pub(crate) fn deliver_fault(core: &mut Core, cx: &mut Ctx<'_>) -> Result<(), Shutdown> {
    core.set_resume_flag(true);
    deliver_exception(core, cx)
}

/// Delivers [`Core::fault`], a trap after a complete instruction. It pushes RF as it is: set only between two
/// iterations of a repeated string instruction.
pub(crate) fn deliver_trap(core: &mut Core, cx: &mut Ctx<'_>) -> Result<(), Shutdown> {
    deliver_exception(core, cx)
}

/// Delivers [`Core::fault`], escalating to a double fault and to shutdown as the architecture demands.
#[allow(clippy::needless_range_loop)] // the index is the number of attempts so far
fn deliver_exception(core: &mut Core, cx: &mut Ctx<'_>) -> Result<(), Shutdown> {
    let rip = core.rip;
    core.set_writer(rip);
    let mut current: Exception = core.fault;
    let mut vectors = [current.vector, 0, 0];
    for seen in 1..3 {
        match deliver(core, cx, current.vector, current.error, Source::Hardware) {
            Ok(()) => return Ok(()),
            Err(Faulted) => {
                core.set_resume_flag(true);
                let next = core.fault;
                vectors[seen] = next.vector;
                if current.vector == 8 {
                    break;
                }
                let doubles = (contributory(current.vector) && contributory(next.vector))
                    || (current.vector == 14 && (contributory(next.vector) || next.vector == 14));
                current = if doubles {
                    Exception {
                        vector: 8,
                        error: Some(0),
                        unknown: false,
                    }
                } else {
                    next
                };
            }
        }
    }
    match deliver(core, cx, current.vector, current.error, Source::Hardware) {
        Ok(()) => Ok(()),
        Err(Faulted) => Err(Shutdown {
            vectors,
            rip,
            cr2: core.cr2,
        }),
    }
}

/// SYSCALL.
pub(super) fn syscall(core: &mut Core, op: &Op) -> Result<(), Faulted> {
    if core.efer & EFER_SCE == 0 {
        return Err(core.undefined());
    }
    let flags = core.rflags() & !RF;
    core.set(RCX, core.next_rip(op));
    core.set(R11, flags);
    core.set_rflags((flags & !core.msrs.fmask) | FIXED);
    let selector = u16::cut(core.msrs.star >> 32) & !3;
    core.segments[CS] = Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: CODE64,
    };
    core.segments[SS] = Segment {
        selector: selector.wrapping_add(8),
        base: 0,
        limit: u32::MAX,
        attributes: DATA,
    };
    core.rip = core.msrs.lstar;
    set_privilege(core, 0);
    Ok(())
}

/// SYSRET with a 64-bit operand.
pub(super) fn sysret(core: &mut Core) -> Result<(), Faulted> {
    if core.efer & EFER_SCE == 0 {
        return Err(core.undefined());
    }
    let target: u64 = core.get(RCX);
    if !canonical(target) {
        return Err(core.protection());
    }
    let before = core.flags;
    // RF, VM and reserved bits are cleared.
    core.set_rflags((core.get::<u64>(R11) & 0x003c_7fd7) | FIXED);
    core.flags_loaded(before);
    let base = u16::cut(core.msrs.star >> 48);
    let user = |selector: u16, attributes: u16| Segment {
        selector: selector | 3,
        base: 0,
        limit: u32::MAX,
        attributes: attributes | 0x60,
    };
    core.segments[CS] = user(base.wrapping_add(16), CODE64);
    core.segments[SS] = user(base.wrapping_add(8), DATA);
    core.rip = target;
    set_privilege(core, 3);
    Ok(())
}

/// IRET with a 64-bit operand.
pub(super) fn iret(core: &mut Core, cx: &mut Ctx<'_>) -> Result<(), Faulted> {
    if core.flags & NT != 0 {
        return Err(core.protection());
    }
    let top = core.get::<u64>(RSP);
    let mut frame = [0u64; 5];
    for (i, word) in frame.iter_mut().enumerate() {
        *word = core.read(cx, top.wrapping_add(8 * i as u64))?;
    }
    let [target, code, image, stack, stack_segment] = frame;
    let level = u16::cut(code) & 3;
    let cpl = core.cpl();
    if level < u16::from(cpl) {
        return Err(core.raise(13, Some(u32::cut(code) & 0xfffc)));
    }
    if !canonical(target) {
        return Err(core.protection());
    }
    let new = level.to_le_bytes()[0];
    let stack_selector = u16::cut(stack_segment);
    // In long mode a null SS is allowed at CPL 0 to 2. A user SS must be a writable data segment, which the load
    // checks.
    if stack_selector & !3 == 0 && (level == 3 || stack_selector & 3 != level) {
        return Err(core.protection());
    }
    let old = (core.segments[CS], core.flags, core.lazy);
    load_code_segment(core, cx, u16::cut(code), new)?;
    // Which flags may change depends on the privilege level that is left.
    let target_cs = std::mem::replace(&mut core.segments[CS], old.0);
    load_flags(core, image, 0);
    core.segments[CS] = target_cs;
    let loaded = load_outer_stack_segment(core, cx, stack_selector);
    if let Err(faulted) = loaded {
        (core.segments[CS], core.flags, core.lazy) = old;
        return Err(faulted);
    }
    core.set(RSP, stack);
    core.rip = target;
    set_privilege(core, new);
    if new > cpl {
        super::descriptor::null_inner_segments(core, level);
    }
    core.nmi_blocked = false;
    Ok(())
}

/// RETF (`T` = u64 with REX.W, u32 without), to the same privilege level or an outer one.
pub(super) fn far_return<T: Word>(core: &mut Core, cx: &mut Ctx<'_>) -> Result<(), Faulted> {
    let top = core.get::<u64>(RSP);
    let mut word = |core: &mut Core, index: u64| {
        core.read::<T>(cx, top.wrapping_add(T::BYTES * index))
            .map(Word::zx)
    };
    let target = word(core, 0)?;
    let selector = u16::cut(word(core, 1)?);
    let cpl = core.cpl();
    let level = (selector & 3).to_le_bytes()[0];
    if level < cpl {
        return Err(core.raise(13, Some(u32::from(selector & !3))));
    }
    if !canonical(target) {
        return Err(core.protection());
    }
    if level == cpl {
        load_code_segment(core, cx, selector, cpl)?;
        core.set(RSP, top.wrapping_add(2 * T::BYTES));
        core.rip = target;
        return Ok(());
    }
    let stack = word(core, 2)?;
    let stack_selector = u16::cut(word(core, 3)?);
    if stack_selector & !3 == 0 && (level == 3 || stack_selector & 3 != u16::from(level)) {
        return Err(core.protection());
    }
    let old = core.segments[CS];
    load_code_segment(core, cx, selector, level)?;
    load_outer_stack_segment(core, cx, stack_selector).inspect_err(|_| core.segments[CS] = old)?;
    core.set(RSP, stack);
    core.rip = target;
    set_privilege(core, level);
    super::descriptor::null_inner_segments(core, u16::from(level));
    Ok(())
}

/// Loads SS on a return. The caller has checked that a null selector is allowed; any other is loaded as by MOV SS.
fn load_outer_stack_segment(core: &mut Core, cx: &mut Ctx<'_>, selector: u16) -> Result<(), Faulted> {
    let loaded = if selector & !3 == 0 {
        core.segments[SS] = Segment {
            selector,
            ..Segment::default()
        };
        Ok(())
    } else {
        super::descriptor::load_data_segment(core, cx, SS, selector)
    };
    (core.shadow_until, core.traps_held_until) = (0, 0);
    loaded
}
