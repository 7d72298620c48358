//! Preserved memory by owner, for the list of extents, the summary and the map.

use kho_core::{Handover, Owner, Owners, Region};
use std::collections::BTreeMap;

/// Preserved memory of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The memory.
    pub region: Region,
    /// The owner; `None` if nothing in the handover claims the memory.
    pub owner: Option<Owner>,
}

/// All preserved memory by ascending address, split where the owner changes.
pub(super) fn extents(handover: &Handover) -> Vec<Extent> {
    let owners = Owners::of(handover);
    let mut list: Vec<Extent> = Vec::new();
    for whole in handover.map.extents() {
        let mut at = whole.start;
        for record in owners.within(whole) {
            let (start, end) = (record.region.start.max(at), record.region.end().min(whole.end()));
            push(&mut list, at, start, None);
            push(&mut list, start, end, Some(record.owner));
            at = at.max(end);
        }
        push(&mut list, at, whole.end(), None);
    }
    list
}

fn push(list: &mut Vec<Extent>, start: u64, end: u64, owner: Option<Owner>) {
    if end <= start {
        return;
    }
    match list.last_mut() {
        Some(last) if last.owner == owner && last.region.end() == start => last.region.size += end - start,
        _ => list.push(Extent {
            region: Region::new(start, end - start),
            owner,
        }),
    }
}

/// Preserved bytes of each owner.
pub(super) fn totals(extents: &[Extent]) -> BTreeMap<Option<Owner>, u64> {
    let mut totals = BTreeMap::new();
    for extent in extents {
        *totals.entry(extent.owner).or_insert(0) += extent.region.size;
    }
    totals
}

/// Name of an owner.
pub(super) fn name(owner: Option<Owner>, handover: &Handover) -> String {
    match owner {
        Some(owner) => owner.describe(handover).to_string(),
        None => "claimed by nobody".into(),
    }
}

/// Kind of an owner, as the summary and JSON name it.
pub(super) fn kind(owner: Option<Owner>) -> &'static str {
    match owner {
        None => "unclaimed",
        Some(Owner::FileData { .. }) => "file data",
        Some(Owner::ReserveMem(_)) => "reserve_mem",
        Some(Owner::SubBlobData(_)) => "sub-blob data",
        Some(_) => "records",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_owner_are_one_extent_and_others_are_not() {
        let mut list = Vec::new();
        push(&mut list, 0x1000, 0x2000, None);
        push(&mut list, 0x2000, 0x2000, Some(Owner::KhoFdt));
        push(&mut list, 0x2000, 0x3000, None);
        push(&mut list, 0x3000, 0x4000, Some(Owner::KhoFdt));
        push(&mut list, 0x5000, 0x6000, Some(Owner::KhoFdt));
        let regions: Vec<_> = list.iter().map(|extent| extent.region.to_string()).collect();
        assert_eq!(regions, ["0x1000-0x3000", "0x3000-0x4000", "0x5000-0x6000"]);
        let totals = totals(&list);
        assert_eq!((totals[&None], totals[&Some(Owner::KhoFdt)]), (0x2000, 0x2000));
    }
}
