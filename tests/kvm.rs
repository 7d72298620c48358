//! Shipped scenarios on this host's KVM: the verdicts of softcpu.
//!
//! Two scenarios run here; `make test-kvm` runs them all, and `make test-kvm-svm` runs them and more on emulated SVM.
//! Where KVM emulates guest kernels a run takes minutes.

use harness::backend::Found;
use serde_json::Value;
use tests::{Finished, KVM_TESTS_RUN_IN, baton, kvm_ready, on_kvm, ready, scenarios};

/// Why this host's KVM is not for these tests, if so: there is none, or it emulates guest kernels, so that a run takes
/// minutes, and something else runs them.
fn unusable() -> Option<String> {
    let elsewhere = std::env::var_os(KVM_TESTS_RUN_IN).is_some();
    match Found::look() {
        Found::None(error) => Some(error.to_string()),
        Found::Poor(_) if elsewhere => Some("KVM emulates guest kernels".into()),
        Found::Poor(_) | Found::Sound(_) => None,
    }
}

fn run(name: &str, backend: &str) -> Finished {
    let file = scenarios().join(format!("{name}.toml"));
    baton(["run", file.to_str().expect("a plain path"), "--backend", backend])
}

/// What a report says of each rule, without how much it looked at.
fn rules(run: &Finished) -> Vec<(String, bool)> {
    let rule = |rule: &Value| {
        (
            rule["name"].as_str().unwrap_or_default().to_owned(),
            rule["met"] == true,
        )
    };
    let all = run.scenario()["rules"].as_array();
    all.into_iter().flatten().map(rule).collect()
}

/// The scenario's run on KVM, which has the verdicts of softcpu.
fn same_verdicts(name: &str) {
    if !ready(name) || !kvm_ready(name, unusable()) {
        return;
    }
    let (soft, kvm) = (run(name, "soft"), run(name, "kvm"));
    assert_eq!(soft.status, 0, "{}", soft.text);
    assert_eq!(kvm.status, 0, "{}", kvm.text);
    assert_eq!(rules(&kvm), rules(&soft), "{}", kvm.text);
    assert_eq!(kvm.scenario()["backend"], "kvm");
    let wrong = on_kvm::wrong_with(kvm.scenario());
    assert!(wrong.is_empty(), "{wrong:?}\n{}", kvm.text);
}

#[test]
fn memfd_under_dma_is_intact_on_kvm() {
    same_verdicts("memfd-under-dma");
}

#[test]
fn unpreserved_target_is_found_on_kvm_with_page_and_phase() {
    same_verdicts("unpreserved-target");
}
