//! Whatever the documentation allows and is sound passes: random scenarios, made by constraints ([`generate`]).
//!
//! Four environment variables change what is run: `BATON_SOUND_RUNS`, the number of scenarios; `BATON_SOUND_SEED`, the
//! seed of the first (the others follow); `BATON_SOUND_KERNELS`, versions separated by spaces instead of all that are
//! built; `BATON_SOUND_GUEST_MS`, the most guest time that a scenario may take by estimate, in milliseconds. Seeds of
//! longer ones are passed over. `make nightly` runs many, and long ones too.

mod generate;

use std::time::Instant;

use generate::{Dma, Sound, Workload, room, series};
use tests::{ready, run_text};

/// Scenarios that run if nobody says how many.
const RUNS: u64 = 6;
/// Most guest time of one by estimate if nobody says how much, in milliseconds.
const GUEST_MS: u64 = 800;
/// Seeds that are looked at for scenarios that are short enough.
const SEEDS: u64 = 100_000;
/// Kernels with a Live Update Orchestrator, of those that baton builds: all from here on.
const FIRST_WITH_LUO: (u32, u32) = (6, 19);

/// A number from the environment.
fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is \"{text}\": expected a whole number")),
        Err(_) => default,
    }
}

fn kernels() -> Vec<String> {
    match std::env::var("BATON_SOUND_KERNELS") {
        Ok(named) => named.split_whitespace().map(str::to_owned).collect(),
        Err(_) => {
            let built = harness::kernel::cached().into_iter();
            let built = built.filter_map(|(version, directory)| directory.map(|_| version));
            // A variant, such as one that checks itself, needs more memory and time.
            built
                .filter(|version| series(version) >= FIRST_WITH_LUO && !version.contains('+'))
                .collect()
        }
    }
}

#[test]
fn sound_scenarios_pass() {
    if !ready("sound scenarios") {
        return;
    }
    let (runs, first, guest_ms) = (
        number("BATON_SOUND_RUNS", RUNS),
        number("BATON_SOUND_SEED", 1),
        number("BATON_SOUND_GUEST_MS", GUEST_MS),
    );
    let kernels = kernels();
    assert!(!kernels.is_empty(), "BATON_SOUND_KERNELS names no kernel");
    let seeds = (first..=first.saturating_add(SEEDS)).map(|seed| (seed, Sound::new(seed, &kernels)));
    let short = seeds.filter(|(_, sound)| sound.guest_ns() / 1_000_000 <= guest_ms);
    let (mut ran, mut failed) = (0, Vec::new());
    for (seed, sound) in short.take(usize::try_from(runs).expect("a number of scenarios")) {
        let text = sound.text();
        let begin = Instant::now();
        let run = run_text(&text, &[]);
        let seconds = begin.elapsed().as_secs();
        ran += 1;
        if run.status == 0 {
            eprintln!("BATON_SOUND_SEED={seed}: passed in {seconds} s");
        } else {
            let kernels = kernels.join(" ");
            eprintln!(
                "BATON_SOUND_RUNS=1 BATON_SOUND_SEED={seed} BATON_SOUND_GUEST_MS={guest_ms} \
                 BATON_SOUND_KERNELS=\"{kernels}\": does not pass:\n{text}\n{}",
                run.text
            );
            failed.push(seed);
        }
    }
    assert_eq!(
        ran, runs,
        "scenarios of up to {guest_ms} ms among {SEEDS} seeds from {first}"
    );
    assert!(
        failed.is_empty(),
        "{} of {runs} sound scenarios do not pass; BATON_SOUND_SEED of each: {failed:?}",
        failed.len()
    );
}

/// The generator keeps to its own constraints, and reaches the ends of what it chooses from.
#[test]
fn what_is_generated_is_allowed() {
    let kernels = ["7.3.4", "7.2.12", "7.1.13", "6.19.11"].map(str::to_owned);
    let many: Vec<Sound> = (0..5_000).map(|seed| Sound::new(seed, &kernels)).collect();
    for sound in &many {
        let text = sound.text();
        harness::scenario::parse("sound.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let bytes: u64 = sound.memfds.iter().map(|memfd| memfd.pages * 4096).sum();
        assert!(bytes + sound.workload.file() < sound.ram / 2, "{text}");
        let Some(dma) = &sound.dma else { continue };
        assert!(
            Dma::bytes(dma.buffer, dma.ring) <= sound.memfds[0].pages * 4096,
            "{text}"
        );
        let blocks =
            u128::from(dma.rate) * u128::from(sound.guest_ns()) / u128::from(dma.buffer) / 1_000_000_000;
        let entries = u128::from(Dma::entries(dma.interrupts)) * blocks;
        assert!(dma.wait || entries <= sound.ledger.into(), "{text}");
    }
    let any = |what: &str, holds: &dyn Fn(&Sound) -> bool| assert!(many.iter().any(holds), "{what}");
    let device = |sound: &Sound, holds: &dyn Fn(&Dma) -> bool| sound.dma.as_ref().is_some_and(holds);
    any("eight processors", &|sound| sound.vcpus == 8);
    any("no device", &|sound| sound.dma.is_none());
    any("many memfds", &|sound| sound.memfds.len() > 60);
    any("two kernels", &|sound| {
        (&*sound.old_kernel, &*sound.new_kernel) == ("7.2.12", "7.3.4")
    });
    any("all memory", &|sound| sound.workload == Workload::All);
    any("a file", &|sound| matches!(sound.workload, Workload::File(_)));
    any("interrupts of a waiting engine", &|sound| {
        device(sound, &|dma| dma.interrupts && dma.wait)
    });
    any("interrupts of one that overwrites", &|sound| {
        device(sound, &|dma| dma.interrupts && !dma.wait)
    });
    any("all the memory that is sure to fit", &|sound| {
        let pages: u64 = sound.memfds.iter().map(|memfd| memfd.pages).sum();
        pages * 4096 + sound.workload.file() == room(sound.ram, sound.vcpus) / 4096 * 4096 && sound.vcpus == 8
    });
    any("no wait", &|sound| sound.armed == 0 && sound.restore == 0);
    any("little memory", &|sound| sound.ram < 260 << 20);
    any("much memory", &|sound| sound.ram > 2900 << 20);
    any("the longest ring", &|sound| {
        device(sound, &|dma| dma.ring == 4096 && dma.buffer == 4096)
    });
    any("the shortest ring", &|sound| device(sound, &|dma| dma.ring == 1));
    any("a high rate", &|sound| {
        device(sound, &|dma| dma.rate > 10_000_000_000)
    });
    any("a low rate", &|sound| device(sound, &|dma| dma.rate < 3_000));
}
