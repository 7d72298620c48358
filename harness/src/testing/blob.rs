//! A handover blob, made by hand.

use super::{JUMP, OWN, RAM};
use crate::evidence::{BlobEvidence, PAGE, Staged};
use guest_agent::pattern::PAGE_BYTES;
use kho_core::{KhoData, Region};
use std::collections::BTreeMap;

/// A kho-v4 blob whose map has the given frames.
pub fn blob(frames: impl IntoIterator<Item = u64>) -> BlobEvidence {
    let mut pages: BTreeMap<u64, Vec<u8>> = (0..7).map(|at| (OWN + at, vec![0; PAGE_BYTES])).collect();
    for frame in frames {
        let key = 1u64 << 52 | frame;
        // Levels 5 to 1 are tables of addresses; all frames here share one leaf, OWN + 6.
        for level in (1..=5u32).rev() {
            let index = usize::try_from(key >> (15 + 9 * (level - 1)) & 0x1ff).unwrap();
            let next = (OWN + 7 - u64::from(level)) * PAGE;
            pages.get_mut(&(OWN + 6 - u64::from(level))).unwrap()[index * 8..index * 8 + 8]
                .copy_from_slice(&next.to_le_bytes());
        }
        let bit = usize::try_from(key & 0x7fff).unwrap();
        pages.get_mut(&(OWN + 6)).unwrap()[bit / 8] |= 1 << (bit % 8);
    }
    let fdt = fdt((OWN + 1) * PAGE);
    pages.get_mut(&OWN).unwrap()[..fdt.len()].copy_from_slice(&fdt);
    BlobEvidence {
        generation: 0,
        time_ns: JUMP.1,
        boot_params: 0x9_0000,
        kho: Some(KhoData {
            fdt: Region::new(OWN * PAGE, PAGE),
            scratch: Region::new(0, 0),
        }),
        problem: None,
        ram: vec![(0, RAM)],
        staged: vec![Staged {
            what: "kernel".into(),
            address: 0x200_0000,
            bytes: 0x10_0000,
        }],
        complete: true,
        pages,
    }
}

/// A flattened device tree with a root node of two properties (Devicetree specification, chapter 5).
fn fdt(map: u64) -> Vec<u8> {
    let strings = b"compatible\0preserved-memory-map\0";
    let mut tree = Vec::new();
    let mut word = |value: u32| tree.extend_from_slice(&value.to_be_bytes());
    word(1);
    word(0);
    for (name, data) in [(0u32, &b"kho-v4\0\0"[..]), (11, &map.to_le_bytes()[..])] {
        word(3);
        word(if name == 0 { 7 } else { 8 });
        word(name);
        data.as_chunks()
            .0
            .iter()
            .for_each(|bytes| word(u32::from_be_bytes(*bytes)));
    }
    word(2);
    word(9);
    let (tree_bytes, string_bytes) = (
        u32::try_from(tree.len()).unwrap(),
        u32::try_from(strings.len()).unwrap(),
    );
    let total = 56 + tree_bytes + string_bytes;
    let header = [
        0xd00d_feed,
        total,
        56,
        56 + tree_bytes,
        40,
        17,
        16,
        0,
        string_bytes,
        tree_bytes,
        0,
        0,
        0,
        0,
    ];
    header
        .iter()
        .flat_map(|value: &u32| value.to_be_bytes())
        .chain(tree)
        .chain(strings.iter().copied())
        .collect()
}
