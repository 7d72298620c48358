//! The decoders of all schemes.
#![no_main]

use kho_core::schemes::{Encoded, all};
use kho_core::{FreeLists, PageSet, Region};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut words: Vec<u64> = input
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect();
    let Some(root) = words.pop() else { return };
    let encoded = Encoded::from_words(words, root);
    for scheme in all() {
        let mut set = PageSet::new(Region::new(0, 1 << 30));
        let _ = scheme.decode(&encoded, &mut set);
        let free = FreeLists::outside(&set);
        assert_eq!(free.pages() + set.len(), 1 << 18);
    }
});
