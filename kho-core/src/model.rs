//! The decoded handover, the same types for every version.
//!
//! Each item carries `at`, the physical address that it was read from.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::abi::{PAGE_BYTES, PAGE_SHIFT, kexec_handover, memfd};
use crate::finding::Findings;
use crate::map::PreservedMap;
use crate::memory::Region;

/// Version of the KHO root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum KhoVersion {
    /// `kho-v1`: 6.17, 6.18, 6.19.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v1"))]
    V1,
    /// `kho-v2`: between releases.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v2"))]
    V2,
    /// `kho-v3`: 7.1.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v3"))]
    V3,
    /// `kho-v4`: 7.2, 7.3.
    #[cfg_attr(feature = "serde", serde(rename = "kho-v4"))]
    V4,
}

impl KhoVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V4];

    /// The root node's `compatible`.
    pub const fn compatible(self) -> &'static str {
        match self {
            Self::V1 => kexec_handover::COMPATIBLE_V1,
            Self::V2 => kexec_handover::COMPATIBLE_V2,
            Self::V3 => kexec_handover::COMPATIBLE_V3,
            Self::V4 => kexec_handover::COMPATIBLE_V4,
        }
    }

    /// The version with this `compatible`.
    pub fn from_compatible(compatible: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.compatible() == compatible)
    }
}

impl fmt::Display for KhoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.compatible())
    }
}

/// A decoded handover.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Handover {
    /// Version of the KHO root.
    pub version: KhoVersion,
    /// Where the KHO FDT is, and the size of the FDT itself (`totalsize`).
    pub fdt: Region,
    /// Where the array of scratch areas is.
    pub scratch_array: Region,
    /// The scratch areas.
    pub scratch: Vec<ScratchArea>,
    /// The preserved-memory map.
    pub map: PreservedMap,
    /// The subsystems' blobs, in the order of the KHO FDT.
    pub sub_blobs: Vec<SubBlob>,
    /// What the reader found wrong. It continues after anything but a broken root.
    pub findings: Findings,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) records: Vec<crate::owners::Record>,
}

/// A scratch area: memory that the new kernel may allocate from before it has read the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ScratchArea {
    /// Address of its entry in the array.
    pub at: u64,
    /// The memory.
    pub region: Region,
}

/// What one subsystem hands over.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SubBlob {
    /// Address of its node in the KHO FDT.
    pub at: u64,
    /// Name of the node.
    pub name: String,
    /// Physical address of the blob.
    pub address: u64,
    /// Size of the blob in bytes; `None` if neither a property nor a header states it.
    pub size: Option<u64>,
    /// What it holds.
    pub content: Content,
}

/// What a sub-blob holds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Content {
    /// LUO's sessions and FLBs.
    Luo(Luo),
    /// `reserve_mem=` regions.
    Memblock(Memblock),
    /// Where the kernel came from.
    KexecMetadata(KexecMetadata),
    /// The folios of the kernel's own test.
    TestKho(TestKho),
    /// An FDT of a subsystem that this crate does not know.
    Fdt {
        /// `compatible` of its root.
        compatible: Option<String>,
    },
    /// A blob of an unknown format, or one that could not be read.
    Opaque,
}

/// Version of LUO's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LuoVersion {
    /// `luo-v1` with `luo-session-v2`: 6.19, and with `luo-flb-v1` 7.1.
    #[cfg_attr(feature = "serde", serde(rename = "luo-v1"))]
    V1,
    /// `luo-v5`: 7.2, 7.3.
    #[cfg_attr(feature = "serde", serde(rename = "luo-v5"))]
    V5,
}

impl LuoVersion {
    /// The version string.
    pub const fn compatible(self) -> &'static str {
        match self {
            Self::V1 => crate::abi::luo::COMPATIBLE_V1,
            Self::V5 => crate::abi::luo::COMPATIBLE_V5,
        }
    }
}

impl fmt::Display for LuoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.compatible())
    }
}

/// What the Live Update Orchestrator hands over.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Luo {
    /// Address of `struct luo_ser`, or of the FDT of luo-v1.
    pub at: u64,
    /// Version of the records.
    pub version: LuoVersion,
    /// Live updates of this machine so far, this one included.
    pub liveupdate_number: u64,
    /// The sessions.
    pub sessions: Vec<Session>,
    /// File-lifecycle-bound objects: state shared by several files.
    pub flbs: Vec<Flb>,
}

/// A session of LUO.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Session {
    /// Address of its record.
    pub at: u64,
    /// Its name.
    pub name: String,
    /// Its files.
    pub files: Vec<File>,
}

/// A file that a session keeps.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct File {
    /// Address of its record.
    pub at: u64,
    /// Version string of the handler that preserved it.
    pub compatible: String,
    /// The token that user space gave it.
    pub token: u64,
    /// The handler's handle; for a memfd the address of its record.
    pub data: u64,
    /// What the handler keeps.
    pub content: FileContent,
}

/// What a file handler keeps.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum FileContent {
    /// A memfd; boxed, so that the many other files of a hostile handover stay small.
    Memfd(Box<Memfd>),
    /// The handler is unknown to this crate, or its record could not be read.
    Opaque,
}

/// A file-lifecycle-bound object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Flb {
    /// Address of its record.
    pub at: u64,
    /// Version string of the object.
    pub compatible: String,
    /// The object's handle.
    pub data: u64,
    /// Number of files that depend on it.
    pub count: u64,
}

/// Version of a memfd's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum MemfdVersion {
    /// `memfd-v1`: 6.19.
    #[cfg_attr(feature = "serde", serde(rename = "memfd-v1"))]
    V1,
    /// `memfd-v2`: from 7.1 on.
    #[cfg_attr(feature = "serde", serde(rename = "memfd-v2"))]
    V2,
}

impl MemfdVersion {
    /// The version string.
    pub const fn compatible(self) -> &'static str {
        match self {
            Self::V1 => memfd::COMPATIBLE_V1,
            Self::V2 => memfd::COMPATIBLE_V2,
        }
    }

    /// The version with this string.
    pub fn from_compatible(compatible: &str) -> Option<Self> {
        [Self::V1, Self::V2]
            .into_iter()
            .find(|version| version.compatible() == compatible)
    }
}

/// A memfd.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Memfd {
    /// Address of its record.
    pub at: u64,
    /// Version of the record.
    pub version: MemfdVersion,
    /// File position, in bytes.
    pub position: u64,
    /// File size, in bytes.
    pub size: u64,
    /// `F_SEAL_*` bits; always 0 with memfd-v1, which has none.
    pub seals: u32,
    /// Flags of the file; always 0 with memfd-v1, which has none.
    pub flags: u32,
    /// The descriptor of the memory that holds the folio records; all zeroes for an empty file.
    pub list: Vmalloc,
    /// The folios, in the order of their records.
    pub folios: Vec<Folio>,
}

impl Memfd {
    /// Physical address of the record of the folio with this index in [`Memfd::folios`].
    pub fn record_of(&self, folio: usize) -> Option<u64> {
        self.list.address_of(folio.checked_mul(memfd::FOLIO_SIZE)?)
    }
}

/// A folio of a memfd.
///
/// Its record has no size: that is the size of the preserved block that begins at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Folio {
    /// Physical address of the folio.
    pub address: u64,
    /// Its page offset in the file.
    pub index: u64,
    /// `MEMFD_LUO_FOLIO_*` bits.
    pub flags: u16,
}

impl Folio {
    /// Whether the folio holds user data.
    pub fn dirty(&self) -> bool {
        self.flags & memfd::FOLIO_DIRTY != 0
    }

    /// Whether the folio has been zeroed or written.
    pub fn up_to_date(&self) -> bool {
        self.flags & memfd::FOLIO_UPTODATE != 0
    }
}

/// Memory that is contiguous only in the kernel's address space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Vmalloc {
    /// Address of the descriptor.
    pub at: u64,
    /// Number of pages that the descriptor states.
    pub total_pages: u32,
    /// `KHO_VMALLOC_*` bits.
    pub flags: u16,
    /// Order of the runs of pages that [`Vmalloc::runs`] names.
    pub order: u16,
    /// Addresses of the chunks that list the pages.
    pub chunks: Vec<u64>,
    /// Physical addresses of the runs of pages, in order.
    pub runs: Vec<u64>,
}

impl Vmalloc {
    /// Size of one run in bytes.
    pub fn run_size(&self) -> u64 {
        crate::map::order_size(u8::try_from(self.order).unwrap_or(u8::MAX))
    }

    /// Physical address of the byte at an offset of the area.
    pub fn address_of(&self, offset: usize) -> Option<u64> {
        let offset = u64::try_from(offset).ok()?;
        let run = self
            .runs
            .get(usize::try_from(offset.checked_div(self.run_size())?).ok()?)?;
        run.checked_add(offset.checked_rem(self.run_size())?)
    }
}

/// What memblock hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Memblock {
    /// The regions, in the order of their nodes.
    pub regions: Vec<ReserveMem>,
}

/// A region of the `reserve_mem=` command line option.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ReserveMem {
    /// Address of its node.
    pub at: u64,
    /// Its name.
    pub name: String,
    /// The memory.
    pub region: Region,
}

/// Where the kernel came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct KexecMetadata {
    /// Version of the record.
    pub version: u32,
    /// `uname -r` of the kernel that started this one.
    pub previous_release: String,
    /// Kexecs since the last cold boot, this one included.
    pub kexec_count: u32,
}

/// The folios of the kernel's own test of KHO.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TestKho {
    /// Number of folios stated.
    pub count: u32,
    /// The memory that lists them; `None` in 6.17, where the list is in the FDT.
    pub list: Option<Vmalloc>,
    /// The folios.
    pub folios: Vec<crate::map::Block>,
}

impl Handover {
    /// LUO's part, when there is one.
    pub fn luo(&self) -> Option<&Luo> {
        self.sub_blobs.iter().find_map(|blob| match &blob.content {
            Content::Luo(luo) => Some(luo),
            _ => None,
        })
    }

    /// The sessions of LUO.
    pub fn sessions(&self) -> &[Session] {
        self.luo().map_or(&[], |luo| &luo.sessions)
    }

    /// The session of this name.
    pub fn session(&self, name: &str) -> Option<&Session> {
        self.sessions().iter().find(|session| session.name == name)
    }

    /// The sub-blob of this name.
    pub fn sub_blob(&self, name: &str) -> Option<&SubBlob> {
        self.sub_blobs.iter().find(|blob| blob.name == name)
    }

    /// The `reserve_mem=` regions.
    pub fn reserve_mem(&self) -> &[ReserveMem] {
        let regions = self.sub_blobs.iter().find_map(|blob| match &blob.content {
            Content::Memblock(memblock) => Some(memblock.regions.as_slice()),
            _ => None,
        });
        regions.unwrap_or_default()
    }

    /// The memory of a folio: the preserved block that begins at its address, or one page if none does.
    pub fn folio_region(&self, folio: &Folio) -> Region {
        match self
            .map
            .block_containing(folio.address)
            .filter(|block| block.address == folio.address)
        {
            Some(block) => block.region(),
            None => Region::new(folio.address & !((1 << PAGE_SHIFT) - 1), PAGE_BYTES),
        }
    }

    /// Physical addresses of the pages of a memfd, as (page offset in the file, address), ascending by offset.
    pub fn file_pages(&self, memfd: &Memfd) -> Vec<(u64, Region)> {
        let mut pages: Vec<_> = memfd
            .folios
            .iter()
            .map(|folio| (folio.index, self.folio_region(folio)))
            .collect();
        pages.sort_unstable();
        pages
    }
}

impl Session {
    /// The file with this token.
    pub fn file(&self, token: u64) -> Option<&File> {
        self.files.iter().find(|file| file.token == token)
    }
}

impl File {
    /// The memfd; `None` if the file is something else.
    pub fn memfd(&self) -> Option<&Memfd> {
        match &self.content {
            FileContent::Memfd(memfd) => Some(memfd),
            FileContent::Opaque => None,
        }
    }
}
