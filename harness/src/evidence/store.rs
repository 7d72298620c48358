//! An evidence directory: written by a run at its end, read by `baton judge`.
//!
//! | file | content |
//! | --- | --- |
//! | `evidence.json` | everything small, in readable form |
//! | `ledger.bin` | every device write and engine event ([`vmm::ledger`] has the format) |
//! | `trace.bin.zst` | accesses, interrupts and messages ([`super::trace`] has the format) |
//! | `captures.bin.zst` | captured pages and digests (postcard, then raw pages) |
//! | `blob.bin.zst` | pages of the handover blobs (postcard) |
//! | `console.txt` | console output |
//!
//! Evidence of a run that has not ended is in a directory within it ([`super::so_far`]). If that exists, it is read
//! instead.
//!
//! A directory may come from anywhere, so no size in it is trusted: reads are capped, and memory grows only with the
//! bytes actually read.

use super::{Captures, Evidence, VERSION, so_far, trace};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use vmm::ledger::LedgerRecord;

const EVIDENCE: &str = "evidence.json";
const LEDGER: &str = "ledger.bin";
const TRACE: &str = "trace.bin.zst";
const CAPTURES: &str = "captures.bin.zst";
const BLOB: &str = "blob.bin.zst";
const CONSOLE: &str = "console.txt";
/// All files. A directory without the first holds no evidence.
pub(super) const FILES: [&str; 6] = [EVIDENCE, LEDGER, TRACE, CAPTURES, BLOB, CONSOLE];

/// Writes one file of evidence, by its path.
type Write = fn(&Evidence, &Path) -> Result<(), StoreError>;
/// The large files, which seldom change during a run.
pub(super) const LARGE: [(&str, Write); 2] = [(CAPTURES, write_captures), (BLOB, write_blobs)];

/// Most bytes read from one file, after decompression.
const MAX_FILE: u64 = 256 << 20;

/// Why an evidence directory cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{path}: cannot be {action}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// "written", "read", "removed".
        action: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file does not hold what it should.
    #[error("{path}: not evidence of this baton: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was expected or found.
        reason: String,
    },
}

type Blobs = BTreeMap<u32, BTreeMap<u64, Vec<u8>>>;

/// All of the evidence in one value: the fields that serde skips in [`Evidence`] are separate here.
#[derive(Serialize, Deserialize)]
struct Whole<'a> {
    small: Cow<'a, Evidence>,
    ledger: Vec<u8>,
    trace: Vec<u8>,
    captures: Cow<'a, Captures>,
    /// Pages of each blob, in order.
    blobs: Vec<Cow<'a, BTreeMap<u64, Vec<u8>>>>,
    console: Cow<'a, str>,
}

/// All of the evidence as bytes, for a snapshot; [`from_bytes`] decodes them. Unlike an evidence directory they can be
/// read only by the same version of baton.
pub fn to_bytes(evidence: &Evidence) -> Result<Vec<u8>, Unreadable> {
    let whole = Whole {
        small: Cow::Borrowed(evidence),
        ledger: evidence.ledger.to_bytes().map_err(Unreadable::new)?,
        trace: trace::encode(&evidence.trace).map_err(Unreadable::new)?,
        captures: Cow::Borrowed(&evidence.captures),
        blobs: evidence
            .blobs
            .iter()
            .map(|blob| Cow::Borrowed(&blob.pages))
            .collect(),
        console: Cow::Borrowed(&evidence.console),
    };
    postcard::to_allocvec(&whole).map_err(Unreadable::new)
}

/// Decodes the bytes of [`to_bytes`]. They are untrusted; damage is an error.
pub fn from_bytes(bytes: &[u8]) -> Result<Evidence, Unreadable> {
    let whole: Whole<'_> = postcard::from_bytes(bytes).map_err(Unreadable::new)?;
    let mut evidence = whole.small.into_owned();
    if evidence.version != VERSION {
        return Err(Unreadable::new(wrong_version(evidence.version)));
    }
    if whole.blobs.len() != evidence.blobs.len() {
        let (found, expected) = (whole.blobs.len(), evidence.blobs.len());
        return Err(Unreadable::new(format!(
            "pages of {found} blobs, expected {expected}"
        )));
    }
    for (blob, pages) in evidence.blobs.iter_mut().zip(whole.blobs) {
        blob.pages = pages.into_owned();
    }
    evidence.ledger = LedgerRecord::from_bytes(&whole.ledger).map_err(Unreadable::new)?;
    evidence.trace = trace::decode(&whole.trace).map_err(Unreadable::new)?;
    evidence.captures = whole.captures.into_owned();
    evidence.console = whole.console.into_owned();
    Ok(evidence)
}

/// Evidence cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not evidence of this baton: {reason}")]
pub struct Unreadable {
    /// What was expected or found.
    pub reason: String,
}

impl Unreadable {
    fn new(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

fn wrong_version(version: u32) -> String {
    format!("evidence version {version}, expected {VERSION}")
}

/// Writes `evidence` of a run that has ended to `directory`, which is made if it is missing.
pub fn save(evidence: &Evidence, directory: &Path) -> Result<(), StoreError> {
    write_small(evidence, directory)?;
    for (name, write) in LARGE {
        write(evidence, &directory.join(name))?;
    }
    so_far::retire(directory)
}

/// Makes the directory and writes the small files.
pub(super) fn write_small(evidence: &Evidence, directory: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(directory).map_err(|e| io(directory, "written", e))?;
    let json = serde_json::to_vec_pretty(evidence).map_err(|e| malformed(&directory.join(EVIDENCE), e))?;
    write(&directory.join(EVIDENCE), &json)?;
    let ledger = evidence
        .ledger
        .to_bytes()
        .map_err(|e| malformed(&directory.join(LEDGER), e))?;
    write(&directory.join(LEDGER), &ledger)?;
    let path = directory.join(TRACE);
    let packed = trace::encode(&evidence.trace).map_err(|e| malformed(&path, e))?;
    pack(&path, &packed)?;
    write(&directory.join(CONSOLE), evidence.console.as_bytes())
}

fn write_captures(evidence: &Evidence, path: &Path) -> Result<(), StoreError> {
    write_packed(path, &evidence.captures)
}

fn write_blobs(evidence: &Evidence, path: &Path) -> Result<(), StoreError> {
    let blobs: BTreeMap<_, _> = evidence
        .blobs
        .iter()
        .map(|blob| (blob.generation, &blob.pages))
        .collect();
    write_packed(path, &blobs)
}

/// Whether `directory` holds evidence.
pub fn is_kept_in(directory: &Path) -> bool {
    let finished = !so_far::is_ours(directory) && directory.join(EVIDENCE).is_file();
    finished || so_far::find(directory).is_some()
}

/// Reads evidence from `directory`. If the run has not ended, the outcome says so.
pub fn load(directory: &Path) -> Result<Evidence, StoreError> {
    match so_far::find(directory) {
        Some(so_far) => read_files(&so_far).map(so_far::marked),
        None => read_files(directory),
    }
}

fn read_files(directory: &Path) -> Result<Evidence, StoreError> {
    let path = directory.join(EVIDENCE);
    let json = read(&path)?;
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_slice(&json).map_err(|e| malformed(&path, e))?;
    if head.version != VERSION {
        return Err(malformed(&path, wrong_version(head.version)));
    }
    let mut evidence: Evidence = serde_json::from_slice(&json).map_err(|e| malformed(&path, e))?;
    let path = directory.join(LEDGER);
    evidence.ledger = LedgerRecord::from_bytes(&read(&path)?).map_err(|e| malformed(&path, e))?;
    let path = directory.join(TRACE);
    evidence.trace = trace::decode(&read_packed(&path)?).map_err(|e| malformed(&path, e))?;
    let path = directory.join(CAPTURES);
    evidence.captures = decode(&path, &read_packed(&path)?)?;
    let path = directory.join(BLOB);
    let mut blobs: Blobs = decode(&path, &read_packed(&path)?)?;
    for blob in &mut evidence.blobs {
        blob.pages = blobs.remove(&blob.generation).unwrap_or_default();
    }
    evidence.console = String::from_utf8_lossy(&read(&directory.join(CONSOLE))?).into_owned();
    Ok(evidence)
}

pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> StoreError {
    StoreError::Io {
        path: path.into(),
        action,
        source,
    }
}

fn malformed(path: &Path, reason: impl ToString) -> StoreError {
    StoreError::Malformed {
        path: path.into(),
        reason: reason.to_string(),
    }
}

fn encode(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    postcard::to_allocvec(value).map_err(|e| malformed(path, e))
}

fn decode<T: for<'a> Deserialize<'a>>(path: &Path, bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|e| malformed(path, e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    std::fs::write(path, bytes).map_err(|e| io(path, "written", e))
}

fn write_packed(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    pack(path, &encode(path, value)?)
}

/// Writes compressed, with a checksum that zstd verifies on reading.
fn pack(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let pack = || {
        let mut encoder = zstd::Encoder::new(File::create(path)?, 1)?;
        encoder.include_checksum(true)?;
        encoder.write_all(bytes)?;
        encoder.finish()?.flush()
    };
    pack().map_err(|e| io(path, "written", e))
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    let file = File::open(path).map_err(|e| io(path, "read", e))?;
    read_capped(path, file)
}

fn read_packed(path: &Path) -> Result<Vec<u8>, StoreError> {
    let file = File::open(path).map_err(|e| io(path, "read", e))?;
    let decoder = zstd::Decoder::new(file).map_err(|e| io(path, "read", e))?;
    read_capped(path, decoder)
}

fn read_capped(path: &Path, reader: impl Read) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| io(path, "read", e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(malformed(path, format!("more than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_is_saved_loads_back() {
        let directory = tempfile::tempdir().unwrap();
        let evidence = testing::good();
        save(&evidence, directory.path()).unwrap();
        let loaded = load(directory.path()).unwrap();
        assert!(loaded == evidence, "{loaded:#?}");
    }

    #[test]
    fn bytes_give_the_whole_evidence_back_and_damage_is_an_error() {
        let evidence = testing::good();
        let bytes = to_bytes(&evidence).unwrap();
        assert!(from_bytes(&bytes).unwrap() == evidence);
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(from_bytes(&bytes[..length]).is_err(), "{length}");
        }
        let mut other = evidence;
        other.version += 1;
        let error = from_bytes(&to_bytes(&other).unwrap()).unwrap_err();
        assert!(error.reason.contains("version"), "{error}");
    }

    #[test]
    fn damage_is_an_error_and_nothing_worse() {
        let directory = tempfile::tempdir().unwrap();
        for name in [EVIDENCE, LEDGER, TRACE, CAPTURES, BLOB] {
            save(&testing::good(), directory.path()).unwrap();
            let path = directory.path().join(name);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            let error = load(directory.path()).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
        save(&testing::good(), directory.path()).unwrap();
        // Captures that claim 2^56 checkpoints.
        let claim = zstd::encode_all(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01][..], 1).unwrap();
        std::fs::write(directory.path().join(CAPTURES), claim).unwrap();
        assert!(load(directory.path()).is_err());
        save(&testing::good(), directory.path()).unwrap();
        let json = std::fs::read_to_string(directory.path().join(EVIDENCE)).unwrap();
        let other = json.replacen(&format!("\"version\": {VERSION}"), "\"version\": 99", 1);
        std::fs::write(directory.path().join(EVIDENCE), other).unwrap();
        let error = load(directory.path()).err().map(|error| error.to_string());
        assert!(
            error.as_ref().is_some_and(|error| error.contains("version 99")),
            "{error:?}"
        );
    }
}
