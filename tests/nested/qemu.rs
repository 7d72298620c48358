//! Emulated SVM with nested paging: QEMU's TCG.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use crate::host::{Emulator, Killed, emulator};

/// Memory of the host.
const MEMORY: &str = "3G";
/// `max` is all that TCG knows. Five-level page tables are left out: they are slower, and nobody needs them.
const PROCESSOR: &str = "max,+svm,la57=off";
/// The kernel's command line. QEMU does not intercept a guest's reads of CR4, so that the guest sees the host's:
/// without machine checks they are alike. Mitigations cost time and protect nobody here.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off mce=off";

/// Starts a host from what is in `host`, with files of its own in `work`. One with several processors has one more, which
/// runs no vCPU: see [`crate::init`].
pub fn start(host: &Path, work: &Path, processors: u32, initramfs: &[u8]) -> Result<Emulator, String> {
    let [archive, console] = ["initramfs", "console"].map(|name| work.join(name));
    std::fs::write(&archive, initramfs).map_err(|error| error.to_string())?;
    let mut command = emulator(&host.join("qemu"));
    let (threads, all) = match processors {
        1 => ("tcg,thread=single", 1),
        several => ("tcg,thread=multi", several + 1),
    };
    command.args(["-accel", threads, "-cpu", PROCESSOR]);
    command.args(["-smp", &all.to_string(), "-m", MEMORY]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"]);
    command.arg(format!("file:{}", console.display()));
    command.args([
        "-chardev",
        "stdio,id=answers,signal=off",
        "-serial",
        "chardev:answers",
    ]);
    command.arg("-kernel").arg(host.join("vmlinuz"));
    command.arg("-initrd").arg(&archive);
    command.args(["-append", COMMAND_LINE]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().map_err(|error| format!("qemu: {error}"))?;
    let orders = process.stdin.take().ok_or("qemu: no standard input")?;
    let stdout = process.stdout.take().ok_or("qemu: no standard output")?;
    let answers = File::from(OwnedFd::from(stdout));
    Ok(Emulator {
        process: Killed(process),
        console,
        answers,
        orders: File::from(OwnedFd::from(orders)),
        has_status: true,
    })
}
