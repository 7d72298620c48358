//! Host address space for guest RAM: zeroed memory, and parts of sealed files mapped into it copy on write.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A private mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping is plain memory that belongs to this value alone; nothing about it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives out the address only; who uses it answers for the accesses.
unsafe impl Sync for Mapping {}

const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

impl Mapping {
    /// Maps `length` bytes of zeroed memory. The host provides each page when it is first touched.
    pub fn zeroed(length: usize) -> Result<Self, Errno> {
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, PROTECTION, FLAGS)? };
        let mapping = Self {
            start: start.cast(),
            length,
        };
        mapping.keep_out_of_cores(0, length)?;
        Ok(mapping)
    }

    /// Replaces `length` bytes from `offset` on by a private mapping of `file` from `file_offset` on: reads see the
    /// file, and writes stay in this mapping. All three numbers are multiples of the page size.
    pub fn overlay(
        &mut self,
        offset: usize,
        length: usize,
        file: BorrowedFd<'_>,
        file_offset: u64,
    ) -> Result<(), Errno> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(Errno::INVAL);
        }
        let at: *mut c_void = self.start.wrapping_add(offset).cast();
        // SAFETY: the range lies within this mapping, which nobody else has seen yet, so that replacing it takes no
        // memory from anybody. The caller's files are sealed against writing and shrinking: no access to the mapping
        // can fault.
        unsafe { mmap(at, length, PROTECTION, FLAGS | MapFlags::FIXED, file, file_offset)? };
        self.keep_out_of_cores(offset, length)
    }

    /// Keeps `length` bytes from `offset` on out of core files. A limit on their size would not: the host's kernel
    /// ignores it if it pipes them to a program, and it takes from developers what core files are for.
    fn keep_out_of_cores(&self, offset: usize, length: usize) -> Result<(), Errno> {
        self.advise(offset, length, Advice::LinuxDontDump)
    }

    /// Has the host provide every page by itself and never as part of a huge one, now and later. Only pages that have
    /// not been touched are sure to be so. A host without huge pages has nothing to do.
    pub fn forbid_huge_pages(&self) -> Result<(), Errno> {
        self.advise(0, self.length, Advice::LinuxNoHugepage)
    }

    /// Has the host provide 2 MiB at once where it can: a fault for each page takes longer than to clear that much.
    pub fn want_huge_pages(&self) -> Result<(), Errno> {
        self.advise(0, self.length, Advice::LinuxHugepage)
    }

    /// Advises on `length` bytes from `offset` on, which lie in the mapping.
    fn advise(&self, offset: usize, length: usize, advice: Advice) -> Result<(), Errno> {
        let at = self.start.wrapping_add(offset);
        // SAFETY: the range is in this mapping, and advice on huge pages and core files changes neither its content nor
        // its protection.
        match unsafe { madvise(at.cast(), length, advice) } {
            Err(Errno::INVAL) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Its first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `zeroed`, and nothing that was handed out of it outlives its owner. Unmapping
        // a mapped range can only fail for want of memory to split it, which leaves it mapped.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// VmFlags of the mapping at this address, from /proc/self/smaps.
    fn flags(start: *mut u8) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // Mappings next to each other are one here if they are alike.
        let has = |line: &str| {
            let range = line.split_once(' ')?.0.split_once('-')?;
            let [first, end] = [range.0, range.1].map(|hex| usize::from_str_radix(hex, 16).ok());
            Some((first?..end?).contains(&(start as usize)))
        };
        let from = smaps.lines().skip_while(|line| has(line) != Some(true));
        let flags = from.skip(1).find(|line| line.starts_with("VmFlags:"));
        flags.expect("a mapping at that address").to_owned()
    }

    /// A new mapping's flags after the advice; `None` where the host has no huge pages.
    fn flags_after(advise: fn(&Mapping) -> Result<(), Errno>) -> Option<String> {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return None;
        }
        let mapping = Mapping::zeroed(4 << 20).unwrap();
        advise(&mapping).unwrap();
        Some(flags(mapping.start()))
    }

    #[test]
    fn guest_ram_is_in_no_core_file() {
        let is_kept_out = |at: *mut u8| flags(at).split(' ').any(|flag| flag == "dd");
        let mut mapping = Mapping::zeroed(4 << 20).unwrap();
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 1 << 20).unwrap();
        mapping.overlay(1 << 20, 1 << 20, file.as_fd(), 0).unwrap();
        for at in [0, 1 << 20, 3 << 20] {
            assert!(is_kept_out(mapping.start().wrapping_add(at)), "{at:#x}");
        }
        let other = vec![1; 4 << 20];
        assert!(!is_kept_out(other.as_ptr().cast_mut()), "all else is in it");
    }

    #[test]
    fn huge_pages_are_forbidden_for_good() {
        if let Some(found) = flags_after(Mapping::forbid_huge_pages) {
            assert!(found.split(' ').any(|flag| flag == "nh"), "{found}");
        }
    }

    #[test]
    fn huge_pages_are_wanted_where_it_is_said() {
        if let Some(found) = flags_after(Mapping::want_huge_pages) {
            assert!(found.split(' ').any(|flag| flag == "hg"), "{found}");
        }
    }
}
