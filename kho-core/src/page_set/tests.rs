use super::*;
use crate::FreeLists;
use crate::abi::MAX_PAGE_ORDER;
use alloc::collections::BTreeSet;
use proptest::prelude::*;

/// From the middle of one chunk to the middle of the next but one.
const FIRST: u64 = CHUNK_PAGES + 20_007;
const PAGES: u64 = CHUNK_PAGES + 30_000;
const SPAN: Region = Region::new(FIRST * 4096, PAGES * 4096);

prop_compose! {
    fn blocks()(
        seeds in prop::collection::vec((0_u64..PAGES + 2000, 0_u8..16), 0..60),
        shift in prop::sample::select(vec![0_u64, CHUNK_PAGES - 21_000]),
    ) -> Vec<Block> {
        seeds.iter().map(|(frame, order)| {
            let frame = (FIRST - 1000 + shift + frame) >> order << order;
            Block::new(frame * 4096, *order)
        }).collect()
    }
}

fn model(blocks: &[Block]) -> BTreeSet<u64> {
    let pages = |block: &Block| block.address / 4096..block.region().end() / 4096;
    blocks
        .iter()
        .flat_map(pages)
        .filter(|frame| SPAN.contains(frame * 4096))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_page_set_is_the_set_of_its_pages(blocks in blocks()) {
        let mut set = PageSet::new(SPAN);
        blocks.iter().for_each(|block| set.block(*block));
        let model = model(&blocks);
        prop_assert_eq!(set.len(), model.len() as u64);
        for block in &blocks {
            for address in [block.address.saturating_sub(4096), block.address, block.region().end() - 1, block.region().end()] {
                prop_assert_eq!(set.contains(address), model.contains(&(address / 4096)));
            }
        }
        let extents: Vec<_> = crate::map::merge(model.iter().map(|frame| Region::new(frame * 4096, 4096)));
        prop_assert_eq!(set.extents(), extents);
    }

    #[test]
    fn bitmaps_are_their_blocks(
        words in prop::collection::vec(prop::sample::select(vec![0, 1, u64::MAX, 0xf0f0]), 512),
        length in prop::sample::select(vec![1_usize, 64, 512]),
        order in 0_u8..11,
        start in 0_u64..6,
    ) {
        let start = (start * CHUNK_PAGES / 2) >> order << order << 12;
        let words = &words[..length];
        let mut whole = PageSet::new(SPAN);
        whole.bitmap(start, order, words);
        let mut one = PageSet::new(SPAN);
        for (index, word) in words.iter().enumerate() {
            one.bits(start + index as u64 * 64 * order_size(order), order, *word);
        }
        let mut blocks: Vec<Block> = Vec::new();
        Sink::bitmap(&mut blocks, start, order, words);
        let mut single = PageSet::new(SPAN);
        blocks.iter().for_each(|block| single.block(*block));
        prop_assert_eq!(&whole, &single);
        prop_assert_eq!(&one, &single);
    }

    #[test]
    fn free_lists_are_the_largest_blocks_outside(blocks in blocks()) {
        let mut set = PageSet::new(SPAN);
        blocks.iter().for_each(|block| set.block(*block));
        let free = FreeLists::outside(&set);
        let mut listed: Vec<Block> = Vec::new();
        free.blocks(&mut listed);
        let mut refilled = PageSet::new(SPAN);
        for block in &listed {
            prop_assert!(block.address.is_multiple_of(block.size()));
            refilled.block(*block);
            prop_assert!(!set.contains(block.address));
            // Its buddy is not free as a whole, or both would be one larger block.
            if block.order < MAX_PAGE_ORDER {
                let buddy = Block::new(block.address ^ block.size(), block.order);
                let mut pages = (0..1_u64 << buddy.order).map(|page| buddy.address + page * 4096);
                prop_assert!(pages.any(|page| set.contains(page) || !SPAN.contains(page)));
            }
        }
        // Together they are the span, and no page is in both or listed twice.
        prop_assert_eq!(refilled.len() + set.len(), PAGES);
        prop_assert_eq!(free.pages(), refilled.len());
        set.chunks().zip(refilled.chunks()).for_each(|((_, used), (_, free))| {
            assert!(used.bits().iter().zip(free.bits()).all(|(used, free)| used & free == 0));
        });
        for order in 0..=MAX_PAGE_ORDER {
            let mut of_order = listed.iter().filter(|block| block.order == order);
            prop_assert_eq!(of_order.clone().count() as u64, free.count(order));
            prop_assert_eq!(of_order.next().copied(), free.first(order));
        }
    }
}
