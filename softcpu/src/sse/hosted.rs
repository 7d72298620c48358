//! Vector instructions that every x86-64 host executes alike: moves, integer lanes, logic and shuffles. They have no
//! flags, no rounding and no exceptions but for their memory operand's, so translated code may use the host's own.

use super::lanes::Lanes;
use super::moves::Move;
use super::{Form, number, slot};
use crate::op::Op;

/// An instruction on 128 bits that the host executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hosted {
    /// `66 0F opcode`: the destination is the first operand, too.
    Lanes {
        /// The opcode's last byte.
        opcode: u8,
        /// An immediate byte.
        immediate: Option<u8>,
    },
    /// A load or a move between registers.
    Load {
        /// Memory must be aligned.
        aligned: bool,
    },
    /// A store to memory.
    Store {
        /// Memory must be aligned.
        aligned: bool,
    },
}

/// A hosted instruction's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operands {
    /// Destination, or what is stored: number of an XMM register.
    pub first: usize,
    /// The source, if it is a register.
    pub second: usize,
    /// The source or the destination is memory.
    pub memory: bool,
}

impl Hosted {
    /// What the operation, one of the SSE family, is on the host; `None` if it is not hosted.
    pub fn of(op: &Op) -> Option<(Self, Operands)> {
        let form = Form::of(op);
        let operands = Operands {
            first: slot(op.a),
            second: slot(op.b),
            memory: form.memory(),
        };
        let hosted = match form.family() {
            number::LANES => {
                let (opcode, shuffles) = opcode(Lanes::from_number(form.operation()))?;
                Self::Lanes {
                    opcode,
                    immediate: shuffles.then_some(form.imm8()),
                }
            }
            number::MOVE => match Move::from_number(form.operation()) {
                Move::LoadAligned => Self::Load { aligned: true },
                Move::Load => Self::Load { aligned: false },
                Move::StoreAligned if operands.memory => Self::Store { aligned: true },
                Move::Store if operands.memory => Self::Store { aligned: false },
                _ => return None,
            },
            _ => return None,
        };
        Some((hosted, operands))
    }
}

/// The opcode behind `66 0F`, and whether an immediate byte follows the operands (SDM volume 2, appendix A).
fn opcode(lanes: Lanes) -> Option<(u8, bool)> {
    use Lanes as L;
    let plain = match lanes {
        L::And => 0xdb,
        L::AndNot => 0xdf,
        L::Or => 0xeb,
        L::Xor => 0xef,
        L::Paddb => 0xfc,
        L::Paddw => 0xfd,
        L::Paddd => 0xfe,
        L::Paddq => 0xd4,
        L::Psubb => 0xf8,
        L::Psubw => 0xf9,
        L::Psubd => 0xfa,
        L::Psubq => 0xfb,
        L::Pminub => 0xda,
        L::Pmaxub => 0xde,
        L::Pcmpeqb => 0x74,
        L::Pcmpeqw => 0x75,
        L::Pcmpeqd => 0x76,
        L::Pcmpgtb => 0x64,
        L::Pcmpgtw => 0x65,
        L::Pcmpgtd => 0x66,
        L::Pmuludq => 0xf4,
        L::Punpcklbw => 0x60,
        L::Punpcklwd => 0x61,
        L::Punpckldq => 0x62,
        L::Punpcklqdq => 0x6c,
        L::Punpckhbw => 0x68,
        L::Punpckhwd => 0x69,
        L::Punpckhdq => 0x6a,
        L::Punpckhqdq => 0x6d,
        L::Pshufd => return Some((0x70, true)),
        _ => return None,
    };
    Some((plain, false))
}
