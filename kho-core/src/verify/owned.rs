//! Checks that the memory that a handover mentions is preserved and has one owner.

use alloc::vec::Vec;

use super::Verifier;
use crate::abi::PAGE_BYTES;
use crate::finding::Rule;
use crate::memory::Region;
use crate::model::Content;
use crate::owners::{Owner, Owners, Record, data_claims};
use crate::tree::Counted;

/// Records that the ABI preserves are in the map, and out of scratch.
pub(super) fn records(verifier: &mut Verifier<'_>) {
    let handover = verifier.handover;
    for record in &handover.records {
        let what = record.owner.describe(handover);
        // kexec puts its own segments into scratch, and the array of scratch areas is one of them.
        if record.owner != Owner::ScratchArray {
            verifier.judge(Rule::ScratchOverlap);
            if let Some(scratch) = verifier.scratch_under(&record.region) {
                let found = format_args!("{} in {scratch}", record.region);
                let expected = "memory outside scratch";
                verifier.finding(Rule::ScratchOverlap, record.region.start, what, expected, found);
            }
        }
        if record.owner.is_preserved() {
            verifier.judge(Rule::RecordPreserved);
            if let Some(gap) = verifier.first_gap(record.region) {
                let expected = alloc::format!("all of {} in the map", record.region);
                verifier.finding(Rule::RecordPreserved, gap, what, expected, "a page that is not");
            }
        }
    }
}

/// The data of files, regions and the kernel's own test is in the map.
pub(super) fn data(verifier: &mut Verifier<'_>) {
    let handover = verifier.handover;
    let mut regions: Vec<_> = handover
        .reserve_mem()
        .iter()
        .enumerate()
        .map(|(index, region)| (region.region, index))
        .collect();
    regions.sort_unstable();
    let mut done = 0;
    for (region, index) in regions {
        verifier.judge(Rule::DataPreserved);
        // Skip memory that another region covers and that was walked already: thousands of regions over all of RAM
        // must not cost a walk each.
        let start = region.start.max(done);
        let rest = Region::new(start, region.end().saturating_sub(start));
        done = done.max(region.end());
        if let Some(gap) = verifier.first_gap(rest) {
            let what = Owner::ReserveMem(index).describe(handover);
            let expected = alloc::format!("all of {region} in the map");
            verifier.finding(Rule::DataPreserved, gap, what, expected, "a page that is not");
        }
    }
    for (session, content) in handover.sessions().iter().enumerate() {
        for (file, content) in content.files.iter().enumerate() {
            let Some(memfd) = content.memfd() else { continue };
            // The kernel skips folios without an address.
            for (index, folio) in memfd
                .folios
                .iter()
                .enumerate()
                .filter(|(_, folio)| folio.address != 0)
            {
                let at = memfd.record_of(index).unwrap_or(memfd.at);
                begins_a_block(verifier, folio.address, Owner::FileData { session, file }, at);
            }
        }
    }
    for (index, blob) in handover.sub_blobs.iter().enumerate() {
        let Content::TestKho(test) = &blob.content else {
            continue;
        };
        for folio in &test.folios {
            begins_a_block(verifier, folio.address, Owner::SubBlobData(index), blob.address);
        }
    }
}

/// A folio that the record at `at` names is the block that begins at its address.
fn begins_a_block(verifier: &mut Verifier<'_>, folio: u64, owner: Owner, at: u64) {
    verifier.judge(Rule::DataPreserved);
    let handover = verifier.handover;
    let block = handover.map.block_containing(folio);
    if block.is_some_and(|block| block.address == folio) {
        return;
    }
    let what = owner.describe(handover);
    let expected = alloc::format!("a preserved block at {folio:#x}");
    match block {
        Some(block) => verifier.finding(Rule::DataPreserved, at, what, expected, block),
        None => verifier.finding(Rule::DataPreserved, at, what, expected, "none"),
    }
}

/// No memory has two owners.
pub(super) fn shared(verifier: &mut Verifier<'_>) {
    let handover = verifier.handover;
    let mut claims = data_claims(handover);
    claims.extend(handover.records.iter().copied());
    claims.sort_unstable();
    let mut last: Option<Record> = None;
    for claim in claims {
        verifier.judge(Rule::DataShared);
        match last {
            Some(other) if other.region.overlaps(&claim.region) => {
                let what = claim.owner.describe(handover);
                let found = alloc::format!("{} in use by {}", claim.region, other.owner.describe(handover));
                verifier.finding(
                    Rule::DataShared,
                    claim.region.start,
                    what,
                    "memory of its own",
                    found,
                );
                if claim.region.end() > other.region.end() {
                    last = Some(claim);
                }
            }
            _ => last = Some(claim),
        }
    }
}

/// All preserved memory has an owner.
pub(super) fn nobody(verifier: &mut Verifier<'_>) {
    let owners = Owners::of(verifier.handover);
    verifier.judge(Rule::PageOwned);
    for region in owners.unowned() {
        let expected = "memory that a record of the handover names";
        let found = alloc::format!(
            "{} that none does",
            Counted(region.size.checked_div(PAGE_BYTES).unwrap_or(0), "page")
        );
        verifier.finding(
            Rule::PageOwned,
            region.start,
            Region::new(region.start, region.size),
            expected,
            found,
        );
    }
}
