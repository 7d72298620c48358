//! Reads and writes small files of the kernel as a whole.

use crate::failure::{Failure, Named};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_agent::meminfo::{self, Meminfo};
use rustix::fd::OwnedFd;
use rustix::fs::{Access, Mode, OFlags};

/// Maximum length of such a file, in bytes.
const LIMIT: usize = 256 * 1024;

/// Opens `path`; the failure names it.
pub fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).named(|| format!("open({path})"))
}

/// The whole of `path`, at most 256 KiB.
pub fn read(path: &str) -> Result<Vec<u8>, Failure> {
    let file = open(path, OFlags::RDONLY)?;
    let mut content = Vec::new();
    loop {
        content.reserve(4096);
        let count = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content))
            .named(|| format!("read({path})"))?;
        if count == 0 {
            return Ok(content);
        }
        if content.len() > LIMIT {
            return Err(Failure::refused(
                format!("read({path})"),
                format!("longer than {LIMIT} bytes"),
            ));
        }
    }
}

/// The whole of `path` as text.
pub fn read_text(path: &str) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|_| Failure::refused(format!("read({path})"), "not UTF-8"))
}

/// Memory of the machine, from /proc/meminfo.
pub fn meminfo() -> Result<Meminfo, Failure> {
    const PATH: &str = "/proc/meminfo";
    meminfo::parse(&read_text(PATH)?).ok_or_else(|| Failure::refused(PATH, "no MemTotal and MemFree in kB"))
}

/// Reads `file`, which `path` names, from `offset` on into `bytes`, and returns how much of it there was.
pub fn read_at(file: &OwnedFd, path: &str, bytes: &mut [u8], offset: u64) -> Result<usize, Failure> {
    let mut done = 0;
    while done < bytes.len() {
        let count = rustix::io::pread(file, &mut bytes[done..], offset.saturating_add(done as u64))
            .named(|| format!("pread({path})"))?;
        if count == 0 {
            break;
        }
        done += count;
    }
    Ok(done)
}

/// Writes `content` to an existing file in one call, as the kernel's control files require.
pub fn write(path: &str, content: &[u8]) -> Result<(), Failure> {
    let file = open(path, OFlags::WRONLY)?;
    rustix::io::write(&file, content).named(|| format!("write({path})"))?;
    Ok(())
}

/// Whether there is something at `path`.
pub fn exists(path: &str) -> bool {
    rustix::fs::access(path, Access::EXISTS).is_ok()
}
