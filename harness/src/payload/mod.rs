//! Programs of the user's own in a guest: their initramfs, with the agent laid over it.
//!
//! | file | job |
//! | --- | --- |
//! | `pack.rs` | reads an archive, or packs a folder |

mod pack;

pub use pack::PackError;

use crate::initramfs::Archive;
use crate::plan::ObjectPlan;
use crate::scenario::{KexecBy, Payload};
use guest_agent::protocol::{AGENT_PATH, Program};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;
use vmm::memory::LOW_RAM_END;
use xxhash_rust::xxh3::xxh3_64;

/// The memory of the engine is a multiple of this, because kernels map the rest in pages of 2 MiB.
const DEVICE_GRAIN: u64 = 2 << 20;

/// A payload with everything resolved. Its serialised form holds the initramfs, so that no file is needed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadPlan {
    /// The user's initramfs.
    pub initramfs: Vec<u8>,
    /// The program of each generation; for an init only one, which is that of all.
    pub programs: Vec<Program>,
    /// Whether it is PID 1.
    pub is_init: bool,
    /// Who kexecs.
    pub kexec: KexecBy,
    /// Where the payload finds the next kernel.
    pub kernel_at: Option<String>,
    /// Texts that lines of the console must have.
    pub passed: Vec<String>,
    /// Texts that no line of the console may have.
    pub failed: Vec<String>,
    /// Whether the console has results in KTAP.
    pub ktap: bool,
}

impl PayloadPlan {
    /// Resolves the payload of the scenario `file`.
    pub fn new(payload: &Payload, file: &Path) -> Result<Self, PackError> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let initramfs = pack::read(&folder.join(payload.initramfs.get_ref()))?;
        Ok(Self::with(payload, initramfs))
    }

    /// The same with this initramfs.
    pub(crate) fn with(payload: &Payload, initramfs: Vec<u8>) -> Self {
        let initrd_at = payload.initrd_at.as_ref().map(|place| place.get_ref().clone());
        let commands = payload.run.iter().chain(&payload.init);
        let texts =
            |texts: &[toml::Spanned<String>]| texts.iter().map(|text| text.get_ref().clone()).collect();
        Self {
            initramfs,
            programs: commands
                .map(|command| Program {
                    words: command.get_ref().words(),
                    initrd_at: initrd_at.clone(),
                })
                .collect(),
            is_init: payload.init.is_some(),
            kexec: payload.kexec_by(),
            kernel_at: payload.kernel_at.as_ref().map(|place| place.get_ref().clone()),
            passed: texts(&payload.passed),
            failed: texts(&payload.failed),
            ktap: payload.ktap,
        }
    }

    /// XXH3 (64 bits) of the initramfs.
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.initramfs)
    }

    /// What the kernel needs on its command line, so that it starts the agent and not the payload's own /init.
    pub fn parameters() -> String {
        format!("rdinit={AGENT_PATH}")
    }

    /// The program of a generation.
    pub fn program(&self, generation: u32) -> Option<&Program> {
        let number = if self.is_init { 0 } else { generation as usize };
        self.programs.get(number)
    }

    /// Whether the payload itself kexecs out of a generation of a run with this many.
    pub fn kexecs_from(&self, generation: u32, kexecs: u32) -> bool {
        self.kexec == KexecBy::Payload && generation < kexecs
    }

    /// The initramfs with the agent and the next kernel laid over it.
    pub fn overlaid(&self, agent: &[u8], next_kernel: Option<&[u8]>) -> Vec<u8> {
        let place = match self.kexec {
            KexecBy::Baton => Some("/next/kernel"),
            KexecBy::Payload => self.kernel_at.as_deref(),
        };
        let mut archive = Archive::behind(self.initramfs.clone());
        archive.directory("dev");
        archive.console("dev/console");
        archive.program(AGENT_PATH, agent);
        if let (Some(place), Some(kernel)) = (place, next_kernel) {
            archive.plain_file(place, kernel);
        }
        archive.finish()
    }
}

/// The memory of the engine in a guest with this much RAM, for these objects: at the end of RAM below 4 GiB. `None` if
/// there are no objects that lie there.
pub fn device_memory(ram_bytes: u64, objects: &[ObjectPlan]) -> Option<Range<u64>> {
    let bytes: u64 = objects
        .iter()
        .filter(|object| object.is_device())
        .map(|object| object.bytes)
        .sum();
    let end = ram_bytes.min(LOW_RAM_END);
    let start = end.checked_sub(bytes)? / DEVICE_GRAIN * DEVICE_GRAIN;
    (bytes > 0).then_some(start..end)
}
