//! Who owns a piece of memory: from an address to the record, session or file that claims it.

use alloc::vec::Vec;
use core::fmt;

use crate::map::merge;
use crate::memory::Region;
use crate::model::Handover;

/// What a piece of memory is used for. Indices refer to the lists in [`Handover`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The KHO FDT.
    KhoFdt,
    /// A table, chunk or bitmap of the preserved-memory map. The map does not list itself: the new kernel reads it
    /// before it allocates outside scratch, and then frees it.
    KhoMap,
    /// The array of scratch areas. It is a segment of the kexec image, not preserved memory.
    ScratchArray,
    /// The blob of `sub_blobs[i]`.
    SubBlob(usize),
    /// A table of LUO: sessions, files of a session, FLBs.
    LuoTable,
    /// A record of a file's handler that describes the file.
    FileRecord {
        /// Index of the session.
        session: usize,
        /// Index of the file in the session.
        file: usize,
    },
    /// A file's contents.
    FileData {
        /// Index of the session.
        session: usize,
        /// Index of the file in the session.
        file: usize,
    },
    /// `reserve_mem()[i]`.
    ReserveMem(usize),
    /// Memory of a sub-blob besides the blob itself.
    SubBlobData(usize),
}

impl Owner {
    /// Whether the ABI requires this memory to be in the map.
    pub fn is_preserved(self) -> bool {
        !matches!(self, Self::KhoMap | Self::ScratchArray)
    }

    /// Whether this is KHO's, LUO's or a handler's own bookkeeping, as opposed to the data to keep.
    pub fn is_record(self) -> bool {
        !matches!(
            self,
            Self::FileData { .. } | Self::ReserveMem(_) | Self::SubBlobData(_)
        )
    }

    /// The owner in words, with names from the handover.
    pub fn describe(self, handover: &Handover) -> OwnerName<'_> {
        OwnerName {
            owner: self,
            handover,
        }
    }
}

/// The owner in words, with indices where only the handover has the name.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KhoFdt => f.write_str("KHO FDT"),
            Self::KhoMap => f.write_str("preserved-memory map"),
            Self::ScratchArray => f.write_str("scratch array"),
            Self::SubBlob(index) => write!(f, "sub-blob {index}"),
            Self::LuoTable => f.write_str("LUO table"),
            Self::FileRecord { session, file } => write!(f, "record of file {file} of session {session}"),
            Self::FileData { session, file } => write!(f, "data of file {file} of session {session}"),
            Self::ReserveMem(index) => write!(f, "reserve_mem {index}"),
            Self::SubBlobData(index) => write!(f, "data of sub-blob {index}"),
        }
    }
}

/// An owner in words.
#[derive(Debug, Clone, Copy)]
pub struct OwnerName<'h> {
    owner: Owner,
    handover: &'h Handover,
}

impl fmt::Display for OwnerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blob = |index: usize| {
            self.handover
                .sub_blobs
                .get(index)
                .map_or("?", |blob| blob.name.as_str())
        };
        let mut file_of = |what: &str, session: usize, file: usize| {
            let session = self.handover.sessions().get(session);
            let token = session
                .and_then(|session| session.files.get(file))
                .map_or(0, |file| file.token);
            write!(
                f,
                "{what} of token {token:#x} in session \"{}\"",
                session.map_or("?", |session| &session.name)
            )
        };
        match self.owner {
            Owner::KhoFdt | Owner::KhoMap | Owner::ScratchArray | Owner::LuoTable => self.owner.fmt(f),
            Owner::SubBlob(index) => write!(f, "sub-blob \"{}\"", blob(index)),
            Owner::SubBlobData(index) => write!(f, "data of sub-blob \"{}\"", blob(index)),
            Owner::FileRecord { session, file } => file_of("record", session, file),
            Owner::FileData { session, file } => file_of("data", session, file),
            Owner::ReserveMem(index) => {
                let name = self
                    .handover
                    .reserve_mem()
                    .get(index)
                    .map_or("?", |region| region.name.as_str());
                write!(f, "reserve_mem \"{name}\"")
            }
        }
    }
}

/// A piece of memory and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The memory, to the byte.
    pub region: Region,
    /// Whose it is.
    pub owner: Owner,
}

/// Who owns which memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// Ascending and disjoint where the handover is sound.
    owned: Vec<Record>,
    /// Preserved memory that nobody claims, ascending.
    unowned: Vec<Region>,
    unowned_bytes: u64,
}

impl Owners {
    /// Regions that [`Owners::unowned`] lists at most; a bitmap can name far more than its own size.
    pub const UNOWNED_LIMIT: usize = 1 << 16;

    /// Finds the owner of all memory that a handover mentions.
    ///
    /// The owner of any byte of a preserved block owns the whole block, because the kernel allocates whole blocks.
    pub fn of(handover: &Handover) -> Self {
        let mut claims = handover.records.clone();
        claims.extend(data_claims(handover));
        claims.sort_unstable();
        let mut unowned: Vec<Region> = Vec::new();
        let mut unowned_bytes = 0_u64;
        let mut extra = Vec::new();
        let mut rest = claims.as_slice();
        for block in handover.map.blocks_by_address() {
            let region = block.region();
            // Blocks ascend, so claims that end before this block cannot reach later ones.
            while let Some((first, others)) = rest.split_first() {
                if first.region.end() > region.start {
                    break;
                }
                rest = others;
            }
            match rest.first().filter(|claim| claim.region.overlaps(&region)) {
                Some(claim) if claim.region.covers(&region) => {}
                Some(claim) => extra.push(Record {
                    region,
                    owner: claim.owner,
                }),
                None => {
                    unowned_bytes = unowned_bytes.saturating_add(region.size);
                    let room = unowned.len() < Self::UNOWNED_LIMIT;
                    match unowned.last_mut() {
                        Some(last) if last.end() == region.start => {
                            last.size = last.size.saturating_add(region.size)
                        }
                        _ if room => unowned.push(region),
                        _ => {}
                    }
                }
            }
        }
        claims.extend(extra);
        claims.sort_unstable();
        Self {
            owned: coalesce(claims),
            unowned,
            unowned_bytes,
        }
    }

    /// All owned memory, ascending; neighbours of one owner are merged.
    pub fn iter(&self) -> core::slice::Iter<'_, Record> {
        self.owned.iter()
    }

    /// The owner of the byte at an address.
    pub fn at(&self, address: u64) -> Option<Owner> {
        let after = self
            .owned
            .partition_point(|record| record.region.start <= address);
        let record = self.owned.get(after.checked_sub(1)?)?;
        record.region.contains(address).then_some(record.owner)
    }

    /// All owners of a byte of the region, by address.
    pub fn within(&self, region: Region) -> impl Iterator<Item = &Record> {
        let first = self
            .owned
            .partition_point(|record| record.region.end() <= region.start);
        let rest = self.owned.get(first..).unwrap_or_default();
        rest.iter()
            .take_while(move |record| record.region.start < region.end())
    }

    /// The memory of the owners for which the condition holds, ascending and merged.
    pub fn regions(&self, condition: impl Fn(Owner) -> bool) -> Vec<Region> {
        merge(
            self.owned
                .iter()
                .filter(|record| condition(record.owner))
                .map(|record| record.region),
        )
    }

    /// Preserved memory without an owner, ascending: it belongs to subsystems that this crate cannot read, or is
    /// leaked. Lists the first [`Owners::UNOWNED_LIMIT`] regions.
    pub fn unowned(&self) -> &[Region] {
        &self.unowned
    }

    /// Size of all preserved memory that nobody claims, in bytes.
    pub fn unowned_bytes(&self) -> u64 {
        self.unowned_bytes
    }
}

/// Claims the data of files, regions and tests. The reader has claimed the records.
pub(crate) fn data_claims(handover: &Handover) -> Vec<Record> {
    let mut claims = Vec::new();
    for (session, content) in handover.sessions().iter().enumerate() {
        for (file, content) in content.files.iter().enumerate() {
            let Some(memfd) = content.memfd() else { continue };
            let owner = Owner::FileData { session, file };
            let folios = memfd.folios.iter().filter(|folio| folio.address != 0);
            claims.extend(folios.map(|folio| Record {
                region: handover.folio_region(folio),
                owner,
            }));
        }
    }
    for (index, region) in handover.reserve_mem().iter().enumerate() {
        claims.push(Record {
            region: region.region,
            owner: Owner::ReserveMem(index),
        });
    }
    for (index, blob) in handover.sub_blobs.iter().enumerate() {
        if let crate::model::Content::TestKho(test) = &blob.content {
            let owner = Owner::SubBlobData(index);
            claims.extend(test.folios.iter().map(|folio| Record {
                region: folio.region(),
                owner,
            }));
        }
    }
    claims
}

/// Merges adjacent pieces of one owner. Where pieces overlap, the earlier one keeps the bytes.
fn coalesce(claims: Vec<Record>) -> Vec<Record> {
    let mut owned: Vec<Record> = Vec::new();
    for claim in claims {
        let Some(last) = owned.last_mut() else {
            owned.push(claim);
            continue;
        };
        let (end, start) = (claim.region.end(), claim.region.start.max(last.region.end()));
        if end <= start {
            continue;
        }
        if last.owner == claim.owner && start == last.region.end() {
            last.region.size = end.saturating_sub(last.region.start);
        } else {
            owned.push(Record {
                region: Region::new(start, end.saturating_sub(start)),
                owner: claim.owner,
            });
        }
    }
    owned
}
