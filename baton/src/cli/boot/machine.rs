//! The machine of a boot without a scenario: what it is given, read from files.

use harness::conductor::chain;
use harness::kernel::KernelImage;
use harness::plan::{COMMAND_LINE, command_line};
use std::path::PathBuf;
use vmm::devices::dma::DmaConfig;
use vmm::machine::{Machine, MachineConfig};
use vmm::processors::Backend;

/// Largest initramfs that is read, in bytes.
const MAX_INITRAMFS: u64 = 4 << 30;

/// What is asked for.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Guest {
    /// The kernel: a version or the path of a bzImage.
    pub kernel: String,
    /// The kernel that the guest finds at /next/kernel. For the shell it is the same kernel again by default.
    pub next_kernel: Option<String>,
    /// The initramfs, if it is a file.
    pub initramfs: Option<PathBuf>,
    /// Whether the agent's shell is /init. If not, and there is no file either, there is no initramfs.
    pub shell: bool,
    /// The kernel's command line, without what the backend needs.
    pub command_line: String,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// Seed of every random choice.
    pub seed: u64,
}

/// The command line of `baton boot`: as in a run, for a shell if there is no initramfs, and what the user adds.
pub(in crate::cli) fn usual_command_line(shell: bool, append: &str) -> String {
    let shell = if shell {
        guest_agent::command_line::SHELL
    } else {
        ""
    };
    command_line(&[COMMAND_LINE, shell, append])
}

/// What was read.
#[derive(Debug)]
pub(in crate::cli) struct Booted {
    /// The kernel.
    pub kernel: KernelImage,
    /// The kernel at /next/kernel, if there is one.
    pub next_kernel: Option<KernelImage>,
    config: MachineConfig,
}

impl Booted {
    /// Reads the files. The error is one sentence.
    pub fn read(guest: &Guest) -> Result<Self, String> {
        let resolve = |name: &String| KernelImage::resolve(name).map_err(|error| error.to_string());
        let kernel = resolve(&guest.kernel)?;
        let mut next_kernel = guest.next_kernel.as_ref().map(resolve).transpose()?;
        let initramfs = if guest.shell {
            let agent = harness::agent::load().map_err(|error| error.to_string())?;
            let next = next_kernel.get_or_insert_with(|| kernel.clone());
            harness::initramfs::build(&agent, Some(&next.image))
        } else {
            let read = |path: &PathBuf| {
                read_initramfs(path).map_err(|error| format!("initramfs {}: {error}", path.display()))
            };
            let own = guest
                .initramfs
                .as_ref()
                .map(read)
                .transpose()?
                .unwrap_or_default();
            match &next_kernel {
                Some(next) => harness::initramfs::with_next_kernel(own, &next.image),
                None => own,
            }
        };
        let config = MachineConfig {
            ram_bytes: guest.ram_bytes,
            kernel: kernel.image.as_ref().clone(),
            initramfs,
            command_line: guest.command_line.clone(),
            seed: guest.seed,
            dma: DmaConfig::default(),
            progress_limit_ns: u64::MAX,
            vcpus: guest.vcpus,
            ledger_entries: vmm::ledger::DEFAULT_CAPACITY,
            injections: Vec::new(),
            handover: None,
            device_memory: None,
        };
        Ok(Self {
            kernel,
            next_kernel,
            config,
        })
    }

    /// The machine, ready to run.
    pub fn power_on(&self, backend: &dyn Backend) -> Result<Machine, String> {
        let config = MachineConfig {
            // In front, because `--` in it begins the arguments of init.
            command_line: command_line(&[backend.command_line(), &self.config.command_line]),
            ..self.config.clone()
        };
        Machine::new(&config, backend).map_err(|error| chain(&error))
    }
}

fn read_initramfs(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_INITRAMFS {
        let text = format!("{size} bytes, expected at most {MAX_INITRAMFS}");
        return Err(std::io::Error::other(text));
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stands_before_the_arguments_of_init() {
        assert_eq!(
            command_line(&["nokvmclock", "quiet -- /x"]),
            "nokvmclock quiet -- /x"
        );
        assert_eq!(command_line(&["", "quiet"]), "quiet");
        let line = usual_command_line(true, " rdinit=/x -- y ");
        assert!(line.ends_with(" baton.shell rdinit=/x -- y"), "{line}");
        assert!(!usual_command_line(false, "").contains("shell"));
    }
}
