//! Runs that go on from snapshots end as the run does that they were taken from: at each phase of the shipped
//! scenarios, at random instruction counts, in this process and in another.
//!
//! A run is taken through all places of a test once, with a snapshot at each. Between two of them a branch of the first
//! must come to exactly the second: machine state, RAM, cursor and evidence are compared. So every branch is checked
//! without being run to its end, and by induction the last one has the run's end. Some branches are run to their ends
//! nevertheless.

use harness::compare::first_difference;
use harness::conductor::{Progress, Run, Until, conduct};
use harness::evidence::Evidence;
use harness::oracle::{MAX_KEPT, open_questions};
use harness::plan::{Overrides, Plan, plan};
use harness::run::{Again, Listeners};
use harness::scenario::{load, parse};
use harness::snapshot::RunSnapshot;
use harness::verdict::Judged;
use std::cell::RefCell;
use tests::{Finished, baton, ready, run_text, scenarios, small, without_host_time};
use vmm::phase::{Phase, Stamp};
use vmm::soft::Soft;

/// Random places in a run of one processor, and as many in one of four.
const PLACES: usize = 100;
/// Of so many branches from random places, one is run to its end.
const ENDED: usize = 17;

fn shipped_plan(name: &str) -> Plan {
    let file = scenarios().join(format!("{name}.toml"));
    let (scenario, text) = load(&file).unwrap();
    plan(&scenario, file.to_str().unwrap(), &text, &Overrides::default()).unwrap()
}

fn power_on(plan: &Plan) -> Run {
    Run::new(plan, &harness::agent::load().unwrap(), &Soft::default(), &[]).unwrap()
}

fn branch(snapshot: &RunSnapshot) -> Run {
    Run::from_snapshot(snapshot, &[]).unwrap()
}

fn to_the_end(mut run: Run) -> Evidence {
    assert_eq!(run.proceed(&[], &()), Progress::Ended);
    run.finish(&())
}

/// The first record in which two runs differ, in words.
fn first_record(expected: &Evidence, found: &Evidence) -> String {
    let difference = first_difference(expected, found);
    difference.map_or_else(|| "no record differs".into(), |difference| difference.to_string())
}

/// In which parts `found` differs from `expected`, and the first record that does.
fn difference(expected: &RunSnapshot, found: &RunSnapshot) -> Option<String> {
    let mut parts = Vec::new();
    let (ours, theirs) = (&expected.machine, &found.machine);
    if ours.state != theirs.state {
        let both = [ours, theirs].map(|machine| machine.state.parts().unwrap());
        let [ours, theirs] = both.each_ref().map(|parts| parts.iter());
        let differ = ours.zip(theirs).filter(|(ours, theirs)| ours != theirs);
        parts.extend(differ.map(|(ours, _)| ours.0.to_owned()));
    }
    if let Some(page) = ours.ram.first_difference(&theirs.ram).unwrap() {
        parts.push(format!("RAM from page {page:#x} on"));
    }
    let further = [
        ("cursor", expected.cursor == found.cursor),
        ("evidence", expected.evidence == found.evidence),
    ];
    parts.extend(further.iter().filter(|one| !one.1).map(|one| one.0.to_owned()));
    let so_far = |snapshot| branch(snapshot).finish(&());
    (!parts.is_empty()).then(|| {
        let record = first_record(&so_far(expected), &so_far(found));
        format!("{}; {record}", parts.join(", "))
    })
}

fn same_end(expected: &Evidence, found: &Evidence, what: &str) {
    assert!(expected == found, "{what}: {}", first_record(expected, found));
}

/// Takes a run through `places` and branches at each. `ended` says how many branches of a place are run to their ends.
fn branches_agree(plan: &Plan, places: &[Until], ended: impl Fn(usize) -> usize, straight: &Evidence) {
    let mut run = power_on(plan);
    let mut before: Option<RunSnapshot> = None;
    for (index, place) in places.iter().enumerate() {
        assert_eq!(run.proceed(&[*place], &()), Progress::Paused(0), "{place}");
        let here = run.snapshot().unwrap();
        if let Some(before) = &before {
            let mut second = branch(before);
            assert_eq!(second.proceed(&[*place], &()), Progress::Paused(0), "{place}");
            let differ = difference(&here, &second.snapshot().unwrap());
            assert_eq!(differ, None, "a branch that came to {place}");
        }
        for _ in 0..ended(index) {
            same_end(straight, &to_the_end(branch(&here)), &format!("from {place}"));
        }
        before = Some(here);
    }
    same_end(straight, &to_the_end(run), "the run that snapshots were taken of");
    let last = before.expect("a place");
    same_end(straight, &to_the_end(branch(&last)), "from the last place");
}

fn phases(evidence: &Evidence) -> Vec<Until> {
    let stamp = |generation: u32, phase| {
        Until::Phase(Stamp {
            generation: generation.try_into().unwrap(),
            phase,
        })
    };
    let records = evidence.phases.iter();
    records
        .map(|record| stamp(record.generation, record.phase))
        .collect()
}

/// At the beginning of each phase; two branches of the places `ended` are run to their ends. In a process of its own,
/// from a file at `held`: the same.
fn shipped(name: &str, ended: &[Until], held: &str) {
    if !ready(name) {
        return;
    }
    let plan = shipped_plan(name);
    let straight = to_the_end(power_on(&plan));
    let places = phases(&straight);
    assert!(
        ended.iter().all(|place| places.contains(place)),
        "{name} has only {places:?}"
    );
    let two = |index: usize| if ended.contains(&places[index]) { 2 } else { 0 };
    branches_agree(&plan, &places, two, &straight);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    let file = file.to_str().unwrap();
    let run = baton([
        "run",
        &plan.scenario_file,
        "--snapshot",
        &format!("{held}={file}"),
    ]);
    let resumed = baton(["resume", file]);
    assert_eq!(
        (run.status, resumed.status),
        (0, 0),
        "{}{}",
        run.text,
        resumed.text
    );
    let (expected, found) = (without_host_time(&run.report), without_host_time(&resumed.report));
    assert_eq!(expected, found, "resumed at {held}");
    let scenario = resumed.scenario();
    assert_eq!(scenario["state_hash"], straight.state_hash.as_str());
    let digest = format!("{:032x}", straight.ledger.digest);
    assert_eq!(scenario["ledger_digest"], digest.as_str());
}

const ARMED: Until = Until::Phase(Stamp {
    generation: 0,
    phase: Phase::Armed,
});

#[test]
fn memfd_under_dma_ends_alike_from_everywhere() {
    shipped(
        "memfd-under-dma",
        &[ARMED, Until::jump(0), Until::entry(1)],
        "jump",
    );
}

#[test]
fn unpreserved_target_ends_alike_from_everywhere() {
    shipped("unpreserved-target", &[Until::jump(0)], "armed");
}

#[test]
fn receiver_kho_off_ends_alike_from_everywhere() {
    shipped("receiver-kho-off", &[Until::entry(1)], "entry");
}

#[test]
fn bus_master_honoured_ends_alike_from_everywhere() {
    shipped("bus-master-honoured", &[ARMED], "handover");
}

#[test]
fn chain_of_three_ends_alike_from_everywhere() {
    shipped("chain-of-three", &[Until::jump(1), Until::entry(3)], "2:restore");
}

/// At random instruction counts. Of the branches that are run to their ends, half go through a file.
fn anywhere(vcpus: u32) {
    let text = small("").replacen('\n', &format!("\nvcpus = {vcpus}\n"), 1);
    let scenario = parse("forked.toml", &text).unwrap();
    let plan = plan(&scenario, "forked.toml", &text, &Overrides::default()).unwrap();
    let straight = to_the_end(power_on(&plan));
    let retired = straight.phases.iter().filter_map(|record| record.instructions);
    let total: u64 = retired.sum();
    let seed = std::env::var("FORKED_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("{vcpus} processors, {total} instructions; repeat with FORKED_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut counts: Vec<u64> = (0..PLACES).map(|_| random.u64(1..total)).collect();
    counts.sort_unstable();
    let places: Vec<Until> = counts.iter().copied().map(Until::Instructions).collect();
    let one = |index: usize| usize::from(index % ENDED == ENDED / 2);
    branches_agree(&plan, &places, one, &straight);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    let mut run = power_on(&plan);
    for place in places.iter().step_by(PLACES / 3) {
        assert_eq!(run.proceed(&[*place], &()), Progress::Paused(0), "{place}");
        let here = run.snapshot().unwrap();
        here.write(&file).unwrap();
        let read = RunSnapshot::read(&file).unwrap();
        assert_eq!(difference(&here, &read), None, "a file from {place}");
        same_end(
            &straight,
            &to_the_end(branch(&read)),
            &format!("from a file, from {place}"),
        );
    }
}

#[test]
fn one_processor_ends_alike_from_any_instruction() {
    if ready("branches of one processor") {
        anywhere(1);
    }
}

#[test]
fn four_processors_end_alike_from_any_instruction() {
    if ready("branches of four processors") {
        anywhere(4);
    }
}

/// The comparison of this file tells snapshots apart.
#[test]
fn a_difference_is_named() {
    if !ready("differences") {
        return;
    }
    let text = small("");
    let scenario = parse("forked.toml", &text).unwrap();
    let plan = plan(&scenario, "forked.toml", &text, &Overrides::default()).unwrap();
    let mut run = power_on(&plan);
    let [first, second] = [2_000_000, 2_500_000].map(|count| {
        run.proceed(&[Until::Instructions(count)], &());
        run.snapshot().unwrap()
    });
    assert_eq!(difference(&first, &first), None);
    let found = difference(&first, &second).unwrap();
    for part in ["time, processors", "RAM from page", "first difference: at "] {
        assert!(found.contains(part), "{found}");
    }
}

/// The second run, which watches bytes, begins at the jump, and names the writers that a run from power-on names.
#[test]
fn authors_are_found_from_the_jump() {
    if !ready("authors") {
        return;
    }
    let (plan, agent) = (
        shipped_plan("unpreserved-target"),
        harness::agent::load().unwrap(),
    );
    let second_runs: RefCell<Vec<Again>> = RefCell::default();
    let listeners = Listeners {
        observer: &(),
        again: &|again| second_runs.borrow_mut().push(again),
    };
    let judged = harness::run::run(&plan, &agent, &Soft::default(), &[], &listeners).unwrap();
    let jump = judged
        .evidence
        .phases
        .iter()
        .find(|record| record.phase == Phase::Jump);
    let jump = jump.unwrap();
    let from: Vec<(u64, Phase)> = second_runs
        .borrow()
        .iter()
        .map(|again| (again.from.time, again.from.stamp.phase))
        .collect();
    assert_eq!(from, [(jump.begin_ns, Phase::Jump)]);

    let mut first = judged.evidence.clone();
    first.authors.clear();
    let questions = open_questions(&Judged::new(first).unwrap().results, MAX_KEPT);
    assert_eq!(questions.len(), second_runs.borrow()[0].bytes);
    let whole = conduct(&plan, &agent, &Soft::default(), &(), &questions).unwrap();
    let named = |author: &harness::evidence::Author| author.write.as_ref()?.symbol.clone();
    assert!(whole.authors.iter().any(|author| named(author).is_some()));
    assert_eq!(judged.evidence.authors, whole.authors);
}

#[test]
fn what_cannot_be_held_is_said_in_one_sentence() {
    if !ready("refusals of snapshots") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    let held = |place: &str| format!("{place}={}", file.display());
    let shown = scenarios().join("memfd-under-dma.toml");
    let shown = shown.to_str().unwrap();
    let errors = |run: &Finished| run.text.matches("baton: error: ").count();

    let kvm = baton(["run", shown, "--backend", "kvm", "--snapshot", &held("armed")]);
    assert_eq!((kvm.status, errors(&kvm)), (2, 1), "{}", kvm.text);
    assert!(
        kvm.text.contains("the kvm backend cannot hold a machine as data"),
        "{}",
        kvm.text
    );

    let two = baton(["run", shown, shown, "--snapshot", &held("armed")]);
    assert_eq!((two.status, errors(&two)), (2, 1), "{}", two.text);

    let never = run_text(&small(""), &["--snapshot", &held("2:jump")]);
    assert_eq!(never.status, 3, "{}", never.text);
    let scenario = never.scenario();
    assert_eq!(
        (&scenario["verdict"], &scenario["outcome"]["kind"]),
        (&"error".into(), &"completed".into())
    );
    assert!(
        never
            .text
            .contains("the run ended before it came to jump of generation 2"),
        "{}",
        never.text
    );
    assert!(!file.exists());
}

/// A small live update with injections that take their time: device writes that are held back and torn, deeds that are
/// done several times, a symbol that is waited for, places that are looked for, and one that counts instructions.
const INJECTED: &str = r#"
[[inject]]
when.phase = "armed"
what.dma.delay.by = "3 ms"
count = 6
every = 2

[[inject]]
when = { phase = "armed", write = 2 }
what.dma.torn = { after = "4 ms", at = 100 }
count = 4
every = 3

[[inject]]
when = { phase = "armed", after = "500 us" }
what.memory.flip = { at = { object = "data" }, bit = 3 }
count = 5
every = "1 ms"

[[inject]]
when.symbol = "kho_memory_init"
what.memory.flip.at = "scratch"

[[inject]]
when = { phase = "restore", instructions = 10000, within = 5000 }
what.memory.flip.at = "free"
"#;

fn with_injections() -> (String, String) {
    let file = scenarios().join("inject/dma-drop.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let without = text.split("[[inject]]").next().unwrap().to_owned();
    (format!("{without}{INJECTED}"), without)
}

fn plan_of(text: &str) -> Plan {
    plan(
        &parse("s.toml", text).unwrap(),
        "s.toml",
        text,
        &Overrides::default(),
    )
    .unwrap()
}

#[test]
fn runs_go_on_from_the_middle_of_injections() {
    if !ready("branches of injections half done") {
        return;
    }
    let plan = plan_of(&with_injections().0);
    let straight = to_the_end(power_on(&plan));
    let fired = |evidence: &Evidence| -> Vec<u64> {
        evidence
            .injections
            .iter()
            .map(|injection| injection.fired)
            .collect()
    };
    assert_eq!(fired(&straight), [6, 4, 5, 1, 1]);
    let begin = |phase| {
        let mut records = straight.phases.iter();
        records.find(|record| record.phase == phase).unwrap().begin_ns
    };
    let armed = begin(Phase::Armed);
    let mut places: Vec<u64> = (1..16).map(|step| armed + step * 400_000).collect();
    places.extend([begin(Phase::BootNew) + 5_000_000, begin(Phase::Restore) + 5_000]);
    let places: Vec<Until> = places.into_iter().map(Until::Time).collect();
    // Some of them have fired half of their times there.
    let mut run = power_on(&plan);
    let half = [places[6]];
    assert_eq!(run.proceed(&half, &()), Progress::Paused(0));
    let here = run.finish(&());
    assert!(
        (1..6).contains(&fired(&here)[0]) && (1..5).contains(&fired(&here)[2]),
        "{:?}",
        fired(&here)
    );
    branches_agree(&plan, &places, |index| usize::from(index % 5 == 1), &straight);
}

#[test]
fn an_injection_into_a_run_that_has_begun_does_what_it_does_from_the_start() {
    if !ready("injections into branches") {
        return;
    }
    let (with, without) = with_injections();
    let (with, without) = (plan_of(&with), plan_of(&without));
    let expected = to_the_end(power_on(&with));
    let mut run = power_on(&without);
    let armed = Stamp {
        generation: 0,
        phase: Phase::Armed,
    };
    assert_eq!(run.proceed(&[Until::Phase(armed)], &()), Progress::Paused(0));
    let here = run.snapshot().unwrap();
    for mut run in [branch(&here), run] {
        run.inject(&with.injections).unwrap();
        let found = to_the_end(run);
        let found = Evidence {
            scenario_text: expected.scenario_text.clone(),
            ..found
        };
        same_end(&expected, &found, "injections into a run that has begun");
    }
    // Nothing comes of none.
    let mut control = branch(&here);
    control.inject(&[]).unwrap();
    assert!(to_the_end(control).injections.is_empty());
}
