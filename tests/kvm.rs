//! Shipped scenarios have the same verdicts on this host's KVM as on softcpu.
//!
//! Two scenarios run here; `make test-kvm` runs them all. A run takes minutes if KVM emulates guest kernels.

use serde_json::Value;
use tests::{Finished, baton, ready, scenarios};

/// Whether `test` can run here. Says why it cannot, and fails instead in CI.
fn kvm_ready(test: &str) -> bool {
    if !ready(test) {
        return false;
    }
    let Err(error) = vmm_kvm() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test} needs KVM: {error}");
    eprintln!("SKIPPED {test}: {error}");
    false
}

fn vmm_kvm() -> Result<(), String> {
    match harness::backend::Found::look() {
        harness::backend::Found::None(error) => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn run(name: &str, backend: &str) -> Finished {
    let file = scenarios().join(format!("{name}.toml"));
    baton(["run", file.to_str().expect("a plain path"), "--backend", backend])
}

/// The results of the rules in a report, without how much each checked.
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

/// Runs the scenario on KVM, and asserts that its verdicts are those on softcpu.
fn same_verdicts(name: &str) -> Option<Finished> {
    if !kvm_ready(name) {
        return None;
    }
    let (soft, kvm) = (run(name, "soft"), run(name, "kvm"));
    assert_eq!(soft.status, 0, "{}", soft.text);
    assert_eq!(kvm.status, 0, "{}", kvm.text);
    assert_eq!(rules(&kvm), rules(&soft), "{}", kvm.text);
    assert_eq!(kvm.scenario()["backend"], "kvm");
    // With the symbols of the kernel built here, the exact instruction of the jump was seen.
    assert_eq!(
        kvm.scenario()["jumps_not_before_ns"],
        serde_json::json!([null]),
        "{}",
        kvm.text
    );
    Some(kvm)
}

#[test]
fn memfd_under_dma_is_intact_on_kvm() {
    let Some(run) = same_verdicts("memfd-under-dma") else {
        return;
    };
    let scenario = run.scenario();
    for phase in ["jump", "boot-new", "restore"] {
        assert!(
            scenario["device_writes"][phase].as_u64() > Some(0),
            "the device wrote during {phase}: {}",
            run.text
        );
    }
    for rule in scenario["rules"].as_array().expect("rules") {
        assert_eq!(rule["held"], true, "{rule}");
        assert!(rule["looked_at"].as_u64() > Some(0), "{rule}");
    }
    // KVM does not count instructions, and the report shows none.
    let phases = scenario["phases"].as_array().expect("phases");
    assert!(phases.iter().all(|phase| phase["instructions"].is_null()));
}

#[test]
fn unpreserved_target_is_found_on_kvm_with_page_and_phase() {
    let Some(run) = same_verdicts("unpreserved-target") else {
        return;
    };
    assert!(!run.findings("dma-only-to-preserved").is_empty(), "{}", run.text);
    let lost = run.findings("device-writes-landed");
    let by_page = |finding: &&&Value| finding["last_writer"]["who"] == "cpu-page";
    let named = lost
        .iter()
        .find(by_page)
        .expect("a page that the new kernel wrote");
    assert_eq!(named["last_writer"]["generation"], 1, "{named}");
    assert!(named["last_writer"]["phase"].is_string(), "{named}");
    assert!(
        lost.iter().all(|finding| finding["last_writer"]["who"] != "cpu"),
        "KVM tells no instruction: {lost:#?}"
    );
}
