//! Failures: the call, its errno, and an explanation.

use alloc::string::String;
use core::fmt;
use guest_agent::protocol::Reply;
use rustix::io::Errno;

/// A call that failed or a request that the agent refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The call, with its argument if that matters.
    pub call: String,
    /// errno, or 0 when the agent itself refused.
    pub errno: i32,
    /// An explanation, or what the agent expected.
    pub detail: String,
}

impl Failure {
    /// A system call that failed.
    pub fn of(call: impl Into<String>, errno: Errno) -> Self {
        Self {
            call: call.into(),
            errno: errno.raw_os_error(),
            detail: String::new(),
        }
    }

    /// What the agent itself refuses.
    pub fn refused(call: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            call: call.into(),
            errno: 0,
            detail: detail.into(),
        }
    }

    /// Says more about the same failure.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if self.errno != 0 {
            write!(f, ": errno {}", self.errno)?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Self::Failed {
            call: failure.call,
            errno: failure.errno,
            detail: failure.detail,
        }
    }
}

/// Turns the error of a result into a [`Failure`] that names the call.
pub trait Named<T> {
    /// `call` is evaluated only on failure.
    fn named<S: Into<String>>(self, call: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T> Named<T> for rustix::io::Result<T> {
    fn named<S: Into<String>>(self, call: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|errno| Failure::of(call(), errno))
    }
}
