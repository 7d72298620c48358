//! The memblock sub-blob: `reserve_mem=` regions.

use alloc::vec::Vec;

use super::{Context, root};
use crate::abi::memblock::{COMPATIBLE_V1, PROP_SIZE, PROP_START, RESERVE_MEM_COMPATIBLE_V1};
use crate::finding::Rule;
use crate::memory::{Region, len64};
use crate::model::{Content, Memblock, ReserveMem, SubBlob};
use crate::owners::Owner;

pub(super) fn read(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Content {
    let what = "memblock FDT";
    let Some(bytes) = root::sub_fdt(context, blob, owner) else {
        return Content::Opaque;
    };
    let Some(fdt) = root::parse_fdt(context, blob, what, &bytes) else {
        return Content::Opaque;
    };
    let compatible = fdt.root().compatible();
    if compatible != Some(COMPATIBLE_V1) {
        return root::other_version(context, blob, what, COMPATIBLE_V1, compatible);
    }
    let mut regions = Vec::new();
    for node in fdt.root().children() {
        let at = blob.address.saturating_add(len64(node.offset()));
        let compatible = node.compatible();
        if compatible != Some(RESERVE_MEM_COMPATIBLE_V1) {
            let found = compatible.unwrap_or("none");
            context.finding(Rule::VersionKnown, at, what, RESERVE_MEM_COMPATIBLE_V1, found);
            continue;
        }
        let start = root::number(context, &node, PROP_START, blob.address);
        let size = root::number(context, &node, PROP_SIZE, blob.address);
        if let (Some(start), Some(size)) = (start, size) {
            regions.push(ReserveMem {
                at,
                name: node.name().into(),
                region: Region::new(start, size),
            });
        }
    }
    Content::Memblock(Memblock { regions })
}
