//! Stored pages, each content once. Clones share the pages, so copying a run costs little.

use guest_agent::pattern::PAGE_BYTES;
use serde::de::Error as _;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::HashMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Most pages stored in one run: 96 MiB.
const MAX_STORED_PAGES: usize = 24 * 1024;
/// Bytes of a chunk: 1 MiB. After a clone, the next page stored copies at most this much.
const CHUNK_BYTES: usize = 256 * PAGE_BYTES;

/// Stored pages. A page's slot is its number in the order of storing.
///
/// Serialised as its bytes, one page after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// All chunks but the last are full.
    chunks: Vec<Arc<Vec<u8>>>,
    /// Slot of each page, by the XXH3 (128 bits) of its content.
    slots: HashMap<u128, u32>,
}

/// The pool of stored pages has no room left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {MAX_STORED_PAGES} captured pages differ from their pattern, which is more than evidence may hold"
)]
pub struct PoolFull;

impl Pool {
    /// Stores a page, once for all pages of the same content, and returns its slot.
    pub fn store(&mut self, page: &[u8]) -> Result<u32, PoolFull> {
        let hash = xxh3_128(page);
        if let Some(slot) = self.slots.get(&hash) {
            return Ok(*slot);
        }
        let stored = self.pages();
        let slot = u32::try_from(stored).map_err(|_| PoolFull)?;
        if stored >= MAX_STORED_PAGES || page.len() != PAGE_BYTES {
            return Err(PoolFull);
        }
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK_BYTES) {
            Some(chunk) => Arc::make_mut(chunk).extend_from_slice(page),
            None => self.chunks.push(Arc::new(page.to_vec())),
        }
        self.slots.insert(hash, slot);
        Ok(slot)
    }

    /// The page in a slot; `None` if nothing is stored there.
    pub fn page(&self, slot: u32) -> Option<[u8; PAGE_BYTES]> {
        let start = (slot as usize).checked_mul(PAGE_BYTES)?;
        let (chunk, start) = (self.chunks.get(start / CHUNK_BYTES)?, start % CHUNK_BYTES);
        chunk.get(start..start + PAGE_BYTES)?.try_into().ok()
    }

    /// Number of pages stored.
    pub fn pages(&self) -> usize {
        self.bytes() / PAGE_BYTES
    }

    fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }
}

impl Serialize for Pool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = serializer.serialize_seq(Some(self.bytes()))?;
        for byte in self.chunks.iter().flat_map(|chunk| chunk.iter()) {
            bytes.serialize_element(byte)?;
        }
        bytes.end()
    }
}

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        let (pages, rest) = bytes.as_chunks::<PAGE_BYTES>();
        if !rest.is_empty() || pages.len() > MAX_STORED_PAGES {
            let (found, most) = (bytes.len(), MAX_STORED_PAGES);
            return Err(D::Error::custom(format!(
                "{found} bytes of captured pages, expected at most {most} whole pages"
            )));
        }
        Ok(Self {
            slots: pages.iter().map(|page| xxh3_128(page)).zip(0..).collect(),
            chunks: bytes
                .chunks(CHUNK_BYTES)
                .map(|chunk| Arc::new(chunk.to_vec()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pages: u32) -> Pool {
        let mut pool = Pool::default();
        for number in 0..pages {
            assert_eq!(pool.store(&page(number)), Ok(number));
        }
        pool
    }

    fn page(number: u32) -> [u8; PAGE_BYTES] {
        let mut page = [7; PAGE_BYTES];
        page[..4].copy_from_slice(&number.to_le_bytes());
        page
    }

    #[test]
    fn pages_come_back_from_every_chunk_and_from_bytes() {
        let pool = filled(600);
        let again: Pool = postcard::from_bytes(&postcard::to_allocvec(&pool).unwrap()).unwrap();
        assert_eq!(again, pool);
        for number in [0, 255, 256, 511, 512, 599] {
            assert_eq!(again.page(number), Some(page(number)));
        }
        assert_eq!(again.page(600), None);
        assert_eq!(again.page(u32::MAX), None);
    }

    #[test]
    fn a_clone_shares_what_is_there_and_nothing_that_comes_later() {
        let first = filled(300);
        let mut second = first.clone();
        assert!(Arc::ptr_eq(&first.chunks[0], &second.chunks[0]));
        assert_eq!(second.store(&page(1000)), Ok(300));
        assert_eq!((first.page(300), second.page(300)), (None, Some(page(1000))));
        assert!(Arc::ptr_eq(&first.chunks[0], &second.chunks[0]));
        assert_eq!(second.page(299), Some(page(299)));
    }

    #[test]
    fn broken_pages_are_refused() {
        let bytes = postcard::to_allocvec(&vec![1u8; PAGE_BYTES + 1]).unwrap();
        assert!(postcard::from_bytes::<Pool>(&bytes).is_err());
        assert_eq!(filled(1).store(&[0; 12]), Err(PoolFull));
    }
}
