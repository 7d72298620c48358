//! Runs that are paused: wherever that happens, what becomes of them is the same as without.

use harness::conductor::{Progress, Run, Until};
use harness::evidence::{Evidence, Phase};
use harness::plan::{Overrides, Plan, plan};
use harness::scenario::parse;
use harness::seed::seed_for;
use tests::{ready, small};
use vmm::phase::Stamp;
use vmm::soft::Soft;

/// Times at which a run is paused, beside those that are named.
const PAUSES: u64 = 40;

fn planned(text: &str) -> Plan {
    let scenario = parse("paused.toml", text).unwrap();
    plan(&scenario, "paused.toml", text, &Overrides::default()).unwrap()
}

/// Runs `plan` with a pause at each of `stops`, all of which must be reached.
fn run(plan: &Plan, stops: &[Until]) -> Evidence {
    let agent = harness::agent::load().unwrap();
    let mut run = Run::new(plan, &agent, &Soft::default(), &[]).unwrap();
    for stop in stops {
        assert_eq!(run.proceed(&[*stop], &()), Progress::Paused(0), "{stop:?}");
        // A run that stands there stays there.
        assert_eq!(run.proceed(&[*stop], &()), Progress::Paused(0), "{stop:?}");
    }
    assert_eq!(run.proceed(&[], &()), Progress::Ended);
    assert_eq!(run.proceed(&[Until::Time(0)], &()), Progress::Ended);
    run.finish(&())
}

fn pauses_change_nothing(text: &str) {
    let plan = planned(text);
    let straight = run(&plan, &[]);
    assert_eq!(straight.outcome.text, "every step was done");
    let phases: Vec<Until> = straight
        .phases
        .iter()
        .map(|record| {
            Until::Phase(Stamp {
                generation: record.generation.try_into().unwrap(),
                phase: record.phase,
            })
        })
        .collect();
    assert!(phases.contains(&Until::jump(0)) && phases.contains(&Until::entry(1)));
    assert!(run(&plan, &phases) == straight);
    // Amid messages, and amid the waits, during which the processors stand.
    let seed = plan.seed;
    let end = straight
        .phases
        .last()
        .map_or(0, |last| last.begin_ns + last.guest_ns);
    let mut times: Vec<u64> = (0..PAUSES)
        .map(|one| seed_for(seed, &format!("pause {one}")) % end)
        .collect();
    let armed = straight
        .phases
        .iter()
        .find(|record| record.phase == Phase::Armed)
        .unwrap();
    times.extend([1, 100_001, 1_234_567].map(|after| armed.begin_ns + after));
    times.sort_unstable();
    let stops: Vec<Until> = times.iter().copied().map(Until::Time).collect();
    assert!(run(&plan, &stops) == straight, "seed {seed}, paused at {times:?}");
}

#[test]
fn a_run_that_was_paused_ends_like_one_that_was_not() {
    if ready("pauses") {
        pauses_change_nothing(&small(""));
    }
}

#[test]
fn nor_do_pauses_matter_to_several_processors_and_a_waiting_consumer() {
    if ready("pauses of two processors") {
        let text = small("when_full = \"wait\"\n").replacen('\n', "\nvcpus = 2\n", 1);
        pauses_change_nothing(&text);
    }
}

#[test]
fn a_run_that_is_given_up_says_that_it_has_not_ended() {
    if !ready("a run that is given up") {
        return;
    }
    let agent = harness::agent::load().unwrap();
    let mut run = Run::new(&planned(&small("")), &agent, &Soft::default(), &[]).unwrap();
    assert_eq!(run.proceed(&[Until::Time(1_000_000)], &()), Progress::Paused(0));
    let evidence = run.finish(&());
    assert_eq!(evidence.outcome.text, "the run has not ended");
    assert_eq!(evidence.outcome.phase, Phase::BootOld);
    assert_eq!(
        evidence.phases.last().map(|record| record.guest_ns),
        Some(1_000_000)
    );
}
