//! The sub-blob of the kernel's own test of KHO.

use alloc::vec::Vec;

use super::{Context, root, vmalloc};
use crate::abi::test_kho::{COMPATIBLE_V1, DATA_NODE_NAME, PROP_COUNT, PROP_FOLIOS};
use crate::abi::{PAGE_BYTES, vmalloc::DESCRIPTOR_SIZE};
use crate::bytes::{Fields, word};
use crate::fdt::Property;
use crate::finding::Rule;
use crate::map::Block;
use crate::memory::len64;
use crate::model::{Content, SubBlob, TestKho};
use crate::owners::Owner;
use crate::tree::Counted;

pub(super) fn read(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner, index: usize) -> Content {
    let what = "kho_test FDT";
    let Some(bytes) = root::sub_fdt(context, blob, owner) else {
        return Content::Opaque;
    };
    let Some(fdt) = root::parse_fdt(context, blob, what, &bytes) else {
        return Content::Opaque;
    };
    let compatible = fdt.root().compatible();
    let data = fdt.root().child(DATA_NODE_NAME);
    let count = data.and_then(|node| node.property(PROP_COUNT)?.as_u32());
    let list = data.and_then(|node| node.property(PROP_FOLIOS));
    let (Some(count), Some(list), Some(COMPATIBLE_V1)) = (count, list, compatible) else {
        return root::other_version(context, blob, what, COMPATIBLE_V1, compatible);
    };
    let size = u64::from(count).saturating_mul(8);
    let mut test = TestKho {
        count,
        list: None,
        folios: Vec::new(),
    };
    // One folio in place is 8 bytes, a descriptor 16: two folios in place look like a descriptor, but then the first
    // chunk's address has an order in its low bits or the list would be of order-0 pages only.
    if len64(list.value.len()) == size && (size != len64(DESCRIPTOR_SIZE) || !is_descriptor(list)) {
        test.folios
            .extend(list.value.chunks_exact(8).map(|entry| folio(word(entry, 0))));
    } else if list.value.len() == DESCRIPTOR_SIZE {
        let at = blob.address.saturating_add(len64(list.offset));
        let owner = Owner::SubBlobData(index);
        let area = vmalloc::read(context, &mut Fields::new(list.value), at, owner, what);
        vmalloc::each_page(context, &area, size, what, |_, _, page| {
            test.folios
                .extend(page.chunks_exact(8).map(|entry| folio(word(entry, 0))));
        });
        test.list = Some(area.area);
    } else {
        let at = blob.address.saturating_add(len64(list.offset));
        context.finding(
            Rule::CountAgrees,
            at,
            what,
            Counted(count.into(), "folio"),
            len64(list.value.len()) / 8,
        );
    }
    Content::TestKho(test)
}

/// Whether 16 bytes are a descriptor rather than two folios: it counts pages of the list, and two entries fit one.
fn is_descriptor(list: &Property<'_>) -> bool {
    let mut fields = Fields::new(list.value);
    fields.u64().is_multiple_of(PAGE_BYTES) && fields.u32() == 1 && fields.u16() <= 3
}

fn folio(entry: u64) -> Block {
    let order = entry & PAGE_BYTES.wrapping_sub(1);
    Block::new(
        entry & !PAGE_BYTES.wrapping_sub(1),
        u8::try_from(order).unwrap_or(u8::MAX),
    )
}
