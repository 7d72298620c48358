//! The trace: one small record for each device access, interrupt, message and phase change.
//!
//! To compare two runs that should be equal, find the first record that differs. Device writes to RAM are not in the
//! trace, but in the [`crate::ledger`]. Memory is bounded: beyond [`CAPACITY`] only the number of records and a digest
//! are kept, so a comparison knows up to which record it is complete.
//!
//! Only runs on `soft` are traced. On `kvm` no two runs are equal, and the host kernel delivers most interrupts without
//! telling this process.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Records that a trace holds: 32 MiB.
pub const CAPACITY: usize = 1 << 20;

/// Kind of a record. Each is followed by the meaning of [`Record::address`] and [`Record::value`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A read from an I/O port: port, value.
    PortRead,
    /// A write to an I/O port: port, value.
    PortWrite,
    /// A read of device memory: guest physical address, value.
    MmioRead,
    /// A write to device memory: guest physical address, value.
    MmioWrite,
    /// A read of a model-specific register that a device implements: index, value.
    MsrRead,
    /// A read of such a register that caused a general protection fault: index, 0.
    MsrReadFault,
    /// A write to such a register: index, value.
    MsrWrite,
    /// A write to such a register that caused a general protection fault: index, value.
    MsrWriteFault,
    /// An interrupt was delivered to the processor: 0, vector.
    Interrupt,
    /// An NMI was delivered to the processor: 0, 0.
    Nmi,
    /// A message from the agent: length in bytes, XXH3-64.
    Message,
    /// The host's answer: length in bytes, XXH3-64.
    Answer,
    /// A phase began: kernel generation, the phase's number.
    Phase,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Guest time in nanoseconds.
    pub time: u64,
    /// See [`Kind`].
    pub address: u64,
    /// See [`Kind`].
    pub value: u64,
    /// What happened.
    pub kind: Kind,
    /// Size of an access in bytes; 0 for the other kinds.
    pub size: u8,
    /// Processor that made the access or took the interrupt, from 0.
    pub processor: u8,
}

const _: () = assert!(size_of::<Record>() <= 32);

impl Record {
    /// The bytes over which the digest runs: time, address and value in little-endian order, then kind, size and
    /// processor.
    fn encode(&self) -> [u8; 27] {
        let mut bytes = [0; 27];
        bytes[..8].copy_from_slice(&self.time.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.address.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.value.to_le_bytes());
        bytes[24..].copy_from_slice(&[self.kind as u8, self.size, self.processor]);
        bytes
    }
}

/// A trace that grows while the machine runs. The default one records nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    records: Vec<Record>,
    capacity: usize,
    dropped: u64,
    dropped_digest: u64,
}

/// A trace that can be stored and compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceRecord {
    /// The first records of the run, in order.
    pub records: Vec<Record>,
    /// Number of later records, for which there was no room.
    pub dropped: u64,
    /// XXH3-64, chained from record to record, of the records dropped; 0 if there are none.
    pub dropped_digest: u64,
    /// From the record of this index on, guest time less instructions retired is this many nanoseconds.
    pub idle: Vec<(u64, u64)>,
}

impl Trace {
    /// A trace that holds `capacity` records. With 0 it neither records nor counts.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    /// Whether a machine can have recorded this trace; one from an untrusted file may be inconsistent.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let held = self.records.len();
        [0, CAPACITY].contains(&self.capacity)
            && held <= self.capacity
            && (self.dropped == 0 || held == self.capacity)
    }

    /// Appends a record. Every device access calls this.
    pub fn push(&mut self, record: Record) {
        if self.records.len() < self.capacity {
            self.records.push(record);
        } else if self.capacity > 0 {
            self.drop_record(&record);
        }
    }

    #[cold]
    fn drop_record(&mut self, record: &Record) {
        let mut bytes = [0; 35];
        bytes[..8].copy_from_slice(&self.dropped_digest.to_le_bytes());
        bytes[8..].copy_from_slice(&record.encode());
        self.dropped_digest = xxh3_64(&bytes);
        self.dropped += 1;
    }

    /// The trace for storing. `instructions_at` gives the instructions retired at a guest time.
    #[must_use]
    pub fn to_record(&self, instructions_at: impl Fn(u64) -> Option<u64>) -> TraceRecord {
        let mut idle: Vec<(u64, u64)> = Vec::new();
        for (index, record) in (0..).zip(&self.records) {
            let before = instructions_at(record.time).map(|retired| record.time.saturating_sub(retired));
            if let Some(before) = before
                && idle.last().is_none_or(|last| last.1 != before)
            {
                idle.push((index, before));
            }
        }
        TraceRecord {
            records: self.records.clone(),
            dropped: self.dropped,
            dropped_digest: self.dropped_digest,
            idle,
        }
    }
}

impl TraceRecord {
    /// Instructions retired by all processors at the record of this index, where that is known.
    #[must_use]
    pub fn instructions(&self, index: usize) -> Option<u64> {
        let record = self.records.get(index)?;
        let after = self.idle.partition_point(|(from, _)| *from <= index as u64);
        let (_, idle) = self.idle.get(after.checked_sub(1)?)?;
        record.time.checked_sub(*idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time: u64) -> Record {
        Record {
            time,
            address: 0x3f8,
            value: time * 3,
            kind: Kind::PortRead,
            size: 1,
            processor: 0,
        }
    }

    fn trace(capacity: usize, times: &[u64]) -> TraceRecord {
        let mut trace = Trace::new(capacity);
        times.iter().for_each(|time| trace.push(record(*time)));
        trace.to_record(|time| Some(time - time / 10))
    }

    #[test]
    fn beyond_the_room_only_number_and_digest_are_kept() {
        let kept = trace(2, &[1, 2]);
        assert_eq!((kept.records.len(), kept.dropped, kept.dropped_digest), (2, 0, 0));
        let [one, same, other, order] =
            [&[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 2, 3, 5], &[1, 2, 4, 3]].map(|times| trace(2, times));
        assert_eq!(one, same);
        assert_eq!((one.records.len(), one.dropped), (2, 2));
        assert_ne!(one.dropped_digest, other.dropped_digest);
        assert_ne!(one.dropped_digest, order.dropped_digest);
    }

    #[test]
    fn the_digest_sees_every_field() {
        let digest = |change: &dyn Fn(&mut Record)| {
            let (mut trace, mut last) = (Trace::new(1), record(7));
            change(&mut last);
            [record(1), last]
                .into_iter()
                .for_each(|record| trace.push(record));
            trace.to_record(|_| None).dropped_digest
        };
        let changes: [&dyn Fn(&mut Record); 7] = [
            &|_| {},
            &|record| record.time += 1,
            &|record| record.address += 1,
            &|record| record.value += 1,
            &|record| record.kind = Kind::PortWrite,
            &|record| record.size += 1,
            &|record| record.processor += 1,
        ];
        let digests: std::collections::HashSet<u64> = changes.iter().map(|change| digest(*change)).collect();
        assert_eq!(digests.len(), changes.len());
    }

    #[test]
    fn a_trace_that_holds_more_than_it_may_is_not_sound() {
        let with = |change: &dyn Fn(&mut Trace)| {
            let mut trace = Trace::new(CAPACITY);
            trace.push(record(1));
            change(&mut trace);
            trace.is_sound()
        };
        assert!(Trace::default().is_sound() && with(&|_| {}));
        assert!(!with(&|trace| trace.capacity = usize::MAX));
        assert!(!with(&|trace| trace.capacity = 0));
        assert!(!with(&|trace| trace.dropped = 1));
    }

    #[test]
    fn without_room_nothing_is_recorded_or_counted() {
        assert_eq!(trace(0, &[1, 2, 3]), TraceRecord::default());
        assert_eq!(Trace::default(), Trace::new(0));
    }

    #[test]
    fn instructions_follow_from_time_and_idle_time() {
        let trace = trace(9, &[5, 9, 10, 25, 26]);
        assert_eq!(trace.idle, [(0, 0), (2, 1), (3, 2)]);
        let counted: Vec<_> = (0..6).map(|index| trace.instructions(index)).collect();
        assert_eq!(counted, [Some(5), Some(9), Some(9), Some(23), Some(24), None]);
        let uncounted = {
            let mut trace = Trace::new(9);
            trace.push(record(5));
            trace.to_record(|_| None)
        };
        assert_eq!(uncounted.instructions(0), None);
    }
}
