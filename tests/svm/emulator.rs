//! The emulated host: QEMU's TCG with SVM and nested paging, a Debian kernel, and the job in its initramfs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::archive;
use crate::job::Job;

/// All items take a few minutes on a quiet machine, and several times that on a busy one.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Memory of the host.
const MEMORY: &str = "3G";
/// `max` is all that TCG knows. Five-level page tables are left out: they are slower, and nobody needs them.
const PROCESSOR: &str = "max,+svm,la57=off";
/// The kernel's command line. QEMU does not intercept a guest's reads of CR4, so that the guest sees the host's:
/// without machine checks they are alike. Mitigations cost time and protect nobody here.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off mce=off";

/// A process that ends with this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the host and passes each line of the job's answers on, until it switches itself off.
/// A host with one processor runs guests with one vCPU faster, because QEMU's threads have to wait for each other.
pub fn run(host: &Path, processors: u32, job: &Job, each: &mut dyn FnMut(&str)) -> Result<(), String> {
    let begin = Instant::now();
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let [initramfs, console] = ["initramfs", "console"].map(|name| folder.path().join(name));
    let bytes = archive::build(&host.join("modules"), job)?;
    std::fs::write(&initramfs, &bytes).map_err(|error| error.to_string())?;
    let mut command = Command::new("nice");
    command.arg("-n5").arg(host.join("qemu"));
    command.args([
        "-accel",
        if processors == 1 {
            "tcg,thread=single"
        } else {
            "tcg,thread=multi"
        },
        "-cpu",
        PROCESSOR,
        "-smp",
        &processors.to_string(),
        "-m",
        MEMORY,
    ]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"]);
    command.arg(format!("file:{}", console.display()));
    command.args([
        "-chardev",
        "stdio,id=answers,signal=off",
        "-serial",
        "chardev:answers",
    ]);
    command
        .arg("-kernel")
        .arg(host.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs);
    command.args(["-append", COMMAND_LINE]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut qemu = Killed(command.spawn().map_err(|error| format!("qemu: {error}"))?);
    let stdout = qemu.0.stdout.take().ok_or("qemu: no standard output")?;
    println!(
        "a host with emulated SVM boots, with {processors} processors and {} MiB of initramfs",
        bytes.len() >> 20
    );
    let (lines, received) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    loop {
        match received.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) {
            Ok(line) => each(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!(
                    "the host is not done after {} s\n{}",
                    PATIENCE.as_secs(),
                    tail(&console)
                ));
            }
        }
    }
    let status = qemu.0.wait().map_err(|error| format!("qemu: {error}"))?;
    let text = tail(&console);
    if !status.success() {
        return Err(format!("qemu: {status}\n{text}"));
    }
    if !text.trim().is_empty() {
        println!("the host's console ends with\n{text}");
    }
    Ok(())
}

/// The last lines of the console.
fn tail(console: &Path) -> String {
    let bytes = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..]
        .iter()
        .map(|line| format!("    | {line}\n"))
        .collect()
}
