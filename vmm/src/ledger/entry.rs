//! Entries, engine events and counters of the ledger.

use serde::{Deserialize, Serialize};

use crate::interrupt::is_message_address;
use crate::phase::Stamp;

/// What a device wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// One block of the stream; its bytes follow from the seed and the sequence number (see [`crate::content`]).
    Block {
        /// Number of the block since power-on; unique.
        sequence: u64,
        /// Index of the descriptor that named the buffer.
        descriptor: u32,
    },
    /// The completion count.
    Completion {
        /// The count written.
        count: u64,
    },
    /// An MSI-X message. It goes to a local APIC, or to memory if the driver programmed another address.
    Msi {
        /// Message data.
        data: u32,
    },
    /// A write that was made because of an injection.
    Injected {
        /// Its number in the ledger's list of them.
        number: u32,
    },
}

/// One device write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of the entry, counted from power-on.
    pub index: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
    /// Generation and phase.
    pub stamp: Stamp,
    /// What was written.
    pub kind: Kind,
    /// Guest physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// XXH3-64 of the bytes.
    pub checksum: u64,
    /// The injection that kept the device from making this write as it meant to. What was made instead are other
    /// entries; they name this one.
    pub withheld: Option<u16>,
}

impl Entry {
    /// Bytes of [`Entry::encode`].
    pub const BYTES: usize = 56;

    /// The fixed little-endian form over which the digest runs: index, time, generation (u16), phase and kind (u8
    /// each), descriptor, message data or number (u32), sequence or count, address, checksum, length (u32), and one more than
    /// the injection that withheld it, or 0 (u32).
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let (kind, first, second) = match self.kind {
            Kind::Block { sequence, descriptor } => (0_u8, sequence, descriptor),
            Kind::Completion { count } => (1, count, 0),
            Kind::Msi { data } => (2, 0, data),
            Kind::Injected { number } => (3, 0, number),
        };
        let mut bytes = [0; Self::BYTES];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &self.index.to_le_bytes());
        put(8, &self.time.to_le_bytes());
        put(16, &self.stamp.generation.to_le_bytes());
        put(18, &[self.stamp.phase as u8, kind]);
        put(20, &second.to_le_bytes());
        put(24, &first.to_le_bytes());
        put(32, &self.address.to_le_bytes());
        put(40, &self.checksum.to_le_bytes());
        put(48, &self.length.to_le_bytes());
        put(52, &self.withheld.map_or(0, |by| u32::from(by) + 1).to_le_bytes());
        bytes
    }

    /// Whether the write went to memory, and not to a local APIC.
    #[must_use]
    pub fn goes_to_memory(&self) -> bool {
        let may_be_message = matches!(self.kind, Kind::Msi { .. } | Kind::Injected { .. });
        !may_be_message || !is_message_address(self.address)
    }

    /// Whether it was made, and not withheld by an injection.
    #[must_use]
    pub fn was_made(&self) -> bool {
        self.withheld.is_none()
    }

    /// Whether a device meant to make it, and not an injection.
    #[must_use]
    pub fn was_meant(&self) -> bool {
        !matches!(self.kind, Kind::Injected { .. })
    }
}

/// Why the engine faulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultReason {
    /// The list of the ring's pages is misaligned, or the ring is empty or too long.
    Ring,
    /// A descriptor lies outside RAM.
    DescriptorOutsideRam,
    /// A buffer has length 0.
    EmptyBuffer,
    /// A buffer is longer than the engine can fill.
    BufferTooLong,
    /// A buffer does not lie wholly in RAM.
    BufferOutsideRam,
    /// The completion address is misaligned or outside RAM.
    Completion,
    /// The consumer gave back more blocks than it got.
    Consumed,
    /// The list of the ring's pages lies outside RAM.
    ListOutsideRam,
    /// A word of that list is not the address of a page.
    RingPage,
    /// An address has more bits than the engine.
    OutOfReach,
}

impl FaultReason {
    /// The reason in words, for reports.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ring => "the list of the ring's pages is misaligned, or the ring is empty or too long",
            Self::DescriptorOutsideRam => "the descriptor is not in RAM",
            Self::EmptyBuffer => "the buffer has length 0",
            Self::BufferTooLong => "the buffer is longer than the engine can fill",
            Self::BufferOutsideRam => "the buffer is not wholly in RAM",
            Self::Completion => "the completion address is misaligned or not in RAM",
            Self::Consumed => "the consumer gave back more blocks than it got",
            Self::ListOutsideRam => "the list of the ring's pages is not in RAM",
            Self::RingPage => "the list of the ring's pages has a word that is not the address of a page",
            Self::OutOfReach => "the address has more bits than the engine",
        }
    }
}

/// A change of the engine's state, other than a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineEventKind {
    /// The driver enabled the engine.
    Start,
    /// The driver disabled the engine.
    Stop,
    /// The driver reset the engine.
    Reset,
    /// The COMMAND register's bus master bit changed.
    BusMaster {
        /// Its new value.
        on: bool,
        /// Whether the engine honours the change. One that is retained continues when the bit is cleared.
        obeyed: bool,
    },
    /// The engine found something that it cannot use, and stops until reset.
    Fault {
        /// Why.
        reason: FaultReason,
        /// The address that it could not use (the count, for [`FaultReason::Consumed`]).
        address: u64,
        /// The length that belongs to the address; 0 if none does.
        length: u32,
        /// Index of the descriptor, if the fault is one of a descriptor.
        descriptor: Option<u32>,
    },
    /// A block was ready and the ring was full.
    WaitBegin,
    /// The consumer gave a descriptor back.
    WaitEnd,
    /// An injection acted on the engine.
    Injected {
        /// Number of the injection, from 0.
        injection: u16,
    },
}

/// An engine event with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineEvent {
    /// Guest time in nanoseconds.
    pub time: u64,
    /// Generation and phase.
    pub stamp: Stamp,
    /// What happened.
    pub kind: EngineEventKind,
}

/// Counters of the engine in one phase of one generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Blocks written.
    pub blocks: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Completion counts written.
    pub completions: u64,
    /// MSI-X messages sent.
    pub messages: u64,
    /// Times that a block had to wait for a descriptor.
    pub waits: u64,
    /// Blocks that overwrote one not given back.
    pub overwrites: u64,
    /// Faults.
    pub faults: u64,
    /// Longest time without a block while enabled and not waiting for a descriptor, in nanoseconds.
    pub longest_silence_ns: u64,
    /// Longest wait for a descriptor, in nanoseconds.
    pub longest_wait_ns: u64,
    /// Events that were not kept, because there was no room.
    pub events_dropped: u64,
    /// Writes that an injection withheld.
    pub withheld: u64,
    /// Writes that were made because of an injection.
    pub injected: u64,
}
