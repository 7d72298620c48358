//! The map of kho-v1: chunks that point to bitmaps.

use alloc::vec::Vec;

use super::Context;
use crate::abi::kexec_handover::{BITMAP_SIZE_6_17, BITMAP_SIZE_6_18, CHUNK_ELEMENTS};
use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::bytes::{Fields, word};
use crate::finding::Rule;
use crate::map::{Bitmap, MapFormat, MapNode, PreservedMap, order_size};
use crate::memory::{Region, clamp, len64};
use crate::owners::Owner;
use crate::tree::Counted;

/// What an element of a chunk says.
#[derive(Debug, Clone, Copy)]
struct Element {
    order: u8,
    start: u64,
    bitmap: u64,
}

/// Reads the map whose first chunk is at an address; 0 is an empty map. `after_6_17` means that another record shows
/// the kernel to be younger than 6.17.
pub(super) fn read(context: &mut Context<'_>, first: u64, after_6_17: bool) -> PreservedMap {
    let what = "chunk of the preserved-memory map";
    let mut nodes = Vec::new();
    let mut elements = Vec::new();
    let mut next = first;
    while next != 0 {
        let at = next;
        let Some(page) = context.page(at, Owner::KhoMap, what) else {
            break;
        };
        nodes.push(MapNode { at, level: 0 });
        let mut fields = Fields::new(&page);
        next = fields.u64();
        let (order, count) = (fields.u32(), u64::from(fields.u32()));
        if count > len64(CHUNK_ELEMENTS) {
            context.finding(Rule::CountFits, at, what, "at most 255 elements", count);
        }
        let Some(order) = u8::try_from(order).ok().filter(|order| *order < 52) else {
            context.finding(Rule::MapKey, at, what, "an order below 52", order);
            continue;
        };
        for index in 0..clamp(count).min(CHUNK_ELEMENTS) {
            let place = index.saturating_mul(2).saturating_add(2);
            let (start, bitmap) = (word(&page, place), word(&page, place.saturating_add(1)));
            elements.push(Element { order, start, bitmap });
        }
    }
    let format = bitmap_size(context, first, &elements, after_6_17);
    let bitmaps = elements
        .iter()
        .filter_map(|element| bitmap(context, element, format))
        .collect();
    PreservedMap::new(format, first, nodes, bitmaps)
}

/// Tells 6.17's bitmaps from those of 6.18 and 6.19, which have the same version string.
///
/// Proof of 512 bytes is a bitmap that does not begin on a page boundary, two bitmaps in one page, or a window whose
/// start is not a multiple of the span of a page of bits. That span is eight times larger, so almost every map of
/// preserved memory above the lowest addresses has such a window. Without proof the size is taken to be a page. That
/// gives a finding, unless so many bitmaps begin on page boundaries that chance is ruled out.
fn bitmap_size(context: &mut Context<'_>, at: u64, elements: &[Element], after_6_17: bool) -> MapFormat {
    let span = |order: u8| {
        len64(BITMAP_SIZE_6_18)
            .saturating_mul(8)
            .saturating_mul(order_size(order))
    };
    let mut pages: Vec<u64> = elements
        .iter()
        .map(|element| element.bitmap / PAGE_BYTES)
        .collect();
    pages.sort_unstable();
    let two_in_a_page = pages.windows(2).any(|pair| pair.first() == pair.last());
    let small = elements.iter().any(|element| {
        !element.bitmap.is_multiple_of(PAGE_BYTES) || !element.start.is_multiple_of(span(element.order))
    });
    if small || two_in_a_page {
        return MapFormat::ChunksOf512;
    }
    // A 512-byte bitmap lands on a page boundary one time in eight, so four of them do once in 4,096.
    if !elements.is_empty() && elements.len() < 4 && !after_6_17 {
        let found = alloc::format!(
            "{} that may have 512 bytes or 4,096; taken as 4,096",
            Counted::of(elements.len(), "bitmap")
        );
        context.finding(
            Rule::BitmapSizeCertain,
            at,
            "preserved-memory map",
            "evidence of the bitmap size",
            found,
        );
    }
    MapFormat::ChunksOfPages
}

fn bitmap(context: &mut Context<'_>, element: &Element, format: MapFormat) -> Option<Bitmap> {
    let what = "bitmap of the preserved-memory map";
    let size = if format == MapFormat::ChunksOf512 {
        BITMAP_SIZE_6_17
    } else {
        BITMAP_SIZE_6_18
    };
    if !element.bitmap.is_multiple_of(8) {
        context.finding(
            Rule::RecordAligned,
            element.bitmap,
            what,
            "an address of eight-byte words",
            element.bitmap,
        );
        return None;
    }
    if !context.claim(Region::new(element.bitmap, len64(size)), Owner::KhoMap, what) {
        return None;
    }
    let bytes = context.bytes(element.bitmap, size, what)?;
    let words = bytes.chunks_exact(8).map(|chunk| word(chunk, 0)).collect();
    Some(Bitmap {
        at: element.bitmap,
        order: element.order,
        start: element.start,
        words,
    })
}

const _: () = assert!(PAGE_SIZE == BITMAP_SIZE_6_18);
