//! The trace on disk: postcard, each record with the time since the one before, so that it compresses well.
//!
//! A head with the number of records and of idle times, then both. The numbers are untrusted: no memory is reserved by
//! them, and more records than a trace can hold are refused.

use serde::{Deserialize, Serialize};
use vmm::trace::{CAPACITY, Record, TraceRecord};

/// Why bytes cannot be decoded as a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TraceError {
    /// More than a trace can hold.
    #[error("{found} {what} in the trace: expected at most {CAPACITY}")]
    TooMany { found: u64, what: &'static str },
    /// Bytes after the end.
    #[error("{0} bytes after the trace: expected none")]
    Trailing(usize),
    /// The content cannot be encoded or decoded.
    #[error("trace content: {0}")]
    Content(#[from] postcard::Error),
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    records: u64,
    idle: u64,
    dropped: u64,
    dropped_digest: u64,
}

/// Encodes a trace.
pub(super) fn encode(trace: &TraceRecord) -> Result<Vec<u8>, TraceError> {
    let head = Head {
        records: trace.records.len() as u64,
        idle: trace.idle.len() as u64,
        dropped: trace.dropped,
        dropped_digest: trace.dropped_digest,
    };
    let mut bytes = postcard::to_allocvec(&head)?;
    let mut before = 0;
    for record in &trace.records {
        let time = record.time.wrapping_sub(before);
        bytes = postcard::to_extend(&Record { time, ..*record }, bytes)?;
        before = record.time;
    }
    for idle in &trace.idle {
        bytes = postcard::to_extend(idle, bytes)?;
    }
    Ok(bytes)
}

/// Decodes a trace.
pub(super) fn decode(bytes: &[u8]) -> Result<TraceRecord, TraceError> {
    let (head, mut rest) = postcard::take_from_bytes::<Head>(bytes)?;
    for (found, what) in [(head.records, "records"), (head.idle, "idle times")] {
        if found > CAPACITY as u64 {
            return Err(TraceError::TooMany { found, what });
        }
    }
    let mut trace = TraceRecord {
        dropped: head.dropped,
        dropped_digest: head.dropped_digest,
        ..TraceRecord::default()
    };
    let mut before = 0_u64;
    for _ in 0..head.records {
        let (mut record, after) = postcard::take_from_bytes::<Record>(rest)?;
        record.time = record.time.wrapping_add(before);
        (before, rest) = (record.time, after);
        trace.records.push(record);
    }
    for _ in 0..head.idle {
        let (idle, after) = postcard::take_from_bytes(rest)?;
        rest = after;
        trace.idle.push(idle);
    }
    if !rest.is_empty() {
        return Err(TraceError::Trailing(rest.len()));
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmm::trace::Kind;

    fn any_record() -> impl Strategy<Value = Record> {
        let kinds = [Kind::PortRead, Kind::MsrWriteFault, Kind::Interrupt, Kind::Phase];
        let kind = prop::sample::select(kinds.to_vec());
        (any::<[u64; 3]>(), kind, any::<[u8; 2]>()).prop_map(
            |([time, address, value], kind, [size, processor])| Record {
                time,
                address,
                value,
                kind,
                size,
                processor,
            },
        )
    }

    proptest! {
        #[test]
        fn a_trace_comes_back_as_it_went(
            records in prop::collection::vec(any_record(), 0..50),
            idle in prop::collection::vec(any::<(u64, u64)>(), 0..9),
            dropped in any::<(u64, u64)>(),
        ) {
            let (dropped, dropped_digest) = dropped;
            let trace = TraceRecord { records, dropped, dropped_digest, idle };
            let bytes = encode(&trace).unwrap();
            prop_assert_eq!(decode(&bytes), Ok(trace));
            prop_assert!(decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert_eq!(decode(&[&bytes[..], &[0]].concat()), Err(TraceError::Trailing(1)));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(trace) = decode(&bytes) {
                prop_assert!(trace.records.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn numbers_are_not_believed() {
        let head = |records, idle| {
            let (dropped, dropped_digest) = (0, 0);
            postcard::to_allocvec(&Head {
                records,
                idle,
                dropped,
                dropped_digest,
            })
            .unwrap()
        };
        let (found, what) = (u64::MAX, "records");
        assert_eq!(
            decode(&head(u64::MAX, 0)),
            Err(TraceError::TooMany { found, what })
        );
        let what = "idle times";
        assert_eq!(
            decode(&head(0, u64::MAX)),
            Err(TraceError::TooMany { found, what })
        );
        assert!(matches!(decode(&head(1000, 0)), Err(TraceError::Content(_))));
    }
}
