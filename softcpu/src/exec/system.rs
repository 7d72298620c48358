//! System instructions, port I/O, and user-level instructions of the same kind (CPUID, RDTSC, PUSHF).
//!
//! Number and operands are in [`Op::imm`], see [`Packed`].

use super::control::{self, check_iopl, load_flags};
use super::descriptor;
use super::event;
use super::packed::Packed;
use crate::core::{Core, Ctx, Faulted, stop};
use crate::flags::{IF, RF};
use crate::mmu::canonical;
use crate::op::{FS_BASE, GS_BASE, Op, family};
use crate::registers::{CR0_PE, CR0_TS, CR4_FSGSBASE, CR4_TSD, RAX, RBX, RCX, RDX, RSP, TableRegister};
use crate::word::Word;

family! {
    /// System instructions, and user-level ones of the same kind.
    SystemOp {
        LoadSegment: Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16,
        StoreSegment: Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg,
        PushSegment: Pushq_FS | Pushq_GS,
        PushSegmentWord: Pushw_FS | Pushw_GS,
        PopSegment: Popq_FS | Popq_GS,
        PopSegmentWord: Popw_FS | Popw_GS,
        ReadCr: Mov_r64_cr,
        WriteCr: Mov_cr_r64,
        ReadDr: Mov_r64_dr,
        WriteDr: Mov_dr_r64,
        Pushf: Pushfq,
        PushfWord: Pushfw,
        Popf: Popfq,
        PopfWord: Popfw,
        Cli: Cli,
        Sti: Sti,
        Hlt: Hlt,
        Pause: Pause,
        Clts: Clts,
        Cpuid: Cpuid,
        Rdtsc: Rdtsc,
        Rdtscp: Rdtscp,
        Rdmsr: Rdmsr,
        Wrmsr: Wrmsr,
        Rdpmc: Rdpmc,
        Lgdt: Lgdt_m1664,
        Lidt: Lidt_m1664,
        Sgdt: Sgdt_m1664,
        Sidt: Sidt_m1664,
        Lldt: Lldt_rm16 | Lldt_r32m16 | Lldt_r64m16,
        Ltr: Ltr_rm16 | Ltr_r32m16 | Ltr_r64m16,
        Sldt: Sldt_rm16 | Sldt_r32m16 | Sldt_r64m16,
        Str: Str_rm16 | Str_r32m16 | Str_r64m16,
        Lmsw: Lmsw_rm16 | Lmsw_r32m16 | Lmsw_r64m16,
        Smsw: Smsw_rm16 | Smsw_r32m16 | Smsw_r64m16,
        Lar: Lar_r16_rm16 | Lar_r32_r32m16 | Lar_r64_r64m16,
        Lsl: Lsl_r16_rm16 | Lsl_r32_r32m16 | Lsl_r64_r64m16,
        Verr: Verr_rm16 | Verr_r32m16 | Verr_r64m16,
        Verw: Verw_rm16 | Verw_r32m16 | Verw_r64m16,
        Invlpg: Invlpg_m,
        Wbinvd: Wbinvd | Invd,
        Swapgs: Swapgs,
        Rdfsbase: Rdfsbase_r32 | Rdfsbase_r64,
        Rdgsbase: Rdgsbase_r32 | Rdgsbase_r64,
        Wrfsbase: Wrfsbase_r32 | Wrfsbase_r64,
        Wrgsbase: Wrgsbase_r32 | Wrgsbase_r64,
        Syscall: Syscall,
        Sysret: Sysretq,
        Iret: Iretq,
        Retf: Retfq,
        Retfd: Retfd,
        JmpFar: Jmp_m1664,
        JmpFar32: Jmp_m1632,
        Int3: Int3,
        Int1: Int1,
        Int: Int_imm8,
        In: In_AL_DX | In_AX_DX | In_EAX_DX,
        InImm: In_AL_imm8 | In_AX_imm8 | In_EAX_imm8,
        Out: Out_DX_AL | Out_DX_AX | Out_DX_EAX,
        OutImm: Out_imm8_AL | Out_imm8_AX | Out_imm8_EAX,
    }
}

/// Executes one instruction. Returns true if it set [`Core::rip`], where execution then continues.
#[allow(clippy::too_many_lines)] // one match over the kinds
pub(super) fn execute(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    use SystemOp as K;
    let packed = Packed::of(op);
    let kind = SystemOp::from_number(packed.number());
    let size = packed.size();
    let memory = packed.memory().then(|| core.ea(op));
    let extra = packed.extra();
    if needs_supervisor(kind) && core.cpl() != 0 {
        return Err(core.protection());
    }
    match kind {
        K::LoadSegment => {
            let selector = match memory {
                Some(va) => core.read::<u16>(cx, va)?,
                None => core.get(op.b),
            };
            descriptor::load_data_segment(core, cx, usize::from(extra), selector)?;
        }
        K::StoreSegment => {
            let selector = core.segments[usize::from(extra) % 6].selector;
            store_selector(core, cx, op, memory, size, selector)?;
        }
        K::PushSegment => {
            let selector = core.segments[usize::from(extra) % 6].selector;
            let top = core.get::<u64>(RSP).wrapping_sub(8);
            core.write(cx, top, u64::from(selector))?;
            core.set(RSP, top);
        }
        K::PushSegmentWord => {
            let selector = core.segments[usize::from(extra) % 6].selector;
            let top = core.get::<u64>(RSP).wrapping_sub(2);
            core.write(cx, top, selector)?;
            core.set(RSP, top);
        }
        K::PopSegment | K::PopSegmentWord => {
            let top = core.get::<u64>(RSP);
            let (selector, bytes) = if kind == K::PopSegment {
                (u16::cut(core.read::<u64>(cx, top)?), 8)
            } else {
                (core.read::<u16>(cx, top)?, 2)
            };
            descriptor::load_data_segment(core, cx, usize::from(extra), selector)?;
            core.set(RSP, top.wrapping_add(bytes));
        }
        K::ReadCr => {
            let value = control::read_cr(core, extra)?;
            core.set(op.a, value);
        }
        K::WriteCr => control::write_cr(core, extra, core.get(op.b))?,
        K::ReadDr => core.set(op.a, control::read_dr(core, extra)),
        K::WriteDr => control::write_dr(core, extra, core.get(op.b))?,
        K::Pushf => {
            let top = core.get::<u64>(RSP).wrapping_sub(8);
            let image = core.rflags() & !RF;
            core.write(cx, top, image)?;
            core.set(RSP, top);
        }
        K::Popf => {
            let top = core.get::<u64>(RSP);
            let image = core.read::<u64>(cx, top)?;
            core.set(RSP, top.wrapping_add(8));
            load_flags(core, image & !RF, RF);
        }
        K::PushfWord => {
            let top = core.get::<u64>(RSP).wrapping_sub(2);
            core.write(cx, top, u16::cut(core.rflags()))?;
            core.set(RSP, top);
        }
        K::PopfWord => {
            let top = core.get::<u64>(RSP);
            let image = core.read::<u16>(cx, top)?;
            core.set(RSP, top.wrapping_add(2));
            // Bits 63:16 are unchanged.
            load_flags(core, image.zx(), !0xffff);
        }
        K::Cli => {
            check_iopl(core)?;
            core.flags &= !IF;
        }
        K::Sti => {
            check_iopl(core)?;
            if core.flags & IF == 0 {
                let before = core.flags;
                core.flags |= IF;
                // Interrupts stay blocked for one more instruction.
                core.shadow_until = core.now().saturating_add(1);
                core.flags_loaded(before);
            }
        }
        K::Hlt => core.cut(stop::HALT),
        K::Pause if core.pause_wanted => core.cut(stop::PAUSE),
        K::Pause => {}
        K::Clts => core.cr0 &= !CR0_TS,
        K::Cpuid => {
            let leaf = core.model.cpuid(core.get(RAX), core.get(RCX));
            for (register, value) in [RAX, RBX, RCX, RDX].into_iter().zip(leaf) {
                core.set(register, value);
            }
        }
        K::Rdtsc | K::Rdtscp => {
            if core.cr4 & CR4_TSD != 0 && core.cpl() != 0 {
                return Err(core.protection());
            }
            set_pair(core, core.tsc());
            if kind == K::Rdtscp {
                core.set(RCX, core.msrs.tsc_aux);
            }
        }
        K::Rdmsr => {
            let value = core.read_msr(cx.bus, core.get(RCX))?;
            set_pair(core, value);
        }
        K::Wrmsr => {
            let value = u64::from(core.get::<u32>(RAX)) | u64::from(core.get::<u32>(RDX)) << 32;
            core.write_msr(cx, core.get(RCX), value)?;
        }
        // No performance counters exist.
        K::Rdpmc => return Err(core.protection()),
        K::Lgdt | K::Lidt => {
            let va = core.ea(op);
            let limit = core.read::<u16>(cx, va)?;
            let base = core.read::<u64>(cx, va.wrapping_add(2))?;
            if !canonical(base) {
                return Err(core.protection());
            }
            let table = TableRegister { base, limit };
            if kind == K::Lgdt {
                core.gdtr = table
            } else {
                core.idtr = table
            }
        }
        K::Sgdt | K::Sidt => {
            let table = if kind == K::Sgdt { core.gdtr } else { core.idtr };
            let mut bytes = [0; 10];
            bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
            bytes[2..].copy_from_slice(&table.base.to_le_bytes());
            core.write_bytes(cx, core.ea(op), &bytes)?;
        }
        K::Lldt | K::Ltr => {
            let selector = match memory {
                Some(va) => core.read::<u16>(cx, va)?,
                None => core.get(op.a),
            };
            if kind == K::Ltr {
                descriptor::load_task_register(core, cx, selector)?;
            } else {
                descriptor::load_ldtr(core, cx, selector)?;
            }
        }
        K::Sldt => store_selector(core, cx, op, memory, size, core.ldtr.selector)?,
        K::Str => store_selector(core, cx, op, memory, size, core.tr.selector)?,
        K::Smsw => match memory {
            Some(va) => core.write(cx, va, u16::cut(core.cr0))?,
            None if size == 1 => core.set(op.a, u16::cut(core.cr0)),
            None if size == 2 => core.set(op.a, u32::cut(core.cr0)),
            None => core.set(op.a, core.cr0),
        },
        K::Lmsw => {
            let value = u64::from(match memory {
                Some(va) => core.read::<u16>(cx, va)?,
                None => core.get(op.a),
            });
            // PE cannot be cleared this way.
            core.cr0 = (core.cr0 & !0xe) | (value & 0xf) | (core.cr0 & CR0_PE);
        }
        K::Lar | K::Lsl => {
            let selector = selector_operand(core, cx, op.b, memory)?;
            descriptor::load_access(core, cx, op.a, size, selector, kind == K::Lar)?;
        }
        K::Verr | K::Verw => {
            let selector = selector_operand(core, cx, op.a, memory)?;
            descriptor::verify(core, cx, selector, kind == K::Verw)?;
        }
        K::Invlpg => core.flush_page(core.ea(op)),
        K::Wbinvd => {}
        K::Swapgs => std::mem::swap(
            &mut core.regs[usize::from(GS_BASE)],
            &mut core.msrs.kernel_gs_base,
        ),
        K::Rdfsbase | K::Rdgsbase | K::Wrfsbase | K::Wrgsbase => {
            if core.cr4 & CR4_FSGSBASE == 0 {
                return Err(core.undefined());
            }
            let register = if matches!(kind, K::Rdfsbase | K::Wrfsbase) {
                FS_BASE
            } else {
                GS_BASE
            };
            if matches!(kind, K::Rdfsbase | K::Rdgsbase) {
                let base = core.regs[usize::from(register)];
                if size == 3 {
                    core.set(op.a, base)
                } else {
                    core.set(op.a, u32::cut(base))
                }
            } else {
                let base = if size == 3 {
                    core.get(op.a)
                } else {
                    u64::from(core.get::<u32>(op.a))
                };
                if !canonical(base) {
                    return Err(core.protection());
                }
                core.regs[usize::from(register)] = base;
            }
        }
        K::Syscall => return event::syscall(core, op).map(|()| true),
        K::Sysret => return event::sysret(core).map(|()| true),
        K::Iret => return event::iret(core, cx).map(|()| true),
        K::Retf => return event::far_return::<u64>(core, cx).map(|()| true),
        K::Retfd => return event::far_return::<u32>(core, cx).map(|()| true),
        K::JmpFar | K::JmpFar32 => {
            let va = core.ea(op);
            let (target, selector_at) = if kind == K::JmpFar {
                (core.read::<u64>(cx, va)?, va.wrapping_add(8))
            } else {
                (u64::from(core.read::<u32>(cx, va)?), va.wrapping_add(4))
            };
            let selector = core.read::<u16>(cx, selector_at)?;
            let cpl = core.cpl();
            descriptor::load_code_segment(core, cx, selector, cpl)?;
            core.rip = target;
            return Ok(true);
        }
        K::Int3 | K::Int1 | K::Int => {
            let vector = match kind {
                K::Int3 => 3,
                K::Int1 => 1,
                _ => extra,
            };
            core.rip = core.next_rip(op);
            let software = event::Source::Software {
                ignores_privilege: kind == K::Int1,
            };
            return event::deliver(core, cx, vector, None, software)
                .map(|()| true)
                .inspect_err(|_| {
                    core.rip = core.rip_of(op);
                });
        }
        K::In | K::InImm | K::Out | K::OutImm => {
            let port = if matches!(kind, K::InImm | K::OutImm) {
                u16::from(extra)
            } else {
                core.get(RDX)
            };
            // The I/O permission bitmap is not implemented, so access above IOPL faults.
            check_iopl(core)?;
            let bytes = 1u8 << size.to_le_bytes()[0];
            let now = core.tick();
            if matches!(kind, K::In | K::InImm) {
                let value = cx.bus.port_read(now, port, bytes);
                match size {
                    0 => core.set(RAX, u8::cut(value.zx())),
                    1 => core.set(RAX, u16::cut(value.zx())),
                    _ => core.set(RAX, value),
                }
            } else {
                let value = match size {
                    0 => core.get::<u8>(RAX).into(),
                    1 => core.get::<u16>(RAX).into(),
                    _ => core.get::<u32>(RAX),
                };
                cx.bus.port_write(now, port, bytes, value);
            }
            core.cut(stop::BUS);
        }
    }
    Ok(false)
}

fn needs_supervisor(kind: SystemOp) -> bool {
    use SystemOp as K;
    matches!(
        kind,
        K::ReadCr
            | K::WriteCr
            | K::ReadDr
            | K::WriteDr
            | K::Hlt
            | K::Clts
            | K::Rdmsr
            | K::Wrmsr
            | K::Lgdt
            | K::Lidt
            | K::Lldt
            | K::Ltr
            | K::Lmsw
            | K::Invlpg
            | K::Wbinvd
            | K::Swapgs
            | K::Sysret
    )
}

fn set_pair(core: &mut Core, value: u64) {
    core.set(RAX, u32::cut(value));
    core.set(RDX, u32::cut(value >> 32));
}

fn selector_operand(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    register: u8,
    memory: Option<u64>,
) -> Result<u16, Faulted> {
    match memory {
        Some(va) => core.read(cx, va),
        None => Ok(core.get(register)),
    }
}

fn store_selector(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    memory: Option<u64>,
    size: u64,
    selector: u16,
) -> Result<(), Faulted> {
    match memory {
        Some(va) => core.write(cx, va, selector),
        None => {
            match size {
                1 => core.set(op.a, selector),
                _ => core.set(op.a, u64::from(selector)),
            }
            Ok(())
        }
    }
}
