//! Scenario files: what a run is to do and what must come of it. `docs/scenarios.md` describes every key.
//!
//! The types here mirror the file; defaults stand where a field is declared. What serde cannot check (relations between
//! keys) is checked after that; [`load()`] turns any failure into one message with file, line and column.

mod check;
mod expect;
mod load;
mod units;

pub(crate) use check::dma_memfd;
pub use expect::{Expect, Expected};
pub use load::{ScenarioError, load, parse, wrong_at};
pub use units::{Bytes, Rate, Span};

use serde::Deserialize;
use toml::Spanned;

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
    /// Which kernels run, and with which command lines.
    #[serde(default)]
    pub kernel: Kernels,
    /// Memory that the agent preserves.
    #[serde(default)]
    pub memfd: Vec<Memfd>,
    /// The DMA engine; without this table it stays off.
    pub dma: Option<Spanned<Dma>>,
    /// How much guest time passes where.
    #[serde(default)]
    pub run: RunTimes,
    /// Misbehaviour of the guest, for tests of the harness itself.
    pub fault: Option<Fault>,
    /// Where a run is cut off.
    #[serde(default)]
    pub limits: Limits,
    /// What must come of it.
    #[serde(default)]
    pub expect: Expect,
}

/// Which kernels run, and what is added to their command lines.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernels {
    /// First kernel: a version of images/kernels.toml or the path of a bzImage. Default: [`crate::kernel::DEFAULT_VERSION`].
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
    /// Over how many kexecs it is carried before it is closed; default: all.
    pub hops: Option<Spanned<u32>>,
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
    /// What the engine does when the consumer is behind.
    #[serde(default)]
    pub when_full: WhenFull,
    /// What clearing the bus-master bit does.
    #[serde(default)]
    pub bus_master: BusMaster,
    /// Descriptor addresses to use instead of the buffers' own, repeated over the ring (fault injection).
    #[serde(default)]
    pub wild_addresses: Vec<u64>,
}

/// What kind of memory the engine's buffers are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Buffers {
    /// In the preserved memfd, behind the ring.
    #[default]
    Memfd,
    /// In anonymous memory of the agent, which nobody preserves.
    Unpreserved,
}

/// What the engine does when the consumer is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Waits until a descriptor is given back.
    Wait,
    /// Runs on and overwrites the oldest block.
    #[default]
    Overwrite,
}

/// What clearing the bus-master bit in the command register does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusMaster {
    /// Nothing: DMA goes on, as that of a device preserved across a live update.
    #[default]
    Retained,
    /// DMA stops, as plain PCI has it.
    Honoured,
}

/// How much guest time passes where, beside what the guest itself needs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTimes {
    /// With everything armed, before the kexec.
    #[serde(default = "defaults::armed")]
    pub armed: Span,
    /// After the retrieval, before the session is finished.
    #[serde(default = "defaults::restore")]
    pub restore: Span,
    /// Memory that every later agent fills a file with once it has back what was preserved, as any workload would.
    pub workload: Option<Bytes>,
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
    /// What happens.
    pub misbehave: Misbehave,
    /// In which generation (0 is the first kernel).
    #[serde(default)]
    pub generation: u32,
}

/// Ways in which a guest can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misbehave {
    /// PID 1 exits, and the kernel panics.
    Exit,
    /// PID 1 spins for ever.
    Spin,
    /// The kernel panics.
    Panic,
    /// PID 1 sleeps for ever.
    Sleep,
}

/// Where a run is cut off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Guest time without any progress (console output, mailbox message, new code) after which the guest counts as hung.
    #[serde(default = "defaults::progress")]
    pub progress: Span,
    /// Most ledger entries that a run may make.
    #[serde(default = "defaults::ledger")]
    pub ledger: Spanned<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            progress: defaults::progress(),
            ledger: defaults::ledger(),
        }
    }
}

/// The defaults, each of which `docs/scenarios.md` states.
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
    pub fn session() -> String {
        "baton".into()
    }
    pub fn buffer() -> Spanned<Bytes> {
        plain(Bytes(4096))
    }
    pub fn ring() -> Spanned<u32> {
        plain(256)
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
