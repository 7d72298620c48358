//! Captured pages of objects. Storage is lossless but small, because nearly every page still equals its pattern.

use super::pool::{Pool, PoolFull};
use super::{Moment, Phase};
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use serde::{Deserialize, Serialize};

/// Captured pages and the agent's digests of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captures {
    /// Checkpoints in order.
    pub checkpoints: Vec<Checkpoint>,
    /// The agent's digests.
    pub digests: Vec<DigestRecord>,
    /// Pages that differ from their pattern, each content once.
    pool: Pool,
}

/// When pages were captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// Just after the retrieval, or after a failed attempt.
    Retrieved,
    /// At the end of the run, with DMA stopped and no object closed; or where the run ended early.
    End,
}

/// All objects' pages at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Place in the run.
    pub kind: CheckpointKind,
    /// Phase then.
    pub phase: Phase,
    /// When.
    pub at: Moment,
    /// The objects.
    pub objects: Vec<ObjectCapture>,
    /// Page frames outside all objects to which the device wrote, with their content.
    pub strays: Vec<(u64, PageContent)>,
    /// Number of such page frames that were not captured, because there were too many.
    pub strays_left_out: u64,
}

impl Checkpoint {
    /// When its pages were captured, in words that follow "captured".
    pub fn when(&self) -> String {
        match self.kind {
            CheckpointKind::Retrieved => format!("after the retrieval in generation {}", self.at.generation),
            CheckpointKind::End => "at the end of the run".into(),
        }
    }
}

/// One object's pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCapture {
    /// Which object.
    pub object: u32,
    /// Content of each page, in file order.
    pub pages: Vec<PageContent>,
}

/// Content of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageContent {
    /// Exactly the pattern of this page of its object.
    Pattern,
    /// The bytes in this slot of the pool.
    Stored(u32),
    /// Outside guest RAM.
    Unreadable,
}

/// The agent's digests of a run of pages of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestRecord {
    /// Kernel generation.
    pub generation: u32,
    /// Which object.
    pub object: u32,
    /// First page of it.
    pub first_page: u64,
    /// One digest per page.
    pub values: Vec<u64>,
    /// Guest time when the agent was asked.
    pub asked_ns: u64,
    /// Ledger entries made when the agent was asked.
    pub ledger_before: u64,
    /// Ledger entries made when it answered.
    pub ledger_after: u64,
}

impl Captures {
    /// Stores page `index` of an object with `pattern`.
    pub fn take(&mut self, pattern: &Pattern, index: u64, page: &[u8]) -> Result<PageContent, PoolFull> {
        if is_pattern(pattern, index, page) {
            Ok(PageContent::Pattern)
        } else {
            self.pool.store(page).map(PageContent::Stored)
        }
    }

    /// Stores a page that belongs to no object.
    pub fn take_stray(&mut self, page: &[u8]) -> Result<PageContent, PoolFull> {
        self.pool.store(page).map(PageContent::Stored)
    }

    /// The bytes of a page captured by [`Self::take_stray`].
    pub fn bytes_without_pattern(&self, content: PageContent) -> Option<[u8; PAGE_BYTES]> {
        match content {
            PageContent::Stored(slot) => self.pool.page(slot),
            PageContent::Pattern | PageContent::Unreadable => None,
        }
    }

    /// The bytes of a page captured as `content`; `None` if it was outside RAM.
    pub fn bytes(&self, pattern: &Pattern, index: u64, content: PageContent) -> Option<[u8; PAGE_BYTES]> {
        match content {
            PageContent::Pattern => Some(pattern.page(index)),
            PageContent::Stored(slot) => self.pool.page(slot),
            PageContent::Unreadable => None,
        }
    }
}

/// Whether `page` is page `index` of `pattern`. Compares without a copy, because every captured page passes here.
fn is_pattern(pattern: &Pattern, index: u64, page: &[u8]) -> bool {
    let (Some((mark, rest)), Some((_, window))) =
        (page.split_first_chunk(), pattern.window(index).split_first())
    else {
        return false;
    };
    let differs = |(bytes, word): (&[u8; 8], &u64)| u64::from_le_bytes(*bytes) ^ word;
    u64::from_le_bytes(*mark) == pattern.mark(index)
        && rest.len() == window.len() * 8
        && rest
            .as_chunks()
            .0
            .iter()
            .zip(window)
            .map(differs)
            .fold(0, |all, one| all | one)
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pattern_pages_take_no_room_and_equal_pages_share_theirs() {
        let pattern = Pattern::new(3);
        let mut captures = Captures::default();
        assert_eq!(
            captures.take(&pattern, 9, &pattern.page(9)),
            Ok(PageContent::Pattern)
        );
        assert_eq!(
            captures.take(&pattern, 8, &pattern.page(9)),
            Ok(PageContent::Stored(0))
        );
        assert_eq!(
            captures.take(&pattern, 7, &pattern.page(9)),
            Ok(PageContent::Stored(0))
        );
        assert_eq!(
            captures.take(&pattern, 7, &[0; PAGE_BYTES]),
            Ok(PageContent::Stored(1))
        );
        assert_eq!(
            captures.bytes(&pattern, 8, PageContent::Stored(0)),
            Some(pattern.page(9))
        );
        assert_eq!(captures.bytes(&pattern, 8, PageContent::Stored(2)), None);
        assert_eq!(captures.pool.pages(), 2);
    }

    proptest! {
        #[test]
        fn one_changed_bit_is_seen(at in 0..PAGE_BYTES, bit in 0u8..8, index in any::<u64>()) {
            let pattern = Pattern::new(5);
            let mut page = pattern.page(index);
            page[at] ^= 1 << bit;
            prop_assert!(!is_pattern(&pattern, index, &page));
        }
    }
}
