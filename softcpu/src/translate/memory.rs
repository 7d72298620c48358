//! Memory for translated code: one memory file, mapped once to be written and once to be executed. No page can be both
//! at one address.

#![allow(unsafe_code)]

use std::io;

use rustix::fd::OwnedFd;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The two mappings.
#[derive(Debug)]
pub(super) struct CodeMemory {
    writable: *mut u8,
    executable: *mut u8,
    len: usize,
}

// SAFETY: the mappings belong to this value alone, and nothing about them is tied to a thread.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps `len` bytes, a multiple of the page size. Pages take memory once they are written.
    ///
    /// # Errors
    /// When the host allows no executable memory, or is not an x86-64.
    pub fn new(len: usize) -> io::Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = rustix::fs::memfd_create("softcpu", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let writable = map(&file, len, ProtFlags::READ | ProtFlags::WRITE)?;
        let executable = map(&file, len, ProtFlags::READ | ProtFlags::EXEC).inspect_err(|_| {
            // SAFETY: the mapping was just made with this length, and nothing refers to it.
            let _ = unsafe { munmap(writable.cast(), len) };
        })?;
        Ok(Self {
            writable,
            executable,
            len,
        })
    }

    /// Where the code is executed.
    pub fn base(&self) -> u64 {
        self.executable.expose_provenance() as u64
    }

    /// Copies `bytes` to offset `at`; false if they do not fit.
    #[must_use]
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        if at > self.len || bytes.len() > self.len - at {
            return false;
        }
        // SAFETY: the range was checked, and the mapping stays until the value is dropped. Code of this memory does not
        // run meanwhile, because whoever runs it borrows the value.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.wrapping_add(at), bytes.len()) };
        true
    }
}

fn map(file: &OwnedFd, len: usize, access: ProtFlags) -> io::Result<*mut u8> {
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that nobody else has.
    let address = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }?;
    Ok(address.cast())
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for address in [self.writable, self.executable] {
            // SAFETY: mapped by `new` with this length, and nothing refers to it any more.
            let _ = unsafe { munmap(address.cast(), self.len) };
        }
    }
}
