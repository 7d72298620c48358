//! The pattern that fills preserved memory, and the digest of a page.
//!
//! The seed expands to a table of 64 KiB. The pattern of a page is a window into that table, with the page's own mark
//! as its first word. So the guest fills memory by copying (a few instructions per page), and the host computes any
//! page's content from (seed, page index) alone.

use alloc::vec::Vec;

/// Words of 64 bits in a page.
pub const PAGE_WORDS: usize = 512;
/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// Words of the table.
pub const TABLE_WORDS: usize = 8192;

/// One step of the SplitMix64 generator (Steele, Lea, Flood 2014): the output function for counter value `x`.
pub fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The pattern of one memory object.
pub struct Pattern {
    seed: u64,
    table: Vec<u64>,
}

impl Pattern {
    /// Expands `seed`.
    pub fn new(seed: u64) -> Self {
        let key = mix(seed);
        let table = (0..TABLE_WORDS as u64)
            .map(|i| mix(key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
            .collect();
        Self { seed, table }
    }

    /// The first word of page `index`.
    pub fn mark(&self, index: u64) -> u64 {
        mix(self.seed ^ mix(index))
    }

    /// The page's words in the table; replace the first by [`Self::mark`].
    pub fn window(&self, index: u64) -> &[u64] {
        let span = (TABLE_WORDS - PAGE_WORDS) as u64;
        #[allow(clippy::cast_possible_truncation)] // below TABLE_WORDS
        let start = (mix(index.wrapping_add(self.seed)) % span) as usize;
        &self.table[start..start + PAGE_WORDS]
    }

    /// Writes the content of page `index` to `page`.
    pub fn fill(&self, index: u64, page: &mut [u64; PAGE_WORDS]) {
        page.copy_from_slice(self.window(index));
        page[0] = self.mark(index);
    }

    /// The content of page `index`, little-endian.
    pub fn page(&self, index: u64) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.window(index)) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes[..8].copy_from_slice(&self.mark(index).to_le_bytes());
        bytes
    }
}

/// The digest of a page: sums of its 64-bit words and of the running sums, in two lanes, as in Fletcher's checksum.
/// It depends on each word's value and place, and baseline SSE2 computes it in four additions per 32 bytes.
pub fn page_digest(words: &[u64; PAGE_WORDS]) -> u64 {
    let (mut a, mut b) = ([0u64; 2], [0u64; 2]);
    for pair in words.chunks_exact(2) {
        for lane in 0..2 {
            a[lane] = a[lane].wrapping_add(pair[lane]);
            b[lane] = b[lane].wrapping_add(a[lane]);
        }
    }
    fold_digest(a, b)
}

/// The last step of [`page_digest`], for code that computes the sums itself: `a` has the sums of the words and `b`
/// the sums of the running sums, per lane.
pub fn fold_digest(a: [u64; 2], b: [u64; 2]) -> u64 {
    mix(a[0] ^ mix(a[1] ^ mix(b[0] ^ mix(b[1]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_one_seed_differ_and_begin_with_their_mark() {
        let pattern = Pattern::new(7);
        let (one, two) = (pattern.page(1), pattern.page(2));
        assert_ne!(one, two);
        assert_eq!(one[..8], pattern.mark(1).to_le_bytes());
        let mut words = [0; PAGE_WORDS];
        pattern.fill(1, &mut words);
        assert!(words.iter().flat_map(|w| w.to_le_bytes()).eq(one));
    }

    #[test]
    fn the_digest_sees_value_and_place() {
        let mut words = [0u64; PAGE_WORDS];
        words[3] = 1;
        let first = page_digest(&words);
        words.swap(3, 5);
        assert_ne!(first, page_digest(&words));
        words[5] = 2;
        assert_ne!(first, page_digest(&words));
    }
}
