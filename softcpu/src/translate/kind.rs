//! What an operation is to the translator, and what it does to the flags. Whatever has no [`Kind`] is the
//! interpreter's.

use super::emit::{Alu, Bit, Condition, Shift, Size, Unary};
use crate::exec::misc::MiscOp;
use crate::exec::packed::Packed;
use crate::exec::string::{self, StringOp};
use crate::exec::system::SystemOp;
use crate::op::{HIGH_BYTE, Op, OpCode, ZERO, operations};
use crate::sse::hosted::{Hosted, Operands};

/// Sets of arithmetic flags.
pub(super) mod set {
    pub const NONE: u8 = 0;
    pub const CF: u8 = 1;
    pub const ZF: u8 = 2;
    pub const SF: u8 = 4;
    pub const PF: u8 = 8;
    pub const OF: u8 = 16;
    /// All six: AF goes with these.
    pub const ALL: u8 = 63;
}

/// A two-operand instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Alu(Alu),
    Test,
    Mov,
}

impl Family {
    /// Whether the destination is written.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Test | Self::Alu(Alu::Cmp))
    }
}

/// Operands of a two-operand instruction: register, memory, immediate.
#[allow(non_camel_case_types)] // the list of operations has them in lower case
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    rr,
    ri,
    rm,
    mr,
    mi,
}

/// Where the count of a shift or the number of a bit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Immediate(u8),
    Register,
}

/// Where control goes after an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Page offset, in the same page.
    Near(u64),
    /// Distance from the page's start, outside the page.
    Far(u64),
}

/// An instruction that is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Two(Family, Form, Size),
    /// MOVZX and MOVSX from the first size to the second.
    Extend {
        signed: bool,
        from: Size,
        to: Size,
        memory: bool,
    },
    Cmov(Condition, Size, bool),
    Imul {
        size: Size,
        memory: bool,
        immediate: bool,
    },
    Lea(Size),
    Push {
        memory: bool,
    },
    PushImmediate,
    Pop,
    Leave,
    Shift {
        shift: Shift,
        size: Size,
        by: By,
        memory: bool,
    },
    Step {
        down: bool,
        size: Size,
        memory: bool,
    },
    Negate {
        unary: Unary,
        size: Size,
        memory: bool,
    },
    Multiply {
        unary: Unary,
        size: Size,
        memory: bool,
    },
    Divide {
        size: Size,
        memory: bool,
    },
    Bit {
        bit: Bit,
        size: Size,
        by: By,
        memory: bool,
    },
    Scan {
        reverse: bool,
        size: Size,
        memory: bool,
    },
    Bswap(Size),
    Set(Condition, bool),
    CompareExchange(Size),
    ExchangeAdd(Size),
    /// An instruction on vectors that the host has.
    Vector(Hosted, Operands),
    PushFlags,
    /// CLI and STI in kernel mode, where nothing forbids them.
    ClearInterrupts,
    SetInterrupts,
    /// SWAPGS in kernel mode.
    SwapGs,
    Exchange(Size, bool),
    /// CWDE and CDQE, by the size of the result.
    ExtendRax(Size),
    /// CDQ and CQO.
    SignToRdx(Size),
    /// REP MOVS, or with `fill` REP STOS.
    String {
        fill: bool,
        size: Size,
    },
    Nop,
    /// An address of 32 bits for the next operation; takes no time.
    Address32,
    Branch(Condition, Target),
    Jump(Target),
    Call(Target),
    JumpIndirect {
        memory: bool,
    },
    CallIndirect {
        memory: bool,
    },
    Return {
        arguments: u16,
    },
}

/// What an instruction does to flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Effects {
    /// Flags whose old values it reads.
    pub reads: u8,
    /// Flags that it sets whatever they were.
    pub overwrites: u8,
    /// Flags that it may set.
    pub sets: u8,
    /// It can be left undone, or leave the block: all flags must be right before it.
    pub leaves: bool,
}

/// Flags that a condition depends on.
pub(super) fn depends_on(condition: Condition) -> u8 {
    match condition >> 1 {
        0 => set::OF,
        1 => set::CF,
        2 => set::ZF,
        3 => set::CF | set::ZF,
        4 => set::SF,
        5 => set::PF,
        6 => set::SF | set::OF,
        _ => set::ZF | set::SF | set::OF,
    }
}

impl Kind {
    /// What the instruction does to flags.
    pub fn effects(self) -> Effects {
        let effects = |reads, overwrites, sets, leaves| Effects {
            reads,
            overwrites,
            sets,
            leaves,
        };
        let all = |memory| effects(set::NONE, set::ALL, set::ALL, memory);
        let none = |memory| effects(set::NONE, set::NONE, set::NONE, memory);
        match self {
            Self::Two(family, form, _) => {
                let memory = matches!(form, Form::rm | Form::mr | Form::mi);
                match family {
                    Family::Mov => none(memory),
                    Family::Alu(Alu::Adc | Alu::Sbb) => effects(set::CF, set::ALL, set::ALL, memory),
                    _ => all(memory),
                }
            }
            Self::Extend { memory, .. } | Self::Exchange(_, memory) => none(memory),
            Self::Cmov(condition, _, memory) | Self::Set(condition, memory) => {
                effects(depends_on(condition), set::NONE, set::NONE, memory)
            }
            Self::Imul { memory, .. } | Self::Multiply { memory, .. } | Self::Scan { memory, .. } => {
                all(memory)
            }
            Self::Lea(_)
            | Self::Bswap(_)
            | Self::ExtendRax(_)
            | Self::SignToRdx(_)
            | Self::Nop
            | Self::Address32 => none(false),
            Self::Push { .. } | Self::PushImmediate | Self::Pop | Self::Leave | Self::Divide { .. } => {
                none(true)
            }
            Self::Shift {
                shift: Shift::Rol | Shift::Ror,
                ..
            } => effects(set::NONE, set::CF | set::OF, set::CF | set::OF, false),
            Self::Shift {
                by: By::Immediate(_),
                memory,
                ..
            } => all(memory),
            // A count of zero leaves the flags as they are.
            Self::Shift { .. } => effects(set::NONE, set::NONE, set::ALL, false),
            Self::Step { memory, .. } => effects(set::NONE, set::ALL & !set::CF, set::ALL & !set::CF, memory),
            Self::Negate { unary, memory, .. } => {
                if unary == Unary::Neg {
                    all(memory)
                } else {
                    none(memory)
                }
            }
            Self::Bit { memory, .. } => effects(set::NONE, set::CF, set::CF, memory),
            Self::Vector(..) | Self::SetInterrupts | Self::String { .. } => none(true),
            Self::PushFlags => effects(set::ALL, set::NONE, set::NONE, true),
            Self::ClearInterrupts | Self::SwapGs => none(false),
            Self::CompareExchange(_) | Self::ExchangeAdd(_) => all(true),
            Self::Branch(condition, _) => effects(depends_on(condition), set::NONE, set::NONE, true),
            Self::Jump(_)
            | Self::Call(_)
            | Self::JumpIndirect { .. }
            | Self::CallIndirect { .. }
            | Self::Return { .. } => none(true),
        }
    }

    /// Whether nothing can follow in the same block.
    pub fn ends_block(self, at: u16) -> bool {
        match self {
            // A loop's branch back: the way back must be a short one.
            Self::Branch(_, Target::Near(target)) => target <= u64::from(at),
            Self::Jump(_)
            | Self::Call(_)
            | Self::JumpIndirect { .. }
            | Self::CallIndirect { .. }
            | Self::Return { .. } => true,
            _ => false,
        }
    }

    /// What the operation is, in user mode or kernel mode; `None` if the interpreter has to execute it.
    pub fn of(op: &Op, user: bool) -> Option<Self> {
        let high = |register: u8| register & HIGH_BYTE != 0;
        match op.code {
            _ if high(op.a) || high(op.b) => {
                choose(op).filter(|kind| matches!(kind, Self::Two(..) | Self::Extend { memory: false, .. }))
            }
            OpCode::Sse => Hosted::of(op).map(|(hosted, operands)| Self::Vector(hosted, operands)),
            OpCode::Cold => match SystemOp::from_number(Packed::of(op).number()) {
                SystemOp::Pushf => Some(Self::PushFlags),
                SystemOp::Cli if !user => Some(Self::ClearInterrupts),
                SystemOp::Sti if !user => Some(Self::SetInterrupts),
                SystemOp::Swapgs if !user => Some(Self::SwapGs),
                _ => None,
            },
            _ => choose(op),
        }
    }
}

macro_rules! family {
    (Test) => {
        Family::Test
    };
    (Mov) => {
        Family::Mov
    };
    ($alu:ident) => {
        Family::Alu(Alu::$alu)
    };
}

/// Encodings of conditions, by the names in the list of operations.
#[allow(non_upper_case_globals)]
mod condition {
    pub const o: u8 = 0;
    pub const no: u8 = 1;
    pub const b: u8 = 2;
    pub const nb: u8 = 3;
    pub const z: u8 = 4;
    pub const nz: u8 = 5;
    pub const be: u8 = 6;
    pub const nbe: u8 = 7;
    pub const s: u8 = 8;
    pub const ns: u8 = 9;
    pub const p: u8 = 10;
    pub const np: u8 = 11;
    pub const l: u8 = 12;
    pub const nl: u8 = 13;
    pub const le: u8 = 14;
    pub const nle: u8 = 15;
}

macro_rules! define_choose {
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
        fn choose(op: &Op) -> Option<Kind> {
            Some(match op.code {
                $($(
                    OpCode::$b => Kind::Two(family!($family), Form::$form, Size::B),
                    OpCode::$w => Kind::Two(family!($family), Form::$form, Size::W),
                    OpCode::$d => Kind::Two(family!($family), Form::$form, Size::D),
                    OpCode::$q => Kind::Two(family!($family), Form::$form, Size::Q),
                )*)*
                $(
                    OpCode::$near => Kind::Branch(condition::$condition, Target::Near(op.imm)),
                    OpCode::$far => Kind::Branch(condition::$condition, Target::Far(op.imm)),
                )*
                _ => return other(op),
            })
        }
    };
}
operations!(define_choose);

fn other(op: &Op) -> Option<Kind> {
    use OpCode as C;
    use Size::{B, D, Q, W};
    let extend = |signed, from, to, memory| Kind::Extend {
        signed,
        from,
        to,
        memory,
    };
    let [low, ..] = op.imm.to_le_bytes();
    let shift = |shift, size| Kind::Shift {
        shift,
        size,
        by: By::Immediate(low),
        memory: false,
    };
    let imul = |size, memory, immediate| Kind::Imul {
        size,
        memory,
        immediate,
    };
    let step = |down, size| Kind::Step {
        down,
        size,
        memory: false,
    };
    Some(match op.code {
        C::MovzxBR => extend(false, B, Q, false),
        C::MovzxBM => extend(false, B, Q, true),
        C::MovzxWR => extend(false, W, Q, false),
        C::MovzxWM => extend(false, W, Q, true),
        C::MovsxBDR => extend(true, B, D, false),
        C::MovsxBDM => extend(true, B, D, true),
        C::MovsxBQR => extend(true, B, Q, false),
        C::MovsxBQM => extend(true, B, Q, true),
        C::MovsxWDR => extend(true, W, D, false),
        C::MovsxWDM => extend(true, W, D, true),
        C::MovsxWQR => extend(true, W, Q, false),
        C::MovsxWQM => extend(true, W, Q, true),
        C::MovsxDQR => extend(true, D, Q, false),
        C::MovsxDQM => extend(true, D, Q, true),
        C::CmovDR => Kind::Cmov(low & 15, D, false),
        C::CmovDM => Kind::Cmov(low & 15, D, true),
        C::CmovQR => Kind::Cmov(low & 15, Q, false),
        C::CmovQM => Kind::Cmov(low & 15, Q, true),
        C::ImulDR => imul(D, false, false),
        C::ImulDM => imul(D, true, false),
        C::ImulQR => imul(Q, false, false),
        C::ImulQM => imul(Q, true, false),
        C::ImulDRI => imul(D, false, true),
        C::ImulDMI => imul(D, true, true),
        C::ImulQRI => imul(Q, false, true),
        C::ImulQMI => imul(Q, true, true),
        C::PushR => Kind::Push { memory: false },
        C::PushM => Kind::Push { memory: true },
        C::PushI => Kind::PushImmediate,
        C::PopR => Kind::Pop,
        C::Leave => Kind::Leave,
        C::LeaD => Kind::Lea(D),
        C::LeaQ => Kind::Lea(Q),
        C::ShlRID => shift(Shift::Shl, D),
        C::ShlRIQ => shift(Shift::Shl, Q),
        C::ShrRID => shift(Shift::Shr, D),
        C::ShrRIQ => shift(Shift::Shr, Q),
        C::SarRID => shift(Shift::Sar, D),
        C::SarRIQ => shift(Shift::Sar, Q),
        C::IncRD => step(false, D),
        C::IncRQ => step(false, Q),
        C::DecRD => step(true, D),
        C::DecRQ => step(true, Q),
        C::JmpNear => Kind::Jump(Target::Near(op.imm)),
        C::JmpFar => Kind::Jump(Target::Far(op.imm)),
        C::CallNear => Kind::Call(Target::Near(op.imm)),
        C::CallFar => Kind::Call(Target::Far(op.imm)),
        C::JmpR => Kind::JumpIndirect { memory: false },
        C::JmpM => Kind::JumpIndirect { memory: true },
        C::CallR => Kind::CallIndirect { memory: false },
        C::CallM => Kind::CallIndirect { memory: true },
        C::Ret => Kind::Return { arguments: 0 },
        C::RetImm => Kind::Return {
            arguments: u16::try_from(op.imm).ok()?,
        },
        C::Nop => Kind::Nop,
        C::Ea32 => Kind::Address32,
        C::Misc => return misc(op),
        C::String => return string(op),
        _ => return None,
    })
}

/// The string instructions that are one copy or fill in most cases.
fn string(op: &Op) -> Option<Kind> {
    let (operation, bytes) = string::repeated(op)?;
    let size = match bytes {
        1 => Size::B,
        2 => Size::W,
        4 => Size::D,
        _ => Size::Q,
    };
    let fill = match operation {
        StringOp::Movs if op.seg == ZERO => false,
        StringOp::Stos => true,
        _ => return None,
    };
    Some(Kind::String { fill, size })
}

/// The kinds of the family of rarer instructions.
fn misc(op: &Op) -> Option<Kind> {
    use MiscOp as K;
    use Size::{B, D, Q, W};
    let packed = Packed::of(op);
    let operation = MiscOp::from_number(packed.number());
    let size = match packed.size() {
        0 => B,
        1 => W,
        2 => D,
        _ => Q,
    };
    let memory = packed.memory();
    let extra = packed.extra();
    let wide = matches!(size, D | Q);
    let mask = if size == Q { 63 } else { 31 };
    // One by zero changes no flags, and one by the operand's width or more leaves CF undefined: both are the
    // interpreter's.
    let by_count = |shift| {
        let count = extra & mask;
        (count != 0 && count < size.bits()).then_some(Kind::Shift {
            shift,
            size,
            by: By::Immediate(count),
            memory,
        })
    };
    let in_register = |shift, by| {
        (wide && !memory && by != By::Immediate(0)).then_some(Kind::Shift {
            shift,
            size,
            by,
            memory: false,
        })
    };
    let bit = |bit, by| {
        wide.then_some(Kind::Bit {
            bit,
            size,
            by,
            memory,
        })
    };
    let by_immediate = By::Immediate(extra);
    match operation {
        K::ShlImm => by_count(Shift::Shl),
        K::ShrImm => by_count(Shift::Shr),
        K::SarImm => by_count(Shift::Sar),
        K::ShlCl => in_register(Shift::Shl, By::Register),
        K::ShrCl => in_register(Shift::Shr, By::Register),
        K::SarCl => in_register(Shift::Sar, By::Register),
        K::RolImm => in_register(Shift::Rol, By::Immediate(extra & mask)),
        K::RorImm => in_register(Shift::Ror, By::Immediate(extra & mask)),
        K::Inc | K::Dec => Some(Kind::Step {
            down: operation == K::Dec,
            size,
            memory,
        }),
        K::Neg => Some(Kind::Negate {
            unary: Unary::Neg,
            size,
            memory,
        }),
        K::Not => Some(Kind::Negate {
            unary: Unary::Not,
            size,
            memory,
        }),
        K::Mul => wide.then_some(Kind::Multiply {
            unary: Unary::Mul,
            size,
            memory,
        }),
        K::Imul => wide.then_some(Kind::Multiply {
            unary: Unary::Imul,
            size,
            memory,
        }),
        K::Div => wide.then_some(Kind::Divide { size, memory }),
        K::BtImm => bit(Bit::Bt, by_immediate),
        K::BtsImm => bit(Bit::Bts, by_immediate),
        K::BtrImm => bit(Bit::Btr, by_immediate),
        K::BtcImm => bit(Bit::Btc, by_immediate),
        K::BtReg => bit(Bit::Bt, By::Register),
        K::BtsReg => bit(Bit::Bts, By::Register),
        K::BtrReg => bit(Bit::Btr, By::Register),
        K::BtcReg => bit(Bit::Btc, By::Register),
        K::Bsf | K::Bsr => wide.then_some(Kind::Scan {
            reverse: operation == K::Bsr,
            size,
            memory,
        }),
        K::Bswap => wide.then_some(Kind::Bswap(size)),
        K::Set => Some(Kind::Set(extra & 15, memory)),
        K::Cmpxchg => memory.then_some(Kind::CompareExchange(size)),
        K::Xadd => memory.then_some(Kind::ExchangeAdd(size)),
        K::Xchg => (!memory || op.a == ZERO).then_some(Kind::Exchange(size, memory)),
        K::Movnti => (wide && memory).then_some(Kind::Two(Family::Mov, Form::mr, size)),
        K::Cwde => Some(Kind::ExtendRax(D)),
        K::Cdqe => Some(Kind::ExtendRax(Q)),
        K::Cdq => Some(Kind::SignToRdx(D)),
        K::Cqo => Some(Kind::SignToRdx(Q)),
        _ => None,
    }
}
