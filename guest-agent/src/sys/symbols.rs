//! Functions that the compiler calls by name and that a C library would define.
//!
//! They are written in assembly because the optimiser turns loops in Rust back into calls of these very functions.
//! String instructions suit a guest: they retire few instructions, and emulators run each as one host operation.

use core::arch::naked_asm;

/// memcpy(3): words first, then the rest.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(target: *mut u8, source: *const u8, bytes: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep movsb",
        "ret"
    )
}

/// memmove(3): from the end if the target begins inside the source, else as memcpy.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(target: *mut u8, source: *const u8, bytes: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "sub rax, rsi",
        "cmp rax, rdx",
        "jae {memcpy}",
        "mov rax, rdi",
        "mov rcx, rdx",
        "lea rsi, [rsi + rdx - 1]",
        "lea rdi, [rdi + rdx - 1]",
        "std",
        "rep movsb",
        "cld",
        "ret",
        memcpy = sym memcpy
    )
}

/// memset(3).
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(target: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "mov rcx, rdx",
        "mov eax, esi",
        "rep stosb",
        "mov rax, r8",
        "ret"
    )
}

/// memcmp(3): the difference of the first bytes that differ.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    naked_asm!(
        "xor eax, eax",
        "mov rcx, rdx",
        "test rcx, rcx",
        "jz 2f",
        "xchg rsi, rdi",
        "repe cmpsb",
        "movzx eax, byte ptr [rsi - 1]",
        "movzx ecx, byte ptr [rdi - 1]",
        "sub eax, ecx",
        "2:",
        "ret"
    )
}

/// bcmp(3): as memcmp, but only zero or nonzero is defined.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    naked_asm!("jmp {memcmp}", memcmp = sym memcmp)
}

/// strlen(3).
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    naked_asm!(
        "xor eax, eax",
        "mov rcx, -1",
        "repne scasb",
        "not rcx",
        "lea rax, [rcx - 1]",
        "ret"
    )
}

/// The precompiled `alloc` refers to the unwinder, which is never called because panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// See [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    super::exit(1)
}
