//! A shell on the console, for `baton boot` without an initramfs: enough to look around, to write to the kernel's
//! control files, and to end the machine in each way that there is. It starts no programs.

use crate::failure::{Failure, Named};
use crate::{boot, files, kexec, sys};
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use guest_agent::shell_line::{Command, Output, parse};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;
use rustix::thread::Timespec;

/// Longest line, in bytes; the terminal's line discipline takes 4095.
const MAX_LINE: usize = 4096;
/// Bytes that `cat` copies at a time.
const BLOCK: usize = 16 << 10;
const PROMPT: &str = "# ";
const CONSOLE: &str = "/dev/console";

/// What a command is given: its arguments.
type Run = fn(&[&str], &mut Sink<'_>) -> Result<(), Failure>;

/// A command that the shell knows.
struct Known {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: Run,
}

const fn known(name: &'static str, arguments: &'static str, about: &'static str, run: Run) -> Known {
    Known {
        name,
        arguments,
        about,
        run,
    }
}

const COMMANDS: [Known; 18] = [
    known("help", "", "list the commands", help),
    known(
        "echo",
        "WORD...",
        "print the words; > FILE and >> FILE redirect",
        echo,
    ),
    known("cat", "FILE...", "print files", cat),
    known("ls", "[DIRECTORY]", "list a directory", ls),
    known("cd", "DIRECTORY", "change the directory", cd),
    known("mkdir", "DIRECTORY", "make a directory", mkdir),
    known("rm", "FILE...", "remove files", rm),
    known(
        "mount",
        "[TYPE TARGET]",
        "mount a file system of the kernel, or list mounts",
        mount,
    ),
    known("umount", "TARGET", "unmount", umount),
    known("mem", "", "print /proc/meminfo", |_, sink| {
        cat(&["/proc/meminfo"], sink)
    }),
    known("cmdline", "", "print the kernel's command line", |_, sink| {
        cat(&["/proc/cmdline"], sink)
    }),
    known("uname", "", "print the kernel's release and version", uname),
    known("sleep", "SECONDS", "sleep", sleep),
    known("spin", "", "compute for ever", |_, _| {
        loop {
            core::hint::spin_loop();
        }
    }),
    known(
        "kexec",
        "[WORD...]",
        "jump to /next/kernel, with these words added to the command line",
        run_kexec,
    ),
    known("poweroff", "", "switch the machine off", |_, _| {
        reboot(RebootCommand::PowerOff)
    }),
    known("reboot", "", "reset the machine", |_, _| {
        reboot(RebootCommand::Restart)
    }),
    known("exit", "[STATUS]", "end PID 1, at which the kernel panics", exit),
];

/// Reads commands from the console and carries them out. Ends with the machine.
pub fn run() -> ! {
    let failure = match files::open(CONSOLE, OFlags::RDWR | OFlags::NOCTTY) {
        Ok(console) => converse(&console),
        Err(failure) => failure,
    };
    crate::console::line(&format!("baton shell: {failure}"));
    boot::power_off();
}

/// Does so until the console cannot be read.
fn converse(console: &OwnedFd) -> Failure {
    let mut screen = Sink::Console(console);
    let release = String::from_utf8_lossy(rustix::system::uname().release().to_bytes()).into_owned();
    // If nothing can be printed, nothing can be typed either, which the next line finds.
    let _ = screen.print(format!("baton shell on Linux {release}; help lists the commands\n").as_bytes());
    let mut lines = Lines::default();
    loop {
        let _ = screen.print(PROMPT.as_bytes());
        let line = match lines.next(console) {
            Ok(line) => line,
            Err(failure) => return failure,
        };
        if let Err(failure) = obey(&line, console) {
            let _ = screen.print(format!("{failure}\n").as_bytes());
        }
    }
}

/// Carries out the commands of a line. The first that fails ends it.
fn obey(line: &str, console: &OwnedFd) -> Result<(), Failure> {
    let commands = parse(line).map_err(|error| Failure::refused("line", format!("{error}")))?;
    for Command { words, output } in commands {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((name, arguments)) = words.split_first() else {
            continue;
        };
        let Some(known) = COMMANDS.iter().find(|known| known.name == *name) else {
            return Err(Failure::refused(*name, "no such command; help lists them"));
        };
        (known.run)(arguments, &mut Sink::open(output.as_ref(), console)?)?;
    }
    Ok(())
}

/// Where a command's output goes.
enum Sink<'a> {
    Console(&'a OwnedFd),
    File(OwnedFd, String),
}

impl<'a> Sink<'a> {
    fn open(output: Option<&Output>, console: &'a OwnedFd) -> Result<Self, Failure> {
        let Some(Output { path, append }) = output else {
            return Ok(Self::Console(console));
        };
        let how = if *append { OFlags::APPEND } else { OFlags::TRUNC };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | how;
        let file = rustix::fs::open(path.as_str(), flags, Mode::from_raw_mode(0o644));
        Ok(Self::File(file.named(|| format!("open({path})"))?, path.clone()))
    }

    /// Writes all of it, in as few calls as the kernel allows.
    fn print(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        let (file, path) = match self {
            Self::Console(console) => (*console, CONSOLE),
            Self::File(file, path) => (&*file, path.as_str()),
        };
        while !bytes.is_empty() {
            let written = rustix::io::write(file, bytes).named(|| format!("write({path})"))?;
            bytes = &bytes[written.min(bytes.len())..];
        }
        Ok(())
    }
}

/// Lines that are typed.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The next line, without its end. A line that is too long is cut.
    fn next(&mut self, console: &OwnedFd) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.0[..end]).into_owned();
                self.0.drain(..=end);
                return Ok(line);
            }
            if self.0.len() >= MAX_LINE {
                self.0.clear();
            }
            let mut block = [0; 256];
            match rustix::io::read(console, &mut block[..]) {
                // Ctrl-D on an empty line: there is no end of input on a console.
                Ok(0) => return Ok(String::new()),
                Ok(count) => self.0.extend(&block[..count]),
                Err(Errno::INTR) => {}
                Err(errno @ Errno::IO) => {
                    let failure = Failure::of("read(console)", errno);
                    return Err(failure
                        .with_detail("the kernel has no interrupt for the serial port; see CONFIG_PNP"));
                }
                Err(errno) => return Err(Failure::of("read(console)", errno)),
            }
        }
    }
}

fn help(_: &[&str], sink: &mut Sink<'_>) -> Result<(), Failure> {
    for Known {
        name,
        arguments,
        about,
        ..
    } in &COMMANDS
    {
        sink.print(format!("{:<28} {about}\n", format!("{name} {arguments}")).as_bytes())?;
    }
    Ok(())
}

fn echo(words: &[&str], sink: &mut Sink<'_>) -> Result<(), Failure> {
    sink.print(format!("{}\n", words.join(" ")).as_bytes())
}

fn cat(paths: &[&str], sink: &mut Sink<'_>) -> Result<(), Failure> {
    for path in paths {
        let file = files::open(path, OFlags::RDONLY)?;
        let mut block = alloc::vec![0; BLOCK];
        loop {
            let count = rustix::io::read(&file, &mut block[..]).named(|| format!("read({path})"))?;
            if count == 0 {
                break;
            }
            sink.print(&block[..count])?;
        }
    }
    Ok(())
}

fn ls(paths: &[&str], sink: &mut Sink<'_>) -> Result<(), Failure> {
    let path = paths.first().copied().unwrap_or(".");
    let directory = files::open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.named(|| format!("getdents({path})"))?;
        let name = String::from_utf8_lossy(entry.file_name().to_bytes()).into_owned();
        if name != "." && name != ".." {
            let slash = if entry.file_type() == FileType::Directory {
                "/"
            } else {
                ""
            };
            names.push(format!("{name}{slash}\n"));
        }
    }
    names.sort_unstable();
    sink.print(names.concat().as_bytes())
}

fn cd(words: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    let path = words.first().copied().unwrap_or("/");
    rustix::process::chdir(path).named(|| format!("chdir({path})"))
}

fn mkdir(words: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    let path = one(words, "mkdir", "DIRECTORY")?;
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).named(|| format!("mkdir({path})"))
}

fn rm(paths: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    for path in paths {
        rustix::fs::unlink(*path).named(|| format!("unlink({path})"))?;
    }
    Ok(())
}

fn mount(words: &[&str], sink: &mut Sink<'_>) -> Result<(), Failure> {
    match words {
        [] => cat(&["/proc/mounts"], sink),
        [kind, target] => rustix::mount::mount(*kind, *target, *kind, MountFlags::empty(), None)
            .named(|| format!("mount({kind}, {target})")),
        _ => Err(Failure::refused(
            "mount",
            "expected TYPE TARGET, such as tmpfs /tmp",
        )),
    }
}

fn umount(words: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    let target = one(words, "umount", "TARGET")?;
    rustix::mount::unmount(target, UnmountFlags::empty()).named(|| format!("umount({target})"))
}

fn uname(_: &[&str], sink: &mut Sink<'_>) -> Result<(), Failure> {
    let uname = rustix::system::uname();
    let [release, version] = [uname.release(), uname.version()].map(|text| text.to_string_lossy());
    sink.print(format!("Linux {release} {version}\n").as_bytes())
}

fn sleep(words: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    let seconds = one(words, "sleep", "SECONDS")?.parse::<u32>();
    let seconds = seconds.map_err(|_| Failure::refused("sleep", "expected whole seconds"))?;
    let time = Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    // Nothing sends PID 1 a signal that it has not asked for, so the sleep is not interrupted.
    let _ = rustix::thread::nanosleep(&time);
    Ok(())
}

fn run_kexec(words: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    let line = [&[boot::command_line().as_str()], words].concat().join(" ");
    kexec::load(&line)?;
    Err(kexec::jump())
}

fn reboot(how: RebootCommand) -> Result<(), Failure> {
    rustix::system::reboot(how).named(|| "reboot")
}

fn exit(words: &[&str], _: &mut Sink<'_>) -> Result<(), Failure> {
    let status = words.first().map_or(Ok(0), |word| word.parse());
    sys::exit(status.map_err(|_| Failure::refused("exit", "expected a number"))?)
}

/// The only argument of a command.
fn one<'a>(words: &[&'a str], command: &str, expected: &str) -> Result<&'a str, Failure> {
    match words {
        [word] if CString::new(*word).is_ok() => Ok(word),
        _ => Err(Failure::refused(command, format!("expected {expected}"))),
    }
}
