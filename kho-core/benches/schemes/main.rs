//! Compares the schemes on equal workloads: size, pages, encode and decode time, and the fast path.
//!
//! Times are medians. `--quick` runs each once and leaves the largest workloads out; `--fast-path` prints that table
//! only. It asserts nothing.

mod objects;
mod support;
mod workloads;

use std::hint::black_box;

use kho_core::build::{Abi, FreeRegions, build};
use kho_core::map::order_size;
use kho_core::page_set::Sink;
use kho_core::schemes::{Encoded, MemProperty, Radix, Scheme, all, pages_of_mem_property, sort_mem_property};
use kho_core::{Block, Blueprint, FreeLists, Handover, PageSet, Region, SliceMemory};
use support::{Clock, bandwidth, bytes, time};
use workloads::Workload;

fn main() {
    support::keep_memory();
    let quick = std::env::args().any(|argument| argument == "--quick" || argument == "--test");
    let clock = Clock {
        runs: if quick { 1 } else { 5 },
        at_least: std::time::Duration::from_millis(if quick { 0 } else { 50 }),
    };
    if std::env::args().any(|argument| argument == "--fast-path") {
        return fast(&clock, quick);
    }
    let workloads = workloads::all(quick);
    for workload in &workloads {
        schemes(workload, &clock);
    }
    levels(&workloads);
    quotes();
    fast(&clock, quick);
    objects::table(&clock, quick);
}

/// One workload, all schemes.
fn schemes(workload: &Workload, clock: &Clock) {
    println!("\n{}: {} blocks", workload.name, workload.blocks.len());
    println!(
        "  {:24}{:>12}{:>9}{:>12}{:>12}{:>14}",
        "scheme", "bytes", "pages", "encode", "decode", "to free lists"
    );
    for scheme in all() {
        let mut encoded = Encoded::default();
        let encode = clock.median(|| encoded = scheme.encode(&workload.blocks));
        let decode = clock.median(|| {
            let mut count = Count(0);
            scheme.decode(&encoded, &mut count).expect("a sound encoding");
            black_box(count.0);
        });
        let free = clock.median(|| {
            let mut set = PageSet::new(workload.span);
            scheme.decode(&encoded, &mut set).expect("a sound encoding");
            black_box(FreeLists::outside(&set));
        });
        let orders = if scheme.keeps_orders() {
            ""
        } else {
            "  (orders are lost)"
        };
        println!(
            "  {:24}{:>12}{:>9}{:>12}{:>12}{:>14}{orders}",
            scheme.name(),
            bytes(encoded.bytes()),
            encoded.pages(),
            time(encode),
            time(decode),
            time(free)
        );
    }
}

/// A sink that only counts pages, to measure decoding alone.
struct Count(u64);

impl Sink for Count {
    fn block(&mut self, block: Block) {
        self.0 += order_size(block.order) >> 12;
    }

    fn bits(&mut self, _: u64, order: u8, word: u64) {
        self.0 += u64::from(word.count_ones()) << order;
    }

    fn pages(&mut self, _: u64, count: u64) {
        self.0 += count;
    }
}

/// Which levels of the radix tree serve more than one order.
fn levels(workloads: &[Workload]) {
    println!("\nradix levels from the root down: nodes (of which lead to more than one order)");
    for workload in workloads {
        for (name, radix) in [("first key", Radix::FIRST_KEY), ("shared key", Radix::SHARED_KEY)] {
            let levels: Vec<_> = radix
                .levels(&workload.blocks)
                .iter()
                .map(|level| format!("{} ({})", level.nodes, level.shared))
                .collect();
            println!("  {:32}{name:12}{}", workload.name, levels.join("  "));
        }
    }
}

/// The sizes that the discussions quote.
fn quotes() {
    let pages = |count: u64, stride: u64| -> Vec<Block> {
        (0..count).map(|page| Block::new(page * stride, 0)).collect()
    };
    let dense = pages(4 << 20, 4096);
    let spread = pages(4 << 20, 8192);
    let scattered = pages(1 << 16, 8192);
    let tracker = kho_core::schemes::Tracker::BITMAPS_OF_512;
    println!("\nsizes that the discussions quote");
    let line = |quote: &str, found: u64, why: &str| println!("  {quote:58}{:>12}  {why}", bytes(found));
    line(
        "16 GiB of order-0 pages: 64 MiB of mem property",
        MemProperty.encode(&dense).bytes(),
        "16 bytes a page",
    );
    line(
        "16 GiB of order-0 pages: 512 KiB of bitmap",
        tracker.encode(&dense).bytes(),
        "a bit a page, and 5 chunks that list 1,024 bitmaps",
    );
    line(
        "  the same pages spread over 32 GiB",
        tracker.encode(&spread).bytes(),
        "the bitmap covers memory, preserved or not: twice as much",
    );
    let packed = kho_core::schemes::PackedRanges.encode(&scattered);
    line(
        "65,536 ranges of scattered pages (256 MiB): 512 KiB",
        packed.bytes(),
        "8 bytes a range",
    );
}

/// The fast path against the mem property: page count, membership, free lists. All of them work in memory that the
/// process has already been given.
fn fast(clock: &Clock, quick: bool) {
    let mut workload = workloads::random_pages(if quick { 1 } else { 16 }, "random order-0 pages");
    // The blob lies in a part of memory of which nothing is preserved.
    workload.blocks.retain(|block| block.address >= IMAGE_SIZE);
    println!(
        "\nfast path: {} random order-0 pages in {}, to page count, membership test and free lists",
        workload.blocks.len(),
        bytes(workload.span.size)
    );
    let per_second = bandwidth(clock);
    let (memory, handover) = image(&workload);
    let read = clock.median(|| {
        let handover = Handover::read(&memory, handover.fdt, Region::new(0, 0)).expect("a sound handover");
        let set = PageSet::of(&handover.map, workload.span);
        let free = FreeLists::outside(&set);
        black_box((set.len(), set.contains(0x1000), free));
    });
    let property = MemProperty.encode(&workload.blocks);
    let bitmap = clock.median(|| {
        let set = pages_of_mem_property(&property, workload.span);
        let free = FreeLists::outside(&set);
        black_box((set.len(), set.contains(0x1000), free));
    });
    let sorted = clock.median(|| {
        let sorted = sort_mem_property(&property);
        let count: u64 = sorted.iter().map(|[_, size]| size >> 12).sum();
        let found = sorted
            .binary_search_by_key(&0x1000, |[address, _]| *address)
            .is_ok();
        let mut set = PageSet::new(workload.span);
        sorted
            .iter()
            .for_each(|[address, size]| set.pages(*address, size >> 12));
        black_box((count, found, FreeLists::outside(&set)));
    });
    let mut runs = 0;
    let extents = clock.median(|| {
        let extents = PageSet::of(&handover.map, workload.span).extents();
        runs = black_box(extents).len();
    });
    let map_bytes = handover
        .map
        .bitmaps()
        .iter()
        .map(kho_core::map::Bitmap::size)
        .sum::<u64>();
    println!(
        "  memory bandwidth (sum of 256 MiB)                 {:>8.1} GB/s",
        per_second / 1e9
    );
    let rate = map_bytes as f64 / read.as_secs_f64();
    println!(
        "  kho-v4 blob, read, checked and decoded            {:>12}  {:.2} GB/s of map, {:.0} % of bandwidth",
        time(read),
        rate / 1e9,
        100.0 * rate / per_second
    );
    let times = |other: std::time::Duration| other.as_secs_f64() / read.as_secs_f64();
    println!(
        "  mem property, sorted first                        {:>12}  {:.0} times as long",
        time(sorted),
        times(sorted)
    );
    let verdict = if times(bitmap) < WANTED {
        "which falls short of"
    } else {
        "against a target of"
    };
    println!(
        "  mem property, into a bitmap: no sort needed       {:>12}  {:.0} times as long, {verdict} {WANTED:.0}",
        time(bitmap),
        times(bitmap)
    );
    println!(
        "  merged extents of the blob                        {:>12}  {runs} of them, {} to write",
        time(extents),
        bytes((runs * size_of::<Region>()) as u64)
    );
    whole(clock);
}

/// How much faster than the mem property the fast path should be, in either way of reading the property.
const WANTED: f64 = 20.0;

/// A terabyte of which every page is preserved: in folios of 1 GiB, of 4 MiB, and page by page.
fn whole(clock: &Clock) {
    let span = Region::new(0, 1 << 40);
    let count = |order: u8| span.size / order_size(order);
    let line = |order: u8, work: &mut dyn FnMut(&mut PageSet)| {
        let taken = clock.median(|| {
            let mut set = PageSet::new(span);
            work(&mut set);
            black_box((set.len(), set.contains(0x1000), FreeLists::outside(&set)));
        });
        let count = count(order);
        println!(
            "  1 TiB fully preserved, {count:>9} blocks of order {order:2}   {:>12}",
            time(taken)
        );
    };
    for order in [18_u8, 10] {
        let blocks: Vec<Block> = (0..count(order))
            .map(|index| Block::new(index * order_size(order), order))
            .collect();
        let encoded = Radix::SHARED_KEY.encode(&blocks);
        line(order, &mut |set| {
            Radix::SHARED_KEY.decode(&encoded, set).expect("a sound encoding")
        });
    }
    // A block list of four gigabytes would only measure the list, so use the leaves alone, 32 MiB of them.
    let leaves = vec![u64::MAX; usize::try_from(count(0) / 64).expect("a size that fits memory")];
    line(0, &mut |set| {
        for (index, leaf) in leaves.chunks_exact(512).enumerate() {
            set.bitmap((index as u64) << 27, 0, leaf);
        }
    });
}

/// Size of the image that holds the blob, in bytes.
const IMAGE_SIZE: u64 = 64 << 20;

/// An image of the lowest memory with a kho-v4 blob in it.
fn image(workload: &Workload) -> (impl kho_core::PhysicalMemory, Handover) {
    let image = vec![0_u8; usize::try_from(IMAGE_SIZE).expect("a size that fits memory")];
    let mut memory = SliceMemory::new(0, image);
    let plan = Blueprint {
        blocks: workload.blocks.clone(),
        ..Blueprint::default()
    };
    let mut allocator = FreeRegions::new(vec![Region::new(1 << 20, 60 << 20)]);
    let entry = build(&plan, Abi::KhoV4, &mut memory, &mut allocator).expect("room for the blob");
    let handover = Handover::read(&memory, entry.fdt, Region::new(0, 0)).expect("a sound handover");
    (memory, handover)
}
