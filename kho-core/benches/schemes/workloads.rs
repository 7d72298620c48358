//! Equal workloads for all schemes.

use kho_core::map::order_size;
use kho_core::{Block, Region};

/// Blocks in the order in which they were preserved, all inside a span.
pub struct Workload {
    pub name: String,
    pub span: Region,
    pub blocks: Vec<Block>,
}

/// A small generator of numbers that look random; the same ones in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            let other = self.next() % (index as u64 + 1);
            items.swap(index, usize::try_from(other).expect("an index"));
        }
    }
}

pub fn all(quick: bool) -> Vec<Workload> {
    let mut workloads = vec![random_pages(1, "1 GiB of random order-0 pages")];
    if !quick {
        workloads.push(random_pages(16, "16 GiB of random order-0 pages"));
    }
    workloads.extend([scattered(), gigabytes(), server()]);
    if !quick {
        workloads.push(terabyte());
    }
    workloads
}

/// So many GiB of single pages, chosen at random out of twice as much memory, in random order.
pub fn random_pages(gib: u64, name: &str) -> Workload {
    let mut numbers = Numbers(gib);
    let count = gib << 18;
    let mut frames: Vec<u64> = (0..count * 2).collect();
    numbers.shuffle(&mut frames);
    frames.truncate(usize::try_from(count).expect("a count that fits memory"));
    let blocks = frames
        .into_iter()
        .map(|frame| Block::new(frame * 4096, 0))
        .collect();
    Workload {
        name: name.into(),
        span: Region::new(0, gib << 31),
        blocks,
    }
}

/// 256 MiB of single pages, no two of them neighbours, over 64 GiB.
fn scattered() -> Workload {
    let mut numbers = Numbers(256);
    let slot = (64 << 30) / (1 << 16);
    let page = |index: u64, numbers: &mut Numbers| index * slot + numbers.next() % (slot / 4096 - 1) * 4096;
    let mut blocks: Vec<_> = (0..1 << 16)
        .map(|index| Block::new(page(index, &mut numbers), 0))
        .collect();
    numbers.shuffle(&mut blocks);
    Workload {
        name: "256 MiB of scattered pages".into(),
        span: Region::new(0, 64 << 30),
        blocks,
    }
}

/// Guest memory in huge pages.
fn gigabytes() -> Workload {
    let blocks = (4..52).map(|index| Block::new(index << 30, 18)).collect();
    Workload {
        name: "48 GiB in 1 GiB blocks".into(),
        span: Region::new(0, 64 << 30),
        blocks,
    }
}

/// A server of 64 GiB: guests on huge pages of both sizes, and all orders of folios in between.
fn server() -> Workload {
    let mut numbers = Numbers(64);
    let mut blocks: Vec<_> = (8..40).map(|index| Block::new(index << 30, 18)).collect();
    let mut address = 40_u64 << 30;
    while address < 52 << 30 {
        if numbers.next().is_multiple_of(4) {
            blocks.push(Block::new(address, 9));
            address += order_size(9);
        } else {
            address += order_size(9);
        }
    }
    while address < 62 << 30 {
        let order = (numbers.next() % 11) as u8;
        address = address.next_multiple_of(order_size(order));
        if numbers.next() & 1 == 1 {
            blocks.push(Block::new(address, order));
        }
        address += order_size(order);
    }
    numbers.shuffle(&mut blocks);
    Workload {
        name: "server with mixed orders".into(),
        span: Region::new(0, 64 << 30),
        blocks,
    }
}

/// A terabyte, all of it preserved, in the largest folios.
fn terabyte() -> Workload {
    let blocks = (0..1 << 18).map(|index| Block::new(index << 22, 10)).collect();
    Workload {
        name: "1 TiB fully preserved".into(),
        span: Region::new(0, 1 << 40),
        blocks,
    }
}
