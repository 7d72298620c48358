//! Reads the user's initramfs: an archive as it is, or a folder, which becomes a newc archive.

use crate::initramfs::Archive;
use flate2::read::MultiGzDecoder;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Largest initramfs, in bytes.
const MAX_BYTES: u64 = 256 << 20;
/// Most entries of a folder that is packed.
const MAX_ENTRIES: usize = 65_536;

/// Why there is no initramfs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Something cannot be read.
    #[error("initramfs {path}: cannot be read: {reason}")]
    Unreadable {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It is larger than it may be.
    #[error("initramfs {path}: more than {} MiB or {MAX_ENTRIES} entries", MAX_BYTES >> 20)]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
    },
    /// The file is no archive.
    #[error(
        "initramfs {path}: begins with {found}, expected a newc archive (\"070701\"), compressed or not, or a folder"
    )]
    NoArchive {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
    /// The folder holds something that is neither file, folder nor link.
    #[error("initramfs {path}: is neither a file, a folder nor a symbolic link")]
    Odd {
        /// What.
        path: PathBuf,
    },
}

/// What gzip begins with. baton unpacks it and Zstandard, because a kernel that is built to boot fast cannot.
const GZIP: &[u8] = b"\x1f\x8b";
/// What Zstandard begins with.
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// What archives begin with (init/initramfs.c, lib/decompress.c): newc, newc with checksums, an
/// older gzip, bzip2, LZMA, XZ, LZO and LZ4.
const MAGICS: [&[u8]; 8] = [
    b"070701",
    b"070702",
    b"\x1f\x9e",
    b"BZh",
    b"\x5d\x00\x00",
    b"\xfd7zXZ\0",
    b"\x89LZO",
    b"\x02\x21\x4c\x18",
];

/// Reads an archive, or packs a folder.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, PackError> {
    let about = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if about.is_dir() {
        return pack(path);
    }
    let bytes = contents(path, MAX_BYTES)?.ok_or_else(|| PackError::TooLarge { path: path.into() })?;
    let bytes = unpacked(path, bytes)?;
    if MAGICS.iter().any(|magic| bytes.starts_with(magic)) {
        return Ok(bytes);
    }
    let first: String = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Err(PackError::NoArchive {
        path: path.into(),
        found: if first.is_empty() { "nothing".into() } else { first },
    })
}

/// The same without the compression that it is wholly packed with, if baton knows that.
fn unpacked(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, PackError> {
    let unpacked = if bytes.starts_with(GZIP) {
        at_most(MultiGzDecoder::new(&bytes[..]), MAX_BYTES)
    } else if bytes.starts_with(ZSTD) {
        zstd::Decoder::with_buffer(&bytes[..]).and_then(|decoder| at_most(decoder, MAX_BYTES))
    } else {
        return Ok(bytes);
    };
    let unpacked = unpacked.map_err(|error| unreadable(path, &error))?;
    unpacked.ok_or_else(|| PackError::TooLarge { path: path.into() })
}

fn unreadable(path: &Path, error: &std::io::Error) -> PackError {
    PackError::Unreadable {
        path: path.into(),
        reason: error.to_string(),
    }
}

/// The contents of a file; `None` if they are more than `most` bytes.
fn contents(path: &Path, most: u64) -> Result<Option<Vec<u8>>, PackError> {
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| at_most(file, most));
    read.map_err(|error| unreadable(path, &error))
}

/// All bytes of a reader; `None` if they are more than `most`.
fn at_most(reader: impl Read, most: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// Packs a folder: entries in the order of their names, without times and owners, so that equal contents give equal
/// bytes.
fn pack(root: &Path) -> Result<Vec<u8>, PackError> {
    let too_large = || PackError::TooLarge { path: root.into() };
    let mut archive = Archive::behind(Vec::new());
    let (mut folders, mut entries, mut left) = (vec![root.to_path_buf()], 0, MAX_BYTES);
    while let Some(folder) = folders.pop() {
        let listed = std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))?;
        let mut paths = Vec::new();
        for entry in listed {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(too_large());
            }
            paths.push(entry.map_err(|error| unreadable(&folder, &error))?.path());
        }
        paths.sort();
        for path in paths {
            let about = std::fs::symlink_metadata(&path).map_err(|error| unreadable(&path, &error))?;
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            let permissions = about.permissions().mode() & 0o7777;
            if about.is_dir() {
                archive.entry_directory(&name, permissions);
                folders.push(path);
            } else if about.is_file() {
                let bytes = contents(&path, left)?.ok_or_else(too_large)?;
                left -= bytes.len() as u64;
                archive.file(&name, permissions, &bytes);
            } else if about.is_symlink() {
                let target = std::fs::read_link(&path).map_err(|error| unreadable(&path, &error))?;
                archive.link(&name, target.as_os_str().as_bytes());
            } else {
                return Err(PackError::Odd { path });
            }
        }
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_packed_in_the_order_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/conf"), "text").unwrap();
        std::fs::write(root.join("test"), "program").unwrap();
        std::fs::set_permissions(root.join("test"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("/test", root.join("init")).unwrap();
        let packed = read(root).unwrap();
        assert_eq!(packed, read(root).unwrap());
        let names: Vec<_> = crate::initramfs::tests::entries(&packed);
        let kinds: Vec<_> = names
            .iter()
            .map(|(name, mode, data)| (name.as_str(), *mode, &data[..]))
            .collect();
        assert_eq!(
            kinds,
            [
                ("etc", 0o040_755, &b""[..]),
                ("init", 0o120_777, b"/test"),
                ("test", 0o100_755, b"program"),
                ("etc/conf", 0o100_644, b"text"),
            ]
        );
    }

    #[test]
    fn gzip_and_zstandard_are_unpacked_and_hold_an_archive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i");
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        for pack in [&gzip as &dyn Fn(&[u8]) -> Vec<u8>, &zstd] {
            std::fs::write(&path, pack(b"070701 and more")).unwrap();
            assert_eq!(read(&path).unwrap(), b"070701 and more");
            std::fs::write(&path, pack(b"text")).unwrap();
            assert!(matches!(read(&path), Err(PackError::NoArchive { .. })));
            let all = pack(&[b'0'; 4096]);
            std::fs::write(&path, &all[..all.len() - 6]).unwrap();
            assert!(matches!(read(&path), Err(PackError::Unreadable { .. })));
        }
    }

    #[test]
    fn what_is_no_archive_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i");
        std::fs::write(&path, b"\x7fELF").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("begins with 7f454c46, expected a newc archive"),
            "{error}"
        );
        std::fs::write(&path, b"\x1f\x8b packed").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("cannot be read"));
        std::fs::write(&path, b"\xfd7zXZ\0 packed").unwrap();
        assert_eq!(read(&path).unwrap(), b"\xfd7zXZ\0 packed");
        assert!(
            read(&folder.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }
}
