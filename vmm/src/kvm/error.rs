//! What a failed call to the host looks like.

use thiserror::Error;

use crate::vcpu::BackendError;

/// A call that the host's kernel refused, or a step of the backend that failed.
#[derive(Debug, Error)]
#[error("{call}: {reason}")]
pub struct KvmError {
    /// The ioctl's name in KVM's documentation, or the name of the system call or step.
    pub call: &'static str,
    /// The host's error message, or what was found.
    pub reason: String,
}

impl KvmError {
    /// Converts the error of the ioctl named `call`; for `map_err`.
    pub(super) fn ioctl(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::new(call, error)
    }

    /// `call` failed because of `reason`.
    pub(super) fn new(call: &'static str, reason: impl ToString) -> Self {
        Self {
            call,
            reason: reason.to_string(),
        }
    }
}

impl From<KvmError> for BackendError {
    fn from(error: KvmError) -> Self {
        Self {
            backend: "kvm",
            reason: error.to_string(),
        }
    }
}
