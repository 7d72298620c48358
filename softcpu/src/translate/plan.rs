//! Which operations make a block, and which flags are looked at after each.
//!
//! A block begins at any instruction and goes on, past conditional branches that are not taken, to an unconditional
//! transfer of control, a branch backwards, or an instruction that is the interpreter's.

use super::kind::{Kind, set};
use crate::code::CodePage;
use crate::op::{Op, OpCode};

/// An operation of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub op: Op,
    pub kind: Kind,
    /// Flags that this operation sets and somebody may look at before they are set again.
    pub wanted: u8,
}

/// How a block ends when its last instruction does not lead elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum End {
    /// The last instruction has said where control goes.
    #[default]
    Said,
    /// The interpreter goes on at this page offset.
    Interpreter(u64),
    /// Control goes on at this distance from the page's start.
    Next(u64),
}

/// A block, before it is translated.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    pub end: End,
    /// Instructions, which is how long the block takes in ticks.
    pub length: u32,
}

/// Makes `plan` the block that begins at page offset `start`; `None` if it is not worth a translation. `shortest` is
/// how many instructions it has at least if the interpreter goes on after it.
pub(super) fn plan(
    plan: &mut Plan,
    page: &CodePage,
    start: u64,
    user: bool,
    (shortest, longest): (u32, u32),
) -> Option<()> {
    let steps = &mut plan.steps;
    steps.clear();
    let mut length = 0;
    let mut at = page.find(start)?;
    let end = loop {
        let Some(op) = page.ops.get(at) else {
            // What is decoded ends in a transfer of control, or goes on elsewhere.
            return None;
        };
        at += 1;
        match op.code {
            OpCode::LinkNear if length < longest => match page.find(op.imm) {
                Some(next) => at = next,
                None => break End::Next(op.imm),
            },
            OpCode::LinkNear | OpCode::LinkFar => break End::Next(op.imm),
            _ if length == longest => break End::Next(u64::from(op.off)),
            _ => {
                let Some(kind) = Kind::of(op, user) else {
                    break End::Interpreter(u64::from(op.off));
                };
                length += u32::from(kind != Kind::Address32);
                steps.push(Step {
                    op: *op,
                    kind,
                    wanted: set::NONE,
                });
                if kind.ends_block(op.off) {
                    let next = u64::from(op.off) + u64::from(op.len);
                    break if matches!(kind, Kind::Branch(..)) {
                        End::Next(next)
                    } else {
                        End::Said
                    };
                }
            }
        }
    };
    // An address for an instruction that is the interpreter's.
    while matches!(end, End::Interpreter(_)) && steps.last().is_some_and(|step| step.kind == Kind::Address32)
    {
        steps.pop();
    }
    if length < shortest && matches!(end, End::Interpreter(_)) || length == 0 {
        return None;
    }
    want(steps);
    plan.end = end;
    plan.length = length;
    Some(())
}

/// Finds which flags are looked at, from the end to the beginning.
fn want(steps: &mut [Step]) {
    let mut live = set::ALL;
    for step in steps.iter_mut().rev() {
        let effects = step.kind.effects();
        step.wanted = live & effects.sets;
        live = (live & !effects.overwrites) | effects.reads;
        if effects.leaves {
            live = set::ALL;
        }
    }
}
