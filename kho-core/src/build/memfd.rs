//! The record of a memfd, and the vmalloc area that lists its folios.

use alloc::vec::Vec;

use super::{Abi, BuildError, Placer};
use crate::abi::memfd::{FOLIO_FRAME_BITS, FOLIO_SIZE};
use crate::abi::vmalloc::{CHUNK_ADDRESSES, FLAG_ALLOC};
use crate::abi::{PAGE_SHIFT, PAGE_SIZE};
use crate::blueprint::MemfdPlan;
use crate::memory::len64;
use crate::model::MemfdVersion;

/// Writes the record, and preserves the folios. Returns the record's address: the file's handle.
pub(super) fn place(placer: &mut Placer<'_>, plan: &MemfdPlan, abi: Abi) -> Result<u64, BuildError> {
    let mut list = Vec::new();
    for folio in &plan.folios {
        placer.preserve(folio.block)?;
        let frame = folio.block.address >> PAGE_SHIFT;
        list.extend((frame | u64::from(folio.flags).wrapping_shl(FOLIO_FRAME_BITS)).to_le_bytes());
        list.extend(folio.index.to_le_bytes());
    }
    if let Some(folio) = plan.folios.iter().find(|folio| folio.flags >> 12 != 0) {
        let (found, limit) = (u64::from(folio.flags), 0xfff);
        return Err(BuildError::TooMany {
            what: "as folio flags",
            found,
            limit,
        });
    }
    let mut bytes = Vec::new();
    bytes.extend(plan.position.to_le_bytes());
    bytes.extend(plan.size.to_le_bytes());
    match abi.memfd() {
        MemfdVersion::V1 if plan.seals != 0 || plan.flags != 0 => {
            return Err(BuildError::NotInAbi {
                abi,
                what: "seals or flags of a memfd",
            });
        }
        MemfdVersion::V1 => {}
        MemfdVersion::V2 => {
            bytes.extend(plan.seals.to_le_bytes());
            bytes.extend(plan.flags.to_le_bytes());
        }
    }
    bytes.extend(len64(plan.folios.len()).to_le_bytes());
    bytes.extend(vmalloc(placer, &list)?);
    placer.place(&bytes)
}

/// Writes an area page by page, then its chunks, and returns its descriptor: all zeroes for an empty area.
pub(super) fn vmalloc(placer: &mut Placer<'_>, contents: &[u8]) -> Result<Vec<u8>, BuildError> {
    let mut pages = Vec::new();
    for page in contents.chunks(PAGE_SIZE) {
        pages.push(placer.place(page)?);
    }
    let mut lists: Vec<&[u64]> = pages.chunks(CHUNK_ADDRESSES).collect();
    // The kernel starts the next chunk as soon as one is full, even if no page follows.
    if lists.last().is_some_and(|list| list.len() == CHUNK_ADDRESSES) {
        lists.push(&[]);
    }
    let mut first = 0_u64;
    for list in lists.iter().rev() {
        let chunk: Vec<u8> = [first]
            .iter()
            .chain(list.iter())
            .flat_map(|word| word.to_le_bytes())
            .collect();
        first = placer.place(&chunk)?;
    }
    let (found, limit) = (len64(pages.len()), u64::from(u32::MAX));
    let total = u32::try_from(found).map_err(|_| BuildError::TooMany {
        what: "pages",
        found,
        limit,
    })?;
    let mut descriptor = first.to_le_bytes().to_vec();
    descriptor.extend(total.to_le_bytes());
    descriptor.extend(if total == 0 { 0 } else { FLAG_ALLOC }.to_le_bytes());
    descriptor.extend(0_u16.to_le_bytes());
    Ok(descriptor)
}

// Folio records never straddle pages.
const _: () = assert!(PAGE_SIZE.is_multiple_of(FOLIO_SIZE));
