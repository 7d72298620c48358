//! A run is the same whether softcpu translates the guest's code or interprets it: report, state hash and ledger.

use harness::conductor::{Progress, Run, Until};
use harness::plan::{Overrides, plan};
use harness::scenario::parse;
use tests::{Finished, baton, built, ready, scenarios, skipped, small, without_host_time};
use vmm::soft::{Soft, Translation};

/// Runs translated and interpreted, and compares the reports.
fn assert_same(what: &str, run: impl Fn(&[&str]) -> Finished) {
    let [translated, interpreted] = ["on", "off"].map(|translate| run(&["--translate", translate]));
    assert_eq!(
        translated.status, interpreted.status,
        "{what}: {}",
        translated.text
    );
    let hash = &translated.scenario()["state_hash"];
    assert!(
        hash.as_str().is_some_and(|hash| hash.len() == 32),
        "{what}: {hash}"
    );
    let [ours, theirs] = [&translated, &interpreted].map(|run| without_host_time(&run.report));
    assert_eq!(ours, theirs, "{what}");
}

fn shipped(name: &str) -> String {
    let file = scenarios().join(format!("{name}.toml"));
    file.to_str().expect("a path of text").to_owned()
}

#[test]
fn every_kernel_runs_the_same_translated() {
    if !ready("kernels translated and interpreted") {
        return;
    }
    for kernel in [
        "7.3.4",
        "7.2.12",
        "7.1.13",
        "6.19.11",
        "7.3.4+checks",
        "7.3.4+kaslr",
    ] {
        if built(kernel).is_none() {
            skipped(&format!(
                "translated and interpreted: needs guest kernel {kernel}"
            ));
            continue;
        }
        let file = shipped("memfd-under-dma");
        assert_same(kernel, |further| {
            baton([&["run", &file, "--kernel", kernel], further].concat())
        });
    }
}

/// How far both runs go from one look at their registers to the next if it is not a block: they then go from block to
/// block through the links between them.
const STEP: u64 = 1_999;

/// How far both runs go between two looks at their registers.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// One block, so that each is executed by both and compared.
    Block,
    /// [`STEP`] instructions.
    Step,
}

impl Pace {
    /// How many looks at all registers come before one at the whole machine, RAM included.
    fn looks(self) -> u64 {
        match self {
            Self::Block => 100_000,
            Self::Step => 1_500,
        }
    }
}

/// Runs a small live update of this kernel translated and interpreted, side by side.
fn lockstep(kernel: &str, pace: Pace) {
    let what = format!("{kernel} side by side, by {pace:?}");
    if !ready(&what) {
        return;
    }
    if built(kernel).is_none() {
        return skipped(&format!("{what}: needs guest kernel {kernel}"));
    }
    let agent = harness::agent::load().unwrap();
    let scenario = parse("small.toml", &small("")).unwrap();
    let overrides = Overrides {
        kernel: Some(kernel.to_owned()),
        ..Overrides::default()
    };
    let plan = plan(&scenario, "small.toml", &small(""), &overrides).unwrap();
    let [mut translated, mut interpreted] = [Translation::Hot, Translation::Off]
        .map(|translation| Run::new(&plan, &agent, &Soft { translation }, &[]).unwrap());
    let (mut looks, mut whole) = (0u64, 0);
    loop {
        let Some(here) = translated.look() else {
            panic!("{what}: no soft processor");
        };
        let there = interpreted.look().map(|look| look.registers);
        assert_eq!(Some(here.registers), there, "{what}, look {looks}");
        looks += 1;
        let further = match pace {
            Pace::Block => here.block,
            Pace::Step => STEP,
        };
        let until = Until::Instructions(translated.retired().unwrap() + further);
        let [one, other] = [&mut translated, &mut interpreted].map(|run| run.proceed(&[until], &()));
        assert_eq!(one, other, "{what}, {until}");
        if one == Progress::Ended {
            break;
        }
        if !looks.is_multiple_of(pace.looks()) {
            continue;
        }
        let [one, other] = [&mut translated, &mut interpreted].map(|run| run.snapshot().unwrap().machine);
        assert_eq!(
            one.state.parts().unwrap(),
            other.state.parts().unwrap(),
            "{what}, {until}"
        );
        let page = one.ram.first_difference(&other.ram).unwrap();
        assert_eq!(page, None, "{what}, {until}: a page of RAM");
        whole += 1;
    }
    let [one, other] = [translated, interpreted].map(|run| run.finish(&()));
    assert!(one == other, "{what}: evidence");
    assert!(whole > 25, "{what}: {whole} looks at the whole machine");
    println!("{what}: all registers compared {looks} times, the whole machine {whole} times");
}

#[test]
fn blocks_of_7_3_4_lead_through_the_same_states() {
    lockstep("7.3.4", Pace::Block);
}

#[test]
fn blocks_of_6_19_11_lead_through_the_same_states() {
    lockstep("6.19.11", Pace::Block);
}

#[test]
fn linked_blocks_lead_through_the_same_states() {
    for kernel in ["7.3.4", "6.19.11"] {
        lockstep(kernel, Pace::Step);
    }
}

/// Runs the scenarios in these folders both ways, and compares all that is told of them.
fn all_run_the_same(folders: &[&str]) {
    if !ready("all scenarios translated and interpreted") {
        return;
    }
    let mut files: Vec<_> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(scenarios().join(folder)).expect("the folder is there"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let file = file.to_str().expect("a path of text");
        let [ours, theirs] = ["on", "off"].map(|translate| {
            let finished = baton(["run", file, "--translate", translate]);
            (finished.status, without_host_time(&finished.report))
        });
        assert_eq!(ours, theirs, "{file}");
    }
}

#[test]
fn sound_scenarios_run_the_same_translated() {
    let folders = ["", "dma", "handover", "more", "own", "sessions", "steps"];
    all_run_the_same(&folders);
}

#[test]
fn scenarios_with_faults_run_the_same_translated() {
    all_run_the_same(&["bugs", "faults", "inject"]);
}

#[test]
fn faults_and_chains_run_the_same_translated() {
    if !ready("scenarios translated and interpreted") {
        return;
    }
    for name in ["unpreserved-target", "receiver-kho-off", "chain-of-three"] {
        let file = shipped(name);
        assert_same(name, |further| {
            baton([&["run", &file, "--seed", "3"], further].concat())
        });
    }
}

#[test]
fn several_processors_run_the_same_translated() {
    if !ready("processors translated and interpreted") {
        return;
    }
    for processors in [2, 4] {
        let text = small("").replacen('\n', &format!("\nvcpus = {processors}\n"), 1);
        // One file for both, because reports name it.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("scenario.toml");
        std::fs::write(&file, text).expect("the scenario is written");
        let file = file.to_str().expect("a path of text");
        assert_same(&format!("{processors} processors"), |further| {
            baton([&["run", file], further].concat())
        });
    }
}
