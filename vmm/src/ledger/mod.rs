//! The ledger: the host's record of every device write, in bounded memory; of what an injection made of one, too.

mod codec;
mod entry;
mod injected;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub use codec::{CodecError, VERSION};
pub use entry::{Counters, EngineEvent, EngineEventKind, Entry, FaultReason, Kind};
pub use injected::{Content, Injected};

use crate::phase::Stamp;

/// Default number of entries that a ledger holds.
pub const DEFAULT_CAPACITY: usize = 262_144;
/// Engine events that a ledger holds.
pub const EVENT_CAPACITY: usize = 65_536;
/// Bytes that injections wrote which a ledger holds.
pub const INJECTED_BYTES: usize = 64 << 20;

/// The ledger has no room for another entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the ledger is full: it holds {capacity} entries")]
pub struct LedgerFull {
    /// Number of entries that the ledger holds.
    pub capacity: usize,
}

/// A ledger as stored in evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// Every entry, in order of time.
    pub entries: Vec<Entry>,
    /// Number of entries.
    pub made: u64,
    /// What is known of each entry of kind [`Kind::Injected`], in order.
    pub injected: Vec<Injected>,
    /// Engine events in order of time, up to [`EVENT_CAPACITY`].
    pub events: Vec<EngineEvent>,
    /// Counters per generation and phase, in order.
    pub counters: Vec<(Stamp, Counters)>,
    /// [`Ledger::digest`].
    pub digest: u128,
}

/// A ledger that grows while the machine runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    entries: Vec<Entry>,
    made: u64,
    capacity: usize,
    injected: Vec<Injected>,
    /// Bytes in `injected`.
    weight: usize,
    events: Vec<EngineEvent>,
    counters: BTreeMap<Stamp, Counters>,
    digest: u128,
    full: bool,
}

impl Ledger {
    /// A ledger that holds `capacity` entries.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::new(),
            made: 0,
            capacity: capacity.max(1),
            injected: Vec::new(),
            weight: 0,
            events: Vec::new(),
            counters: BTreeMap::new(),
            digest: 0,
            full: false,
        }
    }

    /// Makes room for one entry. To be called before the write that the entry will record.
    pub fn reserve(&mut self) -> Result<(), LedgerFull> {
        self.reserve_for(1, 0)
    }

    /// Makes room for this many entries, with so many bytes of injections in them.
    pub fn reserve_for(&mut self, entries: usize, bytes: usize) -> Result<(), LedgerFull> {
        let room = self.capacity.saturating_sub(self.entries.len());
        self.full |= room < entries || INJECTED_BYTES - self.weight.min(INJECTED_BYTES) < bytes;
        if self.full {
            Err(LedgerFull {
                capacity: self.capacity,
            })
        } else {
            Ok(())
        }
    }

    /// Records a write of `data` to `address`. [`Ledger::reserve`] must have succeeded before.
    pub fn record(&mut self, time: u64, stamp: Stamp, kind: Kind, address: u64, data: &[u8]) {
        self.push(time, stamp, kind, address, data, None);
    }

    /// Records a write that a device meant to make and that injection `by` withheld. Returns its index.
    pub fn record_withheld(
        &mut self,
        (time, stamp): (u64, Stamp),
        kind: Kind,
        address: u64,
        data: &[u8],
        by: u16,
    ) -> u64 {
        self.push(time, stamp, kind, address, data, Some(by))
    }

    /// Records a write that was made because of an injection. Returns its index.
    pub fn record_injected(
        &mut self,
        (time, stamp): (u64, Stamp),
        injected: Injected,
        address: u64,
        data: &[u8],
    ) -> u64 {
        let number = u32::try_from(self.injected.len()).unwrap_or(u32::MAX);
        self.weight = self.weight.saturating_add(injected.content.weight());
        self.injected.push(injected);
        self.push(time, stamp, Kind::Injected { number }, address, data, None)
    }

    fn push(
        &mut self,
        time: u64,
        stamp: Stamp,
        kind: Kind,
        address: u64,
        data: &[u8],
        withheld: Option<u16>,
    ) -> u64 {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let entry = Entry {
            index: self.made,
            time,
            stamp,
            kind,
            address,
            length,
            checksum: xxh3_64(data),
            withheld,
        };
        self.digest = xxh3_128(&[&self.digest.to_le_bytes(), &entry.encode()[..]].concat());
        self.made += 1;
        self.entries.push(entry);
        let counters = self.counters(stamp);
        match kind {
            _ if withheld.is_some() => counters.withheld += 1,
            Kind::Block { .. } => {
                counters.blocks += 1;
                counters.bytes += u64::from(length);
            }
            Kind::Completion { .. } => counters.completions += 1,
            Kind::Msi { .. } => counters.messages += 1,
            Kind::Injected { .. } => counters.injected += 1,
        }
        entry.index
    }

    /// Records an engine event.
    pub fn event(&mut self, time: u64, stamp: Stamp, kind: EngineEventKind) {
        let room = self.events.len() < EVENT_CAPACITY;
        if room {
            self.events.push(EngineEvent { time, stamp, kind });
        }
        let counters = self.counters(stamp);
        counters.events_dropped += u64::from(!room);
        match kind {
            EngineEventKind::Fault { .. } => counters.faults += 1,
            EngineEventKind::WaitBegin => counters.waits += 1,
            _ => {}
        }
    }

    /// The counters of one phase, mutably.
    pub fn counters(&mut self, stamp: Stamp) -> &mut Counters {
        self.counters.entry(stamp).or_default()
    }

    /// Whether an entry was refused because the ledger is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of entries.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// The engine events, in order.
    #[must_use]
    pub fn events(&self) -> &[EngineEvent] {
        &self.events
    }

    /// Digest of all entries: XXH3-128 of the previous digest (0 at first) and the entry's encoding.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// The ledger until now, to be stored.
    #[must_use]
    pub fn to_record(&self) -> LedgerRecord {
        LedgerRecord {
            entries: self.entries.clone(),
            made: self.made,
            injected: self.injected.clone(),
            events: self.events.clone(),
            counters: self
                .counters
                .iter()
                .map(|(stamp, counters)| (*stamp, *counters))
                .collect(),
            digest: self.digest(),
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("held", &self.entries.len())
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::Phase;

    const ARMED: Stamp = Stamp {
        generation: 0,
        phase: Phase::Armed,
    };
    const JUMP: Stamp = Stamp {
        generation: 0,
        phase: Phase::Jump,
    };

    fn block(ledger: &mut Ledger, stamp: Stamp, sequence: u64, address: u64) -> Result<(), LedgerFull> {
        ledger.reserve()?;
        ledger.record(
            sequence,
            stamp,
            Kind::Block {
                sequence,
                descriptor: 0,
            },
            address,
            &sequence.to_le_bytes(),
        );
        Ok(())
    }

    #[test]
    fn every_entry_is_kept_until_it_is_full() {
        let mut ledger = Ledger::new(64);
        // A ring of eight buffers, so that each write but the last eight is overwritten by a later one.
        let written = (0..100)
            .take_while(|&sequence| block(&mut ledger, ARMED, sequence, sequence % 8 * 4096).is_ok())
            .count();
        assert_eq!((written, ledger.is_full()), (64, true));
        assert_eq!(ledger.reserve(), Err(LedgerFull { capacity: 64 }));
        let record = ledger.to_record();
        assert_eq!((record.made, record.counters[0].1.blocks), (64, 64));
        assert!(record.entries.iter().map(|entry| entry.index).eq(0..64));
    }

    #[test]
    fn a_full_ledger_stays_full_and_a_filled_one_is_not_yet() {
        let mut ledger = Ledger::new(2);
        block(&mut ledger, ARMED, 0, 0).unwrap();
        block(&mut ledger, JUMP, 1, 0).unwrap();
        assert!(!ledger.is_full(), "nothing was refused");
        block(&mut ledger, JUMP, 2, 0).unwrap_err();
        assert!(ledger.is_full());
    }

    #[test]
    fn the_digest_sees_every_entry() {
        let digest = |sequences: &[u64]| {
            let mut ledger = Ledger::new(8);
            for &sequence in sequences {
                block(&mut ledger, ARMED, sequence, 0x1000).unwrap();
            }
            ledger.digest()
        };
        assert_eq!(digest(&[1, 2, 3, 4, 5]), digest(&[1, 2, 3, 4, 5]));
        assert_ne!(digest(&[1, 2, 3, 4, 5]), digest(&[1, 2, 9, 4, 5]));
    }

    #[test]
    fn events_beyond_the_room_are_counted() {
        let mut ledger = Ledger::new(16);
        for time in 0..EVENT_CAPACITY as u64 + 10 {
            ledger.event(time, JUMP, EngineEventKind::WaitBegin);
        }
        let counters = *ledger.counters(JUMP);
        assert_eq!(
            (counters.waits, counters.events_dropped),
            (EVENT_CAPACITY as u64 + 10, 10)
        );
    }
}
