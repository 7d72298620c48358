use super::*;
use crate::Region;
use crate::{FreeLists, PageSet};

use proptest::prelude::*;

const SPAN: u64 = 4 << 30;

/// Blocks that do not overlap, in random order.
fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let ascending = prop::collection::vec((0_u64..600, 0_u8..11), 0..300).prop_map(|gaps_and_orders| {
        let mut blocks = Vec::new();
        let mut end = 0_u64;
        for (gap, order) in gaps_and_orders {
            let address = (end + gap * 4096).next_multiple_of(order_size(order));
            end = address + order_size(order);
            if end <= SPAN {
                blocks.push(Block::new(address, order));
            }
        }
        blocks
    });
    ascending.prop_shuffle()
}

use crate::map::order_size;

fn pages(blocks: &[Block]) -> PageSet {
    let mut set = PageSet::new(Region::new(0, SPAN));
    blocks.iter().for_each(|block| set.block(*block));
    set
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_scheme_gives_back_what_it_was_given(blocks in blocks()) {
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        let expected = pages(&blocks);
        for scheme in all() {
            let encoded = scheme.encode(&blocks);
            let mut decoded: Vec<Block> = Vec::new();
            scheme.decode(&encoded, &mut decoded).unwrap();
            if scheme.keeps_orders() {
                decoded.sort_unstable();
                prop_assert_eq!(&decoded, &sorted, "{}", scheme.name());
            }
            let mut set = PageSet::new(Region::new(0, SPAN));
            scheme.decode(&encoded, &mut set).unwrap();
            prop_assert_eq!(&set, &expected, "{}", scheme.name());
        }
        let property = MemProperty.encode(&blocks);
        for span in [Region::new(0, SPAN), Region::new(0x765_4000, 0x6543_2100)] {
            let mut expected = PageSet::new(span);
            blocks.iter().for_each(|block| expected.block(*block));
            prop_assert_eq!(pages_of_mem_property(&property, span), expected);
        }
        let tree = RangeTree.encode(&blocks);
        for block in &blocks {
            for address in [block.address, block.address.wrapping_sub(4096), block.region().end()] {
                prop_assert_eq!(RangeTree.contains(&tree, address).unwrap(), expected.contains(address));
            }
        }
        prop_assert_eq!(FreeLists::outside(&expected).pages() + expected.len(), SPAN >> 12);
    }

    #[test]
    fn damaged_encodings_end(blocks in blocks(), at in any::<usize>(), word in any::<u64>(), near in any::<bool>()) {
        for scheme in all() {
            let mut encoded = scheme.encode(&blocks);
            if encoded.words.is_empty() {
                continue;
            }
            let at = at % encoded.words.len();
            let target = Encoded::BASE + word % encoded.words.len() as u64 * 8 / 4096 * 4096;
            encoded.words[at] = if near { target } else { word };
            let mut set = PageSet::new(Region::new(0, SPAN));
            let _ = scheme.decode(&encoded, &mut set);
        }
        let mut tree = RangeTree.encode(&blocks);
        if !tree.words.is_empty() {
            let at = at % tree.words.len();
            tree.words[at] = word;
            let _ = RangeTree.contains(&tree, word);
        }
    }

    #[test]
    fn keys_give_back_their_blocks(order in 0_u8..11, number in 0_u64..1 << 40) {
        let block = Block::new((number << 12) >> order << order, order);
        let block = Block::new(block.address.next_multiple_of(order_size(order)), order);
        for key in [Key::First, Key::Shared] {
            prop_assert_eq!(key.encode(block).and_then(|encoded| key.decode(encoded)), Some(block));
        }
    }
}

#[test]
fn the_sizes_of_the_discussions() {
    let pages = |count: u64, stride: u64| -> Vec<Block> {
        (0..count).map(|page| Block::new(page * stride, 0)).collect()
    };
    // 16 GiB of order-0 pages: 64 MiB of property, 512 KiB of bitmap. The test uses a sixteenth of it.
    let all_of_1_gib = pages(1 << 18, 4096);
    assert_eq!(MemProperty.encode(&all_of_1_gib).bytes(), 4 << 20);
    let chunks = 4096;
    assert_eq!(
        Tracker::BITMAPS_OF_512.encode(&all_of_1_gib).bytes(),
        (32 << 10) + chunks
    );
    assert_eq!(
        Tracker::BITMAPS_OF_A_PAGE.encode(&all_of_1_gib).bytes(),
        (32 << 10) + chunks
    );
    // 65,536 ranges in 512 KiB: 256 MiB of scattered pages.
    let scattered = pages(1 << 16, 8192);
    assert_eq!(PackedRanges.encode(&scattered).bytes(), 512 << 10);
}

#[test]
fn upper_levels_are_shared_with_one_key_and_not_with_the_other() {
    let blocks: Vec<Block> = (0..11).map(|order| Block::new(1 << 32, order)).collect();
    let shared = |radix: &Radix| -> Vec<(u64, u64)> {
        radix
            .levels(&blocks)
            .iter()
            .map(|level| (level.nodes, level.shared))
            .collect()
    };
    // With the first kind of key orders share the root and the table under it, and nothing below.
    assert_eq!(shared(&Radix::FIRST_KEY).len(), 7);
    assert_eq!(shared(&Radix::SHARED_KEY).len(), 6);
    let count = |radix: &Radix| shared(radix).iter().map(|(_, shared)| shared).sum::<u64>();
    assert!(count(&Radix::SHARED_KEY) >= count(&Radix::FIRST_KEY));
    for radix in [Radix::FIRST_KEY, Radix::SHARED_KEY] {
        let nodes: u64 = radix.levels(&blocks).iter().map(|level| level.nodes).sum();
        assert_eq!(radix.encode(&blocks).pages(), nodes);
    }
}

#[test]
fn objects_survive_all_three_ways() {
    let objects: Vec<_> = (0..50).map(objects::Object::sample).collect();
    let children = objects::recursive(&objects).unwrap();
    let top = objects::recursive_top(&objects, &children).unwrap();
    assert_eq!(objects::read_recursive(&top, &children).unwrap(), objects);
    let big = objects::big_fdt(&objects, 64 << 10).unwrap();
    assert_eq!(objects::read_big_fdt(&big).unwrap(), objects);
    assert!(objects::big_fdt(&objects, 1 << 10).is_err());
    let (one, other) = objects.split_at(20);
    let mut records = objects::records(one, &objects::OBJECT);
    records.extend(objects::records(other, &objects::OBJECT));
    assert_eq!(objects::read_records(&records, &objects::OBJECT), objects);
    assert_eq!(records.len(), 50 * (16 + 96));
    // A record of a later version is skipped.
    records[4] = 2;
    assert_eq!(objects::read_records(&records, &objects::OBJECT), objects[1..]);
}
