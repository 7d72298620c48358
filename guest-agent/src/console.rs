//! Lines for a human or a script that watches the console.

use alloc::format;
use rustix::fs::{Mode, OFlags};

/// Prints one line.
///
/// It goes through the kernel's log, which writes whole lines at once and before it returns, at a level that `quiet` lets
/// through: what a process writes to the terminal interleaves with the kernel's lines and is lost at power-off.
pub fn line(text: &str) {
    write_first(&[
        ("/dev/kmsg", format!("<2>{text}\n").as_bytes()),
        ("/dev/console", format!("{text}\n").as_bytes()),
    ]);
}

/// Writes to the first of these files that takes it; if none does there is nobody to tell.
pub fn write_first(ways: &[(&str, &[u8])]) {
    for (path, text) in ways {
        let file = rustix::fs::open(
            *path,
            OFlags::WRONLY | OFlags::APPEND | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        if file.is_ok_and(|file| rustix::io::write(&file, text).is_ok()) {
            return;
        }
    }
}
