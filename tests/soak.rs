//! Many branches of one run leave nothing behind in their process: no open file, no mapping of guest memory, no memory.
//!
//! The only test of this file, because it counts what the whole process has.

use campaign::sweep::{Class, Only, Sweep};
use harness::conductor::Run;
use harness::plan::{Overrides, plan};
use harness::scenario::load;
use tests::{ready, scenarios};
use vmm::soft::Soft;

/// Cases before the first count: what is made once and kept is there then.
const FIRST: u64 = 50;
/// Cases between the two counts, unless the environment variable [`CASES`] has another number.
const MORE: u64 = 250;
/// Names the number of cases of a longer test.
const CASES: &str = "BATON_SOAK_CASES";
/// Cases whose list is in memory at a time.
const AT_ONCE: u64 = 1000;
/// How much more of the process may be resident after them, in bytes, however many they are. There is none more, but
/// the allocator may keep some of what was given back.
const MARGIN: u64 = 4 << 20;

/// What this process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    open_files: usize,
    mapped_guest_memory: usize,
    resident_bytes: u64,
}

fn held() -> Held {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident_pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    Held {
        open_files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        mapped_guest_memory: maps.lines().filter(|line| line.contains("/memfd:")).count(),
        resident_bytes: resident_pages * 4096,
    }
}

#[test]
fn many_branches_leave_nothing_behind() {
    if !ready("many branches") {
        return;
    }
    let file = scenarios().join("sweeps/receiver.toml");
    let (scenario, text) = load(&file).unwrap();
    let plan = plan(&scenario, file.to_str().unwrap(), &text, &Overrides::default()).unwrap();
    let sweep = Sweep::new(&plan, &harness::agent::load().unwrap(), "baton", Soft::default()).unwrap();
    // The image's decompressor follows an address that is not canonical, and has no handler: each case is short.
    let run = |numbers: std::ops::Range<u64>| {
        let only: Vec<Only> = numbers
            .map(|number| format!("boot_params/setup_data={}", (1_u64 << 63) + number * 8))
            .map(|only| only.parse().unwrap())
            .collect();
        for case in sweep.cases(&only).unwrap() {
            assert_eq!(sweep.run(&case).unwrap().line.class, Class::Reset);
        }
    };
    run(0..FIRST);
    let first = held();
    let more = std::env::var(CASES).map_or(MORE, |cases| cases.parse().expect("a number of cases"));
    let end = FIRST + more;
    for start in (FIRST..end).step_by(usize::try_from(AT_ONCE).unwrap()) {
        run(start..end.min(start + AT_ONCE));
    }
    let last = held();
    println!("{more} cases: {first:?}, then {last:?}");
    assert_eq!(last.open_files, first.open_files);
    assert_eq!(last.mapped_guest_memory, first.mapped_guest_memory);
    assert!(
        last.resident_bytes <= first.resident_bytes + MARGIN,
        "{first:?}, then {last:?}"
    );
    // That a branch which is still there is counted.
    let branch = Run::from_snapshot(&sweep.base.entry, &[]).unwrap();
    let with = held();
    assert!(with.open_files > last.open_files || with.mapped_guest_memory > last.mapped_guest_memory);
    drop(branch);
}
