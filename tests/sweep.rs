//! Sweeps: the kernel's documented answers come out of them, and a late branch ends as one at the entry does.

use campaign::mutation::Fate;
use campaign::sweep::{DmaCase, DmaDeed, DmaLine, DmaSweep, Line, Only, Sweep};
use harness::plan::InjectionPlan;
use harness::plan::{Overrides, Plan, plan};
use harness::scenario::load;
use tests::{program, ready, scenarios};
use vmm::soft::Soft;

fn receiver() -> Plan {
    let file = scenarios().join("sweeps/receiver.toml");
    let (scenario, text) = load(&file).unwrap();
    plan(&scenario, file.to_str().unwrap(), &text, &Overrides::default()).unwrap()
}

/// Runs `baton sweep blob` with these cases; one line of result each.
fn swept(only: &[&str]) -> Vec<Line> {
    let mut command = std::process::Command::new(program());
    command
        .arg("sweep")
        .arg("blob")
        .arg(scenarios().join("sweeps/receiver.toml"));
    command.args(["--json", "--jobs", "2"]);
    for only in only {
        command.args(["--only", only]);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Line> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), only.len());
    lines
}

/// What 7.3.4 does with broken version strings and counts, as its sources say.
#[test]
fn the_kernels_documented_answers_come_out() {
    if !ready("a sweep") {
        return;
    }
    let lines = swept(&[
        "fdt/compatible=text:kho-v9",
        "luo/compatible=text:luo-v9",
        "luo/session[net]/file[0]/compatible=text:memfd-v9",
        "memblock/trace/compatible=text:reserve-mem-v9",
        "luo/session_block[0]/count=0x0",
        "memfd[0]/pos=0x1",
        "memfd[1]/nr_folios=0x2",
    ]);
    let of = |path: &str| {
        let line = lines.iter().find(|line| line.path == path).unwrap();
        (line.class.name(), line.what.as_str())
    };
    let said = |path: &str, class: &str, what: &str| {
        let found = of(path);
        assert!(found.0 == class && found.1.contains(what), "{path}: {found:?}");
    };
    said("fdt/compatible", "refused", "is incompatible with 'kho-v4'");
    said(
        "luo/compatible",
        "panic",
        "The incoming tree failed to initialize properly [-22]",
    );
    // The first session fails to retrieve its file, and from then on nothing of LUO can be opened.
    said(
        "luo/session[net]/file[0]/compatible",
        "session-lost",
        "open(/dev/liveupdate) failed with Input/output error",
    );
    // The region is allocated anew, in scratch, so that its preservation is refused.
    said("memblock/trace/compatible", "warning", "kho_preserve_pages+");
    said("luo/session_block[0]/count", "panic", "[-22]");
    said("memfd[0]/pos", "no-effect", "");
    said(
        "memfd[1]/nr_folios",
        "partial-as-whole",
        "unexpected content in page 2",
    );
    for line in &lines {
        let only = line.reproduce.rsplit_once("--only '").unwrap().1;
        assert_eq!(only, format!("{}={}'", line.path, line.set));
    }
}

#[test]
fn a_late_branch_ends_as_one_at_the_entry() {
    if !ready("branches of a sweep") {
        return;
    }
    let mut sweep = Sweep::new(
        &receiver(),
        &harness::agent::load().unwrap(),
        "baton",
        Soft::default(),
    )
    .unwrap();
    sweep.hashed = true;
    assert!(sweep.base.snapshots() > 2);
    let only = [
        "setup_data/fdt_size=0x0",
        "scratch[0]/size=one-more",
        "fdt/compatible=unterminated",
        "map/table[0]/entry[0]=zero",
        "map/block[17]/preserved=zero",
        "memblock/trace/size=double",
        "luo/sessions_pa=itself",
        "luo/session[vm]/file[1]/token=ones",
        "memfd[2]/folio[0]/pfn=scratch",
        "kexec-metadata/version=one-more",
    ];
    let only: Vec<Only> = only.iter().map(|only| only.parse().unwrap()).collect();
    let cases = sweep.cases(&only).unwrap();
    assert_eq!(cases.len(), only.len());
    for case in &cases {
        sweep.from_entry = false;
        let late = sweep.run(case).unwrap();
        sweep.from_entry = true;
        let early = sweep.run(case).unwrap();
        let path = &case.field.path;
        assert!(!late.judged.evidence.state_hash.is_empty());
        assert_eq!(late.line, early.line, "{path}");
        assert!(
            late.judged.evidence == early.judged.evidence,
            "{path}: {:?}",
            late.judged.evidence.outcome
        );
        assert!(late.cost.instructions <= early.cost.instructions, "{path}");
    }
}

/// Lines are there after a kill, and the same command goes on with what is missing.
#[test]
fn a_sweep_goes_on_where_it_stopped() {
    if !ready("a sweep that goes on") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let mut command = std::process::Command::new(program());
        command
            .arg("sweep")
            .arg("blob")
            .arg(scenarios().join("sweeps/receiver.toml"));
        command
            .args(["--only", "memfd[0]/pos", "--out"])
            .arg(folder.path());
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let results = folder.path().join("results.jsonl");
    let first = run();
    let all = std::fs::read_to_string(&results).unwrap();
    assert!(
        all.lines().count() > 2 && !first.contains(" 0 injections"),
        "{first}"
    );
    // As a kill leaves it: the last line is cut.
    std::fs::write(&results, &all[..all.len() - 10]).unwrap();
    let second = run();
    assert!(second.contains(": 1 injections"), "{second}");
    let mut again: Vec<String> = std::fs::read_to_string(&results)
        .unwrap()
        .lines()
        .map(Into::into)
        .collect();
    let mut all: Vec<String> = all.lines().map(Into::into).collect();
    again.sort();
    all.sort();
    assert_eq!(again, all);
}

/// A name stands for its value even if another name is listed for it; a value that a field has already is no case.
#[test]
fn a_case_is_found_by_each_of_its_names() {
    if !ready("a case by its name") {
        return;
    }
    // The position is 0.
    let [one, more]: [Line; 2] = swept(&["memfd[0]/pos=one", "memfd[0]/pos=one-more"])
        .try_into()
        .unwrap();
    assert_eq!((&one.set, one.class), (&more.set, more.class));
    let mut command = std::process::Command::new(program());
    command
        .args(["sweep", "blob"])
        .arg(scenarios().join("sweeps/receiver.toml"));
    let output = command.args(["--only", "memfd[0]/pos=zero"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--only names no case"), "{said}");
}

/// A small scenario with device writes.
fn small() -> std::path::PathBuf {
    scenarios()
        .parent()
        .unwrap()
        .join("campaigns/small-scenario.toml")
}

fn under_dma() -> Plan {
    let file = small();
    let (scenario, text) = load(&file).unwrap();
    plan(&scenario, file.to_str().unwrap(), &text, &Overrides::default()).unwrap()
}

/// A drop and one more write in each phase; what the command says is what the library finds, and goes on after a kill.
#[test]
fn moments_of_device_writes_are_swept() {
    if !ready("a sweep of moments") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let mut command = std::process::Command::new(program());
        command.args(["sweep", "dma"]).arg(small());
        command
            .args(["--moments", "8", "--json", "--out"])
            .arg(folder.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    };
    let (text, said) = run();
    let lines: Vec<DmaLine> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 16, "{said}");
    for deed in DmaDeed::ALL {
        assert_eq!(lines.iter().filter(|line| line.deed == deed).count(), 8);
    }
    for line in &lines {
        let fired = !matches!(line.fate, Fate::NotFired | Fate::CannotBeTold);
        assert!(fired, "{line:?}");
        assert_eq!(line.fate == Fate::Caught, !line.caught_by.is_empty(), "{line:?}");
        let case = format!("--only {}@{}", line.deed, line.moment_ns);
        assert!(line.reproduce.ends_with(&case), "{line:?}");
    }
    assert!(lines.iter().any(|line| line.phase == "0:armed"), "{said}");
    let (again, said) = run();
    assert!(
        again.is_empty() && said.contains(": 0 injections"),
        "{again}{said}"
    );
}

/// A case does what the run from power-on with the same injection does.
#[test]
fn a_moment_is_that_of_a_run_from_power_on() {
    if !ready("a moment of a sweep") {
        return;
    }
    let (plan, agent) = (under_dma(), harness::agent::load().unwrap());
    let sweep = DmaSweep::new(&plan, &agent, "baton", Soft::default()).unwrap();
    let cases = sweep.cases(5);
    for case in [cases[2], cases[5], cases[8]] {
        let (_, branch) = sweep.run(case, false).unwrap();
        let whole = from_power_on(&plan, &agent, case);
        assert_eq!(branch.evidence.ledger, whole.ledger, "{case}");
        assert_eq!(branch.evidence.captures, whole.captures, "{case}");
        assert_eq!(branch.evidence.console, whole.console, "{case}");
        assert_eq!(branch.evidence.outcome, whole.outcome, "{case}");
    }
}

fn from_power_on(plan: &Plan, agent: &[u8], case: DmaCase) -> harness::evidence::Evidence {
    use vmm::injection::{
        Act, Change, Deed, Delay, Filter, Injection, Occurrence, Repeat, Trigger, WriteKind,
    };
    let deed = match case.deed {
        DmaDeed::Drop => Deed::Filter(Filter {
            of: WriteKind::Block,
            change: Change::Drop,
        }),
        DmaDeed::Extra => Deed::Act(Act::Burst { blocks: 1 }),
    };
    let trigger = Trigger {
        since: None,
        on: Occurrence::Begin,
        nth: 1,
        delay: Delay::Time(case.moment),
    };
    let injections = vec![InjectionPlan {
        words: case.to_string(),
        injection: Injection {
            trigger,
            deed,
            repeat: Repeat::ONCE,
        },
        ask: None,
    }];
    let plan = Plan {
        injections,
        ..plan.clone()
    };
    let mut run = harness::conductor::Run::new(&plan, agent, &Soft::default(), &[]).unwrap();
    run.proceed(&[], &());
    run.finish(&())
}
