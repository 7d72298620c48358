//! The initramfs of a run: an uncompressed newc archive with the agent, the next kernel, and the mount points that the
//! agent needs. Equal contents give equal bytes: every timestamp is 0 and inodes are numbered in order.

use cpio::newc::{self, ModeFileType};
use std::io::Write;

/// The format pads names and contents to this many bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
const ALIGN: usize = 4;
/// Permissions of directories and programs, as in stat(2).
const EXECUTABLE: u32 = 0o755;
/// Permissions of other files.
const READABLE: u32 = 0o644;
/// Major and minor device number of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);

/// Makes the archive. `/init` is `agent`, and `/next/kernel` is `next_kernel`, the bzImage of the next kernel, if there
/// is one.
pub fn build(agent: &[u8], next_kernel: Option<&[u8]>) -> Vec<u8> {
    let mut archive = Archive::with_capacity(agent.len() + next_kernel.map_or(0, <[u8]>::len) + 4096);
    for name in ["dev", "proc", "sys", "tmp"] {
        archive.directory(name);
    }
    archive.console("dev/console");
    archive.file("init", EXECUTABLE, agent);
    if let Some(kernel) = next_kernel {
        archive.directory("next");
        archive.file("next/kernel", READABLE, kernel);
    }
    archive.finish()
}

/// Adds `/next/kernel` to an initramfs of any form that the kernel takes.
pub fn with_next_kernel(initramfs: Vec<u8>, next_kernel: &[u8]) -> Vec<u8> {
    let mut archive = Archive::behind(initramfs);
    archive.plain_file("/next/kernel", next_kernel);
    archive.finish()
}

/// An archive that is being written, and the number of entries in it.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            entries: 0,
        }
    }

    /// An archive that is unpacked after `before`, over what that has. The kernel unpacks one archive after another, and
    /// those that are not compressed have to begin at a multiple of 4 bytes (init/initramfs.c).
    pub fn behind(mut before: Vec<u8>) -> Self {
        before.resize(before.len().next_multiple_of(ALIGN), 0);
        Self {
            bytes: before,
            entries: 0,
        }
    }

    pub fn directory(&mut self, name: &str) {
        self.entry_directory(name, EXECUTABLE);
    }

    /// A directory with these permissions.
    pub fn entry_directory(&mut self, name: &str, permissions: u32) {
        let entry = newc::Builder::new(name).mode(permissions).nlink(2);
        self.put(entry.set_mode_file_type(ModeFileType::Directory), &[]);
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &[u8]) {
        let entry = newc::Builder::new(name).mode(0o777);
        self.put(entry.set_mode_file_type(ModeFileType::Symlink), target);
    }

    /// A program at this absolute path, and the directories above it.
    pub fn program(&mut self, path: &str, data: &[u8]) {
        let name = self.with_parents(path);
        self.file(name, EXECUTABLE, data);
    }

    /// A file at this absolute path, and the directories above it.
    pub fn plain_file(&mut self, path: &str, data: &[u8]) {
        let name = self.with_parents(path);
        self.file(name, READABLE, data);
    }

    fn with_parents<'a>(&mut self, path: &'a str) -> &'a str {
        let name = path.trim_start_matches('/');
        for (at, _) in name.match_indices('/') {
            self.directory(&name[..at]);
        }
        name
    }

    pub fn console(&mut self, name: &str) {
        let (major, minor) = CONSOLE;
        let entry = newc::Builder::new(name)
            .mode(0o600)
            .rdev_major(major)
            .rdev_minor(minor);
        self.put(entry.set_mode_file_type(ModeFileType::Char), &[]);
    }

    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) {
        let entry = newc::Builder::new(name).mode(permissions);
        self.put(entry.set_mode_file_type(ModeFileType::Regular), data);
    }

    fn put(&mut self, entry: newc::Builder, data: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(data.len())
            .expect("kernels and agents are checked to be far below 4 GiB when read");
        let mut writer = entry.ino(self.entries).write(&mut self.bytes, size);
        writer.write_all(data).expect("a Vec takes every write");
        writer.finish().expect("a Vec takes every write");
    }

    pub fn finish(self) -> Vec<u8> {
        newc::trailer(self.bytes).expect("a Vec takes every write")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Name, mode and contents of each entry of an archive.
    pub fn entries(mut rest: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut data).unwrap();
            let entry = reader.entry();
            assert_eq!(
                (entry.mtime(), entry.uid(), entry.ino() as usize),
                (0, 0, found.len() + 1)
            );
            found.push((entry.name().to_owned(), entry.mode(), data));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn equal_contents_give_equal_archives() {
        assert_eq!(build(b"agent", Some(b"kernel")), build(b"agent", Some(b"kernel")));
        assert_ne!(build(b"agent", None), build(b"agent", Some(b"")));
    }

    #[test]
    fn entries_are_where_the_format_wants_them() {
        let archive = build(b"agent", Some(b"kernel"));
        let text = String::from_utf8_lossy(&archive);
        assert!(text.starts_with("070701") && text.len().is_multiple_of(ALIGN));
        assert_eq!(text.matches("070701").count(), 9);
        let init = text.find("init\0").unwrap();
        assert!((init + 5).next_multiple_of(ALIGN) == text.find("agent").unwrap());
        assert!(text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn an_archive_is_added_behind_what_is_there() {
        for own in [&b""[..], b"\x1f\x8bpacked", b"12345678"] {
            let both = with_next_kernel(own.to_vec(), b"kernel");
            assert!(both.starts_with(own));
            let begin = own.len().next_multiple_of(ALIGN);
            assert!(both[own.len()..begin].iter().all(|byte| *byte == 0));
            assert!(both[begin..].starts_with(b"070701"));
            assert_eq!(String::from_utf8_lossy(&both).matches("next/kernel\0").count(), 1);
        }
    }

    #[test]
    fn a_reader_finds_every_entry() {
        let archive = build(b"agent", Some(b"kernel"));
        let found = entries(&archive);
        let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "dev",
                "proc",
                "sys",
                "tmp",
                "dev/console",
                "init",
                "next",
                "next/kernel"
            ]
        );
        assert_eq!(found[5].2, b"agent");
        assert_eq!(found[7].2, b"kernel");
        assert_eq!(found[4].1, 0o020_600);
    }
}
