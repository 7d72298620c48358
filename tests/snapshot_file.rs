//! The fuzz target for snapshot files on a stable compiler: damaged copies of a small snapshot end in an error or in a
//! machine, never in a panic.

#[path = "../harness/fuzz/src/target.rs"]
mod target;

use harness::conductor::{Progress, Run, Until};
use harness::plan::{Overrides, plan};
use harness::scenario::parse;
use harness::snapshot::RunSnapshot;
use std::panic::catch_unwind;
use tests::image::{SPIN, bzimage};
use vmm::soft::Soft;

/// Damaged inputs.
const RUNS: usize = 600;
/// Seed of the damage.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A snapshot of a kernel of one instruction, as an input of the target.
fn seed() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("spin");
    std::fs::write(&kernel, bzimage(SPIN)).unwrap();
    let text = "name = \"spin\"\nram = \"128 MiB\"\n[[memfd]]\nname = \"m\"\nsize = \"64 KiB\"\ntoken = 1\n";
    let overrides = Overrides {
        kernel: Some(kernel.display().to_string()),
        ..Overrides::default()
    };
    let plan = plan(&parse("spin.toml", text).unwrap(), "spin.toml", text, &overrides).unwrap();
    let mut run = Run::new(&plan, b"no program", &Soft::default(), &[]).unwrap();
    assert_eq!(
        run.proceed(&[Until::Instructions(1000)], &()),
        Progress::Paused(0)
    );
    let file = folder.path().join("snapshot");
    run.snapshot().unwrap().write(&file).unwrap();
    assert!(Run::from_snapshot(&RunSnapshot::read(&file).unwrap(), &[]).is_ok());
    target::unpack(&std::fs::read(&file).unwrap())
}

/// Damages an input in up to four places. Most of a snapshot is zero, so that half of the places are chosen among the
/// others.
fn damage(random: &mut fastrand::Rng, input: &mut Vec<u8>, used: &[usize]) {
    const WORDS: [u64; 6] = [0, 1, 0x1000, 1 << 32, 1 << 63, u64::MAX];
    for _ in 0..random.usize(1..5) {
        let anywhere = random.usize(..input.len());
        let at = if random.bool() {
            used[random.usize(..used.len())]
        } else {
            anywhere
        };
        let Some(rest) = input.get_mut(at..) else { continue };
        match random.usize(..5) {
            0 => rest[0] ^= 1 << random.u32(..8),
            1 => rest[0] = random.u8(..),
            2 => {
                let word = WORDS[random.usize(..WORDS.len())].to_le_bytes();
                rest.iter_mut().zip(word).for_each(|(byte, new)| *byte = new);
            }
            3 => rest.iter_mut().take(10).for_each(|byte| *byte = 0xff),
            _ if random.usize(..20) == 0 => input.truncate(at + 1),
            _ => input.insert(at, random.u8(..)),
        }
    }
}

#[test]
fn damaged_snapshots_never_panic() {
    let seed = seed();
    if let Some(folder) = std::env::var_os("SEEDS") {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../harness")
            .join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("spin"), &seed).unwrap();
    }
    let used: Vec<usize> = (0..seed.len()).filter(|at| seed[*at] != 0).collect();
    let mut random = fastrand::Rng::with_seed(SEED);
    for number in 0..RUNS {
        let mut damaged = seed.clone();
        damage(&mut random, &mut damaged, &used);
        let done = catch_unwind(|| target::snapshot(&damaged));
        assert!(done.is_ok(), "damaged input {number} of seed {SEED:#x}");
    }
}
