//! A host with emulated virtualisation hardware: an emulator, a Debian kernel in it, and the job in its initramfs.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::job::{Item, Job, What};
use crate::{archive, bochs, qemu};

/// A host that gives no answer for so long hangs: the worker ends an item after five minutes of the host's time.
const PATIENCE_SVM: Duration = Duration::from_secs(420);
/// Bochs takes many times longer for a second of the host's time, and for an item more of them.
const PATIENCE_VMX: Duration = Duration::from_secs(3 * 3600);

/// Tests that Bochs 2.7 gets wrong, the second one at times: a guest spins with interrupts disabled, and its host gets
/// no interrupt meanwhile.
const LEFT_OUT_ON_BOCHS: [&str; 3] = [
    "deaths::a_guest_that_spins_with_interrupts_disabled_makes_no_progress",
    "dma::the_engine_races_the_guest",
    "dma::what_is_due_is_written_before_the_engine_is_stopped",
];

/// The line by which the worker asks what to run next.
pub const NEXT: &str = "next";

/// What images/kvm-host fetched.
pub struct Host {
    folder: PathBuf,
    hardware: Hardware,
}

/// What is emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hardware {
    /// AMD's, by QEMU's TCG.
    Svm,
    /// Intel's, by Bochs.
    Vmx,
}

/// Starts an emulator: from what was fetched, with files of its own in a folder, with so many processors, and with this
/// initramfs.
type Start = fn(&Path, &Path, u32, &[u8]) -> Result<Emulator, String>;

/// An emulator that has been started.
pub struct Emulator {
    /// Its process.
    pub process: Killed,
    /// The kernel's console.
    pub console: PathBuf,
    /// What the worker sends, in lines: [`NEXT`] and answers.
    pub answers: File,
    /// Where it is told what to run next: a line with the item's place in the job, or an empty one.
    pub orders: File,
    /// Whether its exit status tells of a success.
    pub has_status: bool,
}

/// The command of an emulator: it gives way to what else this machine does, and ends with the thread that starts it, as
/// when the job is killed. Bochs takes no other signal for its end.
pub fn emulator(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nice", "-n5"]).arg(program);
    command
}

/// A process that ends with this value.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    /// The host in this folder.
    pub fn at(folder: &Path) -> Result<Self, String> {
        let hardware = if folder.join("qemu").is_file() {
            Hardware::Svm
        } else if folder.join("bochs").is_file() {
            Hardware::Vmx
        } else {
            return Err(format!(
                "{}: neither qemu nor bochs is there; `images/kvm-host` fetches them",
                folder.display()
            ));
        };
        Ok(Self {
            folder: folder.to_owned(),
            hardware,
        })
    }

    /// Where the job runs, in words.
    pub fn place(&self) -> &'static str {
        match self.hardware {
            Hardware::Svm => "on emulated SVM",
            Hardware::Vmx => "on emulated VMX",
        }
    }

    /// How much device time has to be slowed there; `None` if baton can measure it. Bochs takes each byte of a string
    /// instruction for an instruction, so that a device that copies much leaves a guest no time.
    pub fn slowdown(&self) -> Option<u32> {
        match self.hardware {
            Hardware::Svm => None,
            Hardware::Vmx => Some(10),
        }
    }

    /// How many times longer than on emulated SVM an item may take, by the host's clock.
    pub fn slower(&self) -> u32 {
        match self.hardware {
            Hardware::Svm => 1,
            Hardware::Vmx => 4,
        }
    }

    /// Whether the item is for it: Bochs emulates VMX with one processor. Says which tests are left out.
    pub fn runs(&self, item: &Item) -> bool {
        if self.hardware == Hardware::Svm {
            return true;
        }
        let only = match &item.what {
            What::Tests { only, .. } => only.as_deref(),
            _ => None,
        };
        let wrong = LEFT_OUT_ON_BOCHS.iter().find(|test| only == Some(**test));
        if let Some(test) = wrong {
            println!(
                "LEFT OUT on Bochs: {test}: its host gets no interrupt while a guest spins with its own disabled"
            );
        }
        wrong.is_none() && item.processors == 1
    }

    /// What the host boots from to run items of this job.
    pub fn initramfs(&self, job: &Job) -> Result<Vec<u8>, String> {
        archive::build(&self.folder.join("modules"), job)
    }

    /// Boots the host, has it run the items that `next` names by their places in the job that its initramfs was made
    /// for, and passes each answer on, until it switches itself off or hangs. A host with one processor runs guests with
    /// one vCPU faster, because an emulator's threads have to wait for each other.
    pub fn run(
        &self,
        processors: u32,
        initramfs: &[u8],
        next: &mut dyn FnMut() -> Option<usize>,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        println!(
            "a host with {} boots: processors for guests {processors}, initramfs {} MiB",
            self.place().trim_start_matches("on "),
            initramfs.len() >> 20
        );
        let (start, patience): (Start, Duration) = match self.hardware {
            Hardware::Svm => (qemu::start, PATIENCE_SVM),
            Hardware::Vmx => (bochs::start, PATIENCE_VMX),
        };
        let Emulator {
            mut process,
            console,
            answers,
            mut orders,
            has_status,
        } = start(&self.folder, folder.path(), processors, initramfs)?;
        let (lines, received) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(answers).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        loop {
            match received.recv_timeout(patience) {
                Ok(line) if line == NEXT => {
                    let place = next().map(|place| place.to_string()).unwrap_or_default();
                    // If nobody reads it, the emulator has ended, and its answers with it.
                    let _ = writeln!(orders, "{place}");
                }
                Ok(line) => each(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    println!(
                        "the host hangs: no answer for {} s\n{}",
                        patience.as_secs(),
                        tail(&console)
                    );
                    return Ok(());
                }
            }
        }
        let text = tail(&console);
        if has_status {
            let status = process.0.wait().map_err(|error| format!("emulator: {error}"))?;
            if !status.success() {
                return Err(format!("emulator: {status}\n{text}"));
            }
        }
        if !text.trim().is_empty() {
            println!("the host's console ends with\n{text}");
        }
        Ok(())
    }
}

/// The last lines of the console.
fn tail(console: &Path) -> String {
    let bytes = std::fs::read(console).unwrap_or_default();
    tests::tail(&String::from_utf8_lossy(&bytes), 20, "    | ")
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn an_emulator_ends_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt;
        let start = || {
            let child = emulator(Path::new("sleep")).arg("600").spawn().unwrap();
            // Until the program runs, nobody has asked for the signal.
            let name = format!("/proc/{}/comm", child.id());
            while std::fs::read_to_string(&name).unwrap().trim() != "sleep" {
                std::thread::yield_now();
            }
            child
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_host_is_known_by_its_emulator() {
        let folder = tempfile::tempdir().unwrap();
        let refused = Host::at(folder.path()).map(|_| ()).unwrap_err();
        assert!(refused.contains("neither qemu nor bochs"), "{refused}");
        std::fs::write(folder.path().join("bochs"), "").unwrap();
        let host = Host::at(folder.path()).unwrap();
        assert_eq!(host.place(), "on emulated VMX");
        let runs = |processors, what| {
            host.runs(&Item {
                name: "a".into(),
                processors,
                what,
            })
        };
        assert!(runs(1, What::Doctor) && !runs(2, What::Doctor));
        let test = |only: &str| What::Tests {
            program: "guests".into(),
            only: Some(only.into()),
        };
        assert!(runs(1, test("deaths::a_spinning_guest_makes_no_progress")));
        assert!(!runs(1, test(LEFT_OUT_ON_BOCHS[0])));
    }
}
