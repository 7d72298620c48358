//! Findings: which rule a handover breaks, and where.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// How bad a broken rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Severity {
    /// Worth knowing, but harmless to the new kernel.
    Note,
    /// The new kernel may lose something or restore it wrongly.
    Warning,
    /// The new kernel refuses the handover, loses memory, or follows a wild pointer.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $severity:ident;)+) => {
        /// A rule that a handover must keep.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
        pub enum Rule {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Rule {
            /// Every rule there is.
            pub const ALL: &'static [Rule] = &[$(Rule::$name),+];

            /// Name of the rule, as reports show it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// How bad it is when the rule is broken.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)+ }
            }

            /// The rule in a sentence.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

rules! {
    /// Every record lies in RAM and can be read.
    RecordReadable = "record-readable", Error;
    /// Records that the kernel keeps in pages of their own begin on a page boundary.
    RecordAligned = "record-aligned", Error;
    /// No two records share memory: lists have no cycles, trees no shared nodes.
    RecordShared = "record-shared", Error;
    /// Every FDT keeps the format.
    FdtStructure = "fdt-structure", Error;
    /// Every property that the ABI requires is present and has the right length.
    PropertyMissing = "property-missing", Error;
    /// Every version string is one that this crate knows.
    VersionKnown = "version-known", Error;
    /// Counts do not exceed the pages that hold what they count.
    CountFits = "count-fits", Error;
    /// Counts that are stated in two places agree.
    CountAgrees = "count-agrees", Error;
    /// Strings end inside their field.
    StringTerminated = "string-terminated", Error;
    /// Bits of the map stand for blocks that can exist.
    MapKey = "map-key", Error;
    /// The size of the bitmaps of a kho-v1 map can be inferred from the map.
    BitmapSizeCertain = "bitmap-size-certain", Note;
    /// Preserved blocks lie in RAM.
    BlockInRam = "block-in-ram", Error;
    /// The physical address of a preserved block is a multiple of its size.
    BlockAligned = "block-aligned", Error;
    /// No block is preserved twice, or inside a larger one.
    BlockOverlap = "block-overlap", Error;
    /// Preserved blocks and the records of the handover lie outside scratch.
    ScratchOverlap = "scratch-overlap", Error;
    /// Scratch areas lie in RAM, are aligned and do not overlap.
    ScratchArea = "scratch-area", Error;
    /// Records that the ABI preserves are in the map.
    RecordPreserved = "record-preserved", Error;
    /// Memory that a file, session, reserve_mem region or the kernel's own test claims is in the map.
    DataPreserved = "data-preserved", Error;
    /// Memory belongs to one file only.
    DataShared = "data-shared", Error;
    /// Versions that never shipped together do not appear together.
    VersionsTogether = "versions-together", Warning;
    /// Every sub-blob is one whose contents this crate can read.
    SubBlobKnown = "sub-blob-known", Note;
    /// Names of sub-blobs and sessions, and tokens within a session, are unique.
    NameUnique = "name-unique", Error;
    /// Every preserved page belongs to something that the handover names.
    PageOwned = "page-owned", Note;
    /// A file's size, indices, flags and seals are consistent.
    FileConsistent = "file-consistent", Error;
    /// Liveupdate number, kexec count and release are values that a kernel can write.
    MetadataPlausible = "metadata-plausible", Warning;
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[error("{rule} at {at:#x} ({what}): expected {expected}, found {found}")]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Physical address at which it is broken.
    pub at: u64,
    /// What is there ("block 2 of session `a`").
    pub what: String,
    /// What the rule asks for.
    pub expected: String,
    /// What there is.
    pub found: String,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.rule.severity()
    }
}

/// Findings, at most [`Findings::LIMIT`] per rule, so that a hostile handover cannot exhaust memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Findings {
    list: Vec<Finding>,
    dropped: u64,
    /// Findings kept of each rule.
    #[cfg_attr(feature = "serde", serde(skip))]
    kept: BTreeMap<Rule, usize>,
}

impl Findings {
    /// Number of findings kept per rule; further ones are only counted.
    pub const LIMIT: usize = 64;

    /// Adds the finding that `finding` makes, or only counts it if its rule has reached the limit.
    pub(crate) fn push_with(&mut self, rule: Rule, finding: impl FnOnce() -> Finding) {
        let kept = self.kept.entry(rule).or_insert(0);
        if *kept < Self::LIMIT {
            *kept = kept.saturating_add(1);
            self.list.push(finding());
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// The findings kept, in the order in which they were made.
    pub fn iter(&self) -> core::slice::Iter<'_, Finding> {
        self.list.iter()
    }

    /// Number of findings, including those that were only counted.
    pub fn count(&self) -> u64 {
        crate::memory::len64(self.list.len()).saturating_add(self.dropped)
    }

    /// Findings that were counted and not kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The worst severity among them.
    pub fn worst(&self) -> Option<Severity> {
        self.list.iter().map(Finding::severity).max()
    }

    /// The findings about one rule.
    pub fn of(&self, rule: Rule) -> impl Iterator<Item = &Finding> {
        self.list.iter().filter(move |finding| finding.rule == rule)
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = core::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_bounded_per_rule() {
        let mut findings = Findings::default();
        for at in 0..1000 {
            for rule in [Rule::BlockInRam, Rule::MapKey] {
                let nothing = || Finding {
                    rule,
                    at,
                    what: "".into(),
                    expected: "".into(),
                    found: "".into(),
                };
                findings.push_with(rule, nothing);
            }
        }
        assert_eq!(findings.iter().count(), 2 * Findings::LIMIT);
        assert_eq!(findings.count(), 2000);
        assert_eq!(findings.worst(), Some(Severity::Error));
    }

    #[test]
    fn rule_names_are_unique() {
        let mut names: Vec<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::ALL.len());
    }
}
