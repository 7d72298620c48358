//! This program as process 1 of the emulated host: mounts what programs expect, loads KVM, and runs the job.

use std::ffi::CStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::host::NEXT;
use crate::job::Job;
use crate::worker;

/// Kernel modules, in the order in which they are loaded, with their parameters. A host has one of the last two.
pub const MODULES: [(&str, &CStr); 4] = [
    ("irqbypass", c""),
    ("kvm", c""),
    ("kvm-amd", c"npt=1 nested=0"),
    ("kvm-intel", c"ept=1 nested=0"),
];
/// Folder of the modules.
pub const MODULES_FOLDER: &str = "mod";
/// The job, as JSON.
pub const JOB: &str = "job.json";
/// Home of guest kernels' cache.
pub const HOME: &str = "home";
/// Where answers go, and orders come from: the second serial port. The first one is the console.
const ANSWERS: &str = "/dev/ttyS1";
/// File systems: type and where.
const MOUNTS: [(&str, &str); 4] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
];

/// Whether this is process 1 of a host that was booted for a job.
pub fn is_wanted() -> bool {
    std::process::id() == 1 && Path::new("/").join(JOB).is_file()
}

/// Does everything and switches the machine off.
pub fn main() -> ! {
    if let Err(error) = run() {
        println!("init: {error}");
    }
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    panic!("the machine does not switch off: {error:?}");
}

fn run() -> Result<(), String> {
    for (kind, at) in MOUNTS {
        mount(kind, at, kind, MountFlags::empty(), None::<&CStr>)
            .map_err(|error| format!("mount {at}: {error}"))?;
    }
    for (name, value) in [("PATH", "/bin".into()), ("HOME", Path::new("/").join(HOME))] {
        // SAFETY: this process has no other thread yet.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(name, value);
        }
    }
    for (name, parameters) in MODULES {
        let path = Path::new("/").join(MODULES_FOLDER).join(format!("{name}.ko"));
        if !path.exists() {
            continue;
        }
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        finit_module(&file, parameters, 0).map_err(|error| format!("module {name}: {error}"))?;
    }
    spare_processor_0().map_err(|error| format!("affinity: {error}"))?;
    let text = std::fs::read(Path::new("/").join(JOB)).map_err(|error| format!("{JOB}: {error}"))?;
    let job: Job = serde_json::from_slice(&text).map_err(|error| format!("{JOB}: {error}"))?;
    let failed = |error: std::io::Error| format!("{ANSWERS}: {error}");
    let mut answers = raw(ANSWERS)?;
    let mut failure = None;
    let mut orders = BufReader::new(answers.try_clone().map_err(failed)?).lines();
    let mut asking = answers.try_clone().map_err(failed)?;
    let mut next = || {
        writeln!(asking, "{NEXT}").ok()?;
        orders.next()?.ok()?.parse().ok()
    };
    worker::run(&job, &mut next, &mut |answer| {
        let sent = serde_json::to_string(&answer)
            .map_err(std::io::Error::other)
            .and_then(|line| writeln!(answers, "{line}"));
        failure = failure.take().or(sent.err());
    });
    match failure {
        Some(error) => Err(failed(error)),
        None => Ok(()),
    }
}

/// Keeps this process and all that it starts off processor 0, where there are others: QEMU's XRSTOR, FXRSTOR and FLDENV
/// write flags of processor 0 on whichever processor they run (`cpu_clear_ignne` of QEMU 10.0), and not atomically. The
/// flag that turns nested paging on is one of them. If processor 0 changes it at that moment by VMRUN or #VMEXIT, the
/// change is lost, and the guest ends in a triple fault.
fn spare_processor_0() -> rustix::io::Result<()> {
    let mut processors = sched_getaffinity(None)?;
    if processors.count() < 2 {
        return Ok(());
    }
    processors.unset(0);
    sched_setaffinity(None, &processors)
}

/// A serial port that passes bytes as they are.
fn raw(path: &str) -> Result<File, String> {
    let failed = |error: std::io::Error| format!("{path}: {error}");
    let file = File::options()
        .write(true)
        .read(true)
        .open(path)
        .map_err(failed)?;
    let mut settings = tcgetattr(&file).map_err(|error| failed(error.into()))?;
    settings.make_raw();
    tcsetattr(&file, OptionalActions::Now, &settings).map_err(|error| failed(error.into()))?;
    Ok(file)
}
