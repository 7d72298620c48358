//! clone(2) with a stack of its own, which no function in Rust can return from twice.

use crate::failure::Failure;
use core::arch::naked_asm;
use rustix::io::Errno;
use rustix::process::Pid;

/// clone(2) of a thread or process that calls `entry` with `argument` on the stack that ends at `stack`, and exits.
///
/// # Safety
/// The stack is aligned to 16 bytes, and it and the word exist until the thread has ended; `entry` may be called so.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn clone(
    flags: usize,
    stack: *mut u8,
    word: *mut u32,
    entry: extern "C" fn(*mut u8),
    argument: *mut u8,
) -> isize {
    // Registers are the same on both sides of the call but for RAX, RCX and R11.
    naked_asm!(
        "mov r9, rcx",  // entry
        "mov r10, rdx", // the word, for CHILD_CLEARTID; RDX has it for PARENT_SETTID
        "mov eax, 56",  // clone
        "syscall",
        "test rax, rax",
        "jz 2f",
        "ret",
        "2:",
        "xor ebp, ebp",
        "mov rdi, r8",
        "call r9",
        "mov eax, 60", // exit, of this thread alone
        "xor edi, edi",
        "syscall",
        "ud2"
    )
}

/// The process that a call of [`clone`] has started, by what the call returned.
pub(super) fn started(result: isize) -> Result<Pid, Failure> {
    match i32::try_from(result).ok().and_then(Pid::from_raw) {
        Some(pid) if result > 0 => Ok(pid),
        _ => {
            let errno = i32::try_from(-result).unwrap_or(i32::MAX);
            Err(Failure::of("clone", Errno::from_raw_os_error(errno)))
        }
    }
}
