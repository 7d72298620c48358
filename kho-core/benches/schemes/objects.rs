//! Object state as an FDT per object, as one FDT, and as described records; on one thread and on two.

use std::hint::black_box;
use std::thread;

use kho_core::schemes::objects::{
    OBJECT, Object, big_fdt, read_big_fdt, read_records, read_recursive, records, recursive, recursive_top,
};

use super::support::{Clock, bytes, time};

pub fn table(clock: &Clock, quick: bool) {
    println!("\nobject state");
    println!(
        "  {:10}{:24}{:>12}{:>9}{:>12}{:>12}{:>12}",
        "objects", "way", "bytes", "pages", "1 thread", "2 threads", "decode"
    );
    for count in [10, 100, 1000, 10_000]
        .into_iter()
        .filter(|count| !quick || *count <= 1000)
    {
        let objects: Vec<_> = (0..count).map(Object::sample).collect();
        recursive_fdts(clock, &objects);
        one_fdt(clock, &objects);
        described(clock, &objects);
    }
}

fn row(count: usize, way: &str, size: u64, pages: u64, times: [String; 3]) {
    let [one, two, decode] = times;
    println!(
        "  {count:<10}{way:24}{:>12}{pages:>9}{one:>12}{two:>12}{decode:>12}",
        bytes(size)
    );
}

fn recursive_fdts(clock: &Clock, objects: &[Object]) {
    let join = |children: Vec<Vec<u8>>| {
        let top = recursive_top(objects, &children).expect("names that fit");
        (top, children)
    };
    let one = clock.median(|| {
        black_box(join(recursive(objects).expect("names that fit")));
    });
    let (left, right) = objects.split_at(objects.len() / 2);
    let two = clock.median(|| {
        let children = thread::scope(|scope| {
            let other = scope.spawn(|| recursive(right).expect("names that fit"));
            let mut children = recursive(left).expect("names that fit");
            children.extend(other.join().expect("a thread that ends"));
            children
        });
        black_box(join(children));
    });
    let (top, children) = join(recursive(objects).expect("names that fit"));
    let decode = clock.median(|| {
        black_box(read_recursive(&top, &children).expect("sound FDTs"));
    });
    let size = top.len() + children.iter().map(Vec::len).sum::<usize>();
    let pages = children
        .iter()
        .chain([&top])
        .map(|fdt| fdt.len().div_ceil(4096))
        .sum::<usize>();
    row(
        objects.len(),
        "recursive FDTs",
        size as u64,
        pages as u64,
        [time(one), time(two), time(decode)],
    );
}

fn one_fdt(clock: &Clock, objects: &[Object]) {
    // Its size must be fixed before the contents are known.
    let room = (objects.len() + 8) * 512;
    let one = clock.median(|| {
        black_box(big_fdt(objects, room).expect("room enough"));
    });
    let fdt = big_fdt(objects, room).expect("room enough");
    let decode = clock.median(|| {
        black_box(read_big_fdt(&fdt).expect("a sound FDT"));
    });
    let pages = fdt.len().div_ceil(4096) as u64;
    row(
        objects.len(),
        "one FDT, copied",
        fdt.len() as u64,
        pages,
        [time(one), "-".into(), time(decode)],
    );
}

fn described(clock: &Clock, objects: &[Object]) {
    let one = clock.median(|| {
        black_box(records(objects, &OBJECT));
    });
    let (left, right) = objects.split_at(objects.len() / 2);
    let two = clock.median(|| {
        let joined = thread::scope(|scope| {
            let other = scope.spawn(|| records(right, &OBJECT));
            let mut all = records(left, &OBJECT);
            all.extend(other.join().expect("a thread that ends"));
            all
        });
        black_box(joined);
    });
    let bytes = records(objects, &OBJECT);
    let decode = clock.median(|| {
        black_box(read_records(&bytes, &OBJECT));
    });
    let pages = bytes.len().div_ceil(4096) as u64;
    row(
        objects.len(),
        "described records",
        bytes.len() as u64,
        pages,
        [time(one), time(two), time(decode)],
    );
}
