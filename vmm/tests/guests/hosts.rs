//! The backends of this host.

use std::io::Write;
use std::sync::OnceLock;

use iced_x86::code_asm::{al, byte_ptr, rax};

use super::code::{DATA, UPPER};
use super::guest::{Guest, to_the_end};
use vmm::kvm::{Kvm, Workarounds};
use vmm::processors::Backend;
use vmm::soft::{Soft, Translation};

/// This host's KVM, opened once, or why it cannot be used.
fn opened() -> Result<&'static Kvm, &'static str> {
    static OPENED: OnceLock<Result<Kvm, String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| Kvm::open().map_err(|error| error.to_string()));
    opened.as_ref().map_err(String::as_str)
}

/// This host's KVM; `None` if it cannot be used. The test is then named on standard error, which the test harness does
/// not capture here. In CI it fails instead, unless `BATON_KVM_TESTS_RUN_IN` names what runs it there.
pub fn kvm() -> Option<&'static Kvm> {
    let why = match opened() {
        Ok(kvm) => return Some(kvm),
        Err(why) => why,
    };
    let elsewhere = std::env::var("BATON_KVM_TESTS_RUN_IN")
        .ok()
        .filter(|name| !name.is_empty());
    assert!(
        std::env::var_os("CI").is_none() || elsewhere.is_some(),
        "this test needs KVM, and nothing may be skipped in CI: {why}"
    );
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let elsewhere = elsewhere.map_or_else(String::new, |place| format!("run in {place}; "));
    // If standard error cannot be written, nobody reads it.
    let _ = writeln!(std::io::stderr(), "SKIPPED on kvm: {name}: {elsewhere}{why}");
    None
}

/// Says on standard error that `what` is left out on a host such as this, and why.
fn left_out(host: &str, what: &str, why: &str) {
    // If standard error cannot be written, nobody reads it.
    let _ = writeln!(std::io::stderr(), "LEFT OUT on {host}: {what}: {why}");
}

/// Whether this word is in the kernel's description of this host's processors.
fn processors_are(word: &str) -> bool {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processors.contains(word)
}

/// Whether `what` is left out because this host is itself emulated by QEMU's TCG, which gets it wrong for the reason
/// `why` (as of QEMU 10.0). Then says so on standard error.
pub fn left_out_on_tcg(what: &str, why: &str) -> bool {
    let on_tcg = processors_are("QEMU TCG CPU");
    if on_tcg {
        left_out("TCG", what, why);
    }
    on_tcg
}

/// The same because this host's KVM uses VT-x.
pub fn left_out_on_vmx(what: &str, why: &str) -> bool {
    let on_vmx = processors_are(" vmx ");
    if on_vmx {
        left_out("VT-x", what, why);
    }
    on_vmx
}

/// Whether this host's KVM emulates guest kernels.
pub fn emulates() -> bool {
    opened().is_ok_and(|kvm| kvm.workarounds().emulated_kernel)
}

/// Every backend of this host; softcpu is the first.
pub fn backends() -> Vec<&'static dyn Backend> {
    const SOFT: Soft = Soft {
        translation: Translation::Hot,
    };
    let soft: &'static dyn Backend = &SOFT;
    let kvm = kvm().map(|kvm| -> &'static dyn Backend { kvm });
    [soft].into_iter().chain(kvm).collect()
}

/// Progress limit in guest nanoseconds for a guest that is not stuck. It is long on KVM, where time is real and the
/// host may be busy.
pub fn patience(backend: &dyn Backend) -> u64 {
    const ON_SOFT: u64 = 200_000_000;
    match opened().ok().filter(|_| backend.name() != Soft::NAME) {
        Some(kvm) => patience_with(kvm.workarounds()),
        None => ON_SOFT,
    }
}

/// The same on KVM with these workarounds: ten seconds of the host's time.
pub fn patience_with(workarounds: &Workarounds) -> u64 {
    10_000_000_000 / u64::from(workarounds.slowdown.max(1))
}

/// Whether this host's KVM may log a page as written that the guest only read. With VT-x or SVM, KVM maps a page
/// writable at the guest's first access to it, even a read, and then logs it. Pages accessed before are logged only if
/// they are written. A KVM that emulates kernel code reads for the guest and maps nothing. Measured with a guest that
/// reads a page written by the loader.
pub fn reads_may_count() -> bool {
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
