//! Equal workloads for all schemes.

use kho_core::map::order_size;
use kho_core::{Block, Region};

/// Blocks in the order in which they were preserved, all inside a span.
pub struct Workload {
    pub name: String,
    pub span: Region,
    pub blocks: Vec<Block>,
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

/// `gib` GiB of single pages, chosen at random out of twice as much memory, in random order.
pub fn random_pages(gib: u64, name: &str) -> Workload {
    let mut rng = fastrand::Rng::with_seed(gib);
    let count = gib << 18;
    let mut frames: Vec<u64> = (0..count * 2).collect();
    rng.shuffle(&mut frames);
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
    let mut rng = fastrand::Rng::with_seed(256);
    let slot = (64 << 30) / (1 << 16);
    let page = |index: u64, rng: &mut fastrand::Rng| index * slot + rng.u64(..slot / 4096 - 1) * 4096;
    let mut blocks: Vec<_> = (0..1 << 16)
        .map(|index| Block::new(page(index, &mut rng), 0))
        .collect();
    rng.shuffle(&mut blocks);
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
    let mut rng = fastrand::Rng::with_seed(64);
    let mut blocks: Vec<_> = (8..40).map(|index| Block::new(index << 30, 18)).collect();
    let mut address = 40_u64 << 30;
    while address < 52 << 30 {
        if rng.u8(..4) == 0 {
            blocks.push(Block::new(address, 9));
            address += order_size(9);
        } else {
            address += order_size(9);
        }
    }
    while address < 62 << 30 {
        let order = rng.u8(..11);
        address = address.next_multiple_of(order_size(order));
        if rng.bool() {
            blocks.push(Block::new(address, order));
        }
        address += order_size(order);
    }
    rng.shuffle(&mut blocks);
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
