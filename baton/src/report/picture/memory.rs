//! Which guest memory was whose: lanes of page extents over the same addresses.

use crate::report::by_device;
use harness::blob::decode;
use harness::evidence::{Evidence, ObjectEvidence, ObjectKind, PAGE, frames_of};
use harness::oracle::Finding;
use std::collections::BTreeMap;
use vmm::memory::ram_regions;

/// Most extents of a lane.
const MAX_EXTENTS: usize = 256;
/// Most objects with lanes of their own; the others share one.
const MAX_OBJECTS: usize = 10;

/// What a lane shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::report) enum LaneKind {
    /// An object that was preserved.
    Preserved,
    /// An object that was not.
    Unpreserved,
    /// The handover's own pages.
    Handover,
    /// Memory from which a new kernel may allocate before it knows what is preserved.
    Scratch,
    /// The next kernel's image.
    Staged,
    /// Where the device wrote.
    DeviceWrites,
    /// Where findings are.
    Findings,
}

/// Page frames: the first one and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::report) struct Extent {
    pub first: u64,
    pub count: u64,
}

/// The pages of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Lane {
    pub kind: LaneKind,
    pub name: String,
    /// How many pages there are.
    pub pages: u64,
    /// Where they are, in ascending order. Bounds are multiples of `granule`, and gaps smaller than that are closed.
    pub extents: Vec<Extent>,
    /// 1 if the extents are exact.
    pub granule: u64,
}

/// Guest memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::report) struct MemoryMap {
    /// RAM in ascending order.
    pub ram: Vec<Extent>,
    pub lanes: Vec<Lane>,
}

impl Extent {
    /// First frame after it.
    pub fn end(self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// The frames that bytes touch.
    fn of_bytes(address: u64, bytes: u64) -> Self {
        let first = address / PAGE;
        let end = address.saturating_add(bytes).div_ceil(PAGE);
        Self {
            first,
            count: end.saturating_sub(first),
        }
    }
}

impl MemoryMap {
    /// Of a run's evidence and findings.
    pub fn new<'a>(evidence: &Evidence, findings: impl Iterator<Item = &'a Finding>) -> Self {
        let mut lanes: Vec<Lane> = objects(evidence);
        lanes.extend(handed(evidence));
        let writes = evidence.ledger.entries.iter();
        let written = writes
            .filter(|write| by_device(evidence, write))
            .flat_map(frames_of);
        lanes.push(lane(
            LaneKind::DeviceWrites,
            "the device wrote".into(),
            single(written),
        ));
        let found = findings.filter_map(|finding| finding.page);
        lanes.push(lane(LaneKind::Findings, "findings".into(), single(found)));
        lanes.retain(|lane| lane.pages > 0);
        let ram = ram_regions(evidence.ram_bytes);
        Self {
            ram: ram
                .iter()
                .map(|region| Extent::of_bytes(region.start, region.end - region.start))
                .collect(),
            lanes,
        }
    }
}

/// A lane for each object, the preserved ones first.
fn objects(evidence: &Evidence) -> Vec<Lane> {
    let preserved = |object: &&ObjectEvidence| !object.preserved_by.is_empty();
    let kept: Vec<&ObjectEvidence> = evidence.objects.iter().filter(preserved).collect();
    let (own, shared) = kept.split_at(kept.len().min(MAX_OBJECTS));
    let mut lanes: Vec<Lane> = own
        .iter()
        .map(|object| lane(LaneKind::Preserved, object.owner(), runs(object)))
        .collect();
    if !shared.is_empty() {
        let runs = shared.iter().copied().flat_map(runs).collect();
        lanes.push(lane(
            LaneKind::Preserved,
            format!("{} more memfds", shared.len()),
            runs,
        ));
    }
    let left: Vec<&ObjectEvidence> = evidence
        .objects
        .iter()
        .filter(|object| !preserved(object))
        .collect();
    if !left.is_empty() {
        let name = match left[..] {
            [one] if one.kind == ObjectKind::Anonymous => one.owner(),
            [one] => format!("{}, never preserved", one.owner()),
            _ => format!("{} objects never preserved", left.len()),
        };
        lanes.push(lane(
            LaneKind::Unpreserved,
            name,
            left.into_iter().flat_map(runs).collect(),
        ));
    }
    lanes
}

/// The pages of an object as any generation resolved them.
fn runs(object: &ObjectEvidence) -> Vec<Extent> {
    let runs = object.pages.values().flatten();
    let extents = runs.map(|run| Extent {
        first: run.first,
        count: run.count,
    });
    extents.collect()
}

/// Lanes of what the blobs say and of what was staged, over all kexecs.
fn handed(evidence: &Evidence) -> Vec<Lane> {
    let (mut own, mut scratch) = (Vec::new(), Vec::new());
    let mut staged: BTreeMap<&str, Vec<Extent>> = BTreeMap::new();
    for blob in &evidence.blobs {
        if let Ok(handed) = decode(blob) {
            own.extend(single(handed.own.keys().copied()));
            scratch.extend(
                handed
                    .scratch
                    .iter()
                    .map(|area| Extent::of_bytes(area.start, area.size)),
            );
        }
        for part in &blob.staged {
            let extents = staged.entry(&part.what).or_default();
            extents.push(Extent::of_bytes(part.address, part.bytes));
        }
    }
    let mut lanes = vec![
        lane(LaneKind::Handover, "the handover's own pages".into(), own),
        lane(LaneKind::Scratch, "scratch".into(), scratch),
    ];
    let part = |(what, extents)| lane(LaneKind::Staged, format!("next {what}"), extents);
    lanes.extend(staged.into_iter().map(part));
    lanes
}

fn single(frames: impl Iterator<Item = u64>) -> Vec<Extent> {
    let mut frames: Vec<u64> = frames.collect();
    frames.sort_unstable();
    frames.dedup();
    let runs = frames.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let extent = |run: &[u64]| {
        Some(Extent {
            first: *run.first()?,
            count: run.len() as u64,
        })
    };
    runs.filter_map(extent).collect()
}

fn lane(kind: LaneKind, name: String, mut runs: Vec<Extent>) -> Lane {
    runs.sort_unstable();
    let exact = merged(&runs, 1);
    let mut granule = 1u64;
    let mut extents = exact.clone();
    while extents.len() > MAX_EXTENTS {
        granule = granule.saturating_mul(2);
        extents = merged(&extents, granule);
    }
    Lane {
        kind,
        name,
        pages: exact
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.count)),
        extents,
        granule,
    }
}

/// Runs in ascending order, widened to multiples of `granule`, as few as possible.
fn merged(runs: &[Extent], granule: u64) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::new();
    for run in runs.iter().filter(|run| run.count > 0) {
        let first = run.first / granule * granule;
        let end = run.end().div_ceil(granule).saturating_mul(granule);
        match out.last_mut() {
            Some(last) if first <= last.end() => last.count = last.end().max(end) - last.first,
            _ => out.push(Extent {
                first,
                count: end - first,
            }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing::{self, MEMFD, OWN, PAGES};
    use proptest::prelude::*;

    #[test]
    fn each_page_is_in_the_lane_of_its_owner() {
        let map = MemoryMap::new(&testing::good(), std::iter::empty());
        let extents = |kind| -> Vec<Extent> {
            let lanes = map.lanes.iter().filter(|lane| lane.kind == kind);
            lanes.flat_map(|lane| lane.extents.clone()).collect()
        };
        let extent = |first, count| Extent { first, count };
        assert_eq!(map.ram, [extent(0, testing::RAM / PAGE)]);
        assert_eq!(extents(LaneKind::Preserved), [extent(MEMFD, PAGES)]);
        assert_eq!(extents(LaneKind::Handover), [extent(OWN, 1)]);
        assert_eq!(extents(LaneKind::DeviceWrites), [extent(MEMFD + 1, 9)]);
        assert_eq!(extents(LaneKind::Staged), [extent(0x2000, 0x100)]);
        assert!(extents(LaneKind::Findings).is_empty());
    }

    proptest! {
        #[test]
        fn a_lane_is_small_and_leaves_out_no_page(frames in proptest::collection::vec(0u64..1 << 20, 0..2000)) {
            let lane = lane(LaneKind::Findings, String::new(), single(frames.iter().copied()));
            prop_assert!(lane.extents.len() <= MAX_EXTENTS);
            let distinct: std::collections::BTreeSet<u64> = frames.iter().copied().collect();
            prop_assert_eq!(lane.pages, distinct.len() as u64);
            for frame in distinct {
                prop_assert!(lane.extents.iter().any(|extent| (extent.first..extent.end()).contains(&frame)));
            }
            for pair in lane.extents.windows(2) {
                prop_assert!(pair[0].end() < pair[1].first);
            }
            if lane.granule == 1 {
                let shown: u64 = lane.extents.iter().map(|extent| extent.count).sum();
                prop_assert_eq!(shown, lane.pages);
            }
        }
    }
}
