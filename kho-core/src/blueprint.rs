//! A handover without its bookkeeping: the input of the builder, and what is left of a decoded [`Handover`] once the
//! addresses of its records are dropped.

use alloc::string::String;
use alloc::vec::Vec;

use crate::map::Block;
use crate::memory::{MemoryError, PhysicalMemory, Region, clamp, read_pieces};
use crate::model::{Content, File, FileContent, Handover, Luo, Memfd};
use crate::owners::{Owner, Owners};

/// What is to be handed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct Blueprint {
    /// Scratch areas.
    pub scratch: Vec<Region>,
    /// Preserved blocks that belong to nothing below, or that a blob refers to, ascending.
    pub blocks: Vec<Block>,
    /// `reserve_mem=` regions.
    pub reserve_mem: Vec<NamedRegion>,
    /// LUO's part.
    pub luo: Option<LuoPlan>,
    /// Which kernel started this one.
    pub kexec_metadata: Option<Kexec>,
    /// Blobs of other subsystems, with their contents.
    pub blobs: Vec<Blob>,
}

/// A region with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NamedRegion {
    /// Its name.
    pub name: String,
    /// The memory; whole pages.
    pub region: Region,
}

/// What LUO hands over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct LuoPlan {
    /// Live updates so far, this one included.
    pub liveupdate_number: u64,
    /// Its sessions.
    pub sessions: Vec<SessionPlan>,
    /// Its file-lifecycle-bound objects.
    pub flbs: Vec<FlbPlan>,
}

/// A session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct SessionPlan {
    /// Its name.
    pub name: String,
    /// Its files.
    pub files: Vec<FilePlan>,
}

/// A file of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FilePlan {
    /// Its token.
    pub token: u64,
    /// What it is.
    pub content: FileContentPlan,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
pub enum FileContentPlan {
    /// A memfd.
    Memfd(MemfdPlan),
    /// A file of a handler that this crate does not know.
    Other {
        /// Version string of the handler.
        compatible: String,
        /// Its handle.
        data: u64,
    },
}

/// A memfd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct MemfdPlan {
    /// File position, in bytes.
    pub position: u64,
    /// File size, in bytes.
    pub size: u64,
    /// `F_SEAL_*` bits.
    pub seals: u32,
    /// Flags of the file.
    pub flags: u32,
    /// Its folios, in the order of their records.
    pub folios: Vec<FolioPlan>,
}

/// A folio of a memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FolioPlan {
    /// Its memory.
    pub block: Block,
    /// Its page offset in the file.
    pub index: u64,
    /// `MEMFD_LUO_FOLIO_*` bits.
    pub flags: u16,
}

/// A file-lifecycle-bound object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FlbPlan {
    /// Version string.
    pub compatible: String,
    /// Its handle.
    pub data: u64,
    /// Number of files that depend on it.
    pub count: u64,
}

/// Where the kernel came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Kexec {
    /// `uname -r` of the kernel that starts the new one.
    pub previous_release: String,
    /// Kexecs since the last cold boot, this one included.
    pub count: u32,
}

/// A blob of a subsystem that this crate does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Blob {
    /// Name of its node.
    pub name: String,
    /// Its contents. kho-v1 and kho-v2 do not state a size, so there it must be an FDT.
    pub bytes: Vec<u8>,
}

impl Handover {
    /// Returns what is handed over, without the bookkeeping. Reads blobs out of `memory`.
    pub fn blueprint(&self, memory: &dyn PhysicalMemory) -> Result<Blueprint, MemoryError> {
        let owners = Owners::of(self);
        let mut plan = Blueprint {
            scratch: self.scratch.iter().map(|area| area.region).collect(),
            blocks: self
                .map
                .blocks_by_address()
                // Blobs are copied as they are, so what they refer to stays where it is.
                .filter(|block| {
                    owners
                        .at(block.address)
                        .is_none_or(|owner| matches!(owner, Owner::SubBlobData(_)))
                })
                .collect(),
            ..Blueprint::default()
        };
        for blob in &self.sub_blobs {
            match &blob.content {
                Content::Luo(luo) => plan.luo = Some(self.luo_plan(luo)),
                Content::Memblock(memblock) => {
                    let named = |region: &crate::model::ReserveMem| NamedRegion {
                        name: region.name.clone(),
                        region: region.region,
                    };
                    plan.reserve_mem = memblock.regions.iter().map(named).collect();
                }
                Content::KexecMetadata(metadata) => {
                    let previous_release = metadata.previous_release.clone();
                    plan.kexec_metadata = Some(Kexec {
                        previous_release,
                        count: metadata.kexec_count,
                    });
                }
                Content::TestKho(_) | Content::Fdt { .. } | Content::Opaque => {
                    let region = Region::new(blob.address, blob.size.unwrap_or(0));
                    if !memory.is_ram(&region) {
                        return Err(MemoryError::OutsideRam {
                            address: region.start,
                            size: region.size,
                        });
                    }
                    let bytes = read_pieces(memory, region.start, clamp(region.size))?;
                    plan.blobs.push(Blob {
                        name: blob.name.clone(),
                        bytes,
                    });
                }
            }
        }
        Ok(plan)
    }

    fn luo_plan(&self, luo: &Luo) -> LuoPlan {
        let session = |session: &crate::model::Session| SessionPlan {
            name: session.name.clone(),
            files: session.files.iter().map(|file| self.file_plan(file)).collect(),
        };
        let flb = |flb: &crate::model::Flb| FlbPlan {
            compatible: flb.compatible.clone(),
            data: flb.data,
            count: flb.count,
        };
        LuoPlan {
            liveupdate_number: luo.liveupdate_number,
            sessions: luo.sessions.iter().map(session).collect(),
            flbs: luo.flbs.iter().map(flb).collect(),
        }
    }

    fn file_plan(&self, file: &File) -> FilePlan {
        let content = match &file.content {
            FileContent::Memfd(memfd) => FileContentPlan::Memfd(self.memfd_plan(memfd)),
            FileContent::Opaque => FileContentPlan::Other {
                compatible: file.compatible.clone(),
                data: file.data,
            },
        };
        FilePlan {
            token: file.token,
            content,
        }
    }

    fn memfd_plan(&self, memfd: &Memfd) -> MemfdPlan {
        let block = |address: u64| {
            let block = self
                .map
                .block_containing(address)
                .filter(|block| block.address == address);
            block.unwrap_or(Block::new(address, 0))
        };
        let folio = |folio: &crate::model::Folio| FolioPlan {
            block: block(folio.address),
            index: folio.index,
            flags: folio.flags,
        };
        MemfdPlan {
            position: memfd.position,
            size: memfd.size,
            seals: memfd.seals,
            flags: memfd.flags,
            folios: memfd.folios.iter().map(folio).collect(),
        }
    }
}
