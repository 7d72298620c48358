//! Changes of memfds, for the steps that a scenario gives.

use crate::failure::{Failure, Named};
use crate::memory::{index, write_all};
use crate::sys::{self, Mapping};
use alloc::format;
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use guest_agent::protocol::{By, Change, Part};
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, SealFlags};

const PAGE: u64 = PAGE_BYTES as u64;

/// Makes any change but a seal.
pub fn change(mapping: &Mapping, memfd: &OwnedFd, change: Change) -> Result<(), Failure> {
    let keep = FallocateFlags::KEEP_SIZE;
    match change {
        Change::Write { part, seed, by } => write(mapping, memfd, part, seed, by),
        Change::Read(part) => {
            check(mapping, part)?;
            for page in part.offset / PAGE..(part.offset + part.bytes).div_ceil(PAGE) {
                mapping.read_u64(page * PAGE);
            }
            Ok(())
        }
        Change::Allocate(part) => allocate(memfd, keep, part, "0"),
        Change::PunchHole(part) => allocate(memfd, keep | FallocateFlags::PUNCH_HOLE, part, "PUNCH_HOLE"),
        Change::Collapse(part) => {
            check(mapping, part)?;
            sys::collapse(mapping.address() + part.offset, part.bytes)
                .named(|| format!("madvise(MADV_COLLAPSE, {:#x}, {})", part.offset, part.bytes))
        }
        Change::Seal(seals) => seal(memfd, seals),
    }
}

/// Adds seals. Those that forbid writing need a memfd without writable mappings.
pub fn seal(memfd: &OwnedFd, seals: u32) -> Result<(), Failure> {
    let wanted = SealFlags::from_bits_retain(seals);
    rustix::fs::fcntl_add_seals(memfd, wanted).named(|| format!("fcntl(F_ADD_SEALS, {seals:#x})"))
}

/// Whether the seals of a memfd forbid a writable mapping. A file without seals forbids nothing.
pub fn forbids_writing(memfd: &OwnedFd) -> bool {
    let seals = rustix::fs::fcntl_get_seals(memfd).unwrap_or(SealFlags::empty());
    seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
}

fn allocate(memfd: &OwnedFd, flags: FallocateFlags, part: Part, name: &str) -> Result<(), Failure> {
    let Part { offset, bytes } = part;
    rustix::fs::fallocate(memfd, flags, offset, bytes)
        .named(|| format!("fallocate(memfd, {name}, {offset:#x}, {bytes})"))
}

/// Writes the pattern to a part, page by page.
fn write(mapping: &Mapping, memfd: &OwnedFd, part: Part, seed: u64, by: By) -> Result<(), Failure> {
    let end = check(mapping, part)?;
    if by == By::Store && forbids_writing(memfd) {
        return Err(Failure::refused("store", "the seals forbid a writable mapping"));
    }
    let pattern = Pattern::new(seed);
    let mut offset = part.offset;
    while offset < end {
        let page = offset / PAGE;
        let until = end.min((page + 1) * PAGE);
        let content = pattern.page(page);
        let bytes = &content[index(offset % PAGE)..index(until - page * PAGE)];
        match by {
            By::Write => write_all(memfd, bytes, offset)?,
            By::Store => {
                for (at, word) in (offset..).step_by(8).zip(bytes.as_chunks().0) {
                    mapping.write_u64(at, u64::from_le_bytes(*word));
                }
            }
        }
        offset = until;
    }
    Ok(())
}

/// The end of a part, which must be made of whole words inside the object.
fn check(mapping: &Mapping, part: Part) -> Result<u64, Failure> {
    let Part { offset, bytes } = part;
    let end = offset.checked_add(bytes).filter(|end| *end <= mapping.bytes());
    let words = offset.is_multiple_of(8) && bytes.is_multiple_of(8);
    end.filter(|_| words).ok_or_else(|| {
        let detail = format!("expected whole words of 8 bytes inside {} bytes", mapping.bytes());
        Failure::refused(format!("part of {bytes} bytes at {offset:#x}"), detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Objects;
    use alloc::vec::Vec;
    use guest_agent::pattern::{PAGE_WORDS, page_digest};

    const ALLOW_SEALING: u32 = 2;
    const SEAL_WRITE: u32 = 8;

    fn write(offset: u64, bytes: u64, seed: u64, by: By) -> Change {
        Change::Write {
            part: Part { offset, bytes },
            seed,
            by,
        }
    }

    #[test]
    fn parts_are_written_and_punched() {
        let mut objects = Objects::default();
        objects.create_memfd(1, 4 * PAGE, 0).unwrap();
        objects.change(1, write(0, 2 * PAGE, 5, By::Write)).unwrap();
        objects.change(1, write(PAGE + 8, PAGE, 6, By::Store)).unwrap();
        let (offset, bytes) = (0, PAGE / 2);
        objects
            .change(1, Change::PunchHole(Part { offset, bytes }))
            .unwrap();
        let part = Part {
            offset: 3 * PAGE,
            bytes: PAGE,
        };
        objects.change(1, Change::Allocate(part)).unwrap();
        objects.change(1, Change::Read(part)).unwrap();
        let (first, second) = (Pattern::new(5), Pattern::new(6));
        let mut pages = [first.page(0), first.page(1), second.page(2), [0; PAGE_BYTES]];
        pages[0][..PAGE_BYTES / 2].fill(0);
        pages[1][8..].copy_from_slice(&second.page(1)[8..]);
        pages[2][8..].fill(0);
        let digests: Vec<u64> = pages
            .iter()
            .map(|page| {
                let mut words = [0; PAGE_WORDS];
                for (word, bytes) in words.iter_mut().zip(page.as_chunks().0) {
                    *word = u64::from_le_bytes(*bytes);
                }
                page_digest(&words)
            })
            .collect();
        assert_eq!(objects.digest(1, 0, 4).unwrap(), digests);
    }

    #[test]
    fn a_seal_forbids_writing_and_the_memfd_is_still_read() {
        let mut objects = Objects::default();
        objects.create_memfd(1, PAGE, ALLOW_SEALING).unwrap();
        objects.change(1, write(0, PAGE, 5, By::Write)).unwrap();
        let before = objects.digest(1, 0, 1).unwrap();
        objects.change(1, Change::Seal(SEAL_WRITE)).unwrap();
        let refused = objects.change(1, write(0, PAGE, 6, By::Write)).unwrap_err();
        assert_eq!(refused.errno, rustix::io::Errno::PERM.raw_os_error());
        let refused = objects.change(1, write(0, PAGE, 6, By::Store)).unwrap_err();
        assert_eq!(refused.errno, 0, "{refused}");
        assert_eq!(objects.digest(1, 0, 1).unwrap(), before);
        // A memfd that was made without the flag takes no seal, and stays as it is.
        objects.create_memfd(2, PAGE, 0).unwrap();
        assert!(objects.change(2, Change::Seal(SEAL_WRITE)).is_err());
        objects.change(2, write(0, PAGE, 5, By::Store)).unwrap();
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let mut objects = Objects::default();
        objects.create_memfd(1, PAGE, 0).unwrap();
        objects.create_buffer(2, PAGE).unwrap();
        for (object, change) in [
            (1, write(0, PAGE + 8, 1, By::Write)),
            (1, write(4, 8, 1, By::Write)),
            (1, write(u64::MAX - 7, 16, 1, By::Store)),
            (2, write(0, 8, 1, By::Write)),
            (3, write(0, 8, 1, By::Write)),
        ] {
            assert_eq!(objects.change(object, change).unwrap_err().errno, 0, "{change:?}");
        }
    }
}
