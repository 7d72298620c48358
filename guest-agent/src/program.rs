//! Programs that are not the agent's: it starts them, and waits for one or becomes one.

use crate::failure::{Failure, Named};
use crate::sys::program::start;
use crate::sys::{self, Strings};
use crate::{boot, files, kexec};
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use guest_agent::protocol::{Program, ProgramEnd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitOptions, getpid, waitpid};

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;

/// A program that can be started.
pub struct Ready {
    path: String,
    words: Strings,
    environment: Strings,
}

/// Puts what the program wants into place.
pub fn prepare(program: &Program) -> Result<Ready, Failure> {
    let path = program.words.first().cloned().unwrap_or_default();
    if let Some(place) = &program.initrd_at {
        copy_initrd(place)?;
    }
    let word = |word: &String| {
        let refused = |_| Failure::refused(format!("execve({path})"), "a word contains a NUL byte");
        CString::new(word.as_bytes()).map_err(refused)
    };
    let words: Vec<CString> = program.words.iter().map(word).collect::<Result<_, _>>()?;
    // What the kernel gave to PID 1.
    let environment = files::read("/proc/self/environ")?;
    let entries = environment
        .split(|byte| *byte == 0)
        .filter(|entry| !entry.is_empty());
    let environment = entries.filter_map(|entry| CString::new(entry).ok()).collect();
    Ok(Ready {
        path,
        words: Strings(words),
        environment: Strings(environment),
    })
}

impl Ready {
    /// Runs it in a process of its own until it ends. PID 1 also reaps all others that end meanwhile.
    pub fn run(&self) -> Result<ProgramEnd, Failure> {
        let name = |failure: Failure| Failure {
            call: format!("{}({})", failure.call, self.path),
            ..failure
        };
        let pid = start(&self.words, &self.environment).map_err(name)?;
        let awaited = Some(pid).filter(|_| !getpid().is_init());
        loop {
            let status = match waitpid(awaited, WaitOptions::empty()) {
                Ok(Some((ended, status))) if ended == pid => status,
                Ok(_) | Err(Errno::INTR) => continue,
                Err(errno) => return Err(Failure::of("wait4", errno)),
            };
            if let Some(signal) = status.terminating_signal() {
                return Ok(ProgramEnd::Signal(signal));
            }
            if let Some(status) = status.exit_status() {
                return Ok(ProgramEnd::Exit(status));
            }
        }
    }

    /// Executes it in the place of this process, with the file systems as the kernel left them; returns only if that
    /// failed.
    pub fn become_it(&self) -> Failure {
        boot::unmount_all();
        let errno = sys::execve(&self.words, &self.environment);
        boot::mount_all();
        Failure::of(format!("execve({})", self.path), errno)
    }
}

/// Copies the initramfs image of this kernel to `place`.
fn copy_initrd(place: &str) -> Result<(), Failure> {
    let from = kexec::open_initrd()?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let to =
        rustix::fs::open(place, create, Mode::from_raw_mode(0o644)).named(|| format!("open({place})"))?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = rustix::io::read(&from, &mut chunk[..]).named(|| "read(initrd)")?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..count];
        while !rest.is_empty() {
            let written = rustix::io::write(&to, rest).named(|| format!("write({place})"))?;
            rest = &rest[written..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(words: &[&str]) -> Program {
        Program {
            words: words.iter().map(|word| String::from(*word)).collect(),
            initrd_at: None,
        }
    }

    fn ended(words: &[&str]) -> Result<ProgramEnd, Failure> {
        prepare(&program(words))?.run()
    }

    #[test]
    fn how_a_program_ends_is_told() {
        assert_eq!(ended(&["/bin/sh", "-c", "exit 3"]), Ok(ProgramEnd::Exit(3)));
        assert_eq!(ended(&["/bin/sh", "-c", "kill -9 $$"]), Ok(ProgramEnd::Signal(9)));
        let missing = ended(&["/no/such/program"]).unwrap_err();
        assert_eq!(missing, Failure::of("execve(/no/such/program)", Errno::NOENT));
        assert!(ended(&["nul\0"]).unwrap_err().detail.contains("NUL"));
        assert_eq!(ended(&[]).unwrap_err().call, "execve()");
    }
}
