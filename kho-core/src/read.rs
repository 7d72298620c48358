//! Reading a handover out of physical memory.
//!
//! The reader goes on past whatever it cannot follow, notes it as a [`Finding`](crate::Finding), and decodes the rest: a damaged
//! handover is when its contents matter most. Only a root that cannot be read at all is an error.
//!
//! Nothing is read twice. Each record claims the memory that it occupies, and a record on memory that was claimed
//! before is a finding and is not followed; so cycles end, and time and memory are bounded by the RAM that is read.

mod chunks;
mod context;
mod luo;
mod luo_v1;
mod luo_v5;
mod memblock;
mod memfd;
mod metadata;
mod radix;
mod root;
mod test_kho;
mod vmalloc;

use alloc::string::String;

use crate::fdt::FdtError;
use crate::memory::{MemoryError, PhysicalMemory, Region};
use crate::model::Handover;

pub(crate) use context::Context;

/// FDTs larger than this are refused, so that a size in a header cannot ask for unbounded memory.
pub const MAX_FDT_SIZE: u64 = 16 << 20;
/// Entries of the scratch array beyond this are ignored: one per NUMA node and two more are what kernels write.
pub const MAX_SCRATCH_AREAS: usize = 4096;

/// Why there is nothing to be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The KHO FDT is not in memory.
    #[error("the KHO FDT cannot be read")]
    Memory(#[from] MemoryError),
    /// There is no FDT at the address given.
    #[error("there is no KHO FDT at {address:#x}")]
    Fdt {
        /// Where the FDT should be.
        address: u64,
        /// What is wrong with it.
        source: FdtError,
    },
    /// The FDT is larger than the room it was given.
    #[error("the KHO FDT at {address:#x} states {stated:#x} bytes, expected at most {room:#x}")]
    FdtTooLarge {
        /// Where the FDT is.
        address: u64,
        /// `totalsize` of its header.
        stated: u64,
        /// The size given by `setup_data`, or [`MAX_FDT_SIZE`].
        room: u64,
    },
    /// The root node has no `compatible`.
    #[error("the FDT at {address:#x} has no \"compatible\" string in its root: not a KHO FDT")]
    NoVersion {
        /// Where the FDT is.
        address: u64,
    },
    /// A version that this crate does not know.
    #[error("the KHO FDT at {address:#x} is \"{found}\", expected one of kho-v1 to kho-v4")]
    UnknownVersion {
        /// Where the FDT is.
        address: u64,
        /// Its `compatible`.
        found: String,
    },
}

impl Handover {
    /// Reads the handover that `setup_data` type 10 (`struct kho_data`) points to.
    ///
    /// * `fdt`: where the KHO FDT is and how much room it has.
    /// * `scratch`: the array of scratch areas, {address, size} each. An empty region when it is not known.
    pub fn read(memory: &dyn PhysicalMemory, fdt: Region, scratch: Region) -> Result<Self, ReadError> {
        root::read(memory, fdt, scratch)
    }
}
