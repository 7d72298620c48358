//! Evidence: all results of a run, as plain data.
//!
//! Oracle and report read only evidence, so a run can be judged again from a directory ([`save`], [`load`]).
//! All times are guest time in nanoseconds since power-on; all addresses are guest physical.

mod captures;
mod device;
mod injections;
mod interrupts;
mod log;
mod memory;
mod outcome;
mod payload;
mod pool;
mod so_far;
mod steps;
mod store;
mod trace;

pub use captures::{Captures, Checkpoint, CheckpointKind, DigestRecord, ObjectCapture, PageContent};
pub use device::{
    DmaEvidence, DmaSetup, EventCause, Placed, bytes_of, describe, empty_ledger, end_of, frames_of, injected,
    meant, written_bytes,
};
pub use injections::{FiringEvidence, InjectedAt, InjectionEvidence};
pub use interrupts::{ArmedRecord, DisarmedRecord};
pub use log::{ConsolePart, KernelLog, LogSymbol};
pub use memory::{MemoryPoint, MemoryRecord, PageFlagsRecord, PressureRecord, Reused};
pub use outcome::{Outcome, OutcomeKind};
pub use payload::{PayloadEnd, PayloadEvidence};
pub use pool::PoolFull;
pub use so_far::Keeper;
pub(crate) use so_far::NOT_ENDED;
pub use steps::{Laid, StepFailure, StepRecord};
pub use store::{StoreError, Unreadable, from_bytes, is_kept_in, load, save, to_bytes};

use crate::kernel::Fit;
use guest_agent::protocol::{Features, PageRun};
use kho_core::{Abi, KhoData};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmm::ledger::LedgerRecord;
use vmm::memory::ram_regions;
pub use vmm::phase::Phase;
use vmm::trace::TraceRecord;

/// Version of the evidence directory's format. [`load`] refuses other versions.
pub const VERSION: u32 = 8;

/// Bytes of a page.
pub const PAGE: u64 = guest_agent::pattern::PAGE_BYTES as u64;

/// All results of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// [`VERSION`].
    pub version: u32,
    /// Version of baton that ran it.
    pub baton: String,
    /// Path of the scenario file as it was given.
    pub scenario_file: String,
    /// Text of the scenario file; the expectations are read from it.
    pub scenario_text: String,
    /// Scenario name.
    pub name: String,
    /// What executed guest code (`soft`).
    pub backend: String,
    /// Seed of the run.
    pub seed: u64,
    /// Command-line arguments, beside scenario and seed, that a rerun needs.
    pub overrides: Vec<String>,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Kexecs that the scenario asks for.
    pub kexecs: u32,
    /// What the host handed over to generation 1, if that was booted first; generation 0 did not run then.
    #[serde(default)]
    pub handover: Option<HandoverEvidence>,
    /// Kernels, one for each generation; without any contents for one that was not to run. [`Evidence::booted`] has
    /// those that were.
    pub kernels: Vec<KernelEvidence>,
    /// Phases passed, in order.
    pub phases: Vec<PhaseRecord>,
    /// Memory objects of the agent.
    pub objects: Vec<ObjectEvidence>,
    /// Whether the scenario wants the kernel's own test of Kexec HandOver.
    #[serde(default)]
    pub test_kho: bool,
    /// The user's own programs, if the run was one of them.
    #[serde(default)]
    pub payload: Option<PayloadEvidence>,
    /// The DMA engine as it was set up.
    pub dma: Option<DmaEvidence>,
    /// The injections, and what has become of each.
    pub injections: Vec<InjectionEvidence>,
    /// The accesses that caused engine events, as far as the backend knows them.
    pub event_causes: Vec<EventCause>,
    /// The first CPU write to each page in each phase after the first jump, for pages of objects and pages that the
    /// device wrote to.
    pub cpu_writes: Vec<CpuWrite>,
    /// Guest time from which CPU writes are missing, because there was no room for more; `None` if none is missing.
    pub cpu_writes_until_ns: Option<u64>,
    /// Last CPU writes to single bytes, from a second run that watched them.
    pub authors: Vec<Author>,
    /// Free memory as the agent saw it.
    pub memory: Vec<MemoryRecord>,
    /// What the agent's kernel said of the pages of objects.
    pub page_flags: Vec<PageFlagsRecord>,
    /// When the agent took all free memory.
    pub pressure: Vec<PressureRecord>,
    /// Pages of closed objects that a CPU wrote to again. [`Evidence::cpu_writes`] does not have these writes.
    pub reused: Vec<Reused>,
    /// The steps that the scenario gives, as far as they were done.
    #[serde(default)]
    pub steps: Vec<StepRecord>,
    /// Attempts to retrieve something.
    pub retrievals: Vec<Retrieval>,
    /// Requests that the agent could not fulfil.
    pub failures: Vec<AgentFailure>,
    /// When the agent received the engine's interrupts, and how many.
    pub interrupts: Vec<ArmedRecord>,
    /// The handover blobs, one for each jump.
    pub blobs: Vec<BlobEvidence>,
    /// Blackout of each jump, in order.
    pub blackouts_ns: Vec<u64>,
    /// When each of these blackouts began.
    #[serde(default)]
    pub blackout_begins_ns: Vec<u64>,
    /// For each jump, in order: lower bound on its time; `None` if the backend saw the jump itself.
    pub jumps_not_before: Vec<Option<u64>>,
    /// Longest delay between a device's due time and its service, in guest nanoseconds; 0 on `soft`.
    pub device_lateness_ns: u64,
    /// Host nanoseconds to a nanosecond of device time; 1 is real time, and what softcpu has.
    #[serde(default = "real_time")]
    pub slowdown: u32,
    /// Instructions that softcpu executed because KVM could not, by mnemonic.
    pub emulated: Vec<(String, u64)>,
    /// The console output by phase.
    pub console_parts: Vec<ConsolePart>,
    /// What the agents read of the kernels' logs, one entry for each generation that was asked.
    pub kernel_logs: Vec<KernelLog>,
    /// Names of the addresses in reports on the console and in these logs, as far as they are known.
    pub log_symbols: Vec<LogSymbol>,
    /// How the run ended.
    pub outcome: Outcome,
    /// Hash of the machine's final state, in hexadecimal.
    pub state_hash: String,
    /// Device writes and engine events, in order.
    #[serde(skip, default = "empty_ledger")]
    pub ledger: LedgerRecord,
    /// The trace; empty on a backend whose runs cannot be repeated.
    #[serde(skip)]
    pub trace: TraceRecord,
    /// Object pages at checkpoints, and the agent's digests.
    #[serde(skip)]
    pub captures: Captures,
    /// Console output.
    #[serde(skip)]
    pub console: String,
}

fn real_time() -> u32 {
    1
}

/// A handover that the host made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverEvidence {
    /// Version of its records.
    pub abi: Abi,
    /// The model's path as the scenario gives it; `None` if the scenario's memfds are the model.
    pub model: Option<String>,
    /// XXH3 (64 bits) of all of it, in hexadecimal.
    pub hash: String,
}

impl std::fmt::Display for HandoverEvidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.model {
            Some(model) => write!(f, "{} built from {model}", self.abi),
            None => write!(f, "{} built from the scenario", self.abi),
        }
    }
}

/// One generation's kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEvidence {
    /// bzImage that was booted.
    pub path: String,
    /// XXH3 (64 bits) of the bzImage, in hexadecimal.
    pub image_hash: String,
    /// Release in the image's header.
    pub image_release: String,
    /// Command line planned for it.
    pub command_line: String,
    /// Its agent's greeting; `None` if the agent never came up.
    pub hello: Option<Hello>,
    /// How its symbol file fits the kernel that ran.
    #[serde(default)]
    pub symbols: Fit,
}

impl KernelEvidence {
    /// Release according to the running kernel, or else to its image.
    pub fn release(&self) -> &str {
        self.hello
            .as_ref()
            .map_or(&self.image_release, |hello| &hello.release)
    }
}

/// Greeting of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `uname -r`.
    pub release: String,
    /// GNU build id in hexadecimal; empty when the kernel has none.
    pub build_id: String,
    /// Contents of /proc/cmdline.
    pub command_line: String,
    /// Has /dev/liveupdate.
    pub liveupdate: bool,
    /// Shows KHO in debugfs.
    #[serde(default)]
    pub kho_debugfs: bool,
    /// Was handed a KHO FDT, as far as debugfs tells.
    pub kho_incoming: bool,
    /// Names of the kernel's own parameters on its command line that it does not know.
    #[serde(default)]
    pub unknown_parameters: Vec<String>,
    /// Processors that the kernel brought up.
    #[serde(default)]
    pub processors: u32,
}

impl Hello {
    /// From the agent's message.
    pub fn new(
        release: String,
        build_id: String,
        command_line: String,
        features: Features,
        unknown_parameters: Vec<String>,
        processors: u32,
    ) -> Self {
        let Features {
            liveupdate,
            kho_debugfs,
            kho_incoming,
        } = features;
        Self {
            release,
            build_id,
            command_line,
            liveupdate,
            kho_debugfs,
            kho_incoming,
            unknown_parameters,
            processors,
        }
    }
}

/// A phase that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Kernel generation, 0 for the first. The jump belongs to the old one.
    pub generation: u32,
    /// Which phase.
    pub phase: Phase,
    /// When it began.
    pub begin_ns: u64,
    /// How long it took in guest time.
    pub guest_ns: u64,
    /// Instructions that the guest retired in it, where the backend counts them.
    pub instructions: Option<u64>,
    /// How long it took on the host, in microseconds. Not part of any verdict.
    pub wall_us: u64,
}

/// What a memory object is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A memfd, preserved in a session under a token.
    Memfd {
        /// LUO session.
        session: String,
        /// LUO token.
        token: u64,
    },
    /// Memory that the kernel reserves by name (`reserve_mem=`), and preserves by itself.
    ReserveMem,
    /// Anonymous memory, which is not preserved.
    Anonymous,
    /// The DMA engine's own memory, which no kernel may use. It needs nobody to preserve it.
    Device,
    /// A file that a program of the user's own has preserved, as the handover's records say.
    Found {
        /// LUO session.
        session: String,
        /// LUO token.
        token: u64,
    },
}

/// What the new kernel's agent does about a memfd that was preserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemfdEnd {
    /// Retrieves it.
    #[default]
    Retrieved,
    /// Retrieves its session and finishes that, which gives the memory back without anybody having asked for it.
    Finished,
    /// Never asks for its session, so the kernel keeps the memory.
    Left,
}

/// A memory object of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEvidence {
    /// Identity in messages.
    pub id: u32,
    /// Name from the scenario.
    pub name: String,
    /// What it is.
    pub kind: ObjectKind,
    /// What the new kernel's agent does about it.
    #[serde(default)]
    pub end: MemfdEnd,
    /// Size in bytes.
    pub bytes: u64,
    /// Seed of its pattern.
    pub pattern_seed: u64,
    /// What the scenario's steps have put into it, in order, on zeroes; `None` if it was filled with its pattern.
    #[serde(default)]
    pub laid: Option<Vec<Laid>>,
    /// Its physical pages, in file order, for each generation that resolved them.
    pub pages: BTreeMap<u32, Vec<PageRun>>,
    /// Jumps (generation that was left) over which it was preserved.
    pub preserved_by: Vec<u32>,
    /// When the agent closed it for good.
    pub closed: Option<Moment>,
}

impl ObjectEvidence {
    /// Whether a program of the user's own preserved it. The harness does not know what it holds.
    pub fn is_found(&self) -> bool {
        matches!(self.kind, ObjectKind::Found { .. })
    }

    /// Page frames in file order: as `generation` resolved them, or else the latest generation before it that did.
    pub fn frames(&self, generation: u32) -> Vec<u64> {
        let runs = self
            .pages
            .range(..=generation)
            .next_back()
            .map_or(&[][..], |(_, runs)| runs);
        let most = usize::try_from(self.bytes / PAGE).unwrap_or(usize::MAX);
        runs.iter()
            .flat_map(|run| run.first..run.first.saturating_add(run.count))
            .take(most)
            .collect()
    }

    /// What findings call it.
    pub fn owner(&self) -> String {
        match &self.kind {
            ObjectKind::Memfd { session, token } => {
                format!("memfd \"{}\" (session \"{session}\", token {token})", self.name)
            }
            ObjectKind::ReserveMem => format!("reserve_mem \"{}\"", self.name),
            ObjectKind::Anonymous => format!("unpreserved buffer \"{}\"", self.name),
            ObjectKind::Device => "the device's own memory".into(),
            ObjectKind::Found { session, token } => {
                format!("file of session \"{session}\", token {token:#x}")
            }
        }
    }
}

/// A point of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Kernel generation.
    pub generation: u32,
    /// Guest time.
    pub time_ns: u64,
    /// Ledger entries made until then.
    pub ledger_length: u64,
}

/// A CPU write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuWrite {
    /// Kernel generation. The jump belongs to the old one.
    pub generation: u32,
    /// Phase.
    pub phase: Phase,
    /// First byte written.
    pub address: u64,
    /// Bytes written, if known.
    pub length: Option<u32>,
    /// Instruction pointer; `None` where the backend knows only that the page was written.
    pub rip: Option<u64>,
    /// Symbol and offset of it, where known.
    pub symbol: Option<String>,
    /// Guest time. If only the page is known, the earliest possible time.
    pub time_ns: u64,
    /// Instructions retired since power-on, where that is known.
    pub instructions: Option<u64>,
    /// Current privilege level: 0 kernel, 3 user.
    pub cpl: u8,
}

/// Last writer of a byte, from a run that watched it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// Checkpoint (index) at which the question was asked.
    pub checkpoint: usize,
    /// Which byte.
    pub address: u64,
    /// The write; `None` if no CPU wrote the byte while it was watched.
    pub write: Option<CpuWrite>,
}

/// An attempt to retrieve a session or a memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Kernel generation that tried.
    pub generation: u32,
    /// What: `session "vm"`, `memfd "guest-ram" (...)`.
    pub what: String,
    /// The object, unless it is a whole session.
    pub object: Option<u32>,
    /// When it was answered.
    pub time_ns: u64,
    /// Ledger entries made until then.
    pub ledger_length: u64,
    /// Why it failed: index into [`Evidence::failures`].
    pub failure: Option<usize>,
}

/// A request that the agent could not fulfil.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFailure {
    /// Kernel generation.
    pub generation: u32,
    /// Phase.
    pub phase: Phase,
    /// The request in words.
    pub request: String,
    /// The call that failed.
    pub call: String,
    /// errno, or 0.
    pub errno: i32,
    /// What the agent makes of it.
    pub detail: String,
}

impl std::fmt::Display for AgentFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} failed", self.request, self.call)?;
        if self.errno != 0 {
            write!(f, " with {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

/// What was handed over at one jump: guest memory as it stood at the new kernel's first instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobEvidence {
    /// Generation that was left.
    pub generation: u32,
    /// Guest time of the new kernel's first instruction.
    pub time_ns: u64,
    /// Address of the new kernel's boot_params.
    pub boot_params: u64,
    /// What its KHO setup_data says; `None` when it was given none.
    pub kho: Option<KhoData>,
    /// Why that could not be told.
    pub problem: Option<String>,
    /// Guest RAM: start and size in bytes.
    pub ram: Vec<(u64, u64)>,
    /// What the old kernel put where for the new one to start from.
    #[serde(default)]
    pub staged: Vec<Staged>,
    /// Whether `pages` has all that a decoder reads. A blob that is too large is cut.
    pub complete: bool,
    /// Every page that a decoder read, by page frame number, so that a later decoder can read them again.
    #[serde(skip)]
    pub pages: BTreeMap<u64, Vec<u8>>,
}

/// A part of the next kernel's image in guest memory, at that kernel's first instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Which part: `kernel`, `initrd`, `boot parameters`.
    pub what: String,
    /// First byte.
    pub address: u64,
    /// Size in bytes. Of the kernel: what it needs from its load address on (`init_size` in its header).
    pub bytes: u64,
}

impl Evidence {
    /// Whether KVM ran the guest: it observes a guest only through exits, and so sees no single instructions.
    #[must_use]
    pub fn is_from_kvm(&self) -> bool {
        self.backend == "kvm"
    }

    /// The object of identity `id`.
    pub fn object(&self, id: u32) -> Option<&ObjectEvidence> {
        self.objects.iter().find(|object| object.id == id)
    }

    /// The generation that was booted.
    pub fn first_generation(&self) -> u32 {
        self.handover.is_some().into()
    }

    /// The kernels that were to run, with their generations.
    pub fn booted(&self) -> impl Iterator<Item = (u32, &KernelEvidence)> {
        let first = self.first_generation();
        (0..)
            .zip(&self.kernels)
            .skip_while(move |(generation, _)| *generation < first)
    }

    /// How the symbol file of a generation's kernel fits the kernel that ran.
    pub fn fit(&self, generation: u32) -> Fit {
        let kernel = self.kernels.get(generation as usize);
        kernel.map_or(Fit::Unknown, |kernel| kernel.symbols.clone())
    }

    /// Whether page frame `frame` is guest RAM.
    pub fn is_ram(&self, frame: u64) -> bool {
        let address = frame.saturating_mul(PAGE);
        let mut regions = ram_regions(self.ram_bytes).into_iter();
        regions.any(|region| region.contains(&address))
    }

    /// Guest time of the new kernel's first instruction after generation `left`.
    pub fn entry_time(&self, left: u32) -> Option<u64> {
        self.blobs
            .iter()
            .find(|blob| blob.generation == left)
            .map(|blob| blob.time_ns)
    }

    /// Guest time of the first user instruction after the jump at guest time `jump`; `None` if there was none.
    pub fn user_entered(&self, jump: u64) -> Option<u64> {
        let ends = self.blackout_begins_ns.iter().zip(&self.blackouts_ns);
        ends.map(|(begin, length)| begin.saturating_add(*length))
            .find(|end| *end >= jump)
    }

    /// Guest time when generation `left` jumped.
    pub fn jump_time(&self, left: u32) -> Option<u64> {
        let jump = |record: &&PhaseRecord| record.generation == left && record.phase == Phase::Jump;
        self.phases.iter().find(jump).map(|record| record.begin_ns)
    }

    /// Whether an object was ever retrieved, or asked for.
    pub fn is_retrieved(&self, object: u32) -> bool {
        let of = |retrieval: &Retrieval| retrieval.object == Some(object) && retrieval.failure.is_none();
        self.retrievals.iter().any(of)
    }

    /// Hash of everything that the ledger ever held, in hexadecimal.
    pub fn ledger_digest(&self) -> String {
        format!("{:032x}", self.ledger.digest)
    }

    /// Pages of all objects that were preserved at least once.
    pub fn preserved_pages(&self) -> u64 {
        let preserved =
            |object: &&ObjectEvidence| !object.preserved_by.is_empty() && object.kind != ObjectKind::Device;
        self.objects
            .iter()
            .filter(preserved)
            .map(|object| object.bytes / PAGE)
            .sum()
    }
}
