//! luo-v5: `struct luo_ser` and linked blocks.

use alloc::vec::Vec;

use super::{Context, luo};
use crate::abi::PAGE_BYTES;
use crate::abi::block::{BLOCK_HEADER_SIZE, MAX_BLOCKS, records_per_block};
use crate::abi::luo::{
    COMPATIBLE_LENGTH, COMPATIBLE_V5, FILE_SIZE, FLB_HEADER_SIZE, FLB_SIZE, HEADER_SIZE, SESSION_SIZE,
};
use crate::bytes::Fields;
use crate::finding::Rule;
use crate::memory::{clamp, len64};
use crate::model::{Content, Flb, Luo, LuoVersion, SubBlob};
use crate::owners::Owner;
use crate::read::context::Hex;
use crate::tree::Counted;

pub(super) fn read(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Content {
    let what = "LUO state";
    let Some(bytes) = context.bytes(blob.address, HEADER_SIZE, what) else {
        return Content::Opaque;
    };
    let mut fields = Fields::new(&bytes);
    let compatible = fields.text::<COMPATIBLE_LENGTH>();
    if compatible.value != COMPATIBLE_V5 {
        return luo::unknown_version(context, blob, owner, COMPATIBLE_V5, &compatible.value);
    }
    if blob.size.is_some_and(|size| size < len64(HEADER_SIZE)) {
        context.finding(
            Rule::CountFits,
            blob.address,
            what,
            "32 bytes",
            blob.size.unwrap_or(0),
        );
    }
    if !context.claim_pages(blob.address, len64(HEADER_SIZE), owner, what) {
        return Content::Opaque;
    }
    let (liveupdate_number, sessions_at, flbs_at) = (fields.u64(), fields.u64(), fields.u64());
    let mut records = Vec::new();
    each_record(
        context,
        sessions_at,
        SESSION_SIZE,
        "sessions",
        |context, record, at| {
            records.push(luo::session(context, record, at));
        },
    );
    let mut sessions = Vec::new();
    for (index, mut record) in records.into_iter().enumerate() {
        let what = alloc::format!("files of session \"{}\"", record.session.name);
        let mut files = Vec::new();
        each_record(context, record.files, FILE_SIZE, &what, |context, bytes, at| {
            let file = luo::file(context, bytes, at, (index, &record.session.name), files.len());
            files.push(file);
        });
        if len64(files.len()) != record.count {
            context.finding(
                Rule::CountAgrees,
                record.session.at,
                &what,
                record.count,
                files.len(),
            );
        }
        record.session.files = files;
        sessions.push(record.session);
    }
    let flbs = flbs(context, flbs_at);
    Content::Luo(Luo {
        at: blob.address,
        version: LuoVersion::V5,
        liveupdate_number,
        sessions,
        flbs,
    })
}

/// Visits the records of a list of linked blocks.
fn each_record(
    context: &mut Context<'_>,
    head: u64,
    record_size: usize,
    what: &str,
    mut visit: impl FnMut(&mut Context<'_>, &[u8], u64),
) {
    let capacity = len64(records_per_block(record_size));
    let mut next = head;
    let mut blocks = 0_usize;
    while next != 0 {
        if blocks == MAX_BLOCKS {
            context.finding(Rule::CountFits, next, what, "at most 10,000 blocks", "more");
            return;
        }
        blocks = blocks.saturating_add(1);
        let block = next;
        let Some(page) = context.page(block, Owner::LuoTable, what) else {
            return;
        };
        let mut fields = Fields::new(&page);
        next = fields.u64();
        let count = fields.u64();
        if count == 0 || count > capacity {
            let expected = alloc::format!("1 to {capacity} records in the block");
            context.finding(Rule::CountFits, block, what, expected, count);
        }
        let records = page
            .get(BLOCK_HEADER_SIZE..)
            .unwrap_or_default()
            .chunks_exact(record_size);
        for (index, record) in records.take(clamp(count)).enumerate() {
            let offset = BLOCK_HEADER_SIZE.saturating_add(index.saturating_mul(record_size));
            visit(context, record, block.saturating_add(len64(offset)));
        }
    }
}

/// Reads the array of FLBs, the same in all versions; 0 when there is none.
pub(super) fn flbs(context: &mut Context<'_>, address: u64) -> Vec<Flb> {
    let what = "FLBs";
    let mut flbs = Vec::new();
    if address == 0 {
        return flbs;
    }
    let Some(header) = context.bytes(address, FLB_HEADER_SIZE, what) else {
        return flbs;
    };
    let mut fields = Fields::new(&header);
    let (pages, count) = (fields.u64(), fields.u64());
    let size = pages.saturating_mul(PAGE_BYTES);
    if pages == 0 || !context.claim_pages(address, size, Owner::LuoTable, what) {
        context.finding(
            Rule::CountFits,
            address,
            what,
            "one page or more, in RAM",
            Hex(size),
        );
        return flbs;
    }
    let records_size = len64(FLB_SIZE).saturating_mul(count);
    let room = size.saturating_sub(len64(FLB_HEADER_SIZE));
    if records_size > room {
        let records = room.checked_div(len64(FLB_SIZE)).unwrap_or(0);
        let expected = alloc::format!("at most {}", Counted(records, "record"));
        context.finding(Rule::CountFits, address, what, expected, count);
    }
    let start = address.saturating_add(len64(FLB_HEADER_SIZE));
    let Some(bytes) = context.bytes(start, clamp(records_size.min(room)), what) else {
        return flbs;
    };
    for (index, record) in bytes.chunks_exact(FLB_SIZE).enumerate() {
        let at = start.saturating_add(len64(index.saturating_mul(FLB_SIZE)));
        flbs.push(luo::flb(context, record, at));
    }
    flbs
}
