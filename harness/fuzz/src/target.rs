//! Snapshot files that somebody made up. An input is a file whose compressed part is unpacked and whose checksum is
//! left out, so that a change of the input is a change of what is decoded. The target compresses and sums it up.

use harness::conductor::Run;
use harness::snapshot::RunSnapshot;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes before the header: magic, version, length of the header.
const START: usize = 16;
/// Bytes of the checksum at the end of a file.
const CHECKSUM: usize = 16;

/// Reads the file of an input, and makes a machine of it if it is accepted. The machine does not run.
pub fn snapshot(input: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), pack(input)).expect("the file is written");
    if let Ok(snapshot) = RunSnapshot::read(file.path()) {
        let _ = Run::from_snapshot(&snapshot, &[]);
    }
}

/// The file of an input.
fn pack(input: &[u8]) -> Vec<u8> {
    let (plain, packed) = input.split_at(packed_at(input));
    let packed = zstd::encode_all(packed, 1).expect("memory can be compressed");
    let mut file = [plain, &packed].concat();
    file.extend(xxh3_128(&file).to_le_bytes());
    file
}

/// The input of a file that `baton run --snapshot` wrote.
pub fn unpack(file: &[u8]) -> Vec<u8> {
    let (plain, packed) = file.split_at(packed_at(file));
    let packed = &packed[..packed.len().saturating_sub(CHECKSUM)];
    let unpacked = zstd::decode_all(packed).expect("a whole snapshot file");
    [plain, &unpacked].concat()
}

/// Where the compressed part begins.
fn packed_at(bytes: &[u8]) -> usize {
    let length = bytes
        .get(START - 4..START)
        .and_then(|bytes| bytes.try_into().ok());
    let header = length.map_or(0, u32::from_le_bytes) as usize;
    (START + header).min(bytes.len())
}
