//! The messages between host and agent.
//!
//! The agent speaks first, with [`Reply::Hello`]; from then on each request of the host gets exactly one reply. A
//! message is its postcard encoding, at most [`crate::device::mailbox::WINDOW_SIZE`] bytes long.
//!
//! `ResolvePages` and `ResolveRange` are answered with `Pages`, `Digest` with `Digests`, `ConsumeDma` with `Dma`,
//! `MemoryInfo` with `Memory`, `PageFlags` with `PageFlags`, `TakeMemory` with `Taken`, `DisarmInterrupts` with
//! `Interrupts`, `KernelLog` with `KernelLog`, `RunProgram` with `Ended`, all others with `Done`; `StartDma` also with
//! `OutOfReach`. Any request may be answered with `Failed` instead; the agent is then ready for the next one. After the
//! reply to `Kexec`, `PowerOff`, `Misbehave` and `Become` the agent expects no further request. If the jump of `Kexec` or
//! the start of `Become`'s program fails, it sends `Failed` and continues to serve requests.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Version of this protocol. [`Reply::Hello`] carries it, and the host refuses any other.
pub const VERSION: u32 = 8;

/// What the agent prints on the console, before the reason, if it cannot reach the host.
pub const NO_MAILBOX: &str = "baton agent: no mailbox: ";

/// Where the agent lies in the initramfs of somebody else, which has an /init of its own. The kernel starts it by `rdinit=`.
pub const AGENT_PATH: &str = "/.baton/agent";

/// Names a memory object of the agent (a memfd or an anonymous buffer); chosen by the host.
pub type ObjectId = u32;

/// A run of physical pages: `count` pages from page frame `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// First page frame number (physical address / 4096).
    pub first: u64,
    /// Number of pages.
    pub count: u64,
}

/// Pages in a row with the same flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagRun {
    /// What /proc/kpageflags says of each; see [`crate::kpageflags`].
    pub flags: u64,
    /// Number of pages.
    pub count: u64,
}

/// A place in a memory object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which object.
    pub object: ObjectId,
    /// Byte offset in it.
    pub offset: u64,
}

/// A ring of DMA descriptors: how long it is, and where the list of its pages, descriptors, completion count and
/// buffers are in the agent's objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaRing {
    /// Place of the list of the descriptors' pages (8 bytes per page); the offset is a multiple of 4096.
    pub list: Place,
    /// Place of the descriptors (`entries` times 16 bytes, on any pages); the offset is a multiple of 4096.
    pub descriptors: Place,
    /// Number of descriptors.
    pub entries: u32,
    /// Place of the completion count; the offset is a multiple of 8.
    pub completion: Place,
    /// Place of buffer 0, at a multiple of `buffer_bytes`; buffer i is at `offset + i * buffer_bytes`.
    pub buffers: Place,
    /// Bytes per buffer; divides 4096 or is 4096.
    pub buffer_bytes: u32,
    /// Overwrite the oldest blocks when the ring is full, instead of waiting.
    pub free_run: bool,
    /// Descriptor addresses to use instead of the buffers' own (fault injection), repeated over the ring.
    pub wild_addresses: Vec<u64>,
}

/// Which of two sessions of one name is meant. A kernel may have both, and LUO keeps them in two lists of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The session that was created in this kernel.
    Outgoing,
    /// The session that was retrieved from the kernel before.
    Incoming,
}

/// A part of a memory object, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// pwrite(2): the kernel marks the page dirty.
    #[default]
    Write,
    /// Stores through a mapping, as a virtual machine's guest writes: at first only the page tables know of them.
    Store,
}

/// A change of a memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Write [`crate::pattern`] to a part.
    Write {
        /// Where.
        part: Part,
        /// Seed of the pattern.
        seed: u64,
        /// In which way.
        by: By,
    },
    /// Read one word of each page of a part through the mapping: a page that the file does not have comes to be, and is
    /// clean.
    Read(Part),
    /// fallocate(2): a part gets pages, whose content is not written.
    Allocate(Part),
    /// fallocate(2) with FALLOC_FL_PUNCH_HOLE: a part reads as zeroes.
    PunchHole(Part),
    /// fcntl(2), F_ADD_SEALS: these bits (F_SEAL_SEAL 1, F_SEAL_SHRINK 2, F_SEAL_GROW 4, F_SEAL_WRITE 8,
    /// F_SEAL_FUTURE_WRITE 16, F_SEAL_EXEC 32; include/uapi/linux/fcntl.h). The agent gives its own writable mapping up
    /// first, which would be in the way of F_SEAL_WRITE, and then maps the memfd again as far as it may.
    Seal(u32),
    /// madvise(2), MADV_COLLAPSE: a part is moved to huge pages.
    Collapse(Part),
}

/// What a process of its own does in a loop, until its kernel ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chore {
    /// Change a memfd.
    Change {
        /// A memfd.
        object: ObjectId,
        /// In which way; not by a seal.
        change: Change,
    },
    /// Create a session and close it.
    Session {
        /// Session name.
        name: String,
    },
    /// Create a session, preserve a memfd in it, and close it.
    Preserve {
        /// Session name.
        session: String,
        /// A memfd.
        object: ObjectId,
        /// LUO token.
        token: u64,
    },
}

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Open /dev/liveupdate and create a LUO session.
    CreateSession {
        /// Session name.
        name: String,
    },
    /// Create a memfd of this size and map it. It has no pages until they are filled.
    CreateMemfd {
        /// The object to be.
        object: ObjectId,
        /// Size in bytes, a multiple of 4096.
        bytes: u64,
        /// Flags of memfd_create(2) beside MFD_CLOEXEC.
        flags: u32,
    },
    /// Map anonymous memory, touch and lock it.
    CreateBuffer {
        /// The object to be.
        object: ObjectId,
        /// Size in bytes, a multiple of 4096.
        bytes: u64,
    },
    /// Fill pages of an object with [`crate::pattern`]. The host asks for some thousand pages at a time, because each
    /// answer is a sign that the guest makes progress.
    Fill {
        /// Which object.
        object: ObjectId,
        /// First page of the object.
        first_page: u64,
        /// How many pages.
        pages: u64,
        /// Seed of the pattern.
        seed: u64,
    },
    /// Preserve a memfd in a session under a token.
    Preserve {
        /// Session name.
        session: String,
        /// A memfd.
        object: ObjectId,
        /// LUO token.
        token: u64,
        /// Which session of that name.
        side: Side,
    },
    /// Resolve the physical pages of an object, in file order.
    ResolvePages {
        /// Which object.
        object: ObjectId,
    },
    /// Write a descriptor ring and program the DMA engine with it, then enable it.
    ///
    /// This resets the engine first. The agent's own writes to the objects are the list of pages, the descriptors and
    /// the completion count, which becomes 0. The agent copies nothing for an engine that does not reach all of these
    /// pages: it then leaves the engine alone and answers with [`Reply::OutOfReach`]. It does not judge
    /// `wild_addresses`.
    StartDma(DmaRing),
    /// Release every block completed so far. In a new kernel this needs no `StartDma`, because the registers are
    /// still set.
    ConsumeDma,
    /// Disable the DMA engine.
    StopDma,
    /// Receive the DMA engine's interrupts in user space, through VFIO. `StartDma` lets the engine raise one for each
    /// block.
    ArmInterrupts,
    /// Sleep for this many nanoseconds, and wake for each interrupt.
    AwaitInterrupts {
        /// How long.
        ns: u64,
    },
    /// Disable the engine's MSI-X, and report how many interrupts came since it was armed.
    DisarmInterrupts,
    /// Load the next kernel with kexec_file_load: the kernel from /next/kernel, the initrd that this kernel was
    /// given.
    LoadKexec {
        /// Command line of the next kernel.
        command_line: String,
    },
    /// Reboot into the loaded kernel. The reply comes before the system call.
    Kexec,
    /// Retrieve a session by its name.
    RetrieveSession {
        /// Session name.
        name: String,
    },
    /// Retrieve a memfd from a session and map it.
    RetrieveMemfd {
        /// Session name.
        session: String,
        /// LUO token.
        token: u64,
        /// The object to be.
        object: ObjectId,
        /// Which session of that name.
        side: Side,
    },
    /// Retrieve a memfd once more, and close the new descriptor. It must be the file that the object is.
    RetrieveAgain {
        /// Session name.
        session: String,
        /// LUO token.
        token: u64,
        /// A memfd.
        object: ObjectId,
        /// Which session of that name.
        side: Side,
    },
    /// Digest pages of an object ([`crate::pattern::page_digest`]).
    Digest {
        /// Which object.
        object: ObjectId,
        /// First page of the object.
        first_page: u64,
        /// How many pages, at most 8192.
        pages: u64,
    },
    /// Finish a session, and close it.
    FinishSession {
        /// Session name.
        name: String,
        /// Which session of that name.
        side: Side,
    },
    /// Close a session without finishing it.
    CloseSession {
        /// Session name.
        name: String,
        /// Which session of that name.
        side: Side,
    },
    /// Change a memfd. The host asks for a large part in portions.
    Change {
        /// A memfd.
        object: ObjectId,
        /// In which way.
        change: Change,
    },
    /// Unmap and close an object.
    Close {
        /// Which object.
        object: ObjectId,
    },
    /// Report free memory, after draining the kernel's per-CPU lists if that is possible.
    MemoryInfo,
    /// Power the machine off. The reply comes before the system call.
    PowerOff,
    /// Misbehave, for the tests of the harness itself. The reply comes first.
    Misbehave(Misbehaviour),
    /// Resolve some of an object's physical pages, in file order. For large, scattered objects, whose reply to
    /// `ResolvePages` would not fit the window.
    ResolveRange {
        /// Which object.
        object: ObjectId,
        /// First page of the object.
        first_page: u64,
        /// How many pages.
        pages: u64,
    },
    /// Say what /proc/kpageflags has on these page frames, in their order.
    PageFlags {
        /// At most 8192 pages in all.
        runs: Vec<PageRun>,
    },
    /// Take more free memory, page by page, and keep it until `ReleaseMemory`. The agent stops where the kernel would
    /// begin to kill for memory, and then takes what the per-CPU lists hold.
    TakeMemory {
        /// Most pages to take now.
        pages: u64,
    },
    /// Give back what `TakeMemory` took.
    ReleaseMemory,
    /// Close an object, but leave its file open: a leak, for the tests of the harness itself.
    KeepOpen {
        /// A memfd.
        object: ObjectId,
    },
    /// Write a part of the next kernel's image to where `LoadKexec` takes it from. The first part makes the file. For a
    /// run whose initramfs does not carry that kernel.
    StageKernel {
        /// Offset of the part in the image, in bytes; 0 begins anew.
        offset: u64,
        /// The part.
        bytes: Vec<u8>,
    },
    /// Do a chore once, and if that succeeds let a process of its own do it again and again. What comes of those rounds
    /// is not told.
    Loop(Chore),
    /// Let the kernel drop its caches (vm.drop_caches), and clean pages of files with them. The agent unmaps its memfds
    /// meanwhile, because pages that are mapped stay.
    DropCaches,
    /// Load an image that returns at once, with KEXEC_PRESERVE_CONTEXT (include/uapi/linux/kexec.h), and jump into it:
    /// the same kernel goes on (CONFIG_KEXEC_JUMP). No next kernel is loaded afterwards.
    JumpBack,
    /// Take KHO's finalization back, on kernels where user space finalizes it (6.17 and 6.18).
    AbortFinalize,
    /// Report what the kernel has logged since the last such request, or since its start, as much as fits.
    KernelLog,
    /// Provoke a complaint of the kernel, for the tests of the harness itself. A process that shares the agent's memory
    /// and files does it, because the kernel may kill who does. The reply comes when that process has ended, or after a
    /// second of guest time (a hung task: four).
    Provoke(Provocation),
    /// Run a program that is not the agent's, and wait until it has ended. The processes that it leaves behind live on.
    RunProgram(Program),
    /// Become that program: it is PID 1 from then on, with the file systems as the kernel left them. The reply comes
    /// before the system call.
    Become(Program),
}

/// A program of the initramfs, and what it wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its path and its arguments.
    pub words: Vec<String>,
    /// Where it wants a copy of the initramfs that this kernel was given; that takes `retain_initrd`.
    pub initrd_at: Option<String>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramEnd {
    /// It exited with this status.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
}

impl core::fmt::Display for ProgramEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Crash types of LKDTM (drivers/misc/lkdtm, CONFIG_LKDTM) that leave the kernel running, with the names that its file
/// `provoke-crash/DIRECT` takes. Which of them make the kernel complain depends on its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Provocation {
    /// WARN_ON.
    Warning,
    /// WARN with a message.
    WarningMessage,
    /// BUG.
    Bug,
    /// A write to address 0.
    Exception,
    /// An index beyond an array (CONFIG_UBSAN_BOUNDS).
    ArrayBounds,
    /// Adds to a damaged list (CONFIG_LIST_HARDENED).
    CorruptListAdd,
    /// Deletes from a damaged list (CONFIG_LIST_HARDENED).
    CorruptListDel,
    /// Decrements a reference counter below 0.
    RefcountDecNegative,
    /// Increments a reference counter of 0.
    RefcountIncZero,
    /// Reads a freed object of a slab cache (CONFIG_KASAN).
    ReadAfterFree,
    /// Writes to a freed object of a slab cache (CONFIG_KASAN, or CONFIG_SLUB_DEBUG_ON).
    WriteAfterFree,
    /// Reads a freed object that KFENCE guards (CONFIG_KFENCE).
    KfenceReadAfterFree,
    /// Frees an object twice.
    SlabFreeDouble,
    /// Returns with a spin lock held (CONFIG_PROVE_LOCKING).
    Spinlockup,
    /// Loops for ever with preemption off (CONFIG_SOFTLOCKUP_DETECTOR).
    Softlockup,
    /// Sleeps for ever and cannot be interrupted (CONFIG_DETECT_HUNG_TASK).
    HungTask,
}

impl Provocation {
    /// The name in LKDTM's file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "WARNING",
            Self::WarningMessage => "WARNING_MESSAGE",
            Self::Bug => "BUG",
            Self::Exception => "EXCEPTION",
            Self::ArrayBounds => "ARRAY_BOUNDS",
            Self::CorruptListAdd => "CORRUPT_LIST_ADD",
            Self::CorruptListDel => "CORRUPT_LIST_DEL",
            Self::RefcountDecNegative => "REFCOUNT_DEC_NEGATIVE",
            Self::RefcountIncZero => "REFCOUNT_INC_ZERO",
            Self::ReadAfterFree => "READ_AFTER_FREE",
            Self::WriteAfterFree => "WRITE_AFTER_FREE",
            Self::KfenceReadAfterFree => "KFENCE_READ_AFTER_FREE",
            Self::SlabFreeDouble => "SLAB_FREE_DOUBLE",
            Self::Spinlockup => "SPINLOCKUP",
            Self::Softlockup => "SOFTLOCKUP",
            Self::HungTask => "HUNG_TASK",
        }
    }
}

/// A record of the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Its time in microseconds, by the kernel's log.
    pub time_us: u64,
    /// Its level, 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Its text, which may have several lines.
    pub text: String,
}

/// Ways in which a guest can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misbehaviour {
    /// PID 1 exits, and the kernel panics.
    Exit,
    /// PID 1 spins for ever.
    Spin,
    /// Panic through /proc/sysrq-trigger; if that is not possible, as `Exit` does.
    Panic,
    /// PID 1 sleeps for ever without answering.
    Sleep,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The agent is up.
    Hello {
        /// [`VERSION`].
        protocol: u32,
        /// `uname -r`.
        release: String,
        /// GNU build id of the running kernel from /sys/kernel/notes, in hexadecimal; empty when there is none.
        build_id: String,
        /// Contents of /proc/cmdline.
        command_line: String,
        /// What this kernel offers.
        features: Features,
        /// Names of the kernel's own parameters on the command line that this kernel does not know: it passes them to
        /// init as environment variables (init/main.c, `unknown_bootoption`).
        unknown_parameters: Vec<String>,
        /// Number of processors that the kernel has brought up. The agent uses all of them for its work on pages.
        processors: u32,
    },
    /// Done, with nothing more to say.
    Done,
    /// Physical pages of an object, in file order.
    Pages(Vec<PageRun>),
    /// One digest per page.
    Digests(Vec<u64>),
    /// State of the DMA engine.
    Dma {
        /// Completion count as read from guest memory.
        completed_in_memory: Option<u64>,
        /// Completion count as read from the register.
        completed: u64,
        /// Blocks given back in all.
        consumed: u64,
        /// STATUS register.
        status: u32,
    },
    /// Interrupts of the DMA engine since they were armed.
    Interrupts {
        /// How many.
        count: u64,
    },
    /// Memory of the guest in pages of 4096 bytes.
    Memory {
        /// MemTotal.
        total_pages: u64,
        /// MemFree and the pages in per-CPU lists.
        free_pages: u64,
    },
    /// Flags of pages, in the order of the request; empty if this kernel has no /proc/kpageflags.
    PageFlags(Vec<FlagRun>),
    /// Free memory was taken.
    Taken {
        /// Pages taken by this request; 0 when there is nothing left to take.
        now_pages: u64,
        /// Pages taken since the last `ReleaseMemory`.
        all_pages: u64,
        /// MemFree after it.
        free_pages: u64,
        /// Pages in per-CPU lists after it.
        per_cpu_pages: u64,
    },
    /// What the kernel itself has logged, in order; records of user space are left out.
    KernelLog {
        /// The records.
        records: Vec<LogRecord>,
        /// How many records the kernel had overwritten before they were read.
        lost: u64,
        /// Whether there are more, for the next request.
        more: bool,
    },
    /// The program has ended.
    Ended(ProgramEnd),
    /// The DMA engine does not reach a page that it should use. It was not started.
    OutOfReach {
        /// Which object.
        object: ObjectId,
        /// Which page of it, from 0.
        page: u64,
        /// Guest physical address of that page.
        address: u64,
        /// Number of address bits of the engine.
        bits: u32,
    },
    /// A call failed.
    Failed {
        /// The call, with its argument if that matters (`open(/dev/liveupdate)`).
        call: String,
        /// errno, or 0 when the agent itself refused.
        errno: i32,
        /// An explanation, or what the agent expected.
        detail: String,
    },
}

/// What a kernel offers to user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features {
    /// /dev/liveupdate exists.
    pub liveupdate: bool,
    /// /sys/kernel/debug/kho exists.
    pub kho_debugfs: bool,
    /// This kernel was started by a kexec that handed a KHO FDT over (/sys/kernel/debug/kho/in exists).
    pub kho_incoming: bool,
}

/// A message that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What the decoder says.
    pub reason: String,
    /// Length of the message in bytes.
    pub length: usize,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "mailbox message of {} bytes cannot be decoded: {}",
            self.length, self.reason
        )
    }
}

impl core::error::Error for Malformed {}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Malformed> {
    postcard::to_allocvec(message).map_err(|error| Malformed {
        reason: alloc::format!("{error}"),
        length: 0,
    })
}

/// Decodes a message, all of it.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    let malformed = |reason| Malformed {
        reason,
        length: bytes.len(),
    };
    let (message, rest) =
        postcard::take_from_bytes(bytes).map_err(|error| malformed(alloc::format!("{error}")))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(malformed(alloc::format!("{} bytes left over", rest.len())))
    }
}
