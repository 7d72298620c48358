//! The instruction loop.
//!
//! [`run`] executes decoded operations until something needs attention: the budget is spent, a fault, code that is not
//! decoded yet or not mapped. It knows nothing of devices, interrupts or time beyond the budget; [`crate::Cpu::run`] deals with
//! those and calls again.

pub(crate) mod alu;
mod arith;
pub(crate) mod branch;
pub(crate) mod descriptor;
pub(crate) mod event;
pub(crate) mod misc;
mod stack;
pub(crate) mod string;
pub(crate) mod system;

use alu::Alu;

use crate::code::CodeCache;
use crate::core::{CODE_TLB, Core, Ctx};
use crate::mmu::{self, WITHHELD, slot};
use crate::op::{Op, OpCode, PAGE, SCRATCH};
use crate::registers::{RBP, RSP};
use crate::word::Word;

/// Why [`run`] came back. [`Core::rip`] is the instruction to go on with (for a fault, the one that faulted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The budget is spent, or was cut.
    Budget,
    /// [`Core::fault`] says which.
    Fault,
    /// The page at RIP is not in the code TLB.
    Translate,
    /// Nothing is decoded at RIP.
    Decode,
    /// The instruction at RIP runs on into the next page, and that is not decoded.
    Crossing,
}

/// Executes from [`Core::rip`] on.
#[allow(clippy::too_many_lines, clippy::cognitive_complexity)] // the dispatch is one match on purpose
pub(crate) fn run(core: &mut Core, cache: &CodeCache, cx: &mut Ctx<'_>) -> Leave {
    use OpCode as C;
    'enter: loop {
        let rip = core.rip;
        let entry = &core.code_tlb[slot::<CODE_TLB>(rip >> 12)];
        if entry.tag != (rip >> 12) | core.mode_tag {
            return Leave::Translate;
        }
        let Some(page) = cache.pages.get(entry.page as usize) else {
            return Leave::Translate;
        };
        let Some(mut at) = page.find(rip) else {
            return Leave::Decode;
        };
        core.regs[usize::from(PAGE)] = rip & !0xfff;
        let mut ops: &[Op] = &page.ops;
        loop {
            let Some(op) = ops.get(at) else {
                return Leave::Decode;
            };
            if core.budget == 0 {
                core.rip = core.rip_of(op);
                return Leave::Budget;
            }
            core.budget -= 1;
            at += 1;

            macro_rules! fault {
                () => {{
                    core.rip = core.rip_of(op);
                    return Leave::Fault;
                }};
            }
            macro_rules! attempt {
                ($result:expr) => {
                    match $result {
                        Ok(value) => value,
                        Err(_) => fault!(),
                    }
                };
            }
            macro_rules! goto {
                ($rip:expr) => {{
                    core.rip = $rip;
                    continue 'enter;
                }};
            }
            macro_rules! canonical {
                // An indirect branch faults itself when its target is no address; nothing of it has happened yet.
                ($target:expr) => {{
                    let target: u64 = $target;
                    if !mmu::canonical(target) {
                        core.protection();
                        fault!();
                    }
                    target
                }};
            }
            macro_rules! call_target {
                // A call looks at the stack before it looks at the target.
                ($target:expr) => {{
                    let target: u64 = $target;
                    if !mmu::canonical(target) {
                        let top = core.get::<u64>(RSP).wrapping_sub(8);
                        attempt!(core.check_write(cx, top, 8));
                        core.protection();
                        fault!();
                    }
                    target
                }};
            }
            macro_rules! near {
                ($offset:expr) => {{
                    let target = $offset;
                    match page.find(target) {
                        Some(index) => at = index,
                        None => {
                            core.rip = core.regs[usize::from(PAGE)].wrapping_add(target);
                            return Leave::Decode;
                        }
                    }
                }};
            }
            macro_rules! far {
                ($offset:expr) => {
                    goto!(core.regs[usize::from(PAGE)].wrapping_add($offset))
                };
            }
            macro_rules! alu {
                (rr $t:ty, $kind:ident) => {{
                    let (a, b) = (core.get::<$t>(op.a), core.get::<$t>(op.b));
                    let r = Alu::$kind(&mut core.lazy, a, b);
                    if Alu::writes_back(stringify!($kind)) {
                        core.set(op.a, r);
                    }
                }};
                (ri $t:ty, $kind:ident) => {{
                    let (a, b) = (core.get::<$t>(op.a), <$t>::cut(op.imm));
                    let r = Alu::$kind(&mut core.lazy, a, b);
                    if Alu::writes_back(stringify!($kind)) {
                        core.set(op.a, r);
                    }
                }};
                (rm $t:ty, $kind:ident) => {{
                    let b = attempt!(core.read::<$t>(cx, core.ea(op)));
                    let a = core.get::<$t>(op.a);
                    let r = Alu::$kind(&mut core.lazy, a, b);
                    if Alu::writes_back(stringify!($kind)) {
                        core.set(op.a, r);
                    }
                }};
                (mr $t:ty, $kind:ident) => {
                    alu!(memory core.get::<$t>(op.b), $t, $kind)
                };
                (mi $t:ty, $kind:ident) => {
                    alu!(memory <$t>::cut(op.imm), $t, $kind)
                };
                (memory $source:expr, $t:ty, $kind:ident) => {{
                    let va = core.ea(op);
                    let b = $source;
                    if Alu::writes_back(stringify!($kind)) {
                        core.writer = op.off;
                        let a = attempt!(core.read_modify::<$t>(cx, va));
                        let mut lazy = core.lazy;
                        let r = Alu::$kind(&mut lazy, a, b);
                        attempt!(core.write::<$t>(cx, va, r));
                        core.lazy = lazy;
                    } else {
                        let a = attempt!(core.read::<$t>(cx, va));
                        Alu::$kind(&mut core.lazy, a, b);
                    }
                }};
            }
            macro_rules! mov {
                (rr $t:ty) => {
                    core.set::<$t>(op.a, core.get(op.b))
                };
                (ri $t:ty) => {
                    core.set(op.a, <$t>::cut(op.imm))
                };
                (rm $t:ty) => {{
                    let value = attempt!(core.read::<$t>(cx, core.ea(op)));
                    core.set(op.a, value);
                }};
                (mr $t:ty) => {{
                    core.writer = op.off;
                    attempt!(core.write::<$t>(cx, core.ea(op), core.get(op.b)));
                }};
                (mi $t:ty) => {{
                    core.writer = op.off;
                    attempt!(core.write(cx, core.ea(op), <$t>::cut(op.imm)));
                }};
            }
            macro_rules! lea {
                ($t:ty) => {
                    core.set(op.a, <$t>::cut(core.ea(op)))
                };
            }
            macro_rules! shift {
                ($t:ty, $kind:ident) => {{
                    let a = core.get::<$t>(op.a);
                    let r = alu::$kind(&mut core.lazy, a, op.imm);
                    core.set(op.a, r);
                }};
            }
            macro_rules! step {
                ($t:ty, $kind:ident) => {{
                    let a = core.get::<$t>(op.a);
                    let r = alu::$kind(&mut core.lazy, a);
                    core.set(op.a, r);
                }};
            }
            macro_rules! movx {
                (r $from:ty, $to:ty, $how:ident) => {
                    core.set::<$to>(op.a, <$to>::cut(core.get::<$from>(op.b).$how()))
                };
                (m $from:ty, $to:ty, $how:ident) => {{
                    let value = attempt!(core.read::<$from>(cx, core.ea(op)));
                    core.set::<$to>(op.a, <$to>::cut(value.$how()));
                }};
            }
            macro_rules! jcc {
                (near $cond:ident) => {
                    if branch::$cond(core.lazy) {
                        near!(op.imm)
                    }
                };
                (far $cond:ident) => {
                    if branch::$cond(core.lazy) {
                        far!(op.imm)
                    }
                };
            }
            macro_rules! cmov {
                (r $t:ty) => {{
                    let value = if branch::holds(core.lazy, op.imm) {
                        core.get::<$t>(op.b)
                    } else {
                        core.get::<$t>(op.a)
                    };
                    core.set(op.a, value);
                }};
                (m $t:ty) => {{
                    let read = attempt!(core.read::<$t>(cx, core.ea(op)));
                    let value = if branch::holds(core.lazy, op.imm) {
                        read
                    } else {
                        core.get::<$t>(op.a)
                    };
                    core.set(op.a, value);
                }};
            }
            macro_rules! imul {
                (r $t:ty) => {{
                    let (a, b) = (core.get::<$t>(op.a), core.get::<$t>(op.b));
                    let r = alu::imul(&mut core.lazy, a, b);
                    core.set(op.a, r);
                }};
                (m $t:ty) => {{
                    let b = attempt!(core.read::<$t>(cx, core.ea(op)));
                    let a = core.get::<$t>(op.a);
                    let r = alu::imul(&mut core.lazy, a, b);
                    core.set(op.a, r);
                }};
                (ri $t:ty) => {{
                    let a = core.get::<$t>(op.b);
                    let r = alu::imul(&mut core.lazy, a, <$t>::cut(op.imm));
                    core.set(op.a, r);
                }};
                (mi $t:ty) => {{
                    let b = attempt!(core.read::<$t>(cx, core.ea(op)));
                    let r = alu::imul(&mut core.lazy, b, <$t>::cut(op.imm));
                    core.set(op.a, r);
                }};
            }
            macro_rules! push {
                ($value:expr) => {{
                    core.writer = op.off;
                    let value: u64 = $value;
                    let top = core.get::<u64>(RSP).wrapping_sub(8);
                    attempt!(core.write(cx, top, value));
                    core.set(RSP, top);
                }};
            }
            macro_rules! outside {
                ($result:expr) => {{
                    core.writer = op.off;
                    attempt!($result)
                }};
            }

            match op.code {
                C::AddRRB => alu!(rr u8, add),
                C::AddRRW => alu!(rr u16, add),
                C::AddRRD => alu!(rr u32, add),
                C::AddRRQ => alu!(rr u64, add),
                C::AddRIB => alu!(ri u8, add),
                C::AddRIW => alu!(ri u16, add),
                C::AddRID => alu!(ri u32, add),
                C::AddRIQ => alu!(ri u64, add),
                C::AddRMB => alu!(rm u8, add),
                C::AddRMW => alu!(rm u16, add),
                C::AddRMD => alu!(rm u32, add),
                C::AddRMQ => alu!(rm u64, add),
                C::AddMRB => alu!(mr u8, add),
                C::AddMRW => alu!(mr u16, add),
                C::AddMRD => alu!(mr u32, add),
                C::AddMRQ => alu!(mr u64, add),
                C::AddMIB => alu!(mi u8, add),
                C::AddMIW => alu!(mi u16, add),
                C::AddMID => alu!(mi u32, add),
                C::AddMIQ => alu!(mi u64, add),
                C::OrRRB => alu!(rr u8, or),
                C::OrRRW => alu!(rr u16, or),
                C::OrRRD => alu!(rr u32, or),
                C::OrRRQ => alu!(rr u64, or),
                C::OrRIB => alu!(ri u8, or),
                C::OrRIW => alu!(ri u16, or),
                C::OrRID => alu!(ri u32, or),
                C::OrRIQ => alu!(ri u64, or),
                C::OrRMB => alu!(rm u8, or),
                C::OrRMW => alu!(rm u16, or),
                C::OrRMD => alu!(rm u32, or),
                C::OrRMQ => alu!(rm u64, or),
                C::OrMRB => alu!(mr u8, or),
                C::OrMRW => alu!(mr u16, or),
                C::OrMRD => alu!(mr u32, or),
                C::OrMRQ => alu!(mr u64, or),
                C::OrMIB => alu!(mi u8, or),
                C::OrMIW => alu!(mi u16, or),
                C::OrMID => alu!(mi u32, or),
                C::OrMIQ => alu!(mi u64, or),
                C::AdcRRB => alu!(rr u8, adc),
                C::AdcRRW => alu!(rr u16, adc),
                C::AdcRRD => alu!(rr u32, adc),
                C::AdcRRQ => alu!(rr u64, adc),
                C::AdcRIB => alu!(ri u8, adc),
                C::AdcRIW => alu!(ri u16, adc),
                C::AdcRID => alu!(ri u32, adc),
                C::AdcRIQ => alu!(ri u64, adc),
                C::AdcRMB => alu!(rm u8, adc),
                C::AdcRMW => alu!(rm u16, adc),
                C::AdcRMD => alu!(rm u32, adc),
                C::AdcRMQ => alu!(rm u64, adc),
                C::AdcMRB => alu!(mr u8, adc),
                C::AdcMRW => alu!(mr u16, adc),
                C::AdcMRD => alu!(mr u32, adc),
                C::AdcMRQ => alu!(mr u64, adc),
                C::AdcMIB => alu!(mi u8, adc),
                C::AdcMIW => alu!(mi u16, adc),
                C::AdcMID => alu!(mi u32, adc),
                C::AdcMIQ => alu!(mi u64, adc),
                C::SbbRRB => alu!(rr u8, sbb),
                C::SbbRRW => alu!(rr u16, sbb),
                C::SbbRRD => alu!(rr u32, sbb),
                C::SbbRRQ => alu!(rr u64, sbb),
                C::SbbRIB => alu!(ri u8, sbb),
                C::SbbRIW => alu!(ri u16, sbb),
                C::SbbRID => alu!(ri u32, sbb),
                C::SbbRIQ => alu!(ri u64, sbb),
                C::SbbRMB => alu!(rm u8, sbb),
                C::SbbRMW => alu!(rm u16, sbb),
                C::SbbRMD => alu!(rm u32, sbb),
                C::SbbRMQ => alu!(rm u64, sbb),
                C::SbbMRB => alu!(mr u8, sbb),
                C::SbbMRW => alu!(mr u16, sbb),
                C::SbbMRD => alu!(mr u32, sbb),
                C::SbbMRQ => alu!(mr u64, sbb),
                C::SbbMIB => alu!(mi u8, sbb),
                C::SbbMIW => alu!(mi u16, sbb),
                C::SbbMID => alu!(mi u32, sbb),
                C::SbbMIQ => alu!(mi u64, sbb),
                C::AndRRB => alu!(rr u8, and),
                C::AndRRW => alu!(rr u16, and),
                C::AndRRD => alu!(rr u32, and),
                C::AndRRQ => alu!(rr u64, and),
                C::AndRIB => alu!(ri u8, and),
                C::AndRIW => alu!(ri u16, and),
                C::AndRID => alu!(ri u32, and),
                C::AndRIQ => alu!(ri u64, and),
                C::AndRMB => alu!(rm u8, and),
                C::AndRMW => alu!(rm u16, and),
                C::AndRMD => alu!(rm u32, and),
                C::AndRMQ => alu!(rm u64, and),
                C::AndMRB => alu!(mr u8, and),
                C::AndMRW => alu!(mr u16, and),
                C::AndMRD => alu!(mr u32, and),
                C::AndMRQ => alu!(mr u64, and),
                C::AndMIB => alu!(mi u8, and),
                C::AndMIW => alu!(mi u16, and),
                C::AndMID => alu!(mi u32, and),
                C::AndMIQ => alu!(mi u64, and),
                C::SubRRB => alu!(rr u8, sub),
                C::SubRRW => alu!(rr u16, sub),
                C::SubRRD => alu!(rr u32, sub),
                C::SubRRQ => alu!(rr u64, sub),
                C::SubRIB => alu!(ri u8, sub),
                C::SubRIW => alu!(ri u16, sub),
                C::SubRID => alu!(ri u32, sub),
                C::SubRIQ => alu!(ri u64, sub),
                C::SubRMB => alu!(rm u8, sub),
                C::SubRMW => alu!(rm u16, sub),
                C::SubRMD => alu!(rm u32, sub),
                C::SubRMQ => alu!(rm u64, sub),
                C::SubMRB => alu!(mr u8, sub),
                C::SubMRW => alu!(mr u16, sub),
                C::SubMRD => alu!(mr u32, sub),
                C::SubMRQ => alu!(mr u64, sub),
                C::SubMIB => alu!(mi u8, sub),
                C::SubMIW => alu!(mi u16, sub),
                C::SubMID => alu!(mi u32, sub),
                C::SubMIQ => alu!(mi u64, sub),
                C::XorRRB => alu!(rr u8, xor),
                C::XorRRW => alu!(rr u16, xor),
                C::XorRRD => alu!(rr u32, xor),
                C::XorRRQ => alu!(rr u64, xor),
                C::XorRIB => alu!(ri u8, xor),
                C::XorRIW => alu!(ri u16, xor),
                C::XorRID => alu!(ri u32, xor),
                C::XorRIQ => alu!(ri u64, xor),
                C::XorRMB => alu!(rm u8, xor),
                C::XorRMW => alu!(rm u16, xor),
                C::XorRMD => alu!(rm u32, xor),
                C::XorRMQ => alu!(rm u64, xor),
                C::XorMRB => alu!(mr u8, xor),
                C::XorMRW => alu!(mr u16, xor),
                C::XorMRD => alu!(mr u32, xor),
                C::XorMRQ => alu!(mr u64, xor),
                C::XorMIB => alu!(mi u8, xor),
                C::XorMIW => alu!(mi u16, xor),
                C::XorMID => alu!(mi u32, xor),
                C::XorMIQ => alu!(mi u64, xor),
                C::CmpRRB => alu!(rr u8, cmp),
                C::CmpRRW => alu!(rr u16, cmp),
                C::CmpRRD => alu!(rr u32, cmp),
                C::CmpRRQ => alu!(rr u64, cmp),
                C::CmpRIB => alu!(ri u8, cmp),
                C::CmpRIW => alu!(ri u16, cmp),
                C::CmpRID => alu!(ri u32, cmp),
                C::CmpRIQ => alu!(ri u64, cmp),
                C::CmpRMB => alu!(rm u8, cmp),
                C::CmpRMW => alu!(rm u16, cmp),
                C::CmpRMD => alu!(rm u32, cmp),
                C::CmpRMQ => alu!(rm u64, cmp),
                C::CmpMRB => alu!(mr u8, cmp),
                C::CmpMRW => alu!(mr u16, cmp),
                C::CmpMRD => alu!(mr u32, cmp),
                C::CmpMRQ => alu!(mr u64, cmp),
                C::CmpMIB => alu!(mi u8, cmp),
                C::CmpMIW => alu!(mi u16, cmp),
                C::CmpMID => alu!(mi u32, cmp),
                C::CmpMIQ => alu!(mi u64, cmp),
                C::TestRRB => alu!(rr u8, test),
                C::TestRRW => alu!(rr u16, test),
                C::TestRRD => alu!(rr u32, test),
                C::TestRRQ => alu!(rr u64, test),
                C::TestRIB => alu!(ri u8, test),
                C::TestRIW => alu!(ri u16, test),
                C::TestRID => alu!(ri u32, test),
                C::TestRIQ => alu!(ri u64, test),
                C::TestMRB => alu!(mr u8, test),
                C::TestMRW => alu!(mr u16, test),
                C::TestMRD => alu!(mr u32, test),
                C::TestMRQ => alu!(mr u64, test),
                C::TestMIB => alu!(mi u8, test),
                C::TestMIW => alu!(mi u16, test),
                C::TestMID => alu!(mi u32, test),
                C::TestMIQ => alu!(mi u64, test),
                C::MovRRB => mov!(rr u8),
                C::MovRRW => mov!(rr u16),
                C::MovRRD => mov!(rr u32),
                C::MovRRQ => mov!(rr u64),
                C::MovRIB => mov!(ri u8),
                C::MovRIW => mov!(ri u16),
                C::MovRID => mov!(ri u32),
                C::MovRIQ => mov!(ri u64),
                C::MovRMB => mov!(rm u8),
                C::MovRMW => mov!(rm u16),
                C::MovRMD => mov!(rm u32),
                C::MovRMQ => mov!(rm u64),
                C::MovMRB => mov!(mr u8),
                C::MovMRW => mov!(mr u16),
                C::MovMRD => mov!(mr u32),
                C::MovMRQ => mov!(mr u64),
                C::MovMIB => mov!(mi u8),
                C::MovMIW => mov!(mi u16),
                C::MovMID => mov!(mi u32),
                C::MovMIQ => mov!(mi u64),
                C::LeaW => lea!(u16),
                C::LeaD => lea!(u32),
                C::LeaQ => lea!(u64),
                C::ShlRID => shift!(u32, shl),
                C::ShlRIQ => shift!(u64, shl),
                C::ShrRID => shift!(u32, shr),
                C::ShrRIQ => shift!(u64, shr),
                C::SarRID => shift!(u32, sar),
                C::SarRIQ => shift!(u64, sar),
                C::IncRD => step!(u32, inc),
                C::IncRQ => step!(u64, inc),
                C::DecRD => step!(u32, dec),
                C::DecRQ => step!(u64, dec),
                C::MovzxBR => movx!(r u8, u64, zx),
                C::MovzxBM => movx!(m u8, u64, zx),
                C::MovzxWR => movx!(r u16, u64, zx),
                C::MovzxWM => movx!(m u16, u64, zx),
                C::MovsxBDR => movx!(r u8, u32, sx),
                C::MovsxBDM => movx!(m u8, u32, sx),
                C::MovsxBQR => movx!(r u8, u64, sx),
                C::MovsxBQM => movx!(m u8, u64, sx),
                C::MovsxWDR => movx!(r u16, u32, sx),
                C::MovsxWDM => movx!(m u16, u32, sx),
                C::MovsxWQR => movx!(r u16, u64, sx),
                C::MovsxWQM => movx!(m u16, u64, sx),
                C::MovsxDQR => movx!(r u32, u64, sx),
                C::MovsxDQM => movx!(m u32, u64, sx),
                C::JONear => jcc!(near o),
                C::JOFar => jcc!(far o),
                C::JNoNear => jcc!(near no),
                C::JNoFar => jcc!(far no),
                C::JBNear => jcc!(near b),
                C::JBFar => jcc!(far b),
                C::JNbNear => jcc!(near nb),
                C::JNbFar => jcc!(far nb),
                C::JZNear => jcc!(near z),
                C::JZFar => jcc!(far z),
                C::JNzNear => jcc!(near nz),
                C::JNzFar => jcc!(far nz),
                C::JBeNear => jcc!(near be),
                C::JBeFar => jcc!(far be),
                C::JNbeNear => jcc!(near nbe),
                C::JNbeFar => jcc!(far nbe),
                C::JSNear => jcc!(near s),
                C::JSFar => jcc!(far s),
                C::JNsNear => jcc!(near ns),
                C::JNsFar => jcc!(far ns),
                C::JPNear => jcc!(near p),
                C::JPFar => jcc!(far p),
                C::JNpNear => jcc!(near np),
                C::JNpFar => jcc!(far np),
                C::JLNear => jcc!(near l),
                C::JLFar => jcc!(far l),
                C::JNlNear => jcc!(near nl),
                C::JNlFar => jcc!(far nl),
                C::JLeNear => jcc!(near le),
                C::JLeFar => jcc!(far le),
                C::JNleNear => jcc!(near nle),
                C::JNleFar => jcc!(far nle),
                C::CmovDR => cmov!(r u32),
                C::CmovDM => cmov!(m u32),
                C::CmovQR => cmov!(r u64),
                C::CmovQM => cmov!(m u64),
                C::ImulDR => imul!(r u32),
                C::ImulDM => imul!(m u32),
                C::ImulDRI => imul!(ri u32),
                C::ImulDMI => imul!(mi u32),
                C::ImulQR => imul!(r u64),
                C::ImulQM => imul!(m u64),
                C::ImulQRI => imul!(ri u64),
                C::ImulQMI => imul!(mi u64),
                C::JmpNear => near!(op.imm),
                C::JmpFar => far!(op.imm),
                C::CallNear => {
                    push!(core.next_rip(op));
                    near!(op.imm);
                }
                C::CallFar => {
                    push!(core.next_rip(op));
                    far!(op.imm);
                }
                C::JmpR => goto!(canonical!(core.get(op.a))),
                C::JmpM => goto!(canonical!(attempt!(core.read::<u64>(cx, core.ea(op))))),
                C::CallR => {
                    let target = call_target!(core.get(op.a));
                    push!(core.next_rip(op));
                    goto!(target);
                }
                C::CallM => {
                    let target = call_target!(attempt!(core.read::<u64>(cx, core.ea(op))));
                    push!(core.next_rip(op));
                    goto!(target);
                }
                C::Ret => {
                    let top = core.get::<u64>(RSP);
                    let target = canonical!(attempt!(core.read::<u64>(cx, top)));
                    core.set(RSP, top.wrapping_add(8));
                    goto!(target);
                }
                C::RetImm => {
                    let top = core.get::<u64>(RSP);
                    let target = canonical!(attempt!(core.read::<u64>(cx, top)));
                    core.set(RSP, top.wrapping_add(8).wrapping_add(op.imm));
                    goto!(target);
                }
                C::PushR => push!(core.get(op.a)),
                C::PushI => push!(op.imm),
                C::PushM => push!(attempt!(core.read::<u64>(cx, core.ea(op)))),
                C::PopR => {
                    let top = core.get::<u64>(RSP);
                    let value = attempt!(core.read::<u64>(cx, top));
                    core.set(RSP, top.wrapping_add(8));
                    core.set(op.a, value);
                }
                C::Leave => {
                    let frame = core.get::<u64>(RBP);
                    let value = attempt!(core.read::<u64>(cx, frame));
                    core.set(RSP, frame.wrapping_add(8));
                    core.set(RBP, value);
                }
                C::Nop => {}
                C::Misc => {
                    if outside!(misc::execute(core, cx, op)) {
                        continue 'enter;
                    }
                }
                C::String => {
                    if outside!(string::execute(core, cx, op)) {
                        // Not finished: the same instruction again, with a tick and a look at the budget in between.
                        at -= 1;
                    }
                }
                C::Sse => outside!(crate::sse::execute(core, cx, op)),
                C::Cold => {
                    if outside!(system::execute(core, cx, op)) {
                        continue 'enter;
                    }
                }
                C::Undefined => {
                    core.undefined();
                    fault!();
                }
                C::Unknown => {
                    core.unknown("an instruction that this processor offers and does not implement");
                    fault!();
                }
                C::Ea32 => {
                    core.budget += 1;
                    core.set::<u32>(SCRATCH, u32::cut(core.ea(op)));
                }
                C::EaWide => {
                    core.budget += 1;
                    let address = core.ea(&Op { disp: 0, ..*op }).wrapping_add(op.imm);
                    core.set_scratch(address);
                }
                C::LinkNear => {
                    core.budget += 1;
                    near!(op.imm);
                }
                C::LinkFar => {
                    core.budget += 1;
                    far!(op.imm);
                }
                C::Crossing => {
                    core.budget += 1;
                    let next = (core.rip_of(op) >> 12).wrapping_add(1) & (u64::MAX >> 12);
                    let entry = &core.code_tlb[slot::<CODE_TLB>(next)];
                    match &page.crossing {
                        Some(crossing)
                            if crossing.start == op.off
                                && entry.tag & !WITHHELD == next | core.mode_tag
                                && entry.page == crossing.next =>
                        {
                            ops = &crossing.ops;
                            at = 0;
                        }
                        _ => {
                            core.rip = core.rip_of(op);
                            return Leave::Crossing;
                        }
                    }
                }
            }
        }
    }
}
