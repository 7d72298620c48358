//! Broken kernels: each ends with a clear outcome. (Dying guests and hostile rings are scenario files of their own,
//! in `faults/`.)

use tests::image::{DEAD_HALT, SPIN, TRIPLE_FAULT, UNKNOWN, bzimage};
use tests::{Finished, ready, run_text, small};

/// Runs the small scenario with `image` as the first kernel.
fn with_image(image: &[u8], further: &str) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bzImage");
    std::fs::write(&file, image).unwrap();
    run_text(&small(further), &["--kernel", file.to_str().unwrap()])
}

fn cached_kernel() -> Vec<u8> {
    let doctor = std::process::Command::new(tests::program())
        .arg("doctor")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let folder = said
        .lines()
        .find_map(|line| line.strip_prefix("kernel 7.3.4: built, in "));
    let folder = folder.unwrap_or_else(|| panic!("baton doctor names no kernel 7.3.4:\n{said}"));
    let path = std::path::Path::new(folder).join("bzImage");
    std::fs::read(path).unwrap()
}

/// The outcome that a run's report names, and where.
fn outcome(run: &Finished) -> String {
    run.scenario()["outcome"]["kind"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_truncated_or_corrupt_bzimage_is_refused_with_a_reason() {
    if !ready("broken images") {
        return;
    }
    let whole = cached_kernel();
    for (what, image) in [
        ("empty", Vec::new()),
        ("half a boot sector", whole[..300].to_vec()),
        ("setup part alone", whole[..2048].to_vec()),
        ("first half", whole[..whole.len() / 2].to_vec()),
        ("no magic", {
            let mut image = whole.clone();
            image[0x202] = b'X';
            image
        }),
        ("init_size beyond RAM", {
            let mut image = whole.clone();
            image[0x260..0x264].copy_from_slice(&u32::MAX.to_le_bytes());
            image
        }),
    ] {
        let run = with_image(&image, "");
        assert!(
            matches!(run.status, 2 | 3),
            "{what}: status {}\n{}",
            run.status,
            run.text
        );
        assert!(
            run.text.contains("bzImage") || run.text.contains("kernel"),
            "{what}: {}",
            run.text
        );
        assert!(!run.text.contains("panicked"), "{what}: {}", run.text);
    }
}

#[test]
fn a_corrupt_payload_ends_in_a_word_of_the_decompressor_s_or_the_processor_s() {
    if !ready("corrupt payload") {
        return;
    }
    let mut image = cached_kernel();
    let middle = image.len() / 2;
    image[middle..middle + 4096].fill(0x5a);
    let run = with_image(&image, "[limits]\nprogress = \"100 ms\"\n");
    assert_ne!(run.status, 0, "{}", run.text);
    assert!(
        [
            "guest-hang",
            "triple-fault",
            "guest-panic",
            "unexpected-reset",
            "unknown-instruction"
        ]
        .contains(&outcome(&run).as_str()),
        "{}",
        run.text
    );
}

#[test]
fn a_triple_fault_a_spin_and_a_dead_halt_are_told_apart() {
    if !ready("tiny kernels") {
        return;
    }
    for (code, kind, word) in [
        (TRIPLE_FAULT, "triple-fault", "exceptions 6"),
        (SPIN, "guest-hang", "progress"),
        (DEAD_HALT, "guest-hang", "halt"),
        (UNKNOWN, "unknown-instruction", "f3 41 90"),
    ] {
        let run = with_image(&bzimage(code), "[limits]\nprogress = \"50 ms\"\n");
        assert_ne!(run.status, 0, "{}", run.text);
        assert_eq!(outcome(&run), kind, "{}", run.text);
        assert!(
            run.text.to_lowercase().contains(word),
            "{word} is not in:\n{}",
            run.text
        );
    }
}

#[test]
fn a_kernel_without_handover_says_so() {
    if !ready("no handover") {
        return;
    }
    let run = run_text(&small("[kernel]\nappend_old = \"kho=off\"\n"), &[]);
    assert_eq!(run.status, 3, "{}", run.text);
    assert_eq!(outcome(&run), "setup-failed", "{}", run.text);
    assert!(run.text.contains("/dev/liveupdate"), "{}", run.text);
    assert_eq!(
        run.scenario()["cause"],
        "kho=off is on the kernel's command line",
        "{}",
        run.text
    );
    // Only the outcome and what follows from it: no line for each rule.
    assert_eq!(
        run.scenario()["reasons"].as_array().map(Vec::len),
        Some(2),
        "{}",
        run.text
    );
}

#[test]
fn why_a_run_could_not_be_set_up_is_told() {
    if !ready("causes") {
        return;
    }
    for (append, cause) in [
        ("liveupdate=off", "liveupdate=off is on the kernel's command line"),
        (
            "kho_scratch=1M,1M,1M",
            "scratch is too small for this image (kho_scratch=1M,1M,1M)",
        ),
        (
            "pci=off",
            "pci=off is on the kernel's command line, so the agent cannot be reached",
        ),
    ] {
        let run = run_text(&small(&format!("[kernel]\nappend_old = \"{append}\"\n")), &[]);
        assert_eq!(
            (run.status, outcome(&run).as_str()),
            (3, "setup-failed"),
            "{}",
            run.text
        );
        assert_eq!(run.scenario()["cause"], cause, "{}", run.text);
    }
}

#[test]
fn a_new_kernel_that_dies_early_is_a_panic_with_its_cause() {
    if !ready("early death") {
        return;
    }
    let run = run_text(&small("[kernel]\nappend_new = \"mem=200M\"\n"), &[]);
    assert_eq!(
        (run.status, outcome(&run).as_str()),
        (1, "guest-panic"),
        "{}",
        run.text
    );
    let cause = run.scenario()["cause"].as_str().unwrap_or_default();
    assert!(
        cause.ends_with("above the memory that the new kernel was given (mem=200M)"),
        "{}",
        run.text
    );
    assert!(
        run.scenario()["last_lines"]
            .as_array()
            .is_some_and(|lines| !lines.is_empty())
    );
    // The first panic line is the end: nobody waits for a limit.
    let boot = run.scenario()["phases"].as_array().unwrap().last().unwrap()["guest_ns"].as_u64();
    assert!(boot < Some(200_000_000), "{boot:?} ns");
}

#[test]
fn a_kernel_that_hangs_before_it_runs_is_in_its_decompressor() {
    if !ready("decompressor") {
        return;
    }
    let run = with_image(&bzimage(SPIN), "[limits]\nboot = \"20 ms\"\n");
    assert_eq!(outcome(&run), "guest-hang", "{}", run.text);
    assert!(
        run.text.contains("still in the image's decompressor"),
        "{}",
        run.text
    );
    let run = with_image(
        &bzimage(SPIN),
        "[limits]\nprogress = \"1 ms\"\nboot = \"20 ms\"\n",
    );
    assert!(run.text.contains("no progress for 30.240 ms"), "{}", run.text);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bzImage");
    std::fs::write(&file, bzimage(SPIN)).unwrap();
    let given = run_text(
        &small(""),
        &["--kernel", file.to_str().unwrap(), "--progress", "3ms"],
    );
    assert!(given.text.contains("no progress for 25.240 ms"), "{}", given.text);
    assert!(
        given.text.contains("--progress '3 ms'"),
        "the command to run it again: {}",
        given.text
    );
}

#[test]
fn a_json_report_on_standard_output_is_alone_there() {
    if !ready("json on standard output") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.toml");
    std::fs::write(&file, small("")).unwrap();
    let output = std::process::Command::new(tests::program())
        .args(["run", file.to_str().unwrap(), "--backend", "soft", "--json", "-"])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(report["scenarios"][0]["verdict"], "pass");
    assert!(String::from_utf8_lossy(&output.stderr).contains("small: PASS"));
}

#[test]
fn work_in_large_portions_is_progress_and_a_spinning_guest_is_not() {
    if !ready("progress") {
        return;
    }
    // Filling takes several times the limit, one portion does not.
    let text = small("").replace("256 MiB", "512 MiB");
    let text =
        format!("{text}[run]\nworkload = \"200 MiB\"\n[limits]\nprogress = \"50 ms\"\nboot = \"2 s\"\n");
    let run = run_text(&text, &[]);
    assert_eq!(run.status, 0, "{}", run.text);
    let restore = run.scenario()["phases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|phase| phase["name"] == "restore");
    assert!(
        restore.unwrap()["guest_ns"].as_u64() > Some(100_000_000),
        "{}",
        run.text
    );
    let spins = run_text(
        &format!("{text}[fault]\nmisbehave = \"spin\"\ngeneration = 1\n"),
        &[],
    );
    assert_eq!(outcome(&spins), "guest-hang", "{}", spins.text);
}
