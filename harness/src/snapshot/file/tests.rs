//! Snapshot files: whole, damaged, foreign, and made up.

use proptest::prelude::*;

use super::*;

const RAM_PAGES: u64 = 8192;

fn header() -> Header {
    Header {
        baton: env!("CARGO_PKG_VERSION").into(),
        scenario: "sample".into(),
        scenario_file: "sample.toml".into(),
        seed: 7,
        kernels: vec![("7.3.4".into(), "0123456789abcdef".into())],
        at: "armed of generation 0".into(),
        time_ns: 12,
        instructions: Some(11),
        ram_bytes: RAM_PAGES * PAGE_BYTES as u64,
        vcpus: 1,
    }
}

fn content() -> Content {
    let mut ram = PageStore::new(RAM_PAGES).unwrap();
    ram.push(3, &[1; 2 * PAGE_BYTES]).unwrap();
    ram.push(5, &[0; PAGE_BYTES]).unwrap();
    ram.push(6, &[2; PAGE_BYTES]).unwrap();
    ram.push(RAM_PAGES - 1, &[3; PAGE_BYTES]).unwrap();
    Content {
        state: (0..=255).collect(),
        ram: Arc::new(ram.finish().unwrap()),
    }
}

fn written() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    write(&path, &header(), &content()).unwrap();
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no other file is left"
    );
    std::fs::read(path).unwrap()
}

fn read_bytes(bytes: &[u8]) -> Result<(Header, Content), SnapshotError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read(file.path())
}

/// The message of a refusal.
fn refusal(bytes: &[u8]) -> String {
    read_bytes(bytes).err().expect("the file is refused").to_string()
}

/// With the checksum that these bytes would have.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 16;
    let sum = xxhash_rust::xxh3::xxh3_128(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A file with this packed part.
fn packed(header: &Header, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut inside = Vec::new();
    write(&mut inside);
    let json = serde_json::to_vec(header).unwrap();
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    bytes.extend(u32::try_from(json.len()).unwrap().to_le_bytes());
    bytes.extend(json);
    bytes.extend(zstd::encode_all(&inside[..], LEVEL).unwrap());
    bytes.extend([0; 16]);
    summed(bytes)
}

#[test]
fn what_was_written_is_read() {
    let (found, Content { state, ram }) = read_bytes(&written()).unwrap();
    let expected = content();
    assert_eq!(found, header());
    assert_eq!(state, expected.state);
    assert_eq!(
        ram.runs().collect::<Vec<_>>(),
        [(3, 2), (6, 1), (RAM_PAGES - 1, 1)],
        "zero pages are holes"
    );
    for page in [0, 3, 4, 5, 6, RAM_PAGES - 1] {
        let [mut a, mut b] = [[1; PAGE_BYTES], [2; PAGE_BYTES]];
        ram.read(page, &mut a).unwrap();
        expected.ram.read(page, &mut b).unwrap();
        assert_eq!(a, b, "page {page}");
    }
}

#[test]
fn what_is_no_snapshot_is_named() {
    let bytes = written();
    assert!(refusal(b"\x7fELF and so on").contains("not a snapshot of baton"));
    assert!(refusal(b"").contains("not a snapshot of baton"));
    let mut newer = bytes.clone();
    newer[8] = 200;
    assert!(
        refusal(&newer).contains("format version 200, expected"),
        "{}",
        refusal(&newer)
    );
    assert!(refusal(&bytes[..bytes.len() - 1]).contains("damaged or cut short"));
    assert!(refusal(&MAGIC).contains("shorter than any snapshot"));
    let mut other = header();
    other.baton = "99.0.0".into();
    assert!(refusal(&packed(&other, |_| {})).contains("written by baton 99.0.0"));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        read(folder.path()),
        Err(SnapshotError::Malformed { part: "file", .. })
    ));
    assert!(read(&folder.path().join("none")).is_err());
}

#[test]
fn lies_about_sizes_are_refused_before_memory_is_taken() {
    let mut huge = header();
    huge.ram_bytes = u64::MAX;
    let parts = |out: &mut Vec<u8>| out.extend([0; 8]);
    assert!(refusal(&packed(&huge, parts)).contains("this host has"));
    let long = packed(&header(), |out| out.extend((MAX_STATE_BYTES + 1).to_le_bytes()));
    assert!(refusal(&long).contains("expected at most"));
    let cut = packed(&header(), |out| out.extend(5_u64.to_le_bytes()));
    assert!(
        refusal(&cut).contains("state: 0 bytes, expected 5"),
        "{}",
        refusal(&cut)
    );
    let record = |page: u64, count: u32, bytes: usize| {
        packed(&header(), |out| {
            out.extend([0; 8]);
            out.extend(page.to_le_bytes());
            out.extend(count.to_le_bytes());
            out.extend(vec![1; bytes]);
        })
    };
    for (file, why) in [
        (record(0, u32::MAX, 9), "a record of"),
        (record(0, 2, PAGE_BYTES), "guest RAM"),
        (record(RAM_PAGES, 1, PAGE_BYTES), "expected pages from"),
        (record(u64::MAX, 1, PAGE_BYTES), "expected pages from"),
    ] {
        assert!(refusal(&file).contains(why), "{}", refusal(&file));
    }
    let more = packed(&header(), |out| out.extend([0; 8 + 12 + 1]));
    assert!(refusal(&more).contains("more bytes than expected"));
}

#[test]
fn ten_thousand_damaged_files_are_refused() {
    let bytes = written();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    for round in 0..10_000 {
        let mut damaged = bytes.clone();
        match round % 3 {
            0 => damaged.truncate(random(bytes.len())),
            1 => damaged[random(bytes.len())] ^= 1 << random(8),
            _ => {
                let at = random(bytes.len());
                damaged.insert(at, damaged[at].wrapping_add(1));
            }
        }
        std::fs::write(file.path(), &damaged).unwrap();
        assert!(read(file.path()).is_err(), "round {round}");
    }
}

proptest! {
    /// An attacker gets the checksum right.
    #[test]
    fn a_made_up_file_gives_an_error_or_content(at in 16_usize..400, value: u8) {
        let mut bytes = written();
        let at = at % (bytes.len() - 16);
        bytes[at] = value;
        let _ = read_bytes(&summed(bytes));
    }
}
