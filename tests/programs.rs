//! Programs of the host run in a guest on softcpu, and print what they print on the host.
//!
//! Each program is copied with the shared libraries that its loader asks for into an initramfs, whose /init is a shell
//! script. The kernel is baton's own; `baton boot` shows the console.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cpio::newc::{self, ModeFileType};
use tests::{built, program, ready, skipped};

/// A command, and the program that it needs.
struct Job {
    program: &'static str,
    command: &'static str,
}

const fn job(program: &'static str, command: &'static str) -> Job {
    Job { program, command }
}

/// The shell that executes all commands on both sides.
const SHELL: &str = "bash";

/// What is compared. All of it is deterministic, and what the commands print depends on nothing but the processor.
const JOBS: [Job; 16] = [
    job(
        "bash",
        "printf '%.20f %.18e %a\\n' 0.1 2.718281828459045235360287 3.5",
    ),
    job(
        "printf",
        "/usr/bin/printf '%.25Lf %.17g %La\\n' 1e10 -1234.5678 0.7",
    ),
    job("seq", "seq 0.1 0.15 1 && seq -f %.12f 1e3 333.25 2e3"),
    job(
        "od",
        "/usr/bin/printf '\\1\\2\\3\\4\\5\\6\\7\\210\\1\\100\\0\\0\\0\\0\\0\\0' | od -A n -t fL",
    ),
    job(
        "numfmt",
        "numfmt --to=iec --format=%.3f 123456789 1023 5000000000000000",
    ),
    job(
        "sort",
        "/usr/bin/printf '1e3\\n-7.25\\n999.5\\n1e-3\\ninf\\n' | sort -g",
    ),
    job(
        "mawk",
        "mawk 'BEGIN { printf \"%.15g %.15g %d\\n\", exp(1) * sin(2), atan2(1, -3) ^ 2.5, 2 ^ 31 / 7 }'",
    ),
    job(
        "gawk",
        "gawk 'BEGIN { printf \"%.15g %.15g\\n\", log(10), int(-3.7) }'",
    ),
    job("bc", "echo 'scale = 40; 4 * a(1); e(1); sqrt(2)' | bc -l"),
    job(
        "perl",
        "perl -e 'printf \"%.15g %s %s\\n\", sqrt(2) + cos(1), 7 % 3, join \",\", sort map { $_ * 1.5 } 1 .. 6'",
    ),
    job(
        "perl",
        "perl -e '$_ = \"a1b22\" x 3; s/(\\d+)/<$1>/g; print length, \" $_ \", unpack(\"H*\", pack \"d<\", 0.1), \"\\n\"'",
    ),
    job("openssl", "echo baton | openssl dgst -sha256"),
    job(
        "openssl",
        "echo baton | openssl enc -aes-256-cbc -K 00112233 -iv 44556677 2>/dev/null | od -A n -t x1",
    ),
    job("openssl", "openssl prime 1000000007 && openssl version -v"),
    job(
        "busybox",
        "busybox awk 'BEGIN { printf \"%.12g %s\\n\", 1e6 / 7, 2.5 * 3 }' && echo x | busybox md5sum",
    ),
    job("sha256sum", "echo baton | sha256sum"),
];

/// Where an initramfs of its own has the shell script.
const SCRIPT: &str = "commands";
const BEGIN: &str = "--- begin";
const END: &str = "--- end of commands";
/// What both sides are told of their surroundings.
const ENVIRONMENT: [(&str, &str); 3] = [("PATH", "/usr/bin:/bin"), ("LC_ALL", "C"), ("HOME", "/")];

#[test]
fn programs_print_in_a_guest_what_they_print_on_the_host() {
    const TEST: &str = "programs of the host";
    if !ready(TEST) {
        return;
    }
    let Some(shell) = find(SHELL) else {
        skipped(&format!("{TEST}: there is no {SHELL}"));
        return;
    };
    let mut files = Files::default();
    files.program(&shell);
    let mut jobs = Vec::new();
    for job in &JOBS {
        match find(job.program) {
            Some(path) => {
                files.program(&path);
                // What pipes need.
                ["printf", "od", "sort"]
                    .iter()
                    .filter_map(|name| find(name))
                    .for_each(|path| files.program(&path));
                jobs.push(job.command);
            }
            None => skipped(&format!(
                "{TEST}: {} is not there for {}",
                job.program, job.command
            )),
        }
    }
    assert!(jobs.len() > 5, "only {} commands can be compared", jobs.len());

    let expected: Vec<String> = jobs.iter().map(|command| on_host(&shell, command)).collect();
    let console = in_guest(&shell, &files.archive(&jobs));
    for (number, (command, expected)) in jobs.iter().zip(&expected).enumerate() {
        let found = answer(&console, number).unwrap_or_else(|| panic!("no answer to {command}:\n{console}"));
        assert_eq!(&found, expected, "{command}");
        assert!(!expected.trim().is_empty(), "{command} prints nothing");
    }
    assert!(console.contains(END), "{console}");
}

/// The path of a program.
fn find(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

/// What a command prints on the host.
fn on_host(shell: &Path, command: &str) -> String {
    let output = Command::new(shell)
        .args(["-c", command])
        .env_clear()
        .envs(ENVIRONMENT)
        .stdin(Stdio::null())
        .output()
        .expect("the shell starts");
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).expect("the commands print text")
}

/// Boots the archive and gives what the console showed.
fn in_guest(shell: &Path, archive: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(archive)
        .expect("a temporary file takes every write");
    let kernel = built("7.3.4").expect("the test is ready").join("bzImage");
    let output = Command::new(program())
        .args(["boot", "--backend", "soft", "--ram", "512 MiB", "--kernel"])
        .arg(kernel)
        .arg("--initramfs")
        .arg(file.path())
        // The shell is PID 1, and the script is its argument.
        .args([
            "--append",
            &format!("quiet rdinit={} -- /{SCRIPT}", shell.display()),
        ])
        .stdin(Stdio::null())
        .output()
        .expect("baton starts");
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    console + &String::from_utf8_lossy(&output.stderr)
}

/// What the guest printed between the lines around command `number`.
fn answer(console: &str, number: usize) -> Option<String> {
    let (_, rest) = console.split_once(&format!("{BEGIN} {number}\n"))?;
    let (text, _) = rest.split_once(&format!("--- end {number}\n"))?;
    Some(text.to_owned())
}

/// Files for an archive, by their paths.
#[derive(Default)]
struct Files(BTreeMap<PathBuf, Vec<u8>>);

impl Files {
    /// Adds a program and the libraries that it is linked with.
    fn program(&mut self, path: &Path) {
        if self.0.contains_key(path) {
            return;
        }
        self.add(path);
        // For a static program ldd fails and names none.
        let listed = Command::new("ldd").arg(path).output().expect("ldd starts");
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            // "libc.so.6 => /lib/... (0x...)", or the path of the loader alone.
            let place = line.split_once("=>").map_or(line, |(_, place)| place);
            let place = place.split_whitespace().next().unwrap_or_default();
            if place.starts_with('/') {
                self.add(Path::new(place));
            }
        }
    }

    fn add(&mut self, path: &Path) {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.0.insert(path.to_owned(), bytes);
    }

    /// A newc archive of the files, with a script that runs the commands.
    fn archive(&self, commands: &[&str]) -> Vec<u8> {
        let mut script = String::new();
        for (name, value) in ENVIRONMENT {
            let _ = writeln!(script, "export {name}={value}");
        }
        for (number, command) in commands.iter().enumerate() {
            let _ = writeln!(
                script,
                "echo '{BEGIN} {number}'\n{command}\necho '--- end {number}'"
            );
        }
        // When the shell ends, the kernel panics and resets the machine, which ends `baton boot`.
        let _ = writeln!(script, "echo '{END}'");

        let mut archive = Archive::default();
        for name in ["dev", "tmp"] {
            archive.directory(Path::new(name));
        }
        archive.device("dev/console", (5, 1));
        archive.device("dev/null", (1, 3));
        archive.device("dev/urandom", (1, 9));
        archive.file(Path::new(SCRIPT), script.as_bytes());
        for (path, bytes) in &self.0 {
            archive.file(path.strip_prefix("/").expect("paths are absolute"), bytes);
        }
        newc::trailer(archive.bytes).expect("a Vec takes every write")
    }
}

/// An archive that is being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: std::collections::BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || self.folders.contains(path) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.folders.insert(path.to_owned());
        let entry = newc::Builder::new(&path.to_string_lossy()).mode(0o755).nlink(2);
        self.put(entry.set_mode_file_type(ModeFileType::Directory), &[]);
    }

    fn device(&mut self, name: &str, (major, minor): (u32, u32)) {
        let entry = newc::Builder::new(name)
            .mode(0o666)
            .rdev_major(major)
            .rdev_minor(minor);
        self.put(entry.set_mode_file_type(ModeFileType::Char), &[]);
    }

    fn file(&mut self, path: &Path, bytes: &[u8]) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        let entry = newc::Builder::new(&path.to_string_lossy()).mode(0o755);
        self.put(entry.set_mode_file_type(ModeFileType::Regular), bytes);
    }

    fn put(&mut self, entry: newc::Builder, data: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(data.len()).expect("programs are far below 4 GiB");
        let mut writer = entry.ino(self.entries).write(&mut self.bytes, size);
        writer.write_all(data).expect("a Vec takes every write");
        writer.finish().expect("a Vec takes every write");
    }
}
