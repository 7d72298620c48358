//! Reading a handover out of physical memory.
//!
//! If the reader cannot follow a record, it adds a [`Finding`](crate::Finding) and decodes the rest, because the
//! contents of a damaged handover matter most. Only an unreadable root is an error.
//!
//! No memory is read twice. Each record claims the memory that it occupies. A record on memory that is already
//! claimed gives a finding and is not followed, so cycles end, and the size of RAM bounds time and memory.

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

/// Maximum size of an FDT in bytes, so that an untrusted header cannot ask for unbounded memory.
pub const MAX_FDT_SIZE: u64 = 16 << 20;
/// Entries of the scratch array beyond this number are ignored. Kernels write one per NUMA node and two more.
pub const MAX_SCRATCH_AREAS: usize = 4096;

/// Why a handover cannot be read at all.
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
    /// The FDT is larger than the space set aside for it.
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
    /// Reads the handover that a [`KhoData`](crate::KhoData) points to.
    ///
    /// * `fdt`: the KHO FDT, and the space set aside for it.
    /// * `scratch`: the array of scratch areas, {address, size} each. An empty region if it is unknown.
    pub fn read(memory: &dyn PhysicalMemory, fdt: Region, scratch: Region) -> Result<Self, ReadError> {
        root::read(memory, fdt, scratch)
    }
}
