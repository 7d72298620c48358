//! The way into translated code and back: the code at the beginning of the code memory, and its call.

#![allow(unsafe_code)]

use super::emit::{Emitter, Mem, Reg, Size};
use super::layout::{CORE, HOST};
use crate::core::{Core, Ctx};

/// Registers that a function of the System V ABI must keep.
const KEPT: [Reg; 6] = [Reg::RBX, Reg::RBP, Reg::R12, Reg::R13, Reg::R14, Reg::R15];

/// Writes the function that enters translated code, at offset 0. Gives the code, and the offset at which translated
/// code ends.
///
/// ```text
/// extern "sysv64" fn(core: *mut Core, code: *const u8)
/// ```
pub(super) fn write() -> (Vec<u8>, usize) {
    let mut code = Emitter::default();
    for register in KEPT {
        code.push(register);
    }
    // Code that borrows a register pushes it: nothing else uses the stack.
    code.mov_rm(Size::Q, CORE, Reg::RDI);
    code.mov_rm(Size::Q, Reg::RAX, Reg::RSI);
    for (register, host) in (0..).zip(HOST) {
        code.mov_rm(Size::Q, host, place(register));
    }
    code.jmp_rm(Reg::RAX);
    let leave = code.here();
    for (register, host) in (0..).zip(HOST) {
        code.mov_mr(Size::Q, place(register), host);
    }
    for register in KEPT.into_iter().rev() {
        code.pop(register);
    }
    code.ret();
    (code.bytes, leave)
}

fn place(register: u8) -> Mem {
    super::layout::in_core(register)
}

/// Nothing is translated on other hosts, so nobody has an offset to call.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn call(_: &mut Core, _: &mut Ctx<'_>, _: u32) {}

/// Executes translated code at offset `at` until it leaves.
#[cfg(target_arch = "x86_64")]
pub(super) fn call(core: &mut Core, _: &mut Ctx<'_>, at: u32) {
    let code = core.native.base + u64::from(at);
    let function = std::ptr::with_exposed_provenance::<()>(usize_of(core.native.base));
    let core: *mut Core = core;
    // SAFETY: `base` is where the code that `write` made is mapped executable, as long as the processor that `core`
    // belongs to has its translator; it is 0 without one, and then nobody has an offset to call.
    let enter =
        unsafe { std::mem::transmute::<*const (), unsafe extern "sysv64" fn(*mut Core, u64)>(function) };
    // SAFETY: translated code reads and writes the Core, which is borrowed exclusively, and through its TLB the guest's
    // RAM, which `Ctx` borrows exclusively. The TLB's host addresses are true of that RAM (`Core::settle_on`), and an
    // access that does not lie within the page that an entry is for is left to the interpreter.
    unsafe { enter(core, code) }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::cast_possible_truncation)] // the host is 64-bit
fn usize_of(address: u64) -> usize {
    address as usize
}
