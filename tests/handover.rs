//! Kernels that boot with a handover that baton has made, without a first kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tests::{Finished, baton, built, program, ready, scenarios};

/// Rules about a device, in a scenario without one.
const NO_DEVICE: &str = "[expect]\ndevice-writes-landed = \"unjudged\"\ndma-only-to-preserved = \"unjudged\"\n\
                         device-never-silent = \"unjudged\"\n";
const MEMFD: &str = "[[memfd]]\nname = \"guest-ram\"\nsize = \"8 MiB\"\nsession = \"vm\"\ntoken = 1\n";

fn run(file: &Path, more: &[&str]) -> Finished {
    let file = file.display().to_string();
    baton(["run", &file].iter().chain(more))
}

fn written(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let file = folder.path().join(format!("{name}.toml"));
    fs::write(&file, format!("name = \"{name}\"\n{text}")).expect("it can be written");
    file
}

#[test]
fn a_built_handover_is_taken_over_while_a_device_writes() {
    if !ready("built handovers") {
        return;
    }
    let file = scenarios().join("handover/built.toml");
    let finished = run(&file, &[]);
    assert_eq!(finished.status, 0, "{}", finished.text);
    let scenario = finished.scenario();
    assert_eq!(scenario["handover"], "kho-v4 built from the scenario");
    let generations: Vec<&serde_json::Value> =
        scenario["kernels"].as_array().expect("kernels").iter().collect();
    assert_eq!(generations.len(), 1, "{generations:?}");
    assert_eq!(generations[0]["generation"], 1);
    assert!(scenario["device_writes"]["boot-new"].as_u64() > Some(100));
    assert_eq!(
        finished.rule("preserved-content")["held"],
        true,
        "{}",
        finished.text
    );
    // Again, and with more processors.
    let again = run(&file, &[]);
    assert_eq!(again.scenario()["state_hash"], scenario["state_hash"]);
    let folder = tempfile::tempdir().expect("a folder");
    let text = fs::read_to_string(&file).expect("the scenario");
    for vcpus in [2, 4] {
        let text = text.replace("handover-built", &format!("on-{vcpus}"));
        let text = text.replacen("\n[handover]", &format!("\nvcpus = {vcpus}\n[handover]"), 1);
        let file = folder.path().join(format!("{vcpus}.toml"));
        fs::write(&file, text).expect("it can be written");
        let finished = run(&file, &[]);
        assert_eq!(finished.status, 0, "{}", finished.text);
    }
}

#[test]
fn a_kernel_takes_the_version_that_is_its_own_and_refuses_others() {
    if !ready("versions of handovers") {
        return;
    }
    let refused = run(&scenarios().join("handover/refused.toml"), &[]);
    assert_eq!(refused.status, 0, "{}", refused.text);
    assert!(
        refused.text.contains("is incompatible with 'kho-v4'"),
        "{}",
        refused.text
    );
    let folder = tempfile::tempdir().expect("a folder");
    let own = [
        ("7.3.4", "kho-v4"),
        ("7.2.12", "kho-v4"),
        ("7.1.13", "kho-v3"),
        ("6.19.11", "kho-v1"),
    ];
    for (kernel, own) in own.into_iter().filter(|(kernel, _)| built(kernel).is_some()) {
        for abi in ["kho-v1", "kho-v2", "kho-v3", "kho-v4"] {
            let text = format!("[handover]\nabi = \"{abi}\"\n{MEMFD}{NO_DEVICE}");
            let file = written(&folder, &format!("built-{abi}"), &text);
            let finished = run(&file, &["--kernel", kernel]);
            let outcome = &finished.scenario()["outcome"]["kind"];
            let expected = if abi == own { "completed" } else { "session-lost" };
            assert_eq!(outcome, expected, "{kernel}, {abi}: {}", finished.text);
            assert_eq!(
                finished.status,
                i32::from(abi != own),
                "{kernel}, {abi}: {}",
                finished.text
            );
        }
    }
}

#[test]
fn what_damages_handed_memory_is_found() {
    if !ready("damage to handed memory") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let fault = "[[inject]]\nwhen.at = \"entry\"\n\
                 what.memory.flip = { at = { object = \"guest-ram\", page = 3 }, bit = 1 }\n";
    let text = format!("[handover]\nabi = \"kho-v4\"\n{MEMFD}{fault}{NO_DEVICE}");
    let finished = run(&written(&folder, "damaged", &text), &[]);
    assert_eq!(finished.status, 1, "{}", finished.text);
    let findings = finished.findings("preserved-content");
    assert!(!findings.is_empty(), "{}", finished.text);
    for finding in findings {
        assert_eq!(finding["explained_by"], serde_json::json!([0]), "{finding}");
        assert!(
            finding["owner"]
                .as_str()
                .is_some_and(|owner| owner.contains("guest-ram")),
            "{finding}"
        );
    }
    // A field of the blob, as the first kernel of a live update would have left it.
    let fault = "[[inject]]\nwhen.at = \"entry\"\nwhat.blob = { field = \"fdt/compatible\", set = \"text:kho-v9\" }\n";
    let text = format!("[handover]\nabi = \"kho-v4\"\n{MEMFD}{fault}{NO_DEVICE}");
    let finished = run(&written(&folder, "renamed", &text), &[]);
    assert_eq!(
        finished.scenario()["outcome"]["kind"],
        "session-lost",
        "{}",
        finished.text
    );
}

#[test]
fn a_handover_of_a_live_update_is_extracted_edited_and_handed_over_again() {
    if !ready("extracted handovers") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let live = run(
        &written(&folder, "live", &format!("{MEMFD}{NO_DEVICE}")),
        &["--out", &at("evidence")],
    );
    assert_eq!(live.status, 0, "{}", live.text);
    let extracted = Command::new(program())
        .args(["blob", "extract", &at("evidence"), "-o", &at("extracted")])
        .status();
    assert!(extracted.expect("baton starts").success());

    let text = format!("[handover]\nmodel = \"extracted\"\n{MEMFD}{NO_DEVICE}");
    let same = run(&written(&folder, "same", &text), &[]);
    assert_eq!(same.status, 0, "{}", same.text);
    assert_eq!(same.scenario()["handover"], "kho-v4 built from extracted");
    assert_eq!(
        same.scenario()["preserved_pages"],
        live.scenario()["preserved_pages"]
    );

    // Another token: the agent asks for what is not there.
    let model = folder.path().join("extracted/model.toml");
    let original = fs::read_to_string(&model).expect("the model");
    fs::write(&model, original.replace("token = 0x1", "token = 0x2")).expect("it can be written");
    let wrong = run(&written(&folder, "token", &text), &[]);
    assert_eq!(wrong.status, 2, "{}", wrong.text);
    let said =
        "token.toml:2:1: memfd \"guest-ram\": the handover has no file under token 1 of session \"vm\"";
    assert!(wrong.text.contains(said), "{}", wrong.text);

    // Its first page twice: the new kernel cannot put it into the file again.
    let first = original.find("    { address = ").expect("a folio");
    let line = original[first..]
        .lines()
        .next()
        .expect("a line")
        .replace("index = 0x0", "index = 0x1");
    let second = original[first..].lines().nth(1).expect("a second line");
    fs::write(&model, original.replace(second, &line)).expect("it can be written");
    let twice = run(&written(&folder, "twice", &text), &[]);
    assert_eq!(twice.status, 1, "{}", twice.text);
    assert_eq!(
        twice.scenario()["outcome"]["kind"],
        "session-lost",
        "{}",
        twice.text
    );
    assert!(!twice.findings("blob-well-formed").is_empty(), "{}", twice.text);
}

#[test]
fn a_kernel_with_a_handover_can_kexec_further() {
    if !ready("handovers in a chain") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!("kexecs = 2\n[handover]\nabi = \"kho-v4\"\n{MEMFD}[dma]\nrate = \"20 MB/s\"\n");
    let finished = run(&written(&folder, "chain", &text), &[]);
    assert_eq!(finished.status, 0, "{}", finished.text);
    let generations = finished.scenario()["kernels"].as_array().expect("kernels").len();
    assert_eq!(generations, 2);
}
