//! Injections: faults on purpose. Each has a trigger and a deed, both plain data.
//!
//! Two places act on them. [`crate::dma_view::DmaView`] is the filter of all device writes: a deed of kind
//! [`Deed::Filter`] changes a write on its way. The injector ([`crate::devices::injector`]) does all other deeds, each
//! at a moment. Both use one list, [`Injections`], which also holds what has become of each injection. It is a part of
//! the machine's state, so that a snapshot, a branch and a second run have the same injections.
//!
//! What a deed acts on may be known only while the machine runs: "a page of the handover blob". The machine then stops
//! with [`crate::machine::Event::InjectionAsks`], and goes on with [`crate::machine::Machine::answer_injection`].

mod act;
mod list;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use act::Act;
pub(crate) use list::SAME_BITS;
pub use list::{Injections, MAX_KEPT, Running};

use crate::ledger::Kind;
use crate::phase::Stamp;

/// Most injections of a machine.
pub const MAX_INJECTIONS: usize = 64;
/// Most bytes of one write of the injector.
pub const MAX_POKE: usize = 1 << 20;

/// A fault on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injection {
    /// When.
    pub trigger: Trigger,
    /// What.
    pub deed: Deed,
    /// How often.
    pub repeat: Repeat,
}

impl Injection {
    /// What of it the `kvm` backend cannot do; `None` if it can.
    #[must_use]
    pub fn needs_soft(&self) -> Option<&'static str> {
        if matches!(self.trigger.delay, Delay::Instructions(_)) {
            return Some("its trigger counts instructions");
        }
        if matches!(self.trigger.on, Occurrence::Execute(_)) {
            return Some("its trigger waits for an instruction of the kernel");
        }
        match &self.deed {
            Deed::Act(act) => act.needs_soft(),
            _ => None,
        }
    }

    /// Whether it acts on the machine itself, and not on memory or on what devices write to memory.
    #[must_use]
    pub fn acts_on_machine(&self) -> bool {
        match &self.deed {
            Deed::Act(_) => true,
            Deed::Filter(filter) => filter.of == WriteKind::Message,
            _ => false,
        }
    }
}

/// When an injection is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// The injection is armed from the beginning of this phase on, which counts once; `None` is from power-on on.
    pub since: Option<Stamp>,
    /// What it waits for once it is armed.
    pub on: Occurrence,
    /// Which of these, counted from 1. [`Occurrence::Begin`] occurs once.
    pub nth: u64,
    /// How much later it is due.
    pub delay: Delay,
}

/// Something that a trigger waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Occurrence {
    /// The injection is armed.
    Begin,
    /// A device writes memory, or sends a message.
    Write(WriteKind),
    /// The DMA engine reads memory: the list of the ring's pages, or a descriptor.
    Read,
    /// A processor accesses a register of the DMA engine in one of its BARs.
    Access,
    /// A processor is about to execute the instruction at this virtual address, in the kernel generation in which the
    /// injection is armed. The address is the one that the kernel was linked for. Needs a backend that can stop there.
    Execute(u64),
}

/// Which writes of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteKind {
    /// Blocks and completion counts.
    Any,
    /// Blocks.
    Block,
    /// Completion counts.
    Completion,
    /// Interrupt messages.
    Message,
}

impl WriteKind {
    /// Whether a write is of this kind.
    #[must_use]
    pub fn has(self, kind: Kind) -> bool {
        match self {
            Self::Any => matches!(kind, Kind::Block { .. } | Kind::Completion { .. }),
            Self::Block => matches!(kind, Kind::Block { .. }),
            Self::Completion => matches!(kind, Kind::Completion { .. }),
            Self::Message => matches!(kind, Kind::Msi { .. }),
        }
    }
}

/// Time between what a trigger waits for and the deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delay {
    /// Nanoseconds of guest time.
    Time(u64),
    /// Instructions of all processors. Needs a backend that counts them.
    Instructions(u64),
}

/// How often an injection fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// At most so often; not 0.
    pub count: u64,
    /// Distance between two times. For a filter: the number of writes of its kind. Else for [`Occurrence::Begin`]:
    /// nanoseconds; for any other trigger: the number of what it waits for. Not 0.
    pub every: u64,
}

impl Repeat {
    /// Once.
    pub const ONCE: Self = Self { count: 1, every: 1 };
}

/// What an injection does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// Changes a device's write on its way.
    Filter(Filter),
    /// Writes memory.
    Write(Vec<Poke>),
    /// Flips a bit of memory.
    Flip {
        /// Guest physical address of the byte.
        address: u64,
        /// Which bit, 0 to 7.
        bit: u8,
    },
    /// Does something else at a moment.
    Act(Act),
    /// The host says what, when the injection is armed. It says so once.
    AskWhenArmed,
    /// The host says what, whenever the injection is due.
    AskWhenDue,
}

/// Bytes to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poke {
    /// Guest physical address of the first.
    pub address: u64,
    /// At most [`MAX_POKE`].
    pub bytes: Vec<u8>,
}

/// A change of device writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Of which writes.
    pub of: WriteKind,
    /// Which change.
    pub change: Change,
}

/// What becomes of a device write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It is not made.
    Drop,
    /// It is made, and again after this many nanoseconds.
    Duplicate(u64),
    /// It is made this many nanoseconds later.
    Delay(u64),
    /// It is made after the next write of the device.
    Reorder,
    /// The first bytes of it are made, and the others this many nanoseconds later.
    Tear {
        /// Number of first bytes; half of it if that is 0 or too large.
        at: u32,
        /// Nanoseconds until the others.
        after: u64,
    },
    /// This bit of it is flipped, counted from bit 0 of its first byte, and around its end.
    Flip(u32),
    /// It has the content of another block, the one of this number, in the stream of this seed.
    Content {
        /// Seed of the stream.
        seed: u64,
        /// Number of the block.
        sequence: u64,
    },
    /// It goes to another address.
    Redirect(u64),
    /// A number is added to it (a completion count).
    Add(i64),
    /// An interrupt message has another vector.
    Vector(u8),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("dropped"),
            Self::Duplicate(after) => write!(f, "made again after {after} ns"),
            Self::Delay(by) => write!(f, "delayed by {by} ns"),
            Self::Reorder => f.write_str("made after the next one"),
            Self::Tear { after, .. } => write!(f, "torn, the rest of it {after} ns later"),
            Self::Flip(bit) => write!(f, "made with bit {bit} flipped"),
            Self::Content { sequence, .. } => write!(f, "made with the content of block {sequence}"),
            Self::Redirect(address) => write!(f, "sent to {address:#x}"),
            Self::Add(number) => write!(f, "made with {number:+} added"),
            Self::Vector(vector) => write!(f, "made with vector {vector:#x}"),
        }
    }
}

/// One time that an injection fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firing {
    /// Guest time in nanoseconds.
    pub time: u64,
    /// Generation and phase.
    pub stamp: Stamp,
    /// What was done.
    pub done: Done,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// A device write was changed.
    Changed {
        /// Index in the ledger of what was meant.
        entry: u64,
        /// How.
        change: Change,
    },
    /// Memory was written.
    Wrote {
        /// Index in the ledger of the first write.
        entry: u64,
        /// Guest physical address of its first byte.
        address: u64,
        /// Bytes in all.
        bytes: u64,
    },
    /// Something else.
    Acted(Act),
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { entry, change } => write!(f, "device write {entry} was {change}"),
            Self::Wrote {
                entry,
                address,
                bytes,
            } => write!(
                f,
                "{bytes} bytes were written from {address:#x} on (ledger entry {entry})"
            ),
            Self::Acted(act) => act.fmt(f),
        }
    }
}
