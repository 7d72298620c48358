//! Sessions of the Live Update Orchestrator.

use crate::failure::{Failure, Named};
use crate::files;
use crate::sys::liveupdate::{self, NAME_BYTES};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_agent::protocol::Side;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;

/// The device; exists if the kernel has LUO and it is enabled.
pub const DEVICE: &str = "/dev/liveupdate";

/// The device and every session that is open. A new session may have the name of a retrieved one, so the two kinds
/// are kept apart, as in LUO itself.
#[derive(Default)]
pub struct Luo {
    /// Kept open: LUO allows one opener at a time.
    device: Option<OwnedFd>,
    /// Sessions created in this kernel.
    outgoing: Vec<(String, OwnedFd)>,
    /// Sessions retrieved from the kernel before.
    incoming: Vec<(String, OwnedFd)>,
}

impl Luo {
    /// Creates a session, to preserve file descriptors in.
    pub fn create_session(&mut self, name: &str) -> Result<(), Failure> {
        let field = name_field(name)?;
        let session = liveupdate::create_session(self.device()?, &field)
            .named(|| format!("ioctl(LIVEUPDATE_IOCTL_CREATE_SESSION, {name})"))?;
        self.outgoing.push((name.to_string(), session));
        Ok(())
    }

    /// Retrieves a session that the old kernel handed over.
    pub fn retrieve_session(&mut self, name: &str) -> Result<(), Failure> {
        let field = name_field(name)?;
        let session = liveupdate::retrieve_session(self.device()?, &field)
            .named(|| format!("ioctl(LIVEUPDATE_IOCTL_RETRIEVE_SESSION, {name})"))?;
        self.incoming.push((name.to_string(), session));
        Ok(())
    }

    /// Preserves `fd` in a session.
    pub fn preserve(&self, session: &str, side: Side, fd: BorrowedFd<'_>, token: u64) -> Result<(), Failure> {
        liveupdate::preserve_fd(self.lookup(session, side)?, fd, token)
            .named(|| format!("ioctl(LIVEUPDATE_SESSION_PRESERVE_FD, {session}, token {token})"))
    }

    /// Retrieves the file descriptor that the old kernel preserved under `token` in a session.
    pub fn retrieve_fd(&self, session: &str, side: Side, token: u64) -> Result<OwnedFd, Failure> {
        liveupdate::retrieve_fd(self.lookup(session, side)?, token)
            .named(|| format!("ioctl(LIVEUPDATE_SESSION_RETRIEVE_FD, {session}, token {token})"))
    }

    /// Finishes a session and closes it, which makes the kernel release what it held.
    pub fn finish_session(&mut self, session: &str, side: Side) -> Result<(), Failure> {
        liveupdate::finish(self.lookup(session, side)?)
            .named(|| format!("ioctl(LIVEUPDATE_SESSION_FINISH, {session})"))?;
        self.close_session(session, side)
    }

    /// Closes a session as it is.
    pub fn close_session(&mut self, session: &str, side: Side) -> Result<(), Failure> {
        self.lookup(session, side)?;
        self.sessions_mut(side).retain(|(name, _)| name != session);
        Ok(())
    }

    fn sessions_mut(&mut self, side: Side) -> &mut Vec<(String, OwnedFd)> {
        match side {
            Side::Outgoing => &mut self.outgoing,
            Side::Incoming => &mut self.incoming,
        }
    }

    /// The open session of that name.
    fn lookup(&self, name: &str, side: Side) -> Result<BorrowedFd<'_>, Failure> {
        let (sessions, how) = match side {
            Side::Outgoing => (&self.outgoing, "created"),
            Side::Incoming => (&self.incoming, "retrieved"),
        };
        let found = sessions.iter().find(|(open, _)| open == name);
        found
            .map(|(_, session)| session.as_fd())
            .ok_or_else(|| Failure::refused(format!("session {name}"), format!("not {how} by this agent")))
    }

    /// What makes sessions of one name, apart from those that are kept here.
    pub fn maker(&mut self, name: &str) -> Result<Maker, Failure> {
        let field = name_field(name)?;
        let device = rustix::io::dup(self.device()?).named(|| "dup(/dev/liveupdate)")?;
        let name = name.to_string();
        Ok(Maker { device, field, name })
    }

    /// The device, opened at the first use, because opening it makes LUO read what was handed over.
    fn device(&mut self) -> Result<BorrowedFd<'_>, Failure> {
        let device = match self.device.take() {
            Some(device) => device,
            None => files::open(DEVICE, OFlags::RDWR)?,
        };
        let device: &OwnedFd = self.device.insert(device);
        Ok(device.as_fd())
    }
}

/// Makes sessions that are closed at once.
pub struct Maker {
    device: OwnedFd,
    field: [u8; NAME_BYTES],
    name: String,
}

impl Maker {
    /// Makes one.
    pub fn create(&self) -> Result<OwnedFd, Failure> {
        liveupdate::create_session(self.device.as_fd(), &self.field)
            .named(|| format!("ioctl(LIVEUPDATE_IOCTL_CREATE_SESSION, {})", self.name))
    }

    /// Makes one, and preserves `fd` in it.
    pub fn preserve(&self, fd: BorrowedFd<'_>, token: u64) -> Result<(), Failure> {
        let session = self.create()?;
        liveupdate::preserve_fd(session.as_fd(), fd, token).named(|| {
            format!(
                "ioctl(LIVEUPDATE_SESSION_PRESERVE_FD, {}, token {token})",
                self.name
            )
        })
    }
}

/// The name as the ioctls want it.
fn name_field(name: &str) -> Result<[u8; NAME_BYTES], Failure> {
    let mut field = [0; NAME_BYTES];
    if name.is_empty() || name.len() >= NAME_BYTES || name.bytes().any(|byte| byte == 0) {
        let detail = format!("a session name is 1 to {} bytes without NUL", NAME_BYTES - 1);
        return Err(Failure::refused(format!("session name {name:?}"), detail));
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    Ok(field)
}
