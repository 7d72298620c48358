//! Scenario files: what a run does, and the expected result. `docs/scenarios.md` describes every key.
//!
//! The types here mirror the file; defaults stand where a field is declared. The module `check` does the checks that
//! serde cannot (relations between keys). [`load()`] turns any failure into one message with file, line and column.

mod check;
mod criteria;
mod expect;
mod handover;
pub mod inject;
mod load;
mod own;
mod payload;
mod steps;
mod units;

pub(crate) use check::dma_memfd;
pub use criteria::{Criteria, WriterKind};
pub use expect::{Expect, Expected};
pub use inject::Inject;
pub use load::{ScenarioError, load, parse, wrong_at};
pub(crate) use own::{MAX_REGIONS, REGION_NAME_BYTES};
pub use own::{ReserveMem, TestKho};
pub use payload::{Command, KexecBy, Payload};
pub use steps::{Deed, Errno, Given, Step};
pub use units::{Bytes, Rate, Span, Workload};

use crate::evidence::MemfdEnd;
use guest_agent::protocol::{Misbehaviour, Provocation};
use kho_core::Abi;
use serde::Deserialize;
use toml::Spanned;
use vmm::devices::dma::BusMaster;

/// A scenario file, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name, in kebab case; the report's `name`.
    pub name: Spanned<String>,
    /// One sentence on what it shows.
    #[serde(default)]
    pub description: String,
    /// Seed of every random choice; `--seed` overrides it.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Guest RAM.
    #[serde(default = "defaults::ram")]
    pub ram: Spanned<Bytes>,
    /// Virtual processors.
    #[serde(default = "defaults::vcpus")]
    pub vcpus: Spanned<u32>,
    /// How many times the guest kexecs.
    #[serde(default = "defaults::kexecs")]
    pub kexecs: Spanned<u32>,
    /// The kernels and their command lines.
    #[serde(default)]
    pub kernel: Kernels,
    /// What the first kernel that runs is handed over, as if it were the second.
    pub handover: Option<Spanned<Handover>>,
    /// Programs of the user's own, instead of objects of the agent's.
    pub payload: Option<Spanned<Payload>>,
    /// Memory that the agent preserves.
    #[serde(default)]
    pub memfd: Vec<Memfd>,
    /// Memory that the kernel reserves by name and preserves by itself.
    #[serde(default)]
    pub reserve_mem: Vec<ReserveMem>,
    /// The kernel's own test of Kexec HandOver.
    pub test_kho: Option<Spanned<TestKho>>,
    /// The DMA engine, which stays off without this table.
    pub dma: Option<Spanned<Dma>>,
    /// How much guest time passes where.
    #[serde(default)]
    pub run: RunTimes,
    /// What the agents do, step by step, instead of the usual life cycle.
    #[serde(default)]
    pub step: Vec<Step>,
    /// Misbehaviour of the guest, for tests of the harness itself.
    pub fault: Option<Spanned<Fault>>,
    /// Faults on purpose.
    #[serde(default)]
    pub inject: Vec<Inject>,
    /// Limits at which a run is ended.
    #[serde(default)]
    pub limits: Limits,
    /// What must come of it.
    #[serde(default)]
    pub expect: Expect,
}

impl Scenario {
    /// The same with another machine, checked as a file is. The error says what is wrong with it.
    pub(crate) fn with_machine(&self, ram: Option<Bytes>, vcpus: Option<u32>) -> Result<Self, String> {
        let mut scenario = self.clone();
        if let Some(ram) = ram {
            scenario.ram = Spanned::new(scenario.ram.span(), ram);
        }
        if let Some(vcpus) = vcpus {
            scenario.vcpus = Spanned::new(scenario.vcpus.span(), vcpus);
        }
        check::check(&scenario).map_err(|problem| problem.message)?;
        Ok(scenario)
    }

    /// Whether the DMA engine interrupts, and the agent receives it.
    pub fn has_interrupts(&self) -> bool {
        self.dma.as_ref().is_some_and(|dma| dma.get_ref().interrupts)
    }
}

/// The kernels, and additions to their command lines.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernels {
    /// First kernel: a version of images/kernels.toml or the path of a bzImage. Default:
    /// [`crate::kernel::DEFAULT_VERSION`].
    pub old: Option<Spanned<String>>,
    /// Every later kernel. Default: the same as `old`.
    pub new: Option<Spanned<String>>,
    /// Added to every generation's command line.
    #[serde(default)]
    pub append: String,
    /// Added to the first kernel's command line.
    #[serde(default)]
    pub append_old: String,
    /// Added to every later kernel's command line.
    #[serde(default)]
    pub append_new: String,
}

/// A handover that the host makes. There is no first kernel then: generation 1 is booted with it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// Version of the records. Default: the model's.
    pub abi: Option<Spanned<Abi>>,
    /// A model file, or a directory that `baton blob extract` made. A relative path is relative to the scenario file.
    /// Without it the scenario's memfds are handed over.
    pub model: Option<Spanned<String>>,
    /// Size of the scratch area, if the model names none.
    #[serde(default = "defaults::scratch")]
    pub scratch: Spanned<Bytes>,
}

/// A memfd that the agent fills with the pattern and preserves.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memfd {
    /// Name in reports.
    pub name: Spanned<String>,
    /// Size, a multiple of 4 KiB.
    pub size: Spanned<Bytes>,
    /// LUO session that it is preserved in.
    #[serde(default = "defaults::session")]
    pub session: String,
    /// LUO token, unique in its session.
    pub token: Spanned<u64>,
    /// Number of kexecs after which the agent closes it; default: all.
    pub hops: Option<Spanned<u32>>,
    /// What the new kernel's agent does about it.
    pub end: Option<Spanned<MemfdEnd>>,
    /// Whether its pages are huge pages of hugetlb, of 2 MiB.
    pub hugetlb: Option<Spanned<bool>>,
}

impl Memfd {
    /// Whether its pages are huge pages of hugetlb.
    fn is_hugetlb(&self) -> bool {
        self.hugetlb.as_ref().is_some_and(|hugetlb| *hugetlb.get_ref())
    }

    /// What the new kernel's agent does about it.
    pub fn end(&self) -> MemfdEnd {
        self.end
            .as_ref()
            .map_or(MemfdEnd::default(), |end| *end.get_ref())
    }
}

/// The DMA engine, personality `stream`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dma {
    /// Bytes per second of guest time.
    pub rate: Spanned<Rate>,
    /// Bytes per buffer: 4 KiB or a power of two below.
    #[serde(default = "defaults::buffer")]
    pub buffer: Spanned<Bytes>,
    /// Descriptors in the ring.
    #[serde(default = "defaults::ring")]
    pub ring: Spanned<u32>,
    /// Name of the memfd that holds the ring, the completion count and (see `buffers`) the buffers. Default: the first.
    pub memfd: Option<Spanned<String>>,
    /// What kind of memory the buffers are in.
    #[serde(default)]
    pub buffers: Buffers,
    /// What the engine does when the ring is full.
    #[serde(default)]
    pub when_full: WhenFull,
    /// When the agent takes the addresses of ring and buffers, and starts the engine.
    #[serde(default)]
    pub start: Start,
    /// What clearing the bus-master bit does.
    #[serde(default)]
    pub bus_master: BusMaster,
    /// Number of its address bits, 32 to 64: it reaches guest physical addresses below 2 to the power of it.
    #[serde(default = "defaults::address_bits")]
    pub address_bits: Spanned<u32>,
    /// Whether the engine raises an interrupt for each block, which the agent receives through VFIO.
    #[serde(default)]
    pub interrupts: bool,
    /// Descriptor addresses to use instead of the buffers' own, repeated over the ring (fault injection).
    #[serde(default)]
    pub wild_addresses: Vec<u64>,
}

/// Kind of memory that holds the engine's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Buffers {
    /// In the preserved memfd, behind the ring.
    #[default]
    Memfd,
    /// In anonymous memory of the agent, which is not preserved.
    Unpreserved,
}

/// When the agent takes the addresses of ring and buffers, and starts the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Before their memory is preserved, which may move pages out of scratch: a driver's mistake.
    BeforePreservation,
    /// When their memory is preserved.
    #[default]
    Preserved,
}

/// What the engine does when the ring is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Waits until a descriptor is given back.
    Wait,
    /// Runs on and overwrites the oldest block.
    #[default]
    Overwrite,
}

/// Guest time that the run waits at certain points, and the workload after the kexec.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTimes {
    /// With everything armed, before the kexec.
    #[serde(default = "defaults::armed")]
    pub armed: Span,
    /// Between the retrieval and the finish of the session.
    #[serde(default = "defaults::restore")]
    pub restore: Span,
    /// Size of a file that every later agent fills after the retrieval, as a workload would; or all free memory, which
    /// every later agent takes and gives back before the retrieval, after it, and once objects are closed.
    pub workload: Option<Workload>,
}

impl Default for RunTimes {
    fn default() -> Self {
        Self {
            armed: defaults::armed(),
            restore: defaults::restore(),
            workload: None,
        }
    }
}

/// Misbehaviour of the guest, for tests of the harness itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// How the guest dies.
    pub misbehave: Option<Misbehaviour>,
    /// What the kernel is made to complain of; it runs on.
    pub provoke: Option<Provocation>,
    /// In which generation (0 is the first kernel).
    #[serde(default)]
    pub generation: u32,
    /// Name of a memfd that the agent keeps open when it should close it.
    pub keep: Option<Spanned<String>>,
}

/// Where a run is cut off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Guest time without progress (console output, a mailbox message, a phase change) after which the guest counts
    /// as hung.
    #[serde(default = "defaults::progress")]
    pub progress: Span,
    /// The same while a kernel boots, until its agent's first message. Default: five times `progress`.
    pub boot: Option<Span>,
    /// Maximum number of ledger entries.
    #[serde(default = "defaults::ledger")]
    pub ledger: Spanned<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            progress: defaults::progress(),
            boot: None,
            ledger: defaults::ledger(),
        }
    }
}

/// The defaults, which `docs/scenarios.md` lists.
mod defaults {
    use super::{Bytes, Span, Spanned};

    fn plain<T>(value: T) -> Spanned<T> {
        Spanned::new(0..0, value)
    }
    pub fn seed() -> u64 {
        1
    }
    pub fn ram() -> Spanned<Bytes> {
        plain(Bytes(512 << 20))
    }
    pub fn vcpus() -> Spanned<u32> {
        plain(1)
    }
    pub fn kexecs() -> Spanned<u32> {
        plain(1)
    }
    pub fn scratch() -> Spanned<Bytes> {
        plain(Bytes(128 << 20))
    }
    pub fn session() -> String {
        "baton".into()
    }
    pub fn buffer() -> Spanned<Bytes> {
        plain(Bytes(4096))
    }
    pub fn ring() -> Spanned<u32> {
        plain(256)
    }
    pub fn address_bits() -> Spanned<u32> {
        plain(64)
    }
    pub fn armed() -> Span {
        Span(5_000_000)
    }
    pub fn restore() -> Span {
        Span(5_000_000)
    }
    pub fn progress() -> Span {
        Span(2_000_000_000)
    }
    pub fn ledger() -> Spanned<u64> {
        plain(500_000)
    }
}
