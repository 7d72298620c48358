//! The initramfs of a run: an uncompressed newc archive with the agent, the next kernel, and the mount points that the agent
//! needs. It is a pure function of its contents: times are 0 and inodes are counted.

/// File types and permissions as stat(2) has them.
mod mode {
    pub const DIRECTORY: u32 = 0o040_755;
    pub const PROGRAM: u32 = 0o100_755;
    pub const FILE: u32 = 0o100_644;
    pub const CHARACTER_DEVICE: u32 = 0o020_600;
}

/// Device numbers of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);
/// Everything is padded to this many bytes.
const ALIGN: usize = 4;

/// Makes the archive: `/init` is `agent`; `/next/kernel`, where there is a next kernel, is its bzImage.
pub fn build(agent: &[u8], next_kernel: Option<&[u8]>) -> Vec<u8> {
    let mut archive = Archive::default();
    archive
        .bytes
        .reserve(agent.len() + next_kernel.map_or(0, <[u8]>::len) + 4096);
    for directory in ["dev", "proc", "sys", "tmp"] {
        archive.entry(directory, mode::DIRECTORY, (0, 0), &[]);
    }
    archive.entry("dev/console", mode::CHARACTER_DEVICE, CONSOLE, &[]);
    archive.entry("init", mode::PROGRAM, (0, 0), agent);
    if let Some(kernel) = next_kernel {
        archive.entry("next", mode::DIRECTORY, (0, 0), &[]);
        archive.entry("next/kernel", mode::FILE, (0, 0), kernel);
    }
    archive.finish()
}

/// An archive that grows; Documentation/driver-api/early-userspace/buffer-format.rst has the format.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.inodes += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        self.header(
            name,
            [
                self.inodes,
                mode,
                0,
                0,
                links,
                0,
                length(data),
                0,
                0,
                major,
                minor,
            ],
            data,
        );
    }

    fn header(&mut self, name: &str, fields: [u32; 11], data: &[u8]) {
        self.bytes.extend_from_slice(b"070701");
        for field in fields.into_iter().chain([length(name.as_bytes()) + 1, 0]) {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.header("TRAILER!!!", [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[]);
        self.bytes
    }
}

/// The format's sizes have 32 bits; kernels and agents are checked to be far smaller when they are read.
#[allow(clippy::cast_possible_truncation)]
fn length(data: &[u8]) -> u32 {
    data.len() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// The cpio crate is the independent reader.
    #[test]
    fn another_reader_finds_every_entry() {
        let archive = build(b"agent", Some(b"kernel"));
        let mut rest: &[u8] = &archive;
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
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
        assert_eq!(found[4].1, mode::CHARACTER_DEVICE);
    }
}
