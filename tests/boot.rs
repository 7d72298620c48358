//! `baton boot` and `baton qemu`: each end of a guest has an exit status and a sentence of its own, and names the
//! kernel that it was.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use tests::image::{DEAD_HALT, SPIN, TRIPLE_FAULT, UNKNOWN, bzimage};
use tests::{built, program, ready};

/// Host time after which a test gives up on a guest.
const PATIENCE: Duration = Duration::from_secs(300);

/// A finished `baton boot`.
struct Booted {
    status: i32,
    console: String,
    said: String,
    report: Value,
    folder: tempfile::TempDir,
}

impl Booted {
    fn end(&self) -> &str {
        self.report["end"]["kind"].as_str().unwrap_or_default()
    }

    fn all(&self) -> String {
        format!(
            "status {}\n{}\n{}\n{}",
            self.status, self.said, self.report, self.console
        )
    }
}

/// Boots with these arguments, on soft, with a file on standard input that holds `typed`.
fn boot(typed: &str, arguments: &[&str]) -> Booted {
    let folder = tempfile::tempdir().unwrap();
    let (json, keys) = (folder.path().join("boot.json"), folder.path().join("keys"));
    std::fs::write(&keys, typed).unwrap();
    let output = Command::new(program())
        .args(["boot", "--backend", "soft", "--json"])
        .arg(&json)
        .args(arguments)
        .stdin(File::open(&keys).unwrap())
        .output()
        .unwrap();
    let report = std::fs::read(&json).ok();
    Booted {
        status: output.status.code().unwrap_or(-1),
        console: text(&output.stdout),
        said: text(&output.stderr),
        report: report.map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap()),
        folder,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

#[test]
fn each_end_of_a_guest_has_a_status_of_its_own() {
    if !ready("ends of guests") {
        return;
    }
    let small = ["--ram", "256 MiB"];
    for (typed, further, status, end, said) in [
        ("poweroff\n", &[][..], 0, "power-off", "power off"),
        ("reboot\n", &[], 4, "reset", "reset"),
        ("exit 3\n", &[], 5, "panic", "Attempted to kill init"),
        // A kernel that neither resets nor prints after its panic.
        (
            "exit\n",
            &["--append", "panic=0"],
            5,
            "panic",
            "Attempted to kill init",
        ),
        ("", &["--progress", "2s"], 6, "hang", "nothing on the console"),
        (
            "sleep 1000\n",
            &["--progress", "2s"],
            6,
            "hang",
            "nothing on the console",
        ),
        (
            "sleep 1000\n",
            &["--timeout", "3s"],
            7,
            "timeout",
            "3000.000 ms of guest time",
        ),
        ("spin\n", &["--host-timeout", "5s"], 7, "timeout", "host time"),
    ] {
        let run = boot(typed, &[&small, further].concat());
        assert_eq!((run.status, run.end()), (status, end), "{typed:?}: {}", run.all());
        assert!(run.said.contains(said), "{typed:?}: {}", run.all());
        assert_eq!(run.report["end"]["exit_status"], status);
        assert_eq!(
            run.report["kernels"].as_array().map(Vec::len),
            Some(1),
            "{}",
            run.all()
        );
    }
}

#[test]
fn kernels_that_die_early_are_told_apart() {
    if !ready("tiny kernels") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (code, status, end, said) in [
        (TRIPLE_FAULT, 8, "triple-fault", "exceptions 6"),
        (SPIN, 6, "hang", "nothing on the console"),
        (DEAD_HALT, 6, "hang", "halted"),
        (UNKNOWN, 9, "unknown-instruction", "f3 41 90"),
    ] {
        let image = folder.path().join("bzImage");
        std::fs::write(&image, bzimage(code)).unwrap();
        let run = boot("", &["--kernel", image.to_str().unwrap(), "--progress", "100 ms"]);
        assert_eq!((run.status, run.end()), (status, end), "{}", run.all());
        assert!(run.said.contains(said), "{said}: {}", run.all());
    }
}

#[test]
fn what_cannot_be_started_is_bad_usage() {
    if !ready("bad usage of boot") {
        return;
    }
    for arguments in [
        &["--kernel", "/no/such/bzImage"][..],
        &["--initramfs", "/no/such/initramfs"],
        &["--vcpus", "9"],
        &["--timeout", "5"],
        &["--serial", "/no/such/folder/file"],
        &["--out", "/dev/null/x"],
    ] {
        let run = boot("", arguments);
        assert_eq!(run.status, 2, "{arguments:?}: {}", run.all());
        assert!(
            run.said.starts_with("baton: error:") || run.said.starts_with("error:"),
            "{}",
            run.said
        );
    }
}

#[test]
fn a_boot_is_a_function_of_what_it_is_given() {
    if !ready("equal boots") {
        return;
    }
    let typed = "ls /\nmem\npoweroff\n";
    let [first, again, other] =
        ["7", "7", "8"].map(|seed| boot(typed, &["--ram", "256 MiB", "--seed", seed, "--vcpus", "2"]));
    assert_eq!(first.status, 0, "{}", first.all());
    assert_eq!(first.report, again.report);
    assert_eq!(first.console, again.console);
    assert_ne!(
        first.report["state_hash"], other.report["state_hash"],
        "another seed"
    );
}

#[test]
fn the_shell_shows_and_changes_the_guest() {
    if !ready("the shell") {
        return;
    }
    let typed = "cat /proc/cpuinfo\nmkdir /d; echo 'a  b' >/d/f; echo c >> /d/f; cat /d/f; ls /d\n\
                 mount tmpfs /d; ls /d; umount /d; cat /d/f\nno-such\ncat /none\nuname; cmdline; help; poweroff\n";
    let out = tempfile::tempdir().unwrap();
    let serial = out.path().join("serial");
    let run = boot(
        typed,
        &[
            "--ram",
            "256 MiB",
            "--vcpus",
            "2",
            "--append",
            "loglevel=4",
            "--out",
            out.path().to_str().unwrap(),
            "--serial",
            serial.to_str().unwrap(),
        ],
    );
    assert_eq!(run.status, 0, "{}", run.all());
    for expected in [
        "baton shell on Linux 7.3.4",
        "processor\t: 1",
        // The terminal echoes what is typed meanwhile, before it.
        "a  b\nc\nf\n",
        "no-such: no such command",
        "open(/none): errno 2",
        "Linux 7.3.4 #1",
        "baton.shell loglevel=4\n",
        "switch the machine off",
    ] {
        assert!(
            run.console.contains(expected),
            "{expected:?} is not in:\n{}",
            run.console
        );
    }
    assert!(!run.console.contains("processor\t: 2"), "{}", run.console);
    let kept = text(&std::fs::read(out.path().join("console.txt")).unwrap());
    assert_eq!(kept, run.console);
    assert_eq!(text(&std::fs::read(&serial).unwrap()), run.console);
    let report: Value =
        serde_json::from_slice(&std::fs::read(out.path().join("boot.json")).unwrap()).unwrap();
    assert_eq!(report, run.report);
}

/// A guest that is typed to as its output comes.
struct Live {
    child: std::process::Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Live {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["boot", "--backend", "soft", "--ram", "256 MiB"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, output) = channel();
        let mut stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(count) = stdout.read(&mut block) {
                if count == 0 || sender.send(block[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            output,
            seen: String::new(),
        }
    }

    /// Waits until the console shows `text` beyond what was waited for before.
    fn wait_for(&mut self, text: &str) {
        loop {
            if let Some((_, rest)) = self.seen.split_once(text) {
                self.seen = rest.to_owned();
                return;
            }
            let more = self.output.recv_timeout(PATIENCE);
            let more = more.unwrap_or_else(|_| panic!("{text:?} did not come after:\n{}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&more));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Closes standard input and gives what baton said at the end.
    fn finish(mut self) -> Output {
        drop(self.child.stdin.take());
        self.child.wait_with_output().unwrap()
    }
}

#[test]
fn the_end_names_the_kernel_that_it_was() {
    if !ready("a kexec under boot") {
        return;
    }
    let next = built("7.2.12").map_or("7.3.4", |_| "7.2.12");
    for vcpus in ["1", "2"] {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("boot.json");
        let mut guest = Live::start(&[
            "--vcpus",
            vcpus,
            "--next-kernel",
            next,
            "--json",
            json.to_str().unwrap(),
        ]);
        guest.wait_for("baton shell on Linux 7.3.4");
        guest.wait_for("# ");
        guest.type_in("kexec baton.test\n");
        guest.wait_for(&format!("baton shell on Linux {next}"));
        guest.wait_for("# ");
        guest.type_in("cmdline; poweroff\n");
        guest.wait_for("baton.test");
        let output = guest.finish();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(
            said.contains("baton: generation 0 ended by kexec after "),
            "{said}"
        );
        assert!(said.contains("; generation 1: power-off: "), "{said}");
        let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(report["kernels"][1]["release"], next, "{report}");
        assert_eq!(report["kexecs_seen"], true);
    }
}

#[test]
fn a_panic_of_the_second_kernel_is_the_second_kernel_s() {
    if !ready("a panic after a kexec") {
        return;
    }
    let mut guest = Live::start(&[]);
    guest.wait_for("# ");
    guest.type_in("kexec\n");
    guest.wait_for("baton shell");
    guest.wait_for("# ");
    guest.type_in("exit\n");
    let output = guest.finish();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("; generation 1: panic: Kernel panic - not syncing: Attempted"),
        "{said}"
    );
}

#[test]
fn a_pipe_that_ends_ends_a_guest_that_waits() {
    if !ready("the end of a pipe") {
        return;
    }
    let mut guest = Live::start(&["--progress", "5s"]);
    guest.wait_for("# ");
    let output = guest.finish();
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
}

/// An initramfs whose /init is the agent.
fn initramfs(folder: &Path) -> PathBuf {
    let agent = harness::agent::load().expect("the agent is built");
    let path = folder.join("initramfs.cpio");
    std::fs::write(&path, harness::initramfs::build(&agent, None)).unwrap();
    path
}

#[test]
fn a_kexec_of_an_initramfs_of_one_s_own_is_seen() {
    if !ready("an initramfs of one's own") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let initramfs = initramfs(folder.path());
    let arguments = ["--initramfs", initramfs.to_str().unwrap(), "--append"];
    // Without a further kernel there is nothing to kexec into.
    let alone = boot(
        "kexec\npoweroff\n",
        &[&["--ram", "256 MiB"], &arguments[..], &["baton.shell"]].concat(),
    );
    assert!(
        alone.console.contains("open(/next/kernel): errno 2"),
        "{}",
        alone.all()
    );
    // The agent does both halves of a live update on its own.
    let both = boot(
        "",
        &[
            &["--ram", "256 MiB", "--next-kernel", "7.3.4"],
            &arguments[..],
            &["baton.standalone baton.memfd=4M"],
        ]
        .concat(),
    );
    assert_eq!((both.status, both.end()), (0, "power-off"), "{}", both.all());
    assert!(both.console.contains("ok, 1024 pages intact"), "{}", both.all());
    assert_eq!(
        both.report["kernels"].as_array().map(Vec::len),
        Some(2),
        "{}",
        both.all()
    );
    assert!(
        both.report["kernels"][1]["release"].is_null(),
        "the guest may have loaded another"
    );
    drop(both.folder);
}

/// Runs `baton qemu`, or a link to baton by that name.
fn qemu(called: bool, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = if called {
        let link = folder.path().join("qemu-system-x86_64");
        std::os::unix::fs::symlink(program(), &link).unwrap();
        Command::new(link)
    } else {
        let mut command = Command::new(program());
        command.arg("qemu");
        command
    };
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn upstream_s_command_line_of_qemu_boots_twice_and_writes_the_serial_port_to_a_file() {
    if !ready("options of QEMU") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let initramfs = folder.path().join("both.cpio");
    let kernel = built("7.3.4").expect("the test is ready").join("bzImage");
    let own = std::fs::read(self::initramfs(folder.path())).unwrap();
    let both = harness::initramfs::with_next_kernel(own, &std::fs::read(&kernel).unwrap());
    std::fs::write(&initramfs, both).unwrap();
    let serial = folder.path().join("serial");
    let file = format!("file:{}", serial.display());
    let (kernel, initramfs) = (kernel.to_str().unwrap(), initramfs.to_str().unwrap());
    let append = "console=ttyS0 retain_initrd liveupdate=on baton.standalone baton.memfd=4M kho=on panic=-1";
    // As run_qemu of tools/testing/selftests/kho/vmtest.sh (7.3) has it.
    let options = [
        "-m",
        "1G",
        "-smp",
        "2",
        "-no-reboot",
        "-nographic",
        "-nodefaults",
        "-accel",
        "kvm",
        "-accel",
        "hvf",
        "-accel",
        "tcg",
        "-serial",
        &file,
        "-append",
        append,
        "-kernel",
        kernel,
        "-initrd",
        initramfs,
    ];
    for called in [false, true] {
        let output = qemu(called, &options);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "the console is in the file alone");
        let serial = text(&std::fs::read(&serial).unwrap());
        assert!(serial.contains("ok, 1024 pages intact"), "{serial}");
    }
    // What is not understood starts nothing.
    std::fs::remove_file(&serial).unwrap();
    let refused = qemu(false, &[&options[..], &["-device", "e1000"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("option -device is not understood"),
        "{}",
        text(&refused.stderr)
    );
    assert!(!serial.exists());
}

#[test]
fn a_reset_under_qemu_s_options_boots_again_unless_it_ends_the_machine() {
    if !ready("resets under options of QEMU") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let initramfs = initramfs(folder.path());
    let kernel = built("7.3.4").expect("the test is ready").join("bzImage");
    let options = |append: &'static str| {
        let fixed = [
            "-nographic",
            "-m",
            "256",
            "-kernel",
            kernel.to_str().unwrap(),
            "-initrd",
        ];
        [&fixed[..], &[initramfs.to_str().unwrap(), "-append", append]].concat()
    };
    // Without an init the kernel panics, and resets.
    let panics = options("console=ttyS0 quiet panic=-1 rdinit=/none");
    let output = qemu(false, &[&panics[..], &["-no-reboot"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let console = text(&output.stdout);
    assert_eq!(
        console.matches("Kernel panic - not syncing").count(),
        1,
        "{console}"
    );
    let mut again = Command::new(program())
        .arg("qemu")
        .args(&panics)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = again.stdout.take().unwrap();
    let (mut seen, mut block) = (String::new(), [0; 4096]);
    while seen.matches("Kernel panic - not syncing").count() < 2 {
        let count = stdout.read(&mut block).unwrap();
        assert!(count > 0, "it ended after:\n{seen}");
        seen.push_str(&String::from_utf8_lossy(&block[..count]));
    }
    again.kill().unwrap();
    again.wait().unwrap();
}

#[test]
fn a_kernel_that_has_no_interrupt_for_the_serial_port_says_so() {
    if !ready("kernels without an interrupt for the serial port") {
        return;
    }
    for (append, read, status) in [
        ("pci=off", true, 0),
        ("pnpacpi=off", false, 0),
        ("noapic", false, 0),
        ("acpi=off", false, 6),
    ] {
        let run = boot(
            "uname; poweroff\n",
            &["--ram", "256 MiB", "--progress", "5s", "--append", append],
        );
        assert_eq!(run.status, status, "{append}: {}", run.all());
        assert_eq!(
            run.console.contains("Linux 7.3.4 #1"),
            read,
            "{append}: {}",
            run.all()
        );
        let told = run
            .console
            .contains("errno 5: the kernel has no interrupt for the serial port");
        assert_eq!(told, !read, "{append}: {}", run.all());
    }
}

#[test]
fn a_run_shows_its_console_if_asked() {
    if !ready("the console of a run") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("s.toml");
    std::fs::write(&scenario, tests::small("[kernel]\nappend = \"loglevel=7\"\n")).unwrap();
    let [shown, hidden] = [&["--console"][..], &[]].map(|further| {
        Command::new(program())
            .args(["run", "--backend", "soft"])
            .arg(&scenario)
            .args(further)
            .output()
            .unwrap()
    });
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    let [with, without] = [&shown, &hidden].map(|output| text(&output.stderr));
    let begins = "Kernel command line: ";
    assert_eq!(with.matches(begins).count(), 2, "both kernels:\n{with}");
    assert!(!without.contains(begins), "{without}");
    // Wall times differ.
    let hashes = [&shown, &hidden].map(|output| {
        let report = text(&output.stdout);
        let line = report.lines().find(|line| line.contains("state hash"));
        line.map(str::to_owned)
    });
    assert!(
        hashes[0].is_some() && hashes[0] == hashes[1],
        "the run does not change: {hashes:?}"
    );
}
