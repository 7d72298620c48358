//! The builder writes a valid handover of any version into memory, on pages that the caller's allocator supplies.
//!
//! It also copies the kernels in how they spread records over pages and in which pages they preserve, so a built
//! handover can be compared field by field with one captured from a kernel.

mod fdt;
mod luo;
mod map;
mod memfd;
mod pages;
pub mod recursive;

use alloc::string::{String, ToString};
use core::fmt;

use crate::blueprint::Blueprint;
use crate::map::{Block, MapFormat};
use crate::memory::{MemoryError, PhysicalMemoryMut, Region, len64};
use crate::model::{Handover, KhoVersion, LuoVersion, MemfdVersion};
use crate::setup_data::KhoData;

pub use map::blocks_of;
pub(crate) use pages::Placer;
pub use pages::{FreeRegions, PageAllocator};

/// A set of versions that shipped together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Abi {
    /// kho-v1 with bitmaps of 512 bytes, without LUO: 6.17.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v1-6.17"))]
    KhoV1Bitmaps512,
    /// kho-v1 with bitmaps of a page, luo-v1, memfd-v1: 6.18 (without LUO), 6.19.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v1"))]
    KhoV1,
    /// kho-v2, luo-v1, memfd-v1: between releases.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v2"))]
    KhoV2,
    /// kho-v3, luo-v1 with FLBs, memfd-v2: 7.1.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v3"))]
    KhoV3,
    /// kho-v4, luo-v5, memfd-v2: 7.2, 7.3.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v4"))]
    KhoV4,
}

impl Abi {
    /// Every ABI, oldest first.
    pub const ALL: [Self; 5] = [
        Self::KhoV1Bitmaps512,
        Self::KhoV1,
        Self::KhoV2,
        Self::KhoV3,
        Self::KhoV4,
    ];

    /// Name of the ABI, as command lines give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KhoV1Bitmaps512 => "kho-v1-6.17",
            Self::KhoV1 => "kho-v1",
            Self::KhoV2 => "kho-v2",
            Self::KhoV3 => "kho-v3",
            Self::KhoV4 => "kho-v4",
        }
    }

    /// The ABI of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|abi| abi.name() == name)
    }

    /// The ABI of a handover. One of kho-v1 without a single bitmap counts as the later one.
    pub fn of(handover: &Handover) -> Self {
        match handover.version {
            KhoVersion::V1 if handover.map.format() == MapFormat::ChunksOf512 => Self::KhoV1Bitmaps512,
            KhoVersion::V1 => Self::KhoV1,
            KhoVersion::V2 => Self::KhoV2,
            KhoVersion::V3 => Self::KhoV3,
            KhoVersion::V4 => Self::KhoV4,
        }
    }

    /// Version of the KHO root.
    pub const fn kho(self) -> KhoVersion {
        match self {
            Self::KhoV1Bitmaps512 | Self::KhoV1 => KhoVersion::V1,
            Self::KhoV2 => KhoVersion::V2,
            Self::KhoV3 => KhoVersion::V3,
            Self::KhoV4 => KhoVersion::V4,
        }
    }

    /// Version of LUO's records, where there is LUO.
    pub const fn luo(self) -> Option<LuoVersion> {
        match self {
            Self::KhoV1Bitmaps512 => None,
            Self::KhoV1 | Self::KhoV2 | Self::KhoV3 => Some(LuoVersion::V1),
            Self::KhoV4 => Some(LuoVersion::V5),
        }
    }

    /// Version of a memfd's record.
    pub const fn memfd(self) -> MemfdVersion {
        match self {
            Self::KhoV1Bitmaps512 | Self::KhoV1 | Self::KhoV2 => MemfdVersion::V1,
            Self::KhoV3 | Self::KhoV4 => MemfdVersion::V2,
        }
    }

    /// Whether LUO has FLBs.
    pub const fn has_flbs(self) -> bool {
        matches!(self, Self::KhoV3 | Self::KhoV4)
    }

    /// Whether sub-blobs state their size, and so may be anything and not only an FDT.
    pub const fn has_blob_sizes(self) -> bool {
        matches!(self, Self::KhoV3 | Self::KhoV4)
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a handover was not built. Some pages may have been written already, but no record refers to them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The allocator has no more pages.
    #[error("no free block of order {order}")]
    OutOfMemory {
        /// Order asked for.
        order: u8,
    },
    /// The allocator returned address 0, or one that is not aligned to the order asked for.
    #[error("the allocator gave {address:#x} for a block of order {order}")]
    BadAllocation {
        /// What it gave.
        address: u64,
        /// What it was asked for.
        order: u8,
    },
    /// Memory cannot be written.
    #[error("memory cannot be written")]
    Memory(#[from] MemoryError),
    /// This ABI has no field for something that the blueprint asks for.
    #[error("{abi} has no {what}")]
    NotInAbi {
        /// The ABI.
        abi: Abi,
        /// What it lacks.
        what: &'static str,
    },
    /// A string does not fit its field.
    #[error("{what} \"{text}\" is longer than {limit} bytes")]
    TooLong {
        /// What the string is.
        what: &'static str,
        /// The string.
        text: String,
        /// What fits, the terminator not counted.
        limit: u64,
    },
    /// There are more of these than the ABI has room for.
    #[error("{found} {what}, but there is room for {limit}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many fit.
        limit: u64,
    },
    /// A block or region that cannot be in a map.
    #[error("{what} {region} is not made of whole, aligned pages below 2^52")]
    BadBlock {
        /// What it is.
        what: &'static str,
        /// The memory.
        region: Region,
    },
    /// The FDT writer refuses a name or a value.
    #[error("the FDT cannot be written: {reason}")]
    Fdt {
        /// What the writer says.
        reason: String,
    },
}

impl From<vm_fdt::Error> for BuildError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Fdt {
            reason: error.to_string(),
        }
    }
}

/// Builds a handover and returns the content of the `setup_data` node that announces it to the new kernel.
pub fn build(
    plan: &Blueprint,
    abi: Abi,
    memory: &mut dyn PhysicalMemoryMut,
    allocator: &mut dyn PageAllocator,
) -> Result<KhoData, BuildError> {
    let mut placer = Placer::new(memory, allocator);
    for block in &plan.blocks {
        placer.preserve(*block)?;
    }
    for region in &plan.reserve_mem {
        for block in blocks_of(region.region).ok_or(BuildError::BadBlock {
            what: "reserve_mem",
            region: region.region,
        })? {
            placer.preserve(block)?;
        }
    }
    let mut children = alloc::vec::Vec::new();
    if !plan.reserve_mem.is_empty() {
        children.push(fdt::memblock(&mut placer, &plan.reserve_mem)?);
    }
    if let Some(plan) = &plan.luo {
        children.push(luo::place(&mut placer, plan, abi)?);
    }
    if let Some(plan) = &plan.kexec_metadata {
        children.push(fdt::metadata(&mut placer, plan, abi)?);
    }
    for blob in &plan.blobs {
        if !abi.has_blob_sizes()
            && crate::fdt::total_size(&blob.bytes) != Ok(u32::try_from(blob.bytes.len()).unwrap_or(0))
        {
            return Err(BuildError::NotInAbi {
                abi,
                what: "size of a sub-blob, so that it must be an FDT",
            });
        }
        let size = len64(blob.bytes.len());
        children.push(fdt::Child {
            name: blob.name.clone(),
            address: placer.place(&blob.bytes)?,
            size,
        });
    }
    // The map also lists the root's page, so allocate that before writing the map.
    let root = placer.preserved_page()?;
    let map = map::write(&mut placer, abi)?;
    fdt::root(&mut placer, root, abi, map, &children)?;
    let scratch = fdt::scratch(&mut placer, &plan.scratch)?;
    Ok(KhoData {
        fdt: Region::new(root, crate::abi::PAGE_BYTES),
        scratch,
    })
}

/// Checks that a map can hold the block.
fn check(block: Block) -> Result<Block, BuildError> {
    let region = block.region();
    let fits = block.order < 40 && region.start.is_multiple_of(region.size) && region.end() <= 1 << 52;
    if fits {
        Ok(block)
    } else {
        Err(BuildError::BadBlock {
            what: "block",
            region,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
