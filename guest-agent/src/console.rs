//! Prints lines on the console, for a person or a script.

use alloc::format;
use rustix::fs::{Mode, OFlags};

/// Prints one line.
///
/// The line goes through the kernel's log, at a level that `quiet` lets through. The log writes whole lines before it
/// returns, whereas a process's output to the terminal interleaves with the kernel's lines and is lost at power-off.
pub fn line(text: &str) {
    write_first(&[
        ("/dev/kmsg", format!("<2>{text}\n").as_bytes()),
        ("/dev/console", format!("{text}\n").as_bytes()),
    ]);
}

/// Writes to the first of these files that accepts it. If none does, the line is lost.
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
