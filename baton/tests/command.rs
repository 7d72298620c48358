//! The `baton` command where no guest is started: usage, bad scenarios, bad kernels, bad evidence.

use std::path::Path;
use std::process::{Command, Output};

/// Runs baton with an agent that is never started.
fn baton(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.args(arguments).output().expect("baton starts")
}

/// Asserts the exit status and gives what was said on standard error.
fn complaint(output: &Output, status: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{said}");
    said
}

fn scenario(directory: &Path, text: &str) -> String {
    let path = directory.join("s.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn bad_usage_is_status_2() {
    complaint(&baton(&["run"]), 2);
    complaint(&baton(&["fly"]), 2);
    complaint(&baton(&["run", "s.toml", "--seed", "many"]), 2);
    complaint(&baton(&["run", "s.toml", "--slowdown", "0"]), 2);
}

#[test]
fn a_bad_scenario_is_one_line_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    for (text, place, word) in [
        ("name = \"s\"\nramm = \"1 GiB\"\n", ":2:1: ", "ramm"),
        ("name = \"s\"\nram = \"64 MEGS\"\n", ":2:7: ", "MEGS"),
        ("name = \"s\"\n[kernel]\nold = \"9.9.9\"\n", ":3:7: ", "9.9.9"),
        (
            "name = \"s\"\n[kernel]\nnew = \"no/such/bzImage\"\n",
            ":3:7: ",
            "no/such/bzImage",
        ),
    ] {
        let file = scenario(directory.path(), text);
        let said = complaint(&baton(&["run", &file]), 2);
        assert!(
            said.contains(&format!("{file}{place}")) && said.contains(word),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let said = complaint(&baton(&["run", "no/such/file.toml"]), 2);
    assert!(said.contains("no/such/file.toml"), "{said}");
}

#[test]
fn a_kernel_that_the_command_line_names_is_no_fault_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario(directory.path(), "name = \"s\"\n");
    for kernel in ["9.9.9", "9.no.such", "no/such/bzImage"] {
        let said = complaint(&baton(&["run", &file, "--kernel", kernel]), 2);
        assert!(said.contains(kernel) && !said.contains(&file), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_runs() {
    let directory = tempfile::tempdir().unwrap();
    // The kernel is never started.
    let kernel = directory.path().join("bzImage");
    std::fs::write(&kernel, harness::testing::bzimage(&[])).unwrap();
    let file = scenario(
        directory.path(),
        &format!("name = \"s\"\n[kernel]\nold = \"{}\"\n", kernel.display()),
    );
    let below = kernel.join("x").display().to_string();
    let snapshot = format!("armed={below}");
    for option in [
        ["--json", &below],
        ["--junit", &below],
        ["--ktap", &below],
        ["--html", &below],
        ["--out", &below],
        ["--snapshot", &snapshot],
    ] {
        let output = baton(&["run", &file, "--backend", "soft", option[0], option[1]]);
        let said = complaint(&output, 2);
        assert!(said.contains(&format!("{below}: cannot be written")), "{said}");
        assert_eq!((said.lines().count(), output.stdout.len()), (1, 0), "{said}");
    }
}

#[test]
fn json_on_standard_output_is_alone_there() {
    let directory = tempfile::tempdir().unwrap();
    let evidence = directory.path().join("evidence");
    harness::evidence::save(&harness::testing::good(), &evidence).unwrap();
    let output = baton(&["judge", &evidence.display().to_string(), "--json", "-"]);
    let said = complaint(&output, 0);
    assert!(said.contains("small: PASS"), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    assert_eq!(report["scenarios"][0]["verdict"], "pass");
}

#[test]
fn reports_of_several_kinds_are_written_and_one_of_them_to_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let evidence = directory.path().join("evidence");
    harness::evidence::save(&harness::testing::good(), &evidence).unwrap();
    let (evidence, junit) = (evidence.display().to_string(), directory.path().join("junit.xml"));
    let file = junit.display().to_string();
    let output = baton(&["judge", &evidence, "--ktap", "-", "--junit", &file]);
    let said = complaint(&output, 0);
    assert!(said.contains("small: PASS"), "{said}");
    let ktap = String::from_utf8(output.stdout).unwrap();
    assert!(
        ktap.starts_with("KTAP version 1\n1..1\n  KTAP version 1\n") && ktap.ends_with("\nok 1 small\n"),
        "{ktap}"
    );
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(junit.contains("<testsuite name=\"small\""), "{junit}");
    let output = baton(&["judge", &evidence, "--ktap", "-", "--json", "-"]);
    let said = complaint(&output, 2);
    assert!(said.contains("-: named for two reports"), "{said}");
}

#[test]
fn one_bad_scenario_keeps_the_others_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let bad = scenario(directory.path(), "name = 1\n");
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/memfd-under-dma.toml");
    let output = baton(&["run", &good.display().to_string(), &bad]);
    complaint(&output, 2);
    assert!(output.stdout.is_empty());
}

#[test]
fn a_kernel_that_is_none_is_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario(directory.path(), "name = \"s\"\n");
    let kernel = directory.path().join("bzImage");
    // All zeroes; cut in the header; a header that claims more than there is.
    let mut header = vec![0; 0x1000];
    header[0x1f1] = 4;
    header[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    header[0x202..0x206].copy_from_slice(b"HdrS");
    for bytes in [vec![0; 0x1000], header[..0x204].to_vec(), header] {
        std::fs::write(&kernel, bytes).unwrap();
        let said = complaint(
            &baton(&["run", &file, "--kernel", &kernel.display().to_string()]),
            2,
        );
        assert!(said.contains("bzImage"), "{said}");
    }
}

#[test]
fn a_backend_that_is_none_is_status_2() {
    let said = complaint(&baton(&["run", "s.toml", "--backend", "xen"]), 2);
    assert!(said.contains("xen") && said.contains("soft"), "{said}");
}

#[test]
fn the_doctor_says_what_kvm_is_and_what_auto_takes() {
    let said = String::from_utf8_lossy(&baton(&["doctor"]).stdout).into_owned();
    let soft = ["translates guest code to host code\n", "interprets guest code: "];
    let soft = soft.map(|how| said.contains(&format!("backend soft: available, {how}")));
    assert!(soft[0] != soft[1], "{said}");
    let kvm = said
        .lines()
        .find(|line| line.starts_with("backend kvm:"))
        .unwrap();
    let sound = kvm.contains("without workarounds");
    let taken = if sound { "using kvm" } else { "using soft" };
    assert!(kvm.ends_with(&format!("{taken} for --backend auto")), "{kvm}");
    let why = ["without workarounds", "needs", "not available"];
    assert!(why.iter().any(|word| kvm.contains(word)), "{kvm}");
}

#[test]
fn evidence_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let said = complaint(&baton(&["judge", &directory.path().display().to_string()]), 3);
    assert!(said.contains("no evidence"), "{said}");
    std::fs::write(directory.path().join("evidence.json"), "{}").unwrap();
    let said = complaint(&baton(&["judge", &directory.path().display().to_string()]), 3);
    assert!(said.contains("evidence.json"), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_baton"))
        .arg("doctor")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("baton starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("baton ends");
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
