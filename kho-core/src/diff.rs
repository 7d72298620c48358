//! The differences between two handovers: of two kernels, or before and after a kexec.
//!
//! Items are matched by key: sub-blobs, sessions and reserve_mem regions by name, files by session and token, FLBs by
//! version string, pages by file and offset. An item may appear, vanish, move (another address) or change (another
//! value).

mod contents;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::memory::{PhysicalMemory, Region};
use crate::model::{Content, File, FileContent, Handover, Memfd, Session};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Difference {
    /// What is different ("session "a" / token 0x1").
    pub what: String,
    /// In which way.
    pub kind: Kind,
}

/// The kind of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Kind {
    /// It is only in the second.
    Appeared,
    /// It is only in the first.
    Vanished,
    /// Its address differs.
    Moved {
        /// Physical address in the first.
        from: u64,
        /// Physical address in the second.
        to: u64,
    },
    /// Its value differs.
    Changed {
        /// Value in the first.
        before: String,
        /// Value in the second.
        after: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match &self.kind {
            Kind::Appeared => write!(f, "+ {what}"),
            Kind::Vanished => write!(f, "- {what}"),
            Kind::Moved { from, to } => write!(f, "> {what}: {from:#x} -> {to:#x}"),
            Kind::Changed { before, after } => write!(f, "~ {what}: {before} -> {after}"),
        }
    }
}

/// The differences between two handovers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Diff {
    /// In the order of the first handover's tree.
    pub differences: Vec<Difference>,
    /// Number of differences beyond [`Diff::LIMIT`], which are not listed.
    pub dropped: u64,
}

impl Diff {
    /// Differences that are listed.
    pub const LIMIT: usize = 4096;

    fn push(&mut self, what: impl ToString, kind: Kind) {
        if self.differences.len() < Self::LIMIT {
            self.differences.push(Difference {
                what: what.to_string(),
                kind,
            });
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    fn region(&mut self, what: &str, region: Region, kind: Kind) {
        self.push(format_args!("{what} {region}"), kind);
    }

    fn changed(&mut self, what: impl ToString, before: impl ToString, after: impl ToString) {
        let (before, after) = (before.to_string(), after.to_string());
        if before != after {
            self.push(what, Kind::Changed { before, after });
        }
    }

    fn moved(&mut self, what: impl ToString, from: u64, to: u64) {
        if from != to {
            self.push(what, Kind::Moved { from, to });
        }
    }

    /// Matches two lists by key. Items in only one list appeared or vanished; pairs are passed to `both`.
    fn matched<'a, T, K: Ord + Clone>(
        &mut self,
        (before, after): (&'a [T], &'a [T]),
        key: impl Fn(&'a T) -> K,
        name: impl Fn(&K) -> String,
        mut both: impl FnMut(&mut Self, String, &'a T, &'a T),
    ) {
        // Names that occur more than once, which the verifier reports, are matched in order.
        let numbered = |items: &'a [T]| {
            let mut seen: BTreeMap<K, usize> = BTreeMap::new();
            let number = |item: &'a T| {
                let times = seen.entry(key(item)).or_default();
                *times = times.saturating_add(1);
                ((key(item), *times), item)
            };
            items.iter().map(number).collect::<Vec<_>>()
        };
        let mut others: BTreeMap<(K, usize), &'a T> = numbered(after).into_iter().collect();
        for (key, item) in numbered(before) {
            match others.remove(&key) {
                Some(other) => both(self, name(&key.0), item, other),
                None => self.push(name(&key.0), Kind::Vanished),
            }
        }
        for (key, _) in others.keys() {
            self.push(name(key), Kind::Appeared);
        }
    }
}

/// A handover and the memory it was read from.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The handover.
    pub handover: &'a Handover,
    /// The memory; `None` to compare records only.
    pub memory: Option<&'a dyn PhysicalMemory>,
}

impl<'a> From<&'a Handover> for Side<'a> {
    fn from(handover: &'a Handover) -> Self {
        Self {
            handover,
            memory: None,
        }
    }
}

/// Compares the records of two handovers and, if both memories are given, also the bytes of files, regions and blobs.
pub fn diff(before: Side<'_>, after: Side<'_>) -> Diff {
    let mut diff = Diff::default();
    let (one, other) = (before.handover, after.handover);
    diff.changed("KHO version", one.version, other.version);
    diff.changed("map format", one.map.format(), other.map.format());
    diff.moved("KHO FDT", one.fdt.start, other.fdt.start);
    scratch(&mut diff, one, other);
    preserved(&mut diff, one, other);
    let name = |name: &&str| format!("sub-blob \"{name}\"");
    let blobs = (one.sub_blobs.as_slice(), other.sub_blobs.as_slice());
    diff.matched(
        blobs,
        |blob| blob.name.as_str(),
        name,
        |diff, name, one, other| {
            diff.moved(&name, one.address, other.address);
            content(diff, &name, &one.content, &other.content);
        },
    );
    sessions(&mut diff, one, other);
    if let (Some(one), Some(other)) = (before.memory, after.memory) {
        contents::contents(&mut diff, (before.handover, one), (after.handover, other));
    }
    diff
}

fn scratch(diff: &mut Diff, one: &Handover, other: &Handover) {
    let regions =
        |handover: &Handover| -> Vec<Region> { handover.scratch.iter().map(|area| area.region).collect() };
    regions_between(diff, "scratch", &regions(one), &regions(other));
}

fn preserved(diff: &mut Diff, one: &Handover, other: &Handover) {
    let what = "preserved memory";
    let (before, after) = (|| one.map.extents_by_address(), || other.map.extents_by_address());
    left(before(), after(), |region| {
        diff.region(what, region, Kind::Vanished)
    });
    left(after(), before(), |region| {
        diff.region(what, region, Kind::Appeared)
    });
}

/// The parts of each list of regions that are not in the other.
fn regions_between(diff: &mut Diff, what: &str, before: &[Region], after: &[Region]) {
    for region in subtract(before, after) {
        diff.region(what, region, Kind::Vanished);
    }
    for region in subtract(after, before) {
        diff.region(what, region, Kind::Appeared);
    }
}

/// The parts of `regions` that are not in `others`, ascending.
pub fn subtract(regions: &[Region], others: &[Region]) -> Vec<Region> {
    let (regions, others) = (
        crate::map::merge(regions.iter().copied()),
        crate::map::merge(others.iter().copied()),
    );
    let mut found = Vec::new();
    left(regions.into_iter(), others.into_iter(), |region| {
        found.push(region)
    });
    found
}

/// Visits the parts of some regions that are not in others. Both lists are ascending and disjoint.
fn left(
    regions: impl Iterator<Item = Region>,
    others: impl Iterator<Item = Region>,
    mut visit: impl FnMut(Region),
) {
    let mut others = others.peekable();
    for region in regions {
        let mut start = region.start;
        while let Some(other) = others.peek().filter(|other| other.start < region.end()) {
            if start < other.start {
                visit(Region::new(start, other.start.saturating_sub(start)));
            }
            start = start.max(other.end());
            // A region that reaches further may also cover part of the next one.
            if other.end() > region.end() {
                break;
            }
            others.next();
        }
        if start < region.end() {
            visit(Region::new(start, region.end().saturating_sub(start)));
        }
    }
}

fn content(diff: &mut Diff, name: &str, before: &Content, after: &Content) {
    match (before, after) {
        (Content::Luo(one), Content::Luo(other)) => {
            diff.changed(format!("{name} version"), one.version, other.version);
            let number = format!("{name} live update");
            diff.changed(number, one.liveupdate_number, other.liveupdate_number);
            let flb_name = |compatible: &&str| format!("FLB \"{compatible}\"");
            let flbs = (one.flbs.as_slice(), other.flbs.as_slice());
            diff.matched(
                flbs,
                |flb| flb.compatible.as_str(),
                flb_name,
                |diff, name, one, other| {
                    diff.moved(format!("{name} data"), one.data, other.data);
                    diff.changed(format!("{name} count"), one.count, other.count);
                },
            );
        }
        (Content::Memblock(one), Content::Memblock(other)) => {
            let region_name = |name: &&str| format!("reserve_mem \"{name}\"");
            let regions = (one.regions.as_slice(), other.regions.as_slice());
            diff.matched(
                regions,
                |region| region.name.as_str(),
                region_name,
                |diff, name, one, other| {
                    diff.moved(&name, one.region.start, other.region.start);
                    diff.changed(format!("{name} size"), one.region.size, other.region.size);
                },
            );
        }
        (Content::KexecMetadata(one), Content::KexecMetadata(other)) => {
            let release = format!("{name} previous release");
            diff.changed(release, &one.previous_release, &other.previous_release);
            diff.changed(format!("{name} kexec count"), one.kexec_count, other.kexec_count);
        }
        (Content::TestKho(one), Content::TestKho(other)) => {
            let regions = |test: &crate::model::TestKho| -> Vec<Region> {
                test.folios.iter().map(crate::map::Block::region).collect()
            };
            regions_between(diff, &format!("{name} folios"), &regions(one), &regions(other));
        }
        (one, other) => diff.changed(format!("{name} kind"), kind(one), kind(other)),
    }
}

fn kind(content: &Content) -> String {
    match content {
        Content::Luo(_) => "LUO".into(),
        Content::Memblock(_) => "memblock".into(),
        Content::KexecMetadata(_) => "kexec metadata".into(),
        Content::TestKho(_) => "kho_test".into(),
        Content::Fdt { compatible } => format!("FDT \"{}\"", compatible.as_deref().unwrap_or("")),
        Content::Opaque => "unknown".into(),
    }
}

fn sessions(diff: &mut Diff, one: &Handover, other: &Handover) {
    let name = |name: &&str| format!("session \"{name}\"");
    let sessions = (one.sessions(), other.sessions());
    diff.matched(
        sessions,
        |session| session.name.as_str(),
        name,
        |diff, name, one: &Session, other| {
            diff.moved(&name, one.at, other.at);
            let file_name = |token: &u64| format!("{name} / token {token:#x}");
            let lists = (one.files.as_slice(), other.files.as_slice());
            diff.matched(lists, |file| file.token, file_name, file);
        },
    );
}

fn file(diff: &mut Diff, name: String, one: &File, other: &File) {
    diff.changed(format!("{name} handler"), &one.compatible, &other.compatible);
    diff.moved(format!("{name} record"), one.data, other.data);
    if let (FileContent::Memfd(one), FileContent::Memfd(other)) = (&one.content, &other.content) {
        memfd(diff, &name, one, other);
    }
}

fn memfd(diff: &mut Diff, name: &str, one: &Memfd, other: &Memfd) {
    diff.changed(format!("{name} position"), one.position, other.position);
    diff.changed(format!("{name} size"), one.size, other.size);
    diff.changed(
        format!("{name} seals"),
        format!("{:#x}", one.seals),
        format!("{:#x}", other.seals),
    );
    diff.changed(
        format!("{name} flags"),
        format!("{:#x}", one.flags),
        format!("{:#x}", other.flags),
    );
    let folio_name = |index: &u64| format!("{name} / page {index}");
    let folios = (one.folios.as_slice(), other.folios.as_slice());
    diff.matched(
        folios,
        |folio| folio.index,
        folio_name,
        |diff, name, one, other| {
            diff.moved(&name, one.address, other.address);
            diff.changed(
                format!("{name} flags"),
                format!("{:#x}", one.flags),
                format!("{:#x}", other.flags),
            );
        },
    );
}

#[cfg(test)]
mod tests;
