//! Runs the fuzz targets on a stable compiler, on every input of their corpora and on damaged copies. Each run must
//! end without a panic, and hold at most 64 MiB more than the input's own size.

#[path = "../fuzz/src/budget.rs"]
mod budget;
#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{RefUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Inputs by name.
type Corpus = Vec<(String, Vec<u8>)>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The corpus of a target. An empty one fails, because a test without inputs would always pass.
fn corpus(target: &str) -> Corpus {
    let folder = folder().join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut corpus: Corpus = entries
        .map(|entry| {
            let path = entry.expect("an entry of the folder").path();
            let packed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let input =
                zstd::decode_all(&packed[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.display().to_string(), input)
        })
        .collect();
    assert!(!corpus.is_empty(), "{}: no input in it", folder.display());
    corpus.sort_unstable();
    corpus
}

/// Runs a target on an input, and names the input if that fails.
fn run(target: fn(&[u8]), name: impl Fn() -> String + RefUnwindSafe, input: &[u8]) {
    if catch_unwind(|| budget::run(target, input)).is_err() {
        panic!("the input is {}", name());
    }
}

/// Seed of the damage done to inputs.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A random index below `end`, or 0 if there is none.
fn below(rng: &mut fastrand::Rng, end: usize) -> usize {
    rng.usize(..end.max(1))
}

/// Damages an input in up to six places: flips a bit, overwrites a word, copies bytes from elsewhere, or cuts the end off.
fn damage(rng: &mut fastrand::Rng, input: &mut Vec<u8>, other: &[u8]) {
    const WORDS: [u64; 8] = [0, 1, 8, 0x1000, 0xffff, 1 << 32, 1 << 52, u64::MAX];
    for _ in 0..=below(rng, 6) {
        let at = below(rng, input.len());
        let (word, piece) = (at / 8 * 8, below(rng, 64));
        match below(rng, 5) {
            0 => input
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= 1 << (at % 8)),
            1 => overwrite(input, word, &WORDS[piece % 8].to_le_bytes()),
            // A word from elsewhere puts valid addresses into wrong places.
            2 => {
                let from = below(rng, input.len()) / 8 * 8;
                let copy: Vec<u8> = input.iter().skip(from).take(8).copied().collect();
                overwrite(input, word, &copy);
            }
            3 => {
                let from = below(rng, other.len());
                let copy: Vec<u8> = other.iter().skip(from).take(piece).copied().collect();
                overwrite(input, at, &copy);
            }
            _ if piece == 0 => input.truncate(at),
            _ => overwrite(input, at, &[0xff; 4]),
        }
    }
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (byte, new) in input.iter_mut().skip(at).zip(bytes) {
        *byte = *new;
    }
}

/// Runs a target on `runs` damaged inputs of its corpus.
fn damaged(name: &str, target: fn(&[u8]), runs: usize) {
    let corpus = corpus(name);
    let mut rng = fastrand::Rng::with_seed(SEED);
    for number in 0..runs {
        let (name, input) = &corpus[below(&mut rng, corpus.len())];
        let (_, other) = &corpus[below(&mut rng, corpus.len())];
        let mut damaged = input.clone();
        damage(&mut rng, &mut damaged, other);
        run(
            target,
            || format!("number {number} of seed {SEED:#x}, made of {name}"),
            &damaged,
        );
    }
}

macro_rules! targets {
    ($($name:ident: $runs:literal;)+) => {
        $(mod $name {
            #[test]
            fn inputs_of_the_corpus_are_handled() {
                for (name, input) in super::corpus(stringify!($name)) {
                    super::run(super::targets::$name, || name.clone(), &input);
                }
            }

            #[test]
            fn damaged_inputs_are_handled() {
                super::damaged(stringify!($name), super::targets::$name, $runs);
            }
        })+

        #[test]
        fn every_target_and_every_corpus_is_tested() {
            let tested = BTreeSet::from([$(stringify!($name).to_string()),+]);
            let targets: BTreeSet<String> = targets::ALL.iter().map(|(name, _)| name.to_string()).collect();
            assert_eq!(tested, targets);
            let entries = fs::read_dir(folder()).expect("the corpora");
            let corpora = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
            assert_eq!(tested, corpora.collect());
            let programs = fs::read_dir(folder().with_file_name("fuzz_targets")).expect("the targets");
            let stem = |entry: fs::DirEntry| entry.path().file_stem().map(|stem| stem.display().to_string());
            let programs = programs.filter_map(|entry| stem(entry.expect("an entry")));
            assert_eq!(tested, programs.collect());
        }
    };
}

targets! {
    fdt: 2000;
    find: 200;
    handover: 100;
    recursive: 1000;
    schemes: 100;
    verify: 100;
}

#[test]
#[should_panic(expected = "at most")]
fn too_much_memory_is_noticed() {
    budget::run(
        |input| drop(std::hint::black_box(vec![1_u8; (65 << 20) + input.len()])),
        b"x",
    );
}

#[test]
fn the_peak_is_that_of_the_moment() {
    let hold = |bytes: usize| drop(std::hint::black_box(vec![0_u8; bytes]));
    let peak = budget::peak_of(|| (0..10).for_each(|_| hold(1 << 20)));
    assert!((1 << 20..2 << 20).contains(&peak), "{peak}");
}
