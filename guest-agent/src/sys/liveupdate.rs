//! The ioctls of /dev/liveupdate and of its session file descriptors, as include/uapi/linux/liveupdate.h has them.
//!
//! Each takes a structure that begins with its own size. The four structures and five numbers here are the same from
//! 6.19, the first kernel that has them, to 7.3. LIVEUPDATE_SESSION_GET_NAME, which later kernels added, is not used.
//! One behaviour differs: newer kernels refuse, with EINVAL, to preserve into a retrieved session and to retrieve
//! from or finish a created one.

use super::ioctl::{self, own};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Result;
use rustix::ioctl::{Opcode, opcode};

/// Length of a session name with its NUL (LIVEUPDATE_SESSION_NAME_LENGTH).
pub const NAME_BYTES: usize = 64;

/// LIVEUPDATE_IOCTL_TYPE.
const TYPE: u8 = 0xba;
const CREATE_SESSION: Opcode = opcode::none(TYPE, 0x00);
const RETRIEVE_SESSION: Opcode = opcode::none(TYPE, 0x01);
const PRESERVE_FD: Opcode = opcode::none(TYPE, 0x40);
const RETRIEVE_FD: Opcode = opcode::none(TYPE, 0x41);
const FINISH: Opcode = opcode::none(TYPE, 0x42);

/// struct liveupdate_ioctl_create_session and liveupdate_ioctl_retrieve_session.
#[repr(C)]
struct Session {
    size: u32,
    /// Output.
    fd: i32,
    name: [u8; NAME_BYTES],
}

/// struct liveupdate_session_preserve_fd (`fd` is input) and liveupdate_session_retrieve_fd (`fd` is output).
#[repr(C, align(8))]
struct Descriptor {
    size: u32,
    fd: i32,
    token: u64,
}

/// struct liveupdate_session_finish.
#[repr(C)]
struct Finish {
    size: u32,
    reserved: u32,
}

/// Creates a session.
pub fn create_session(device: BorrowedFd<'_>, name: &[u8; NAME_BYTES]) -> Result<OwnedFd> {
    let mut session = Session {
        size: size_of_u32::<Session>(),
        fd: -1,
        name: *name,
    };
    call::<CREATE_SESSION, _>(device, &mut session)?;
    own(session.fd)
}

/// Retrieves a session by its name.
pub fn retrieve_session(device: BorrowedFd<'_>, name: &[u8; NAME_BYTES]) -> Result<OwnedFd> {
    let mut session = Session {
        size: size_of_u32::<Session>(),
        fd: -1,
        name: *name,
    };
    call::<RETRIEVE_SESSION, _>(device, &mut session)?;
    own(session.fd)
}

/// Preserves `fd` in a session under `token`.
pub fn preserve_fd(session: BorrowedFd<'_>, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
    let mut descriptor = Descriptor {
        size: size_of_u32::<Descriptor>(),
        fd: fd.as_raw_fd(),
        token,
    };
    call::<PRESERVE_FD, _>(session, &mut descriptor)
}

/// Retrieves what was preserved under `token`.
pub fn retrieve_fd(session: BorrowedFd<'_>, token: u64) -> Result<OwnedFd> {
    let mut descriptor = Descriptor {
        size: size_of_u32::<Descriptor>(),
        fd: -1,
        token,
    };
    call::<RETRIEVE_FD, _>(session, &mut descriptor)?;
    own(descriptor.fd)
}

/// Finishes a retrieved session.
pub fn finish(session: BorrowedFd<'_>) -> Result<()> {
    call::<FINISH, _>(
        session,
        &mut Finish {
            size: size_of_u32::<Finish>(),
            reserved: 0,
        },
    )
}

/// Calls a session ioctl with one of the structures above.
fn call<const OPCODE: Opcode, T>(fd: BorrowedFd<'_>, argument: &mut T) -> Result<()> {
    // SAFETY: this module's functions pair each number with the header's structure for it, which is plain data.
    unsafe { ioctl::call::<OPCODE, T>(fd, argument) }.map(drop)
}

#[allow(clippy::cast_possible_truncation)] // the structures above
const fn size_of_u32<T>() -> u32 {
    size_of::<T>() as u32
}
