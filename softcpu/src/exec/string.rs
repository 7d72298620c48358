//! String instructions.
//!
//! A repeated instruction is executed in pieces. A piece stays within one page on each side and takes one tick. After
//! it, the registers are as after that many iterations, and interrupts and deadlines are checked before the next
//! piece. A piece of MOVS or STOS in RAM is one bulk copy or fill; all other pieces are one iteration.
//!
//! Processors differ in two things, and here both are as on AMD. If no iteration is executed, RCX, RSI and RDI keep
//! their upper halves with 32-bit addresses too; Intel clears some of them. If a later iteration of CMPS or SCAS
//! faults, the flags are those of the iteration before; Intel restores the ones from before the instruction.
//!
//! ```text
//! immediate: bits 7:0 StringOp, 9:8 log2 of the element size, 11:10 Rep, 12 32-bit addresses
//! ```

use crate::access::{Place, page_rest};
use crate::core::{Core, Ctx, Faulted, stop};
use crate::exec::alu::Alu;
use crate::flags::{DF, TF};
use crate::memory::PAGE_BYTES;
use crate::mmu::Access;
use crate::op::{Op, REGS, family};
use crate::registers::{RAX, RCX, RDI, RDX, RSI};
use crate::word::Word;

family! {
    /// String instructions.
    StringOp {
        Movs: Movsb_m8_m8 | Movsw_m16_m16 | Movsd_m32_m32 | Movsq_m64_m64,
        Stos: Stosb_m8_AL | Stosw_m16_AX | Stosd_m32_EAX | Stosq_m64_RAX,
        Lods: Lodsb_AL_m8 | Lodsw_AX_m16 | Lodsd_EAX_m32 | Lodsq_RAX_m64,
        Scas: Scasb_AL_m8 | Scasw_AX_m16 | Scasd_EAX_m32 | Scasq_RAX_m64,
        Cmps: Cmpsb_m8_m8 | Cmpsw_m16_m16 | Cmpsd_m32_m32 | Cmpsq_m64_m64,
        Ins: Insb_m8_DX | Insw_m16_DX | Insd_m32_DX,
        Outs: Outsb_DX_m8 | Outsw_DX_m16 | Outsd_DX_m32,
    }
}

/// How often the instruction repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rep {
    Once,
    Count,
    WhileEqual,
    WhileNotEqual,
}

const REPS: [Rep; 4] = [Rep::Once, Rep::Count, Rep::WhileEqual, Rep::WhileNotEqual];

/// Packs [`Op::imm`]; `size` is log2 of the element size, `narrow` means 32-bit addresses.
pub(crate) fn pack(kind: StringOp, size: usize, rep: Rep, narrow: bool) -> u64 {
    (kind as u64) | ((size as u64 & 3) << 8) | ((rep as u64) << 10) | (u64::from(narrow) << 12)
}

/// What the instruction does and its elements' size in bytes, if it repeats by count alone and has 64-bit addresses.
pub(crate) fn repeated(op: &Op) -> Option<(StringOp, u8)> {
    let by_count = REPS[(op.imm >> 10 & 3) as usize] == Rep::Count;
    let narrow = op.imm >> 12 & 1 != 0;
    let operation = StringOp::from_number(op.imm.to_le_bytes()[0]);
    (by_count && !narrow).then_some((operation, 1 << (op.imm >> 8 & 3)))
}

/// Executes one piece. Returns true if the instruction is not finished.
pub(super) fn execute(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    match op.imm >> 8 & 3 {
        0 => sized::<u8>(core, cx, op),
        1 => sized::<u16>(core, cx, op),
        2 => sized::<u32>(core, cx, op),
        _ => sized::<u64>(core, cx, op),
    }
}

/// Access to RSI, RDI and RCX, or to their low 32 bits with an address-size prefix.
struct Pointers {
    narrow: bool,
    step: u64,
    source_base: u64,
}

impl Pointers {
    fn read(&self, core: &Core, register: u8) -> u64 {
        if self.narrow {
            u64::from(core.get::<u32>(register))
        } else {
            core.get(register)
        }
    }

    fn write(&self, core: &mut Core, register: u8, value: u64) {
        if self.narrow {
            core.set(register, u32::cut(value))
        } else {
            core.set(register, value)
        }
    }

    fn source(&self, core: &Core) -> u64 {
        self.read(core, RSI).wrapping_add(self.source_base)
    }

    fn destination(&self, core: &Core) -> u64 {
        self.read(core, RDI)
    }

    fn advance(&self, core: &mut Core, register: u8, elements: u64) {
        let value = self
            .read(core, register)
            .wrapping_add(self.step.wrapping_mul(elements));
        self.write(core, register, value);
    }
}

fn sized<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, op: &Op) -> Result<bool, Faulted> {
    let kind = StringOp::from_number(op.imm.to_le_bytes()[0]);
    let rep = REPS[(op.imm >> 10 & 3) as usize];
    let backwards = core.flags & DF != 0;
    let pointers = Pointers {
        narrow: op.imm >> 12 & 1 != 0,
        step: if backwards {
            T::BYTES.wrapping_neg()
        } else {
            T::BYTES
        },
        source_base: core.regs[usize::from(op.seg) & (REGS - 1)],
    };
    if matches!(kind, StringOp::Ins | StringOp::Outs) {
        super::control::check_iopl(core)?;
    }
    if rep == Rep::Once {
        one::<T>(core, cx, kind, &pointers)?;
        return Ok(false);
    }
    let count = pointers.read(core, RCX);
    if count == 0 {
        return Ok(false);
    }
    // A single-step trap comes after each iteration.
    let stepped = core.flags & TF != 0;
    let bulk = match kind {
        StringOp::Movs | StringOp::Stos if !backwards && !pointers.narrow && !stepped => {
            bulk::<T>(core, cx, kind, &pointers, count)?
        }
        _ => 0,
    };
    let done = if bulk == 0 {
        one::<T>(core, cx, kind, &pointers)?;
        1
    } else {
        bulk
    };
    pointers.write(core, RCX, count - done);
    let stop = match rep {
        Rep::WhileEqual => !core.lazy.zf(),
        Rep::WhileNotEqual => core.lazy.zf(),
        _ => false,
    };
    let unfinished = count != done && !stop;
    if unfinished {
        // An event between two iterations pushes RF set.
        core.set_resume_flag(true);
    }
    Ok(unfinished)
}

/// One iteration.
fn one<T: Word>(core: &mut Core, cx: &mut Ctx<'_>, kind: StringOp, p: &Pointers) -> Result<(), Faulted> {
    match kind {
        StringOp::Movs => {
            let value = core.read::<T>(cx, p.source(core))?;
            core.write(cx, p.destination(core), value)?;
            p.advance(core, RSI, 1);
            p.advance(core, RDI, 1);
        }
        StringOp::Stos => {
            core.write(cx, p.destination(core), core.get::<T>(RAX))?;
            p.advance(core, RDI, 1);
        }
        StringOp::Lods => {
            let value = core.read::<T>(cx, p.source(core))?;
            core.set(RAX, value);
            p.advance(core, RSI, 1);
        }
        StringOp::Scas => {
            let value = core.read::<T>(cx, p.destination(core))?;
            let a = core.get::<T>(RAX);
            Alu::cmp(&mut core.lazy, a, value);
            p.advance(core, RDI, 1);
        }
        StringOp::Cmps => {
            let a = core.read::<T>(cx, p.source(core))?;
            let b = core.read::<T>(cx, p.destination(core))?;
            Alu::cmp(&mut core.lazy, a, b);
            p.advance(core, RSI, 1);
            p.advance(core, RDI, 1);
        }
        StringOp::Ins => {
            // The destination is checked first, because reading a device's register cannot be undone.
            core.check_write(cx, p.destination(core), T::BYTES)?;
            let value = cx
                .bus
                .port_read(core.tick(), core.get(RDX), T::BYTES.to_le_bytes()[0]);
            core.cut(stop::BUS);
            core.write(cx, p.destination(core), T::cut(u64::from(value)))?;
            p.advance(core, RDI, 1);
        }
        StringOp::Outs => {
            let value = u32::cut(core.read::<T>(cx, p.source(core))?.zx());
            cx.bus
                .port_write(core.tick(), core.get(RDX), T::BYTES.to_le_bytes()[0], value);
            core.cut(stop::BUS);
            p.advance(core, RSI, 1);
        }
    }
    Ok(())
}

/// Executes as many iterations as stay in one page of RAM on each side. Returns their number, 0 if bulk work is not
/// possible.
fn bulk<T: Word>(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    kind: StringOp,
    p: &Pointers,
    count: u64,
) -> Result<u64, Faulted> {
    let to = p.destination(core);
    let mut room = page_rest(to) as u64;
    let from = p.source(core);
    if kind == StringOp::Movs {
        room = room.min(page_rest(from) as u64);
    }
    let elements = count.min(room / T::BYTES);
    if elements < 2 {
        return Ok(0);
    }
    let len = elements * T::BYTES;
    // The source is read first, so its fault comes first.
    let source = match kind {
        StringOp::Movs => match core.locate(cx, from, Access::Read)? {
            Place::Ram(offset) => Some(offset),
            Place::Outside(_) => return Ok(0),
        },
        _ => None,
    };
    let Place::Ram(target) = core.locate(cx, to, Access::Write)? else {
        return Ok(0);
    };
    match source {
        Some(source) => {
            // If the destination begins inside the source, later iterations read what earlier ones wrote: no bulk copy.
            if target > source && target < source + len {
                return Ok(0);
            }
            core.written(cx.ram, target, len);
            cx.ram.copy_within(source, target, len);
            p.advance(core, RSI, elements);
        }
        None => {
            core.written(cx.ram, target, len);
            let value = core.get::<T>(RAX).zx().to_le_bytes();
            let size = usize::from(T::BYTES.to_le_bytes()[0]);
            if value[..size].iter().all(|byte| *byte == value[0]) {
                cx.ram.fill(target, len, value[0]);
            } else {
                let mut piece = [0; PAGE_BYTES];
                for chunk in piece.chunks_exact_mut(size) {
                    chunk.copy_from_slice(&value[..size]);
                }
                cx.ram.store_bytes(
                    target,
                    &piece[..usize::try_from(len).unwrap_or(0).min(piece.len())],
                );
            }
        }
    }
    p.advance(core, RDI, elements);
    Ok(elements)
}
