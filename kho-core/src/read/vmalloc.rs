//! `struct kho_vmalloc` and the chunks behind it.

use alloc::vec::Vec;

use super::Context;
use crate::abi::vmalloc::{CHUNK_ADDRESSES, DESCRIPTOR_SIZE};
use crate::abi::{PAGE_SHIFT, PAGE_SIZE};
use crate::bytes::{Fields, word};
use crate::finding::Rule;
use crate::memory::{Region, clamp, len64};
use crate::model::Vmalloc;
use crate::owners::Owner;
use crate::read::context::Hex;
use crate::tree::Counted;

/// An area, and how much of it may be read.
pub(super) struct Area {
    /// What the descriptor and the chunks say.
    pub(super) area: Vmalloc,
    /// Number of runs before the first that could not be claimed. A list may name one page a thousand times, and must
    /// not make us read it as often.
    claimed: usize,
}

/// Reads the area that a descriptor describes, and claims its chunks and its pages.
///
/// `fields` is at the descriptor, whose address is `at`. A descriptor of zeroes is an area of no pages.
pub(super) fn read(
    context: &mut Context<'_>,
    fields: &mut Fields<'_>,
    at: u64,
    owner: Owner,
    what: &str,
) -> Area {
    let first = fields.u64();
    let mut area = Vmalloc {
        at,
        total_pages: fields.u32(),
        flags: fields.u16(),
        order: fields.u16(),
        chunks: Vec::new(),
        runs: Vec::new(),
    };
    if area.order >= 52 {
        context.finding(Rule::CountFits, at, what, "a page order below 52", area.order);
        return Area { area, claimed: 0 };
    }
    let mut claimed = None;
    let mut next = first;
    while next != 0 {
        let Some(chunk) = context.page(next, owner, "chunk of a vmalloc area") else {
            break;
        };
        area.chunks.push(next);
        for index in 1..=CHUNK_ADDRESSES {
            let run = word(&chunk, index);
            if run == 0 {
                break;
            }
            // Keep a run that cannot be claimed in the list; otherwise all later offsets would shift.
            if !context.claim_pages(run, area.run_size(), owner, "pages of a vmalloc area") {
                claimed = claimed.or(Some(area.runs.len()));
            }
            area.runs.push(run);
        }
        next = word(&chunk, 0);
    }
    let found = len64(area.runs.len()).saturating_mul(area.run_size() >> PAGE_SHIFT);
    if found != u64::from(area.total_pages) {
        context.finding(
            Rule::CountAgrees,
            at,
            what,
            Counted(area.total_pages.into(), "page"),
            alloc::format!("{} listed", Counted(found, "page")),
        );
    }
    let claimed = claimed.unwrap_or(area.runs.len());
    Area { area, claimed }
}

/// Reads bytes of an area, page by page, and hands each piece to `visit`.
///
/// Stops with a finding at a page that cannot be read or could not be claimed, so the size of RAM bounds the sum of
/// the pieces.
pub(super) fn each_page(
    context: &mut Context<'_>,
    Area { area, claimed }: &Area,
    size: u64,
    what: &str,
    mut visit: impl FnMut(&mut Context<'_>, u64, &[u8]),
) {
    let mut left = size;
    for (index, run) in area.runs.iter().enumerate() {
        if index == *claimed {
            return;
        }
        let mut offset = 0;
        while offset < area.run_size() {
            if left == 0 {
                return;
            }
            let at = run.saturating_add(offset);
            let piece = left.min(len64(PAGE_SIZE));
            let Some(bytes) = context.bytes(at, clamp(piece), what) else {
                return;
            };
            visit(context, at, &bytes);
            left = left.saturating_sub(piece);
            offset = offset.saturating_add(len64(PAGE_SIZE));
        }
    }
    if left > 0 {
        let region = Region::new(area.at, len64(DESCRIPTOR_SIZE));
        context.finding(
            Rule::CountFits,
            region.start,
            what,
            alloc::format!("{size:#x} bytes"),
            Hex(size.saturating_sub(left)),
        );
    }
}
