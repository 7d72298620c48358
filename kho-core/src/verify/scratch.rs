//! Scratch areas.

use alloc::vec::Vec;

use super::Verifier;
use crate::finding::Rule;
use crate::model::ScratchArea;

/// Alignment that every kernel gives scratch, in bytes: a pageblock. (7.3 aligns to the largest buddy block, 4 MiB.)
const ALIGNMENT: u64 = 2 << 20;

pub(super) fn areas(verifier: &mut Verifier<'_>) {
    let rule = Rule::ScratchArea;
    let mut areas: Vec<ScratchArea> = verifier.handover.scratch.clone();
    areas.retain(|area| area.region.size != 0);
    for area in &areas {
        verifier.judge(rule);
        if !verifier.is_ram(&area.region) {
            verifier.finding(rule, area.at, "scratch area", "memory in RAM", area.region);
        }
        if !area.region.start.is_multiple_of(ALIGNMENT) || !area.region.size.is_multiple_of(ALIGNMENT) {
            verifier.finding(
                rule,
                area.at,
                "scratch area",
                "start and size in multiples of 2 MiB",
                area.region,
            );
        }
    }
    areas.sort_by_key(|area| area.region);
    for pair in areas.windows(2) {
        if let [one, other] = pair
            && one.region.overlaps(&other.region)
        {
            verifier.finding(rule, other.at, "scratch area", "memory of its own", other.region);
        }
    }
}
