//! ioctl(2) with a structure that the kernel reads and writes.

use core::ffi::c_void;
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

/// The argument of an ioctl.
struct Argument<'a, const OPCODE: Opcode, T: ?Sized>(&'a mut T);

// SAFETY: only `call` makes an `Argument`, and its caller vouches that the kernel reads and writes a `T` for this
// number.
unsafe impl<const OPCODE: Opcode, T: ?Sized> Ioctl for Argument<'_, OPCODE, T> {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.0).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput> {
        Ok(output)
    }
}

/// ioctl `OPCODE` with `argument`; returns what the kernel returns.
///
/// # Safety
/// The kernel must read and write no more than `argument`, which must be plain data, for this number.
pub unsafe fn call<const OPCODE: Opcode, T: ?Sized>(fd: impl AsFd, argument: &mut T) -> Result<IoctlOutput> {
    let fd: BorrowedFd<'_> = fd.as_fd();
    // SAFETY: the caller vouches for number and argument.
    unsafe { rustix::ioctl::ioctl(fd, Argument::<OPCODE, T>(argument)) }
}

/// Takes ownership of the descriptor that a successful ioctl has opened.
pub fn own(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
