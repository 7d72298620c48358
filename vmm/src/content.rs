//! The bytes of the stream: a pure function of seed and sequence number.
//!
//! A block begins with its sequence number and a hash of that number, so that [`recognise`] finds a block by its first
//! 16 bytes alone. The rest is a counter put through a mixing function, keyed by seed and sequence number.

/// Bytes at the start of a block that tell its sequence number.
pub const HEADER_BYTES: usize = 16;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const MARK: u64 = 0xba70_57e4_3a4b_10c5;

/// The 64-bit finaliser of MurmurHash3 with the constants of SplitMix64: every bit of the input reaches every bit of
/// the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn mark(sequence: u64) -> u64 {
    mix(sequence ^ MARK)
}

/// Fills `block` with the content of block `sequence`.
pub fn block_content(seed: u64, sequence: u64, block: &mut [u8]) {
    let key = mix(seed ^ mix(sequence));
    let mut counter = key;
    let mut next = || {
        counter = counter.wrapping_add(GOLDEN);
        // One multiplication is enough here: neighbours must differ, not withstand analysis.
        let x = (counter ^ counter >> 32).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ x >> 29
    };
    let mut words = block.chunks_exact_mut(8);
    for word in words.by_ref() {
        word.copy_from_slice(&next().to_le_bytes());
    }
    let rest = words.into_remainder();
    let last = next().to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);

    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&sequence.to_le_bytes());
    header[8..].copy_from_slice(&mark(sequence).to_le_bytes());
    let length = block.len().min(HEADER_BYTES);
    block[..length].copy_from_slice(&header[..length]);
}

/// The sequence number of the block that these bytes begin, if they begin one.
#[must_use]
pub fn recognise(bytes: &[u8]) -> Option<u64> {
    let (sequence, rest) = bytes.split_first_chunk::<8>()?;
    let (found, _) = rest.split_first_chunk::<8>()?;
    let sequence = u64::from_le_bytes(*sequence);
    (u64::from_le_bytes(*found) == mark(sequence)).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_block_of_every_seed_is_another() {
        let mut seen = HashSet::new();
        for seed in 0..8 {
            for sequence in 0..256 {
                let mut block = [0; 64];
                block_content(seed, sequence, &mut block);
                assert_eq!(recognise(&block), Some(sequence));
                assert!(seen.insert(block[HEADER_BYTES..].to_vec()), "{seed} {sequence}");
            }
        }
    }

    #[test]
    fn words_within_a_block_do_not_repeat() {
        let mut block = vec![0; 64 * 1024];
        block_content(1, 2, &mut block);
        let words: HashSet<&[u8]> = block.chunks_exact(8).collect();
        assert_eq!(words.len(), block.len() / 8);
    }

    #[test]
    fn the_content_is_fixed_for_ever() {
        let mut block = [0; 40];
        block_content(0x0123_4567_89ab_cdef, 7, &mut block);
        let words: Vec<u64> = block
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        // Saved ledgers are judged against this function: another one would need another ledger version.
        let expected = [
            7,
            0xc0d3_4c24_35b9_b9c7,
            0x1372_34b8_f45f_c0d2,
            0xde88_f4b4_967c_b700,
            0xe6cb_3665_bd6f_dc64,
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn ordinary_memory_is_not_taken_for_a_block() {
        for bytes in [
            &[0; 64][..],
            &[0xff; 64],
            b"a page of text, long enough for a header",
        ] {
            assert_eq!(recognise(bytes), None);
        }
        assert_eq!(recognise(&[0; 15]), None);
    }

    proptest! {
        #[test]
        fn a_shorter_block_is_the_beginning_of_a_longer(seed: u64, sequence: u64, short in 0_usize..200, more in 0_usize..200) {
            let mut a = vec![0; short];
            let mut b = vec![0; short + more];
            block_content(seed, sequence, &mut a);
            block_content(seed, sequence, &mut b);
            prop_assert_eq!(&a[..], &b[..short]);
        }
    }
}
