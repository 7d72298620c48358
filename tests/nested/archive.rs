//! The initramfs of the emulated host: a newc archive with all that the job needs, without a distribution.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc::{self, ModeFileType};

use crate::init::{HOME, JOB, MODULES, MODULES_FOLDER};
use crate::job::{Item, Job, What};

/// Files of a guest kernel that baton reads.
const KERNEL_FILES: [&str; 2] = ["bzImage", "System.map"];

/// Makes the archive. `modules` holds the kernel's modules.
pub fn build(modules: &Path, job: &Job) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp", "bin"] {
        archive.folders(Path::new(folder))?;
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    archive.program(&this, Path::new("init"))?;
    let mut moved = Job {
        baton: "/bin/baton".into(),
        slowdown: job.slowdown,
        patience: job.patience,
        items: Vec::new(),
    };
    archive.program(&job.baton, Path::new("bin/baton"))?;
    let agent = job
        .baton
        .ancestors()
        .find_map(|folder| {
            let built = folder.join("x86_64-unknown-linux-gnu/agent/guest-agent");
            built.is_file().then_some(built)
        })
        .ok_or("the agent was not found: run `make agent`")?;
    archive.copy(&agent, Path::new("bin/baton-agent"), 0o755)?;
    for item in &job.items {
        moved.items.push(archive.item(item)?);
    }
    for (module, _) in MODULES {
        let name = format!("{module}.ko");
        if !modules.join(&name).exists() {
            continue;
        }
        archive.copy(
            &modules.join(&name),
            &Path::new(MODULES_FOLDER).join(&name),
            0o644,
        )?;
    }
    let default = harness::kernel::DEFAULT_VERSION;
    let kernel = harness::kernel::kernel_directory(default)
        .filter(|directory| directory.join("bzImage").is_file())
        .ok_or_else(|| format!("guest kernel {default} is not built: run `make images`"))?;
    let name = kernel.file_name().unwrap_or_default();
    let folder = Path::new(HOME).join(".cache/baton/kernels").join(name);
    for file in KERNEL_FILES {
        archive.copy(&kernel.join(file), &folder.join(file), 0o644)?;
    }
    let text = serde_json::to_vec(&moved).map_err(|error| error.to_string())?;
    archive.file(Path::new(JOB), 0o644, &text)?;
    newc::trailer(archive.bytes).map_err(|error| error.to_string())
}

/// An archive that is being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    /// Files and folders in it.
    present: BTreeSet<PathBuf>,
}

impl Archive {
    /// The item with its program where the archive has it. Its payload is where it is on this machine.
    fn item(&mut self, item: &Item) -> Result<Item, String> {
        let mut item = item.clone();
        if let What::Scenario {
            payload: Some(folder),
            ..
        } = &item.what
        {
            self.tree(folder)?;
        }
        if let What::Tests { program, .. } = &mut item.what {
            let at = Path::new("bin").join(program.file_name().unwrap_or_default());
            // Items may be of one program.
            if !self.present.contains(&at) {
                self.program(program, &at)?;
            }
            // Tests look for scenarios where the source tree is.
            let scenarios = tests::scenarios();
            self.folders(scenarios.strip_prefix("/").unwrap_or(&scenarios))?;
            *program = Path::new("/").join(at);
        }
        Ok(item)
    }

    /// A program without its symbols, and the libraries that it is linked with.
    fn program(&mut self, program: &Path, at: &Path) -> Result<(), String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let stripped = folder.path().join("stripped");
        let mut strip = Command::new("strip");
        output(strip.arg("-o").arg(&stripped).arg(program))?;
        self.copy(&stripped, at, 0o755)?;
        // Each line names one: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", or the loader's path alone.
        let text = output(Command::new("ldd").arg(program))?;
        for library in text
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(Path::new)
        {
            self.copy(library, library.strip_prefix("/").unwrap_or(library), 0o755)?;
        }
        Ok(())
    }

    /// A folder of folders and regular files.
    fn tree(&mut self, folder: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        self.folders(folder.strip_prefix("/").unwrap_or(folder))?;
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if entry.file_type().map_err(failed)?.is_dir() {
                self.tree(&path)?;
            } else {
                let permissions = entry.metadata().map_err(failed)?.permissions().mode() & 0o777;
                self.copy(&path, path.strip_prefix("/").unwrap_or(&path), permissions)?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, at: &Path, permissions: u32) -> Result<(), String> {
        let bytes = std::fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
        self.file(at, permissions, &bytes)
    }

    fn file(&mut self, at: &Path, permissions: u32, bytes: &[u8]) -> Result<(), String> {
        if let Some(folder) = at.parent() {
            self.folders(folder)?;
        }
        self.put(at, permissions, ModeFileType::Regular, bytes)
    }

    /// A folder and those above it.
    fn folders(&mut self, folder: &Path) -> Result<(), String> {
        let above: Vec<&Path> = folder
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        above
            .into_iter()
            .rev()
            .try_for_each(|folder| self.put(folder, 0o755, ModeFileType::Directory, &[]))
    }

    /// What is there already stays.
    fn put(&mut self, at: &Path, permissions: u32, kind: ModeFileType, bytes: &[u8]) -> Result<(), String> {
        if !self.present.insert(at.to_owned()) {
            return Ok(());
        }
        let failed = |error: std::io::Error| format!("{}: {error}", at.display());
        let name = at
            .to_str()
            .ok_or_else(|| format!("{}: not UTF-8", at.display()))?;
        let size = u32::try_from(bytes.len()).map_err(|_| format!("{name}: larger than 4 GiB"))?;
        self.entries += 1;
        let entry = newc::Builder::new(name).ino(self.entries).mode(permissions);
        let mut writer = entry.set_mode_file_type(kind).write(&mut self.bytes, size);
        writer.write_all(bytes).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(())
    }
}

/// What a program prints. It must succeed.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
