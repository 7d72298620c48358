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
        (UNKNOWN, "unknown-instruction", "d9 fe"),
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
}
