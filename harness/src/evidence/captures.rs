//! Object pages as the host found them, stored losslessly but small: nearly every page is still its pattern.

use super::{Moment, Phase};
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_128;

/// Most pages that are kept byte for byte in one run: 96 MiB, within the memory that a run may take.
const MAX_STORED_PAGES: usize = 24 * 1024;

/// Captured pages and the agent's digests of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captures {
    /// Checkpoints in order.
    pub checkpoints: Vec<Checkpoint>,
    /// The agent's digests.
    pub digests: Vec<DigestRecord>,
    /// Pages that are not their pattern, each once.
    #[serde(skip)]
    pool: Vec<u8>,
    #[serde(skip)]
    slots: HashMap<u128, u32>,
}

/// When pages were captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// Just after the retrieval, or where it was tried in vain.
    Retrieved,
    /// At the end of the run, with DMA stopped and nothing closed yet; or wherever the run broke off.
    End,
}

/// All objects' pages at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// When, in words.
    pub kind: CheckpointKind,
    /// Phase then.
    pub phase: Phase,
    /// When.
    pub at: Moment,
    /// The objects.
    pub objects: Vec<ObjectCapture>,
    /// Page frames that the device wrote to and that belong to no object, with their content.
    pub strays: Vec<(u64, PageContent)>,
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
    /// Ledger entries made when the agent was asked.
    pub ledger_before: u64,
    /// Ledger entries made when it answered.
    pub ledger_after: u64,
}

/// The pool of stored pages has no room left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {MAX_STORED_PAGES} captured pages differ from their pattern, which is more than evidence may hold"
)]
pub struct PoolFull;

impl Captures {
    /// Takes in a page: page `index` of an object with `pattern`.
    pub fn take(&mut self, pattern: &Pattern, index: u64, page: &[u8]) -> Result<PageContent, PoolFull> {
        if is_pattern(pattern, index, page) {
            Ok(PageContent::Pattern)
        } else {
            self.store(page)
        }
    }

    /// Takes in a page that belongs to no object.
    pub fn take_stray(&mut self, page: &[u8]) -> Result<PageContent, PoolFull> {
        self.store(page)
    }

    /// The bytes of a page captured by [`Self::take_stray`].
    pub fn bytes_without_pattern(&self, content: PageContent) -> Option<[u8; PAGE_BYTES]> {
        match content {
            PageContent::Stored(slot) => self.slot(slot),
            PageContent::Pattern | PageContent::Unreadable => None,
        }
    }

    /// Keeps a page's bytes, once for all pages of the same content.
    fn store(&mut self, page: &[u8]) -> Result<PageContent, PoolFull> {
        let hash = xxh3_128(page);
        if let Some(slot) = self.slots.get(&hash) {
            return Ok(PageContent::Stored(*slot));
        }
        let stored = self.pool.len() / PAGE_BYTES;
        let slot = u32::try_from(stored).map_err(|_| PoolFull)?;
        if stored >= MAX_STORED_PAGES || page.len() != PAGE_BYTES {
            return Err(PoolFull);
        }
        self.pool.extend_from_slice(page);
        self.slots.insert(hash, slot);
        Ok(PageContent::Stored(slot))
    }

    /// The bytes of a page captured as `content`; `None` when there are none.
    pub fn bytes(&self, pattern: &Pattern, index: u64, content: PageContent) -> Option<[u8; PAGE_BYTES]> {
        match content {
            PageContent::Pattern => Some(pattern.page(index)),
            PageContent::Stored(slot) => self.slot(slot),
            PageContent::Unreadable => None,
        }
    }

    fn slot(&self, slot: u32) -> Option<[u8; PAGE_BYTES]> {
        let start = (slot as usize).checked_mul(PAGE_BYTES)?;
        self.pool
            .get(start..start.checked_add(PAGE_BYTES)?)?
            .try_into()
            .ok()
    }

    /// The stored pages, one after the other, for saving.
    pub(super) fn pool(&self) -> &[u8] {
        &self.pool
    }

    /// Puts stored pages back after loading.
    pub(super) fn set_pool(&mut self, pool: Vec<u8>) {
        self.pool = pool;
        self.slots = self
            .pool
            .chunks_exact(PAGE_BYTES)
            .map(xxh3_128)
            .zip(0..)
            .collect();
    }
}

/// Whether `page` is page `index` of `pattern`. Runs over every captured page, hence no copy.
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
        assert_eq!(captures.pool().len(), 2 * PAGE_BYTES);
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
