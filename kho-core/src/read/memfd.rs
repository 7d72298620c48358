//! What LUO keeps of a memfd.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Context, vmalloc};
use crate::abi::memfd::{FOLIO_FRAME_BITS, FOLIO_SIZE, HEADER_SIZE_V1, HEADER_SIZE_V2};
use crate::abi::vmalloc::DESCRIPTOR_SIZE;
use crate::abi::{PAGE_SHIFT, PAGE_SIZE};
use crate::bytes::{Fields, word};
use crate::memory::len64;
use crate::model::{FileContent, Folio, Memfd, MemfdVersion};
use crate::owners::Owner;

/// Reads the record at a file's handle.
pub(super) fn read(
    context: &mut Context<'_>,
    version: MemfdVersion,
    at: u64,
    owner: Owner,
    what: &str,
) -> FileContent {
    let size = match version {
        MemfdVersion::V1 => HEADER_SIZE_V1,
        MemfdVersion::V2 => HEADER_SIZE_V2,
    };
    let Some(bytes) = context.record(at, size, owner, what) else {
        return FileContent::Opaque;
    };
    let mut fields = Fields::new(&bytes);
    let (position, file_size) = (fields.u64(), fields.u64());
    let (seals, flags) = match version {
        MemfdVersion::V1 => (0, 0),
        MemfdVersion::V2 => (fields.u32(), fields.u32()),
    };
    let count = fields.u64();
    let descriptor = at.saturating_add(len64(size.saturating_sub(DESCRIPTOR_SIZE)));
    let list = vmalloc::read(context, &mut fields, descriptor, owner, what);
    let mut folios = Vec::new();
    let list_size = count.saturating_mul(len64(FOLIO_SIZE));
    vmalloc::each_page(context, &list, list_size, what, |_, _, page| {
        folios.extend(page.chunks_exact(FOLIO_SIZE).map(folio));
    });
    FileContent::Memfd(Box::new(Memfd {
        at,
        version,
        position,
        size: file_size,
        seals,
        flags,
        list: list.area,
        folios,
    }))
}

fn folio(record: &[u8]) -> Folio {
    let (frame_and_flags, index) = (word(record, 0), word(record, 1));
    let flags = frame_and_flags >> FOLIO_FRAME_BITS;
    Folio {
        // The shift drops bits of the frame number that no physical address has. The verifier compares the result
        // with the map.
        address: frame_and_flags.wrapping_shl(PAGE_SHIFT),
        index,
        flags: u16::try_from(flags).unwrap_or(u16::MAX),
    }
}

// Folio records never straddle pages, so pages can be decoded one by one.
const _: () = assert!(PAGE_SIZE.is_multiple_of(FOLIO_SIZE));
