//! Programs of the user's own in a guest: upstream's tests of live update run as they are, beside a device that writes
//! throughout, and what goes wrong with them is told.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use tests::{Finished, baton, ready, skipped};

/// The folder of upstream's tests, built from the source of the default kernel. Says why there is none.
fn selftests(test: &str) -> Option<PathBuf> {
    if !ready(test) {
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/selftests");
    let output = Command::new(script)
        .arg("7.3.4")
        .stderr(Stdio::piped())
        .output()
        .expect("images/selftests starts");
    if output.status.success() {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return Some(folder.into());
    }
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} needs upstream's tests: {why}"
    );
    skipped(&format!("{test}: needs upstream's tests: {why}"));
    None
}

/// A scenario with one of upstream's tests as its initramfs.
struct Upstream {
    folder: PathBuf,
    /// What follows `initramfs` in `[payload]`, and further tables.
    text: String,
}

impl Upstream {
    /// Runs it with these further arguments.
    fn run(&self, arguments: &[&str]) -> Finished {
        let folder = tempfile::tempdir().unwrap();
        let scenario = folder.path().join("s.toml");
        let text = format!(
            "name = \"upstream\"\n[payload]\ninitramfs = \"{}\"\n{}",
            self.folder.display(),
            self.text
        );
        std::fs::write(&scenario, text).unwrap();
        baton(["run", scenario.to_str().unwrap()].iter().chain(arguments))
    }
}

const DMA: &str = "[dma]\nrate = \"100 MB/s\"\n";

/// The rules that judge a payload beside a device.
const RULES: [&str; 9] = [
    "preserved-content",
    "device-writes-landed",
    "no-cpu-write-before-retrieval",
    "dma-only-to-preserved",
    "blob-well-formed",
    "map-covers-preserved",
    "device-never-silent",
    "kernel-quiet",
    "payload-passed",
];

fn assert_passed(run: &Finished) {
    assert_eq!(run.status, 0, "{}", run.text);
    for rule in RULES {
        assert_eq!(run.rule(rule)["held"], true, "{rule}: {}", run.text);
    }
    let preserved = run.scenario()["preserved_pages"].as_u64();
    assert!(preserved.is_some_and(|pages| pages > 0), "{}", run.text);
    assert!(run.scenario()["blackout_ns"].as_u64().is_some(), "{}", run.text);
    for phase in ["jump", "boot-new"] {
        let writes = run.scenario()["device_writes"][phase].as_u64();
        assert!(writes.is_some_and(|writes| writes > 0), "{phase}: {}", run.text);
    }
}

#[test]
fn an_unmodified_program_goes_through_its_kexec_beside_a_device() {
    let Some(all) = selftests("a payload") else { return };
    let upstream = |text: &str| Upstream {
        folder: all.join("luo_kexec_simple"),
        text: format!("{text}passed = [\"SIMPLE KEXEC TEST PASSED\"]\n{DMA}"),
    };
    let told = upstream("run = [\"/test_binary -s 1\", \"/test_binary -s 2\"]\n").run(&[]);
    assert_passed(&told);
    assert_eq!(told.rule("payload-passed")["looked_at"], 3);
    // Upstream's own init, which kexecs by itself.
    let alone = upstream("init = \"/init\"\nkernel_at = \"/kernel\"\ninitrd_at = \"/initrd.img\"\n").run(&[]);
    assert_passed(&alone);
}

#[test]
fn a_program_that_fails_is_told_with_its_generation() {
    let Some(all) = selftests("a payload that fails") else {
        return;
    };
    let run = |text: &str| {
        let text = format!("{text}{DMA}");
        let folder = all.join("luo_kexec_simple");
        Upstream { folder, text }.run(&[])
    };
    let late = run(
        "run = [\"/test_binary -s 1\", \"/test_binary -s 1\"]\npassed = [\"SIMPLE KEXEC TEST PASSED\"]\n",
    );
    assert_eq!(late.status, 1, "{}", late.text);
    assert_eq!(late.scenario()["outcome"]["kind"], "completed", "{}", late.text);
    let findings = late.findings("payload-passed");
    assert_eq!(findings.len(), 2, "{}", late.text);
    let first = findings[0]["text"].as_str().unwrap();
    assert!(
        first.contains("of generation 1 ended with exit status 1"),
        "{first}"
    );
    for rule in RULES.iter().filter(|rule| **rule != "payload-passed") {
        assert_eq!(late.rule(rule)["held"], true, "{rule}: {}", late.text);
    }
    let early = run("run = [\"/test_binary -s 2\", \"/test_binary -s 2\"]\n");
    assert_eq!(early.status, 1, "{}", early.text);
    let outcome = &early.scenario()["outcome"];
    assert_eq!(
        (outcome["kind"].as_str(), outcome["generation"].as_u64()),
        (Some("payload-failed"), Some(0)),
        "{}",
        early.text
    );
    let missing = run("run = [\"/no/such\", \"/no/such\"]\n");
    assert_eq!(missing.status, 3, "{}", missing.text);
    assert!(missing.text.contains("execve(/no/such)"), "{}", missing.text);
}

#[test]
fn a_device_that_hits_what_a_payload_preserved_is_told() {
    let Some(all) = selftests("a device that hits a payload") else {
        return;
    };
    let text = "run = [\"/test_binary -s 1\", \"/test_binary -s 2\"]\n";
    let of = |dma: &str| Upstream {
        folder: all.join("luo_kexec_simple"),
        text: format!("{text}{DMA}{dma}"),
    };
    let kept = tempfile::tempdir().unwrap();
    let evidence = kept.path().join("evidence");
    let good = of("").run(&["--out", evidence.to_str().unwrap()]);
    assert_passed(&good);
    let evidence = harness::evidence::load(&evidence).unwrap();
    let preserved = evidence
        .objects
        .iter()
        .find(|object| object.name == "test-session/0x1a")
        .unwrap();
    let address = preserved.frames(0)[0] * harness::evidence::PAGE;
    let bad = of(&format!("wild_addresses = [{address:#x}]\n")).run(&[]);
    assert_eq!(bad.status, 1, "{}", bad.text);
    let findings = bad.findings("dma-only-to-preserved");
    let hit = findings
        .iter()
        .any(|finding| finding["owner"].as_str().unwrap().contains("test-session"));
    assert!(hit, "{}", bad.text);
    assert!(!bad.findings("payload-passed").is_empty(), "{}", bad.text);
}

#[test]
fn upstream_s_further_tests_pass_beside_a_device() {
    let Some(all) = selftests("upstream's further tests") else {
        return;
    };
    for (test, pages) in [
        ("luo_multi_session", 4),
        ("luo_stress_files", 501),
        ("luo_stress_sessions", 1),
    ] {
        let init = "init = \"/init\"\nkernel_at = \"/kernel\"\ninitrd_at = \"/initrd.img\"\n";
        let run = Upstream {
            folder: all.join(test),
            text: format!(
                "{init}passed = [\"KEXEC TEST PASSED\"]\n{DMA}[expect]\nsession-retrieved = \"holds\"\n"
            ),
        }
        .run(&["--vcpus", "2", "--ram", "1G"]);
        assert_passed(&run);
        assert_eq!(run.scenario()["preserved_pages"], pages, "{test}: {}", run.text);
        let note = run.rule("no-cpu-write-before-retrieval")["note"]
            .as_str()
            .unwrap();
        assert_eq!(note, "until each was retrieved", "{test}: {}", run.text);
    }
}

#[test]
fn results_in_ktap_become_test_cases() {
    let Some(all) = selftests("results in KTAP") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let ktap = folder.path().join("report.ktap");
    let run = Upstream {
        folder: all.join("liveupdate"),
        text: format!("run = [\"/liveupdate\", \"/liveupdate\"]\nktap = true\n{DMA}"),
    }
    .run(&["--ktap", ktap.to_str().unwrap()]);
    let tests = run.scenario()["payload"]["tests"].as_array().unwrap();
    assert!(tests.len() > 10, "{}", run.text);
    assert_eq!(run.rule("payload-passed")["held"], true, "{}", run.text);
    let report = std::fs::read_to_string(&ktap).unwrap();
    assert!(report.contains("ok 16 payload-passed/"), "{report}");
}

#[test]
fn upstream_s_test_of_kexec_handover_needs_no_initramfs_in_the_second_kernel() {
    let kernel = "7.3.4+testkho";
    let name = "upstream's test of Kexec HandOver";
    let (Some(_), Some(all)) = (tests::variant(name, kernel), selftests(name)) else {
        return;
    };
    let run = |passed: &str| {
        let init = format!("init = \"/init\"\nkernel_at = \"/kernel\"\npassed = [\"{passed}\"]\n");
        let kernel = format!("[kernel]\nold = \"{kernel}\"\nappend = \"loglevel=7\"\n");
        // Without an init the second kernel panics, as in upstream's own script.
        let rules = RULES.iter().map(|rule| format!("{rule} = \"holds\"\n"));
        let expect = format!(
            "[expect]\noutcome = \"guest-panic\"\n{}",
            rules.collect::<String>()
        );
        Upstream {
            folder: all.join("kho"),
            text: format!("{init}{DMA}{kernel}{expect}"),
        }
        .run(&[])
    };
    let good = run("KHO restore succeeded");
    assert_eq!(good.status, 0, "{}", good.text);
    let bad = run("KHO restore went wrong");
    assert_eq!(bad.status, 1, "{}", bad.text);
    assert_eq!(bad.findings("payload-passed").len(), 1, "{}", bad.text);
}
