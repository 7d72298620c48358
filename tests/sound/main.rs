//! Whatever the documentation allows and is sound passes: random scenarios, made by constraints ([`generate`]).
//!
//! Three environment variables change what is run: `BATON_SOUND_RUNS`, the number of scenarios; `BATON_SOUND_SEED`, the
//! seed of the first (the others follow); `BATON_SOUND_KERNELS`, versions separated by spaces instead of all that are
//! built.

mod generate;

use std::time::Instant;

use generate::{Dma, Sound};
use tests::{ready, run_text};

/// Scenarios that run if nobody says how many.
const RUNS: u64 = 6;
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

fn has_luo(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let series = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    series >= FIRST_WITH_LUO
}

fn kernels() -> Vec<String> {
    match std::env::var("BATON_SOUND_KERNELS") {
        Ok(named) => named.split_whitespace().map(str::to_owned).collect(),
        Err(_) => {
            let built = harness::kernel::cached().into_iter();
            let built = built.filter_map(|(version, directory)| directory.map(|_| version));
            built.filter(|version| has_luo(version)).collect()
        }
    }
}

#[test]
fn sound_scenarios_pass() {
    if !ready("sound scenarios") {
        return;
    }
    let (runs, first, kernels) = (
        number("BATON_SOUND_RUNS", RUNS),
        number("BATON_SOUND_SEED", 1),
        kernels(),
    );
    let mut failed = Vec::new();
    for seed in first..first.saturating_add(runs) {
        let text = Sound::new(seed, &kernels).text();
        let begin = Instant::now();
        let run = run_text(&text, &[]);
        let seconds = begin.elapsed().as_secs();
        if run.status == 0 {
            eprintln!("BATON_SOUND_SEED={seed}: passed in {seconds} s");
        } else {
            let kernels = kernels.join(" ");
            eprintln!(
                "BATON_SOUND_SEED={seed} BATON_SOUND_KERNELS=\"{kernels}\": does not pass:\n{text}\n{}",
                run.text
            );
            failed.push(seed);
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {runs} sound scenarios do not pass; BATON_SOUND_SEED of each: {failed:?}",
        failed.len()
    );
}

/// The generator keeps to its own constraints, and reaches the ends of what it chooses from.
#[test]
fn what_is_generated_is_allowed() {
    let kernels = ["7.3.4".to_owned(), "7.2.12".to_owned()];
    let many: Vec<Sound> = (0..5_000).map(|seed| Sound::new(seed, &kernels)).collect();
    for sound in &many {
        let text = sound.text();
        harness::scenario::parse("sound.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let bytes: u64 = sound.memfds.iter().map(|memfd| memfd.pages * 4096).sum();
        assert!(bytes + sound.workload.unwrap_or(0) < sound.ram / 2, "{text}");
        let Some(dma) = &sound.dma else { continue };
        assert!(
            Dma::bytes(dma.buffer, dma.ring) <= sound.memfds[0].pages * 4096,
            "{text}"
        );
        let blocks =
            u128::from(dma.rate) * u128::from(sound.guest_ns()) / u128::from(dma.buffer) / 1_000_000_000;
        assert!(dma.wait || 2 * blocks <= sound.ledger.into(), "{text}");
    }
    let any = |what: &str, holds: &dyn Fn(&Sound) -> bool| assert!(many.iter().any(holds), "{what}");
    let device = |sound: &Sound, holds: &dyn Fn(&Dma) -> bool| sound.dma.as_ref().is_some_and(holds);
    any("eight processors", &|sound| sound.vcpus == 8);
    any("no device", &|sound| sound.dma.is_none());
    any("many memfds", &|sound| sound.memfds.len() > 60);
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
    any("a low rate", &|sound| device(sound, &|dma| dma.rate < 2_000));
}
