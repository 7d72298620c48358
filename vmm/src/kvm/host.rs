//! Opens /dev/kvm and checks that the host has the capabilities that the machine needs.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

const PATH: &str = "/dev/kvm";

/// The capabilities that the machine needs, with their names in KVM's documentation.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetGuestDebug, "KVM_CAP_SET_GUEST_DEBUG"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
];

/// Why this host's KVM cannot be used; the messages say what to do about it.
#[derive(Debug, Error)]
pub enum HostError {
    /// There is no device node.
    #[error(
        "this host has no /dev/kvm: load kvm_intel or kvm_amd (in a virtual machine, have nested virtualisation \
         enabled), or use --backend soft"
    )]
    Missing,
    /// The device node cannot be opened by this user.
    #[error(
        "/dev/kvm cannot be opened ({0}): add the user to the group that owns it (ls -l /dev/kvm), or \
         use --backend soft"
    )]
    Denied(std::io::Error),
    /// The device node could not be opened for another reason, or KVM_GET_API_VERSION failed.
    #[error("/dev/kvm does not answer ({0}): see the host's kernel log, or use --backend soft")]
    Silent(std::io::Error),
    /// The API version is not the stable one.
    #[error(
        "/dev/kvm speaks API version {found}, expected {KVM_API_VERSION}: the host's kernel is older than \
         2.6.22; use --backend soft"
    )]
    Version {
        /// The version that KVM_GET_API_VERSION returned.
        found: i32,
    },
    /// A capability is missing.
    #[error("KVM here lacks {name}, which the machine needs: use a newer host kernel, or --backend soft")]
    Capability {
        /// Its name in KVM's documentation.
        name: &'static str,
    },
}

/// Opens /dev/kvm and checks API version and capabilities.
pub fn open() -> Result<Kvm, HostError> {
    open_at(Path::new(PATH))
}

fn open_at(path: &Path) -> Result<Kvm, HostError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => HostError::Missing,
            ErrorKind::PermissionDenied => HostError::Denied(error),
            _ => HostError::Silent(error),
        })?;
    let silent = |error: kvm_ioctls::Error| HostError::Silent(error.into());
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| HostError::Missing)?;
    let kvm = Kvm::new_with_path(name).map_err(silent)?;
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(HostError::Version { found });
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(HostError::Capability { name }),
        None => Ok(kvm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_what_to_do() {
        let folder = std::env::temp_dir();
        let missing = open_at(&folder.join("no-such-node")).unwrap_err();
        assert!(missing.to_string().contains("no /dev/kvm"), "{missing}");
        // /dev/null opens, but answers no KVM call.
        let error = open_at(Path::new("/dev/null")).unwrap_err();
        assert!(
            matches!(error, HostError::Version { .. } | HostError::Silent(_)),
            "{error}"
        );
        let denied = HostError::Denied(ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("group"), "{denied}");
    }
}
