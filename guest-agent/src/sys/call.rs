//! System calls and instructions that need `unsafe`.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::ffi::{CStr, c_char};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;

/// Number of kexec_file_load(2) on x86-64.
const KEXEC_FILE_LOAD: usize = 320;
/// Number of kexec_load(2) on x86-64.
const KEXEC_LOAD: usize = 246;
/// KEXEC_PRESERVE_CONTEXT (include/uapi/linux/kexec.h).
const PRESERVE_CONTEXT: usize = 2;
/// Number of madvise(2) on x86-64.
const MADVISE: usize = 28;
/// MADV_COLLAPSE (include/uapi/asm-generic/mman-common.h, from 6.1).
const MADV_COLLAPSE: usize = 25;
/// Number of execve(2) on x86-64.
const EXECVE: usize = 59;
/// Number of exit_group(2) on x86-64.
const EXIT_GROUP: usize = 231;

/// kexec_file_load(2) without flags: the kernel, its initramfs, its command line.
pub fn kexec_file_load(kernel: &OwnedFd, initrd: &OwnedFd, command_line: &CStr) -> Result<(), Errno> {
    let bytes = command_line.to_bytes_with_nul();
    let arguments = [
        descriptor(kernel),
        descriptor(initrd),
        bytes.len(),
        bytes.as_ptr().addr(),
        0,
    ];
    // SAFETY: the pointer and length name the command line with its NUL, which the kernel only reads.
    result_of(unsafe { syscall(KEXEC_FILE_LOAD, arguments) })
}

/// `struct kexec_segment` (include/uapi/linux/kexec.h).
#[repr(C)]
struct Segment {
    /// Address and bytes of its content, in the caller's memory.
    buffer: usize,
    buffer_bytes: usize,
    /// Physical address that it is put at, and its bytes there: whole pages.
    memory: usize,
    memory_bytes: usize,
}

/// kexec_load(2) with KEXEC_PRESERVE_CONTEXT of an image of at most a page, which is put at the physical address `at` and
/// entered there.
pub fn kexec_load(image: &[u8], at: usize) -> Result<(), Errno> {
    let segment = Segment {
        buffer: image.as_ptr().addr(),
        buffer_bytes: image.len(),
        memory: at,
        memory_bytes: 4096,
    };
    let arguments = [at, 1, (&raw const segment).addr(), PRESERVE_CONTEXT, 0];
    // SAFETY: the segment and the image, which the kernel only reads, live on during the call. It changes no memory of
    // this process.
    result_of(unsafe { syscall(KEXEC_LOAD, arguments) })
}

/// kexec_load(2) without a segment: what is loaded is dropped.
pub fn kexec_unload() -> Result<(), Errno> {
    // SAFETY: there is no segment, so the call takes no pointer.
    result_of(unsafe { syscall(KEXEC_LOAD, [0; 5]) })
}

/// madvise(2) with MADV_COLLAPSE: moves pages to huge pages, or says why not.
pub fn collapse(address: u64, bytes: u64) -> Result<(), Errno> {
    let word = |value: u64| usize::try_from(value).map_err(|_| Errno::INVAL);
    let arguments = [word(address)?, word(bytes)?, MADV_COLLAPSE, 0, 0];
    // SAFETY: the call changes no content and no address, whatever is there.
    result_of(unsafe { syscall(MADVISE, arguments) })
}

/// What a system call returned: 0 or a negated errno.
fn result_of(result: isize) -> Result<(), Errno> {
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw_os_error(
            i32::try_from(-result).unwrap_or(i32::MAX),
        ))
    }
}

/// execve(2) with the first of `words` as the path; returns only if that failed.
pub fn execve(words: &Strings, environment: &Strings) -> Errno {
    let Some(path) = words.0.first() else {
        return Errno::NOENT;
    };
    let (words, environment) = (words.pointers(), environment.pointers());
    let arguments = [
        path.as_ptr().addr(),
        words.as_ptr().addr(),
        environment.as_ptr().addr(),
        0,
        0,
    ];
    // SAFETY: the path ends with a NUL, both lists with a null pointer, and all that they point to lives on.
    let result = unsafe { syscall(EXECVE, arguments) };
    Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(i32::MAX))
}

/// Strings as execve(2) takes them.
pub struct Strings(pub Vec<CString>);

impl Strings {
    fn pointers(&self) -> Vec<*const c_char> {
        let each = self.0.iter().map(|text| text.as_ptr());
        each.chain([core::ptr::null()]).collect()
    }
}

/// Ends the process. If that is PID 1, the kernel panics.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: exit_group takes no pointer.
        unsafe { syscall(EXIT_GROUP, [status.unsigned_abs() as usize, 0, 0, 0, 0]) };
    }
}

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and it has no effect on memory.
    unsafe { _rdtsc() }
}

/// A file descriptor as the value of an argument register.
fn descriptor(fd: &OwnedFd) -> usize {
    fd.as_raw_fd().unsigned_abs() as usize
}

/// One system call with up to five arguments.
///
/// # Safety
/// The call must be sound with these arguments.
unsafe fn syscall(number: usize, arguments: [usize; 5]) -> isize {
    let result;
    // SAFETY: the registers are those of the x86-64 system call convention, and those that the kernel changes are
    // listed; the caller vouches for the call itself.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
