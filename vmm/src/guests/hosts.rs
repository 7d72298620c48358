//! Which backends there are on this host.

use std::io::Write;
use std::sync::OnceLock;

use iced_x86::code_asm::{al, byte_ptr, rax};

use super::code::{DATA, UPPER};
use super::guest::{Guest, to_the_end};
use crate::kvm::Kvm;
use crate::processors::Backend;
use crate::soft::Soft;

/// KVM of this host, opened once, or why there is none.
fn opened() -> Result<&'static Kvm, &'static str> {
    static OPENED: OnceLock<Result<Kvm, String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| Kvm::open().map_err(|error| error.to_string()));
    opened.as_ref().map_err(String::as_str)
}

/// KVM of this host; `None` where there is none. A test that goes without it says so on standard error, past the test harness's
/// capture; in CI it fails.
pub(crate) fn kvm() -> Option<&'static Kvm> {
    let why = match opened() {
        Ok(kvm) => return Some(kvm),
        Err(why) => why,
    };
    assert!(
        std::env::var_os("CI").is_none(),
        "this test needs KVM, and nothing may be skipped in CI: {why}"
    );
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    // A standard error that takes nothing is nobody's to read.
    let _ = writeln!(std::io::stderr(), "SKIPPED on kvm: {name}: {why}");
    None
}

/// Whether KVM here emulates guest kernels.
pub(super) fn emulates() -> bool {
    opened().is_ok_and(|kvm| kvm.workarounds().emulated_kernel)
}

/// Every backend of this host, the software processor first.
pub(super) fn backends() -> Vec<&'static dyn Backend> {
    let soft: &'static dyn Backend = &Soft;
    let kvm = kvm().map(|kvm| -> &'static dyn Backend { kvm });
    [soft].into_iter().chain(kvm).collect()
}

/// Guest nanoseconds that a guest which is not stuck may take to show progress. On KVM time is real, and this host may be busy.
pub(super) fn patience(backend: &dyn Backend) -> u64 {
    const ON_SOFT: u64 = 200_000_000;
    const HOST_NS: u64 = 10_000_000_000;
    match opened().ok().filter(|_| backend.name() != Soft.name()) {
        Some(kvm) => HOST_NS / u64::from(kvm.workarounds().slowdown.max(1)),
        None => ON_SOFT,
    }
}

/// Whether KVM here may count a page as written that the guest only read. KVM maps a page of a slot with a dirty log writable when
/// it is first touched, by whatever access, if the host may write it, and counts it then. So on a host with VT-x or SVM what is
/// read for the first time may be in the log; what was touched before is there only if written. Where KVM emulates kernel code it
/// reads for the guest, and maps nothing. Measured with a guest that reads a page which the loader wrote.
pub(super) fn reads_may_count() -> bool {
    static MEASURED: OnceLock<bool> = OnceLock::new();
    let Ok(kvm) = opened() else { return false };
    *MEASURED.get_or_init(|| {
        let mut guest = Guest::new(|c| {
            c.mov(rax, UPPER + DATA)?;
            c.mov(al, byte_ptr(rax))?;
            c.power_off()
        });
        guest.memory.push((DATA, vec![1]));
        let run = guest.run_on(kvm, &to_the_end);
        run.evidence.pages.iter().any(|(_, pages)| !pages.is_empty())
    })
}
