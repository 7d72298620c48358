//! A ledger on disk: magic, version, length and checksum, then its postcard encoding.

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::LedgerRecord;

/// Version of the encoding.
pub const VERSION: u32 = 3;
const MAGIC: [u8; 8] = *b"BATNLEDG";
const HEADER: usize = 28;

/// Why bytes cannot be decoded as a ledger.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The bytes do not begin with the magic.
    #[error("not a ledger: expected {MAGIC:?} at its start")]
    Magic,
    /// The encoding has another version.
    #[error("ledger version {found}: expected {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The length differs from the one in the header.
    #[error("ledger of {found} bytes: expected {expected}, as its header says")]
    Length {
        /// Length according to the header.
        expected: u64,
        /// Length found.
        found: u64,
    },
    /// The checksum is wrong.
    #[error("ledger checksum is {found:#018x}: expected {expected:#018x}")]
    Checksum {
        /// Checksum in the header.
        expected: u64,
        /// Checksum of the bytes.
        found: u64,
    },
    /// The content cannot be encoded or decoded.
    #[error("ledger content: {0}")]
    Content(#[from] postcard::Error),
}

impl LedgerRecord {
    /// Encodes the ledger.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let content = postcard::to_allocvec(self)?;
        let mut bytes = Vec::with_capacity(HEADER + content.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&content).to_le_bytes());
        bytes.extend_from_slice(&content);
        Ok(bytes)
    }

    /// Decodes a ledger.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(CodecError::Magic)?;
        if *magic != MAGIC {
            return Err(CodecError::Magic);
        }
        let short = CodecError::Length {
            expected: HEADER as u64,
            found: bytes.len() as u64,
        };
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| short.clone())?;
        let found = u32::from_le_bytes(*version);
        if found != VERSION {
            return Err(CodecError::Version { found });
        }
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| short.clone())?;
        let (checksum, content) = rest.split_first_chunk::<8>().ok_or(short)?;
        let (expected, found) = (u64::from_le_bytes(*length), content.len() as u64);
        if expected != found {
            return Err(CodecError::Length { expected, found });
        }
        let (expected, found) = (u64::from_le_bytes(*checksum), xxh3_64(content));
        if expected != found {
            return Err(CodecError::Checksum { expected, found });
        }
        Ok(postcard::from_bytes(content)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{EngineEventKind, FaultReason, Kind, Ledger};
    use super::*;
    use crate::phase::{Phase, Stamp};

    fn record() -> LedgerRecord {
        let mut ledger = Ledger::new(16);
        let stamp = Stamp {
            generation: 1,
            phase: Phase::BootNew,
        };
        ledger.record(
            5,
            stamp,
            Kind::Block {
                sequence: 3,
                descriptor: 2,
            },
            0x1000,
            &[1; 4096],
        );
        ledger.record(
            6,
            stamp,
            Kind::Completion { count: 4 },
            0x2000,
            &[4, 0, 0, 0, 0, 0, 0, 0],
        );
        ledger.record(6, stamp, Kind::Msi { data: 0x31 }, 0xfee0_0000, &[0x31, 0, 0, 0]);
        let (reason, descriptor) = (FaultReason::EmptyBuffer, Some(1));
        ledger.event(
            7,
            stamp,
            EngineEventKind::Fault {
                reason,
                address: 1,
                length: 0,
                descriptor,
            },
        );
        ledger.to_record()
    }

    #[test]
    fn a_ledger_comes_back_as_it_went() {
        let record = record();
        assert_eq!(LedgerRecord::from_bytes(&record.to_bytes().unwrap()), Ok(record));
    }

    #[test]
    fn damage_is_told_apart() {
        let bytes = record().to_bytes().unwrap();
        let decode = |bytes: &[u8]| LedgerRecord::from_bytes(bytes).unwrap_err();
        assert_eq!(decode(b"nothing"), CodecError::Magic);
        let mut newer = bytes.clone();
        newer[8] = 99;
        assert_eq!(decode(&newer), CodecError::Version { found: 99 });
        assert!(matches!(
            decode(&bytes[..bytes.len() - 1]),
            CodecError::Length { .. }
        ));
        let mut flipped = bytes;
        *flipped.last_mut().unwrap() ^= 1;
        assert!(matches!(decode(&flipped), CodecError::Checksum { .. }));
    }

    proptest! {
        #[test]
        fn garbage_never_decodes_and_never_panics(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&VERSION.to_le_bytes());
            bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&xxh3_64(&content).to_le_bytes());
            bytes.extend_from_slice(&content);
            if let Ok(record) = LedgerRecord::from_bytes(&bytes) {
                prop_assert!(record.entries.len() <= content.len());
            }
        }
    }
}
