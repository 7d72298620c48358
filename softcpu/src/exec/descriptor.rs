//! Segment descriptors: loading and inspecting them (SDM volume 3, chapters 3 and 5).

use crate::core::{Core, Ctx, Faulted};
use crate::flags::ZF;
use crate::mmu::USER_TAG;
use crate::op::{FS_BASE, GS_BASE};
use crate::registers::{CS, DS, ES, FS, GS, SS, Segment, TableRegister};
use crate::word::Word;

/// Attribute bits of [`Segment::attributes`].
mod attribute {
    pub const PRESENT: u16 = 1 << 7;
    pub const NOT_SYSTEM: u16 = 1 << 4;
    pub const CODE: u16 = 1 << 3;
    /// Code: conforming. Data: expand down.
    pub const CONFORMING: u16 = 1 << 2;
    /// Code: readable. Data: writable.
    pub const READ_WRITE: u16 = 1 << 1;
    pub const ACCESSED: u16 = 1 << 0;
    pub const LONG: u16 = 1 << 13;
    pub const DEFAULT_32: u16 = 1 << 14;
    pub const GRANULARITY: u16 = 1 << 15;
}

fn dpl(attributes: u16) -> u16 {
    attributes >> 5 & 3
}

/// What a return to an outer privilege level does with ES, DS, FS and GS: those that the outer level may not use become
/// null (SDM volume 2A, IRET, RETURN-TO-OUTER-PRIVILEGE-LEVEL). Bases stay, as on AMD: FS and GS have theirs from
/// model-specific registers.
pub(super) fn null_inner_segments(core: &mut Core, cpl: u16) {
    for index in [ES, DS, FS, GS] {
        let segment = &mut core.segments[index];
        let conforming = attribute::CODE | attribute::CONFORMING;
        let for_all = segment.attributes & conforming == conforming;
        if segment.selector & !3 == 0 || dpl(segment.attributes) < cpl && !for_all {
            segment.selector = 0;
            segment.attributes = 0;
        }
    }
}

/// Decodes the low eight bytes of a descriptor.
fn decode(selector: u16, raw: u64) -> Segment {
    let attributes = u16::cut(raw >> 40) & 0xf0ff;
    let limit = u32::cut((raw & 0xffff) | (raw >> 32 & 0xf_0000));
    let limit = if attributes & attribute::GRANULARITY != 0 {
        limit << 12 | 0xfff
    } else {
        limit
    };
    let base = (raw >> 16 & 0xff_ffff) | (raw >> 32 & 0xff00_0000);
    Segment {
        selector,
        base,
        limit,
        attributes,
    }
}

/// Reads memory with supervisor rights at any privilege level, as the processor reads its own tables.
pub(super) fn as_supervisor<R>(core: &mut Core, access: impl FnOnce(&mut Core) -> R) -> R {
    let tag = std::mem::replace(&mut core.mode_tag, 0);
    let result = access(core);
    core.mode_tag = tag;
    result
}

/// Address of a selector's descriptor; `None` if it is outside the table.
fn place(core: &Core, selector: u16) -> Option<u64> {
    let table = if selector & 4 == 0 {
        core.gdtr
    } else {
        TableRegister {
            base: core.ldtr.base,
            limit: u16::try_from(core.ldtr.limit).unwrap_or(u16::MAX),
        }
    };
    let offset = u64::from(selector & !7);
    (offset + 7 <= u64::from(table.limit)).then(|| table.base.wrapping_add(offset))
}

fn fetch(core: &mut Core, cx: &mut Ctx<'_>, selector: u16) -> Result<Option<(u64, u64)>, Faulted> {
    let Some(at) = place(core, selector) else {
        return Ok(None);
    };
    let raw = as_supervisor(core, |core| core.read::<u64>(cx, at))?;
    Ok(Some((at, raw)))
}

fn selector_error(core: &mut Core, selector: u16) -> Faulted {
    core.raise(13, Some(u32::from(selector & !3)))
}

/// MOV and POP to a data segment register.
pub(super) fn load_data_segment(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    register: usize,
    selector: u16,
) -> Result<(), Faulted> {
    if register == CS || register > GS {
        return Err(core.undefined());
    }
    let segment = if selector & !3 == 0 {
        let cpl = u16::from(core.cpl());
        if register == SS && (cpl == 3 || selector & 3 != cpl) {
            return Err(core.protection());
        }
        Segment {
            selector,
            ..Segment::default()
        }
    } else {
        let Some((at, raw)) = fetch(core, cx, selector)? else {
            return Err(selector_error(core, selector));
        };
        let segment = decode(selector, raw);
        let (rpl, cpl, dpl) = (selector & 3, u16::from(core.cpl()), dpl(segment.attributes));
        let code = segment.attributes & attribute::CODE != 0;
        let rw = segment.attributes & attribute::READ_WRITE != 0;
        let allowed = segment.attributes & attribute::NOT_SYSTEM != 0
            && if register == SS {
                !code && rw && rpl == cpl && dpl == cpl
            } else {
                (!code || rw)
                    && (code && segment.attributes & attribute::CONFORMING != 0 || (rpl <= dpl && cpl <= dpl))
            };
        if !allowed {
            return Err(selector_error(core, selector));
        }
        if segment.attributes & attribute::PRESENT == 0 {
            let vector = if register == SS { 12 } else { 11 };
            return Err(core.raise(vector, Some(u32::from(selector & !3))));
        }
        set_accessed(core, cx, at, raw)?;
        segment
    };
    core.segments[register] = segment;
    match register {
        FS => core.regs[usize::from(FS_BASE)] = segment.base,
        GS => core.regs[usize::from(GS_BASE)] = segment.base,
        SS => {
            // Neither interrupts nor single-step traps come before the next instruction (SDM volume 3, "Masking
            // Exceptions and Interrupts When Switching Stacks").
            core.shadow_until = core.now().saturating_add(1);
            core.traps_held_until = core.shadow_until;
        }
        _ => {}
    }
    Ok(())
}

fn set_accessed(core: &mut Core, cx: &mut Ctx<'_>, at: u64, raw: u64) -> Result<(), Faulted> {
    const ACCESSED: u64 = (attribute::ACCESSED as u64) << 40;
    if raw & ACCESSED == 0 {
        as_supervisor(core, |core| core.write(cx, at, raw | ACCESSED))?;
    }
    Ok(())
}

/// Loads CS for a far transfer to privilege level `cpl`: the current one or, on returns, an outer one.
pub(super) fn load_code_segment(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    selector: u16,
    cpl: u8,
) -> Result<(), Faulted> {
    if selector & !3 == 0 {
        return Err(core.protection());
    }
    let Some((at, raw)) = fetch(core, cx, selector)? else {
        return Err(selector_error(core, selector));
    };
    let segment = decode(selector, raw);
    let code = attribute::NOT_SYSTEM | attribute::CODE;
    let conforming = segment.attributes & attribute::CONFORMING != 0;
    let dpl = dpl(segment.attributes);
    let level = u16::from(cpl);
    if segment.attributes & code != code || if conforming { dpl > level } else { dpl != level } {
        return Err(selector_error(core, selector));
    }
    if segment.attributes & attribute::PRESENT == 0 {
        return Err(core.raise(11, Some(u32::from(selector & !3))));
    }
    if segment.attributes & attribute::LONG == 0 {
        return Err(core.unknown(format!(
            "entering a 16-bit or 32-bit code segment (selector {selector:#x})"
        )));
    }
    if segment.attributes & attribute::DEFAULT_32 != 0 {
        return Err(selector_error(core, selector));
    }
    set_accessed(core, cx, at, raw)?;
    core.segments[CS] = Segment {
        selector: (selector & !3) | level,
        ..segment
    };
    Ok(())
}

/// Reads a 16-byte system descriptor.
fn system_descriptor(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    selector: u16,
    kinds: &[u16],
) -> Result<(u64, Segment), Faulted> {
    let Some((at, raw)) = fetch(core, cx, selector)? else {
        return Err(selector_error(core, selector));
    };
    let mut segment = decode(selector, raw);
    let kind = segment.attributes & 0x1f;
    if selector & 4 != 0 || !kinds.contains(&kind) {
        return Err(selector_error(core, selector));
    }
    if segment.attributes & attribute::PRESENT == 0 {
        return Err(core.raise(11, Some(u32::from(selector & !3))));
    }
    let high = as_supervisor(core, |core| core.read::<u64>(cx, at.wrapping_add(8)))?;
    segment.base |= high << 32;
    Ok((at, segment))
}

/// LTR: loads TR and marks the 64-bit TSS busy.
pub(super) fn load_task_register(core: &mut Core, cx: &mut Ctx<'_>, selector: u16) -> Result<(), Faulted> {
    const BUSY: u64 = 1 << 41;
    if selector & !3 == 0 {
        return Err(core.protection());
    }
    let (at, segment) = system_descriptor(core, cx, selector, &[0x09])?;
    let raw = as_supervisor(core, |core| core.read::<u64>(cx, at))?;
    as_supervisor(core, |core| core.write(cx, at, raw | BUSY))?;
    core.tr = Segment {
        attributes: segment.attributes | 2,
        ..segment
    };
    Ok(())
}

/// LLDT.
pub(super) fn load_ldtr(core: &mut Core, cx: &mut Ctx<'_>, selector: u16) -> Result<(), Faulted> {
    core.ldtr = if selector & !3 == 0 {
        Segment {
            selector,
            ..Segment::default()
        }
    } else {
        system_descriptor(core, cx, selector, &[0x02])?.1
    };
    Ok(())
}

/// The descriptor; `None` if LAR, LSL, VERR and VERW may not see it.
fn visible(core: &mut Core, cx: &mut Ctx<'_>, selector: u16) -> Result<Option<(Segment, u64)>, Faulted> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    let Some((_, raw)) = fetch(core, cx, selector)? else {
        return Ok(None);
    };
    let segment = decode(selector, raw);
    let conforming_code = attribute::NOT_SYSTEM | attribute::CODE | attribute::CONFORMING;
    let conforming = segment.attributes & conforming_code == conforming_code;
    let level = dpl(segment.attributes);
    let reachable = conforming || (u16::from(core.cpl()) <= level && selector & 3 <= level);
    Ok(reachable.then_some((segment, raw)))
}

fn set_zf(core: &mut Core, on: bool) {
    let image = core.lazy.image();
    core.set_flags_explicit(if on { image | ZF } else { image & !ZF });
}

/// LAR and LSL.
pub(super) fn load_access(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    register: u8,
    size: u64,
    selector: u16,
    rights: bool,
) -> Result<(), Faulted> {
    let found = visible(core, cx, selector)?.filter(|(segment, _)| {
        let kind = segment.attributes & 0x1f;
        // System descriptors of long mode: LDT and TSS for both, call gates for LAR only.
        kind & attribute::NOT_SYSTEM != 0 || matches!(kind, 0x02 | 0x09 | 0x0b) || (rights && kind == 0x0c)
    });
    set_zf(core, found.is_some());
    if let Some((segment, raw)) = found {
        let value = if rights {
            raw >> 32 & 0x00ff_ff00
        } else {
            u64::from(segment.limit)
        };
        if size == 1 {
            core.set(register, u16::cut(value))
        } else {
            core.set(register, value)
        }
    }
    Ok(())
}

/// VERR and VERW.
pub(super) fn verify(core: &mut Core, cx: &mut Ctx<'_>, selector: u16, write: bool) -> Result<(), Faulted> {
    let ok = visible(core, cx, selector)?.is_some_and(|(segment, _)| {
        let a = segment.attributes;
        let (code, rw) = (a & attribute::CODE != 0, a & attribute::READ_WRITE != 0);
        a & attribute::NOT_SYSTEM != 0 && if write { !code && rw } else { !code || rw }
    });
    set_zf(core, ok);
    Ok(())
}

/// Enters privilege level `cpl`.
pub(super) fn set_privilege(core: &mut Core, cpl: u8) {
    let user = cpl == 3;
    let tag = if user { USER_TAG } else { 0 };
    if core.mode_tag == tag {
        return;
    }
    core.mode_tag = tag;
    let now = core.now();
    if user {
        core.hooks.entered_user.get_or_insert(now);
    } else {
        core.hooks.left_user = Some(now);
    }
}
