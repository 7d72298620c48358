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

/// Instructions between two looks at the whole state of both runs.
const STRIDE: u64 = 2_999_000;
/// Instructions between two looks at the registers: some 30 blocks.
const STEP: u64 = 1_999;

#[test]
fn both_ways_lead_through_the_same_states() {
    if !ready("states translated and interpreted") {
        return;
    }
    let agent = harness::agent::load().unwrap();
    for kernel in ["7.3.4", "6.19.11"] {
        if built(kernel).is_none() {
            skipped(&format!(
                "states translated and interpreted: needs guest kernel {kernel}"
            ));
            continue;
        }
        let scenario = parse("small.toml", &small("")).unwrap();
        let overrides = Overrides {
            kernel: Some(kernel.to_owned()),
            ..Overrides::default()
        };
        let plan = plan(&scenario, "small.toml", &small(""), &overrides).unwrap();
        let mut ways = [Translation::Hot, Translation::Off]
            .map(|translation| Run::new(&plan, &agent, &Soft { translation }, &[]).unwrap());
        let mut looks = 0;
        let mut count = 0;
        loop {
            count += STEP;
            let until = Until::Instructions(count);
            let [one, other] = ways.each_mut().map(|run| run.proceed(&[until], &()));
            assert_eq!(one, other, "{kernel}, {until}");
            if one == Progress::Ended {
                break;
            }
            let [one, other] = ways.each_ref().map(Run::registers);
            assert_eq!(one, other, "{kernel}, {until}");
            if count / STRIDE == (count - STEP) / STRIDE {
                continue;
            }
            let [one, other] = ways.each_mut().map(|run| run.snapshot().unwrap().machine);
            assert_eq!(
                one.state.parts().unwrap(),
                other.state.parts().unwrap(),
                "{kernel}, {until}"
            );
            let page = one.ram.first_difference(&other.ram).unwrap();
            assert_eq!(page, None, "{kernel}, {until}: a page of RAM");
            looks += 1;
        }
        let [one, other] = ways.map(|run| run.finish(&()));
        assert!(one == other, "{kernel}: evidence");
        assert!(looks > 25, "{kernel}: {looks} looks");
    }
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
