//! Confines this process while guests run: Landlock keeps it from opening files and from making TCP connections.
//!
//! What is open already stays usable, so a run needs no right to read at all: kernels, initramfs and scenario are in
//! memory, and /dev/kvm is open. A bug in softcpu or in a device that a guest makes use of then reaches no file of the
//! host but those that the command is asked to write.
//!
//! A domain belongs to the thread that enters it and to all threads and processes that come from it, and lasts until
//! they end. A kernel without Landlock confines nothing, and an older one less: [`Confinement`] says which.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use thiserror::Error;

/// What is asked for: everything that this version of Landlock's interface can refuse (Linux 7.2). An older kernel
/// refuses as much of it as it knows.
const WANTED: ABI = ABI::V10;
/// Version of its interface from which on it refuses TCP connections (Linux 6.7).
pub const TCP_SINCE: u32 = 4;
/// Bytes of stack of a confined thread: as many as the main thread has.
const STACK_BYTES: usize = 8 << 20;

/// The only places that can be opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Folders in which files and folders can be read, written, made and removed.
    pub folders: Vec<PathBuf>,
    /// Files, there already, that can be read and overwritten, but neither removed nor replaced.
    pub files: Vec<PathBuf>,
    /// Files that can be read.
    pub readable: Vec<PathBuf>,
}

/// What Landlock does on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// It confines, as version `abi` of its interface can.
    Confines {
        /// The version, from 1 (Linux 5.13); see [`TCP_SINCE`].
        abi: u32,
    },
    /// The kernel has Landlock, and it was not switched on at boot.
    SwitchedOff,
    /// The kernel has no Landlock.
    Missing,
}

/// Why a process or thread cannot be confined although the kernel has Landlock.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// A place that is to be left open cannot be opened.
    #[error("{place}: cannot be left open while a guest runs")]
    Place {
        /// Which one.
        place: PathBuf,
        /// What the system says.
        source: PathFdError,
    },
    /// The kernel refused.
    #[error("Landlock refused to confine baton while a guest runs")]
    Refused(#[from] RulesetError),
    /// A thread could not be started.
    #[error("a confined thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// What [`confine`] does on this host, tried on a thread that ends then.
pub fn offered() -> Result<Confinement, ConfineError> {
    on_a_thread(|| confine(&Places::default()))?
}

impl From<LandlockStatus> for Confinement {
    fn from(status: LandlockStatus) -> Self {
        match status {
            LandlockStatus::Available { effective_abi, .. } => Self::Confines {
                abi: effective_abi as u32,
            },
            LandlockStatus::NotEnabled => Self::SwitchedOff,
            LandlockStatus::NotImplemented => Self::Missing,
        }
    }
}

/// Confines the calling thread, and all that it starts from now on, to opening `places`. If it is the only thread, that
/// is the whole process. It cannot be undone. This also sets no_new_privs.
///
/// Without Landlock it does nothing and returns why. After an error nothing has changed.
pub fn confine(places: &Places) -> Result<Confinement, ConfineError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?;
    for (all, rights) in [
        (&places.folders, in_folder()),
        (&places.files, to_file()),
        (&places.readable, AccessFs::ReadFile.into()),
    ] {
        for place in all {
            ruleset = ruleset.add_rule(PathBeneath::new(open(place)?, rights))?;
        }
    }
    Ok(ruleset.restrict_self()?.landlock.into())
}

/// Runs `work` on a thread that can open nothing, and returns its result. A panic of it goes on here.
pub fn in_confined_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ConfineError> {
    on_a_thread(|| confine(&Places::default()).map(|_| work()))?
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ConfineError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("guest".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(ConfineError::Thread)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn open(place: &Path) -> Result<PathFd, ConfineError> {
    PathFd::new(place).map_err(|source| ConfineError::Place {
        place: place.to_owned(),
        source,
    })
}

/// What evidence and snapshots need: files and folders of them, moved within the folder. Nothing is executed.
fn in_folder() -> BitFlags<AccessFs> {
    to_file()
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

fn to_file() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    /// Whether Landlock confines here from version `abi` on. If not, the test is named on standard error with the
    /// reason, and in CI it fails.
    fn confines_from(least: u32) -> bool {
        let found = offered().unwrap();
        let confines = matches!(found, Confinement::Confines { abi } if abi >= least);
        if !confines {
            use std::io::Write;
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            let elsewhere = std::env::var_os("BATON_KVM_TESTS_RUN_IN").is_some();
            assert!(
                std::env::var_os("CI").is_none() || elsewhere,
                "{name} needs Landlock {least} in CI, and here it is {found:?}"
            );
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {name}: Landlock {least} is needed: {found:?}"
            );
        }
        confines
    }

    /// Runs `work` on a thread that can open `places` alone.
    fn confined<T: Send + 'static>(places: Places, work: impl FnOnce() -> T + Send + 'static) -> T {
        let run = move || {
            confine(&places).unwrap();
            work()
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
    }

    #[test]
    fn nothing_but_the_places_can_be_opened() {
        if !confines_from(3) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["out", "other"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("report"), "old").unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::fs::write(at("program"), "program").unwrap();
        let places = Places {
            folders: vec![at("out")],
            files: vec![at("report")],
            readable: vec![at("program")],
        };
        let [out, report, secret, other, program] = ["out", "report", "secret", "other", "program"].map(at);
        confined(places, move || {
            // Everything that evidence does.
            std::fs::create_dir(out.join("new")).unwrap();
            std::fs::write(out.join("new/file"), "x").unwrap();
            std::fs::rename(out.join("new"), out.join("so-far")).unwrap();
            std::fs::hard_link(out.join("so-far/file"), out.join("again")).unwrap();
            assert_eq!(std::fs::read(out.join("again")).unwrap(), b"x");
            std::fs::remove_dir_all(out.join("so-far")).unwrap();
            std::fs::write(&report, "new").unwrap();
            assert_eq!(std::fs::read(&program).unwrap(), b"program");
            // And nothing else.
            assert!(denied(std::fs::write(&program, "x")));
            assert!(denied(std::fs::read(&secret)) && denied(std::fs::read("/etc/passwd")));
            assert!(denied(std::fs::write(&secret, "x")) && denied(std::fs::write(other.join("x"), "x")));
            assert!(denied(std::fs::remove_file(&report)) && denied(std::fs::read_dir("/")));
            assert!(
                denied(std::fs::rename(out.join("again"), other.join("again")))
                    || !other.join("again").exists()
            );
            assert!(denied(std::process::Command::new("/bin/true").status()));
            assert!(denied(std::os::unix::fs::symlink(
                "/etc/passwd",
                out.join("link")
            )));
            std::thread::spawn(|| assert!(denied(std::fs::read("/etc/passwd"))))
                .join()
                .unwrap();
        });
        assert_eq!(std::fs::read(at("report")).unwrap(), b"new");
        // This thread is not confined.
        assert_eq!(std::fs::read(at("secret")).unwrap(), b"secret");
        std::fs::read("/etc/passwd").unwrap();
    }

    #[test]
    fn no_tcp_connection_can_be_made() {
        if !confines_from(TCP_SINCE) {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        confined(Places::default(), move || {
            assert!(denied(TcpStream::connect(address)));
            assert!(denied(TcpListener::bind("127.0.0.1:0")));
        });
        TcpStream::connect(address).unwrap();
    }

    #[test]
    fn work_on_a_confined_thread_gives_its_result_and_its_panic() {
        let (answer, read) = in_confined_thread(|| (42, std::fs::read("/etc/passwd"))).unwrap();
        assert_eq!(answer, 42);
        assert_eq!(
            denied(read),
            matches!(offered().unwrap(), Confinement::Confines { .. })
        );
        let panic =
            std::panic::catch_unwind(|| in_confined_thread(|| panic!("on purpose")).unwrap()).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
    }

    #[test]
    fn a_place_that_is_not_there_is_named() {
        let places = Places {
            folders: vec!["/no/such/folder".into()],
            ..Places::default()
        };
        let error = confine(&places).unwrap_err();
        assert_eq!(error.to_string().split(':').next(), Some("/no/such/folder"));
        std::fs::read("/etc/passwd").unwrap_or_else(|error| {
            assert_ne!(error.kind(), ErrorKind::PermissionDenied, "nothing has changed");
            Vec::new()
        });
    }
}
