//! The instruction loop.
//!
//! [`run`] executes decoded operations until the budget is spent, an instruction faults, or RIP is at code that is
//! not mapped or not decoded. Devices, interrupts and deadlines are the business of [`crate::Cpu::run`], which then
//! calls again.

pub(crate) mod alu;
mod arith;
pub(crate) mod branch;
mod control;
pub(crate) mod descriptor;
pub(crate) mod event;
mod fast;
mod forms;
pub(crate) mod misc;
pub(crate) mod packed;
mod place;
mod stack;
pub(crate) mod string;
pub(crate) mod system;

use fast::{Memory, Register};

use crate::code::CodeCache;
use crate::core::{CODE_TLB, Core, Ctx};
use crate::mmu::{Tag, slot};
use crate::op::{Op, OpCode, PAGE, SCRATCH, operations};
use crate::translate::{self, Here};
use crate::word::Word;

/// Why [`run`] returned. [`Core::rip`] is the next instruction; after a fault, the one that faulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The budget is spent, or was cut.
    Budget,
    /// An instruction faulted; the fault is in [`Core::fault`].
    Fault,
    /// The page at RIP is not in the code TLB.
    Page,
    /// Nothing is decoded at RIP.
    Decode,
    /// The instruction at RIP crosses into the next page and is not decoded yet.
    Crossing,
    /// Control comes to RIP so often that the block there is to be translated.
    Hot,
}

/// Executes instructions, beginning at [`Core::rip`].
#[allow(clippy::too_many_lines, clippy::cognitive_complexity)] // the dispatch is one match on purpose
pub(crate) fn run(core: &mut Core, cache: &CodeCache, cx: &mut Ctx<'_>) -> Leave {
    use OpCode as C;
    // Translated code has just left: whatever it left for is the interpreter's.
    let mut left = false;
    'enter: loop {
        let rip = core.rip;
        let entry = &core.code_tlb[slot::<CODE_TLB>(rip >> 12)];
        if entry.tag != Tag::of(rip, core.mode_tag) {
            return Leave::Page;
        }
        let Some(page) = cache.pages.get(entry.page as usize) else {
            return Leave::Page;
        };
        let Some(mut at) = page.find(rip) else {
            return Leave::Decode;
        };
        if core.translate_after != 0 {
            match page.code.here(rip, entry.tag, core.translate_after) {
                Here::Interpret => {}
                Here::Hot => return Leave::Hot,
                Here::Run(code) => {
                    if !left {
                        translate::run(core, cx, code);
                        left = true;
                        continue 'enter;
                    }
                }
            }
        }
        left = false;
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
            macro_rules! near {
                ($offset:expr) => {{
                    let target = $offset;
                    match page.find(target) {
                        Some(index) => {
                            if core.translate_after != 0 && page.code.arrives(target, core.translate_after) {
                                goto!(core.regs[usize::from(PAGE)].wrapping_add(target));
                            }
                            at = index;
                        }
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
            // What comes after an instruction that is never translated may be.
            macro_rules! resume {
                () => {
                    if core.translate_after != 0
                        && let Some(next) = ops.get(at)
                        && next.code != C::LinkFar
                        && page.code.arrives(u64::from(next.off), core.translate_after)
                    {
                        goto!(core.rip_of(next));
                    }
                };
            }
            macro_rules! outside {
                ($result:expr) => {{
                    core.writer = op.off;
                    attempt!($result)
                }};
            }

            // The whole dispatch is one `match`, because a jump table in one function is what makes the loop fast:
            // the rows of the list become arms, and the functions they name are inlined into them.
            macro_rules! dispatch {
                (
                    two_operands { $($family:ident { $($form:ident: $b:ident $w:ident $d:ident $q:ident;)* })* }
                    register_or_memory { $($r:ident $m:ident = $rm:ident<$($rm_type:ty),+>: $($rm_code:ident)+;)* }
                    one_form { $($one:ident $when:ident = $f:ident<$($type:ty),+>: $($code:ident)+;)* }
                    conditional_branches { $($near:ident $far:ident = $condition:ident: $($branch_code:ident)+;)* }
                    branches { $($always_near:ident $always_far:ident = $before:ident: $($always_code:ident)+;)* }
                    indirect_branches { $($to_r:ident $to_m:ident = $target:ident: $($to_code:ident)+;)* }
                    returns { $($ret:ident = $return:ident: $($ret_code:ident)+;)* }
                    special { $($(#[$special_doc:meta])* $special:ident;)* }
                    steps { $($(#[$step_doc:meta])* $step:ident;)* }
                ) => {
                    match op.code {
                        $($(
                            C::$b => attempt!(forms::$form::<forms::$family, u8>(core, cx, op)),
                            C::$w => attempt!(forms::$form::<forms::$family, u16>(core, cx, op)),
                            C::$d => attempt!(forms::$form::<forms::$family, u32>(core, cx, op)),
                            C::$q => attempt!(forms::$form::<forms::$family, u64>(core, cx, op)),
                        )*)*
                        $(
                            C::$r => attempt!(fast::$rm::<Register, $($rm_type),+>(core, cx, op)),
                            C::$m => attempt!(fast::$rm::<Memory, $($rm_type),+>(core, cx, op)),
                        )*
                        $(C::$one => attempt!(fast::$f::<$($type),+>(core, cx, op)),)*
                        $(
                            C::$near => if branch::$condition(core.lazy) {
                                near!(op.imm)
                            },
                            C::$far => if branch::$condition(core.lazy) {
                                far!(op.imm)
                            },
                        )*
                        $(
                            C::$always_near => {
                                attempt!(branch::$before(core, cx, op));
                                near!(op.imm);
                            }
                            C::$always_far => {
                                attempt!(branch::$before(core, cx, op));
                                far!(op.imm);
                            }
                        )*
                        $(
                            C::$to_r => goto!(attempt!(branch::$target::<Register>(core, cx, op))),
                            C::$to_m => goto!(attempt!(branch::$target::<Memory>(core, cx, op))),
                        )*
                        $(C::$ret => goto!(attempt!(branch::$return(core, cx, op))),)*
                        C::Nop => {}
                        C::Misc => {
                            if outside!(misc::execute(core, cx, op)) {
                                continue 'enter;
                            }
                            resume!();
                        }
                        C::String => {
                            if outside!(string::execute(core, cx, op)) {
                                // Not finished: the same instruction again, after a tick and a check of the budget.
                                at -= 1;
                            } else {
                                resume!();
                            }
                        }
                        C::Sse => {
                            outside!(crate::sse::execute(core, cx, op));
                            resume!();
                        }
                        C::Cold => {
                            if outside!(system::execute(core, cx, op)) {
                                continue 'enter;
                            }
                            resume!();
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
                            let slot = slot::<CODE_TLB>(next);
                            let entry = &core.code_tlb[slot];
                            match &page.crossing {
                                Some(crossing)
                                    if crossing.start == op.off
                                        && entry.tag.offered(slot) == Tag::of(next << 12, core.mode_tag)
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
                };
            }
            operations!(dispatch);
        }
    }
}
