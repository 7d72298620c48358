//! The file of a snapshot.
//!
//! ```text
//! magic "BATSNAP\n" | version u32 | header length u32 | header (JSON: what the snapshot is of)
//! zstd frame: state length u64 | state (postcard) | RAM
//! XXH3-128 of everything before
//! ```
//! RAM is a sequence of records {first page u64, number of pages u32, the pages}, in ascending order. A record of 0
//! pages ends it. Pages in no record are zero. All numbers are little-endian.
//!
//! A file may come from anywhere. The checksum, verified first, finds accidental damage. Against a forged file, every
//! size is checked against a limit before memory of that size is allocated.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm::memory::{PAGE_BYTES, PageStore, RamImage};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 8] = *b"BATSNAP\n";
/// Version of the format and of every type in it. Files of other versions are refused.
pub const VERSION: u32 = 9;
const CHECKSUM_BYTES: u64 = 16;
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// Most bytes of the encoded state: plan with kernels, cursor, evidence with captured pages, processors, devices,
/// records.
const MAX_STATE_BYTES: u64 = 256 << 20;
/// Pages in one record.
const MAX_RECORD_PAGES: usize = 256;
/// Compression level of zstd. Kernel RAM compresses well at any level; this one is as fast as the disk.
const LEVEL: i32 = 1;
/// Largest window that a zstd frame may ask for, as a power of two: 8 MiB.
const MAX_WINDOW_LOG: u32 = 23;

/// Description of a snapshot, in plain text in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of baton that wrote it.
    pub baton: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Path of the scenario file as given.
    pub scenario_file: String,
    /// Seed of the run.
    pub seed: u64,
    /// Release and XXH3-64 of the image of each generation's kernel.
    pub kernels: Vec<(String, String)>,
    /// Generation and phase.
    pub at: String,
    /// Guest time in nanoseconds.
    pub time_ns: u64,
    /// Instructions retired.
    pub instructions: Option<u64>,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Number of processors.
    pub vcpus: u32,
}

/// Why a snapshot file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The system refused.
    #[error("snapshot {path}: cannot be {action}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// "written", "read".
        action: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a snapshot.
    #[error("{path}: not a snapshot of baton: expected {MAGIC:?} at its start, found {found:?}")]
    Magic {
        /// Which file.
        path: PathBuf,
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// The file has another version.
    #[error(
        "snapshot {path}: format version {found}, expected {VERSION}; it was written by another version of baton"
    )]
    Version {
        /// Which file.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// The checksum is wrong.
    #[error("snapshot {path}: damaged or cut short: checksum is {found:032x}, expected {expected:032x}")]
    Checksum {
        /// Which file.
        path: PathBuf,
        /// Checksum at its end.
        expected: u128,
        /// Checksum of the bytes before it.
        found: u128,
    },
    /// The host has less memory than the guest.
    #[error("snapshot {path}: the guest has {needed} bytes of RAM, this host has {host}")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// RAM of the guest in bytes.
        needed: u64,
        /// RAM of the host in bytes.
        host: u64,
    },
    /// A part of the file has a wrong value.
    #[error("snapshot {path}: {part}: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Which part of it.
        part: &'static str,
        /// What was expected, what was found.
        reason: String,
    },
}

/// Contents of a file without its header.
pub(super) struct Content {
    /// The encoded state.
    pub state: Vec<u8>,
    /// Guest RAM.
    pub ram: Arc<RamImage>,
}

/// Whether a file begins as a snapshot does. A file that cannot be read does not.
pub fn is_snapshot(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok()
        && start == MAGIC
}

/// Writes a snapshot. A file of that name is replaced once the new one is complete.
pub(super) fn write(path: &Path, header: &Header, content: &Content) -> Result<(), SnapshotError> {
    let io = |source| SnapshotError::Io {
        path: path.to_owned(),
        action: "written",
        source,
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The temporary file is private; a snapshot has the permissions of any new file, less the umask.
    let permissions = std::fs::Permissions::from_mode(0o666);
    let file = tempfile::Builder::new()
        .permissions(permissions)
        .tempfile_in(folder)
        .map_err(io)?;
    let mut out = Summed::new(BufWriter::with_capacity(1 << 20, file));
    write_all(&mut out, header, content).map_err(io)?;
    let (mut out, checksum) = out.finish();
    out.write_all(&checksum.to_le_bytes()).map_err(io)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

fn write_all(out: &mut impl Write, header: &Header, content: &Content) -> std::io::Result<()> {
    let header = serde_json::to_vec(header)?;
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes())?;
    out.write_all(&header)?;
    let mut packed = zstd::Encoder::new(out, LEVEL)?;
    packed.write_all(&(content.state.len() as u64).to_le_bytes())?;
    packed.write_all(&content.state)?;
    write_ram(&mut packed, &content.ram)?;
    packed.finish()?;
    Ok(())
}

fn write_ram(out: &mut impl Write, ram: &RamImage) -> std::io::Result<()> {
    let mut buffer = vec![0; MAX_RECORD_PAGES * PAGE_BYTES];
    for (first, count) in ram.runs() {
        let mut done = 0;
        while done < count {
            let pages = (count - done).min(MAX_RECORD_PAGES as u64);
            let bytes = &mut buffer[..usize::try_from(pages).unwrap_or(0) * PAGE_BYTES];
            ram.read(first + done, bytes)?;
            write_records(out, first + done, bytes)?;
            done += pages;
        }
    }
    write_record(out, 0, &[])
}

/// Writes the runs of pages that are not zero.
fn write_records(out: &mut impl Write, first: u64, bytes: &[u8]) -> std::io::Result<()> {
    let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE_BYTES).collect();
    let mut at = 0;
    for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        if !is_zero(run[0]) {
            write_record(
                out,
                first + at as u64,
                &bytes[at * PAGE_BYTES..][..run.len() * PAGE_BYTES],
            )?;
        }
        at += run.len();
    }
    Ok(())
}

fn write_record(out: &mut impl Write, page: u64, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(&page.to_le_bytes())?;
    let count = u32::try_from(bytes.len() / PAGE_BYTES).unwrap_or(0);
    out.write_all(&count.to_le_bytes())?;
    out.write_all(bytes)
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// Reads a snapshot: its header and its contents.
pub(super) fn read(path: &Path) -> Result<(Header, Content), SnapshotError> {
    let file = Reading { path };
    let mut input = file.io(File::open(path))?;
    if !file.io(input.metadata())?.is_file() {
        return Err(file.malformed("file", "expected a regular file"));
    }
    let (header, start, end) = file.head(&mut input)?;
    file.io(input.seek(SeekFrom::Start(start)))?;
    let packed = BufReader::with_capacity(1 << 20, input.take(end - start));
    let mut unpacked = file.io(zstd::Decoder::with_buffer(packed))?;
    file.io(unpacked.window_log_max(MAX_WINDOW_LOG))?;
    let state = file.state(&mut unpacked)?;
    let ram = file.ram(&mut unpacked, header.ram_bytes)?;
    let mut rest = [0];
    if file.packed("end", unpacked.read(&mut rest))? != 0 {
        return Err(file.malformed("end", "more bytes than expected after the guest's RAM"));
    }
    let ram = Arc::new(ram);
    Ok((header, Content { state, ram }))
}

/// A file being read, for errors.
pub(super) struct Reading<'a> {
    /// Which file.
    pub path: &'a Path,
}

impl Reading<'_> {
    fn io<T>(&self, result: std::io::Result<T>) -> Result<T, SnapshotError> {
        result.map_err(|source| SnapshotError::Io {
            path: self.path.to_owned(),
            action: "read",
            source,
        })
    }

    /// An error in decompression means that the file is damaged.
    fn packed<T>(&self, part: &'static str, result: std::io::Result<T>) -> Result<T, SnapshotError> {
        result.map_err(|error| self.malformed(part, error))
    }

    pub fn malformed(&self, part: &'static str, reason: impl ToString) -> SnapshotError {
        SnapshotError::Malformed {
            path: self.path.to_owned(),
            part,
            reason: reason.to_string(),
        }
    }

    /// Verifies magic, version and checksum. Returns the header, and the range of the compressed rest.
    fn head(&self, input: &mut File) -> Result<(Header, u64, u64), SnapshotError> {
        let length = self.io(input.metadata())?.len();
        let mut start = Vec::new();
        self.io(Read::by_ref(input).take(16).read_to_end(&mut start))?;
        if !start.starts_with(&MAGIC) {
            start.truncate(MAGIC.len());
            return Err(SnapshotError::Magic {
                path: self.path.to_owned(),
                found: start,
            });
        }
        let number = |at: usize| {
            let bytes = start.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let short = || {
            self.malformed(
                "file",
                format!("{length} bytes, which is shorter than any snapshot"),
            )
        };
        let (found, header_length) = number(8).zip(number(12)).ok_or_else(short)?;
        if found != VERSION {
            let path = self.path.to_owned();
            return Err(SnapshotError::Version { path, found });
        }
        let end = length.checked_sub(CHECKSUM_BYTES).ok_or_else(short)?;
        let packed_at = 16 + u64::from(header_length);
        if header_length > MAX_HEADER_BYTES || packed_at > end {
            let reason = format!(
                "{header_length} bytes, expected at most {MAX_HEADER_BYTES} and no more than the file has"
            );
            return Err(self.malformed("header", reason));
        }
        self.verify(input, end)?;
        self.io(input.seek(SeekFrom::Start(16)))?;
        let mut header = Vec::new();
        self.io(Read::by_ref(input)
            .take(header_length.into())
            .read_to_end(&mut header))?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|error| self.malformed("header", error))?;
        if header.baton != env!("CARGO_PKG_VERSION") {
            let reason = format!(
                "written by baton {}, this is {}",
                header.baton,
                env!("CARGO_PKG_VERSION")
            );
            return Err(self.malformed("header", reason));
        }
        Ok((header, packed_at, end))
    }

    fn verify(&self, input: &mut File, end: u64) -> Result<(), SnapshotError> {
        self.io(input.seek(SeekFrom::Start(0)))?;
        let mut sum = Summed::new(std::io::sink());
        self.io(std::io::copy(&mut Read::by_ref(input).take(end), &mut sum))?;
        let found = sum.finish().1;
        let mut expected = [0; 16];
        self.io(input.read_exact(&mut expected))?;
        let expected = u128::from_le_bytes(expected);
        if found == expected {
            return Ok(());
        }
        Err(SnapshotError::Checksum {
            path: self.path.to_owned(),
            expected,
            found,
        })
    }

    /// The encoded state, which begins with its length.
    fn state(&self, input: &mut impl Read) -> Result<Vec<u8>, SnapshotError> {
        const PART: &str = "state";
        let mut length = [0; 8];
        self.packed(PART, input.read_exact(&mut length))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_STATE_BYTES {
            return Err(self.malformed(
                PART,
                format!("{length} bytes, expected at most {MAX_STATE_BYTES}"),
            ));
        }
        // The buffer grows with the bytes read, not with the length claimed.
        let mut bytes = Vec::new();
        self.packed(PART, input.take(length).read_to_end(&mut bytes))?;
        if bytes.len() as u64 != length {
            return Err(self.malformed(PART, format!("{} bytes, expected {length}", bytes.len())));
        }
        Ok(bytes)
    }

    fn ram(&self, input: &mut impl Read, ram_bytes: u64) -> Result<RamImage, SnapshotError> {
        const PART: &str = "guest RAM";
        let host = host_ram();
        if ram_bytes > host {
            return Err(SnapshotError::TooLarge {
                path: self.path.to_owned(),
                needed: ram_bytes,
                host,
            });
        }
        let mut store = self.packed(PART, PageStore::new(ram_bytes / PAGE_BYTES as u64))?;
        let mut buffer = vec![0; MAX_RECORD_PAGES * PAGE_BYTES];
        loop {
            let mut head = [0; 12];
            self.packed(PART, input.read_exact(&mut head))?;
            let (page, count) = head.split_at(8);
            let page = u64::from_le_bytes(page.try_into().unwrap_or_default());
            let count = u32::from_le_bytes(count.try_into().unwrap_or_default()) as usize;
            if count == 0 {
                return self.packed(PART, store.finish());
            }
            if count > MAX_RECORD_PAGES {
                let reason = format!("a record of {count} pages, expected at most {MAX_RECORD_PAGES}");
                return Err(self.malformed(PART, reason));
            }
            let bytes = &mut buffer[..count * PAGE_BYTES];
            self.packed(PART, input.read_exact(bytes))?;
            self.packed(PART, store.push(page, bytes))?;
        }
    }
}

/// RAM of this host in bytes.
fn host_ram() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// A writer that hashes the bytes written.
struct Summed<W> {
    inner: W,
    hash: Xxh3,
}

impl<W> Summed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Xxh3::new(),
        }
    }

    /// The inner writer, and the XXH3-128 of everything written to it.
    fn finish(self) -> (W, u128) {
        (self.inner, self.hash.digest128())
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
