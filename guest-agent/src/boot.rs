//! Sets up the root file system at start, and powers the machine off at the end.

use crate::{console, crew, files, luo, sys};
use alloc::format;
use alloc::string::String;
use guest_agent::command_line;
use guest_agent::notes;
use guest_agent::protocol::{Features, Reply, VERSION};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;

/// A file system to mount.
struct Mount {
    kind: &'static str,
    target: &'static str,
    /// A kernel may lack it.
    optional: bool,
}

const MOUNTS: [Mount; 4] = [
    Mount {
        kind: "proc",
        target: "/proc",
        optional: false,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        optional: false,
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        optional: false,
    },
    Mount {
        kind: "debugfs",
        target: "/sys/kernel/debug",
        optional: true,
    },
];

/// Mounts the file systems that the agent uses. A failed mount is reported on the console; later requests that need
/// it fail with the name of the missing file.
pub fn mount_all() {
    for Mount {
        kind,
        target,
        optional,
    } in MOUNTS
    {
        // The directory may exist already. If it cannot be made, the mount below reports why.
        let _ = rustix::fs::mkdir(target, Mode::from_raw_mode(0o755));
        match rustix::mount::mount(kind, target, kind, MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(_) if optional => {}
            Err(errno) => console::line(&format!(
                "baton agent: mount({target}): errno {}",
                errno.raw_os_error()
            )),
        }
    }
}

/// Undoes [`mount_all`], for a program that expects the root file system as the kernel leaves it. What cannot be unmounted
/// is not mounted.
pub fn unmount_all() {
    for Mount { target, .. } in MOUNTS.iter().rev() {
        let _ = rustix::mount::unmount(*target, UnmountFlags::DETACH);
    }
}

/// /proc/cmdline without its newline; empty if it cannot be read.
pub fn command_line() -> String {
    let mut text = files::read_text("/proc/cmdline").unwrap_or_default();
    text.truncate(text.trim_end().len());
    text
}

/// What the agent says first.
pub fn hello(command_line: String) -> Reply {
    // Without /proc nothing is known to be unknown.
    let environment = files::read_text("/proc/self/environ").unwrap_or_default();
    Reply::Hello {
        unknown_parameters: command_line::unknown(&command_line, &environment),
        protocol: VERSION,
        release: String::from_utf8_lossy(rustix::system::uname().release().to_bytes()).into_owned(),
        build_id: files::read("/sys/kernel/notes")
            .ok()
            .and_then(|bytes| notes::build_id(&bytes))
            .unwrap_or_default(),
        command_line,
        features: Features {
            liveupdate: files::exists(luo::DEVICE),
            kho_debugfs: files::exists("/sys/kernel/debug/kho"),
            kho_incoming: files::exists("/sys/kernel/debug/kho/in"),
        },
        processors: crew::processors().map_or(0, |all| u32::try_from(all.len()).unwrap_or(u32::MAX)),
    }
}

/// Powers the machine off. If that fails, PID 1 exits and the kernel panics, so the host does not wait for ever.
pub fn power_off() -> ! {
    if let Err(errno) = rustix::system::reboot(RebootCommand::PowerOff) {
        console::line(&format!(
            "baton agent: reboot(POWER_OFF): errno {}",
            errno.raw_os_error()
        ));
    }
    sys::exit(1)
}
