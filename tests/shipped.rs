//! The scenarios that baton ships pass, and repeating a run gives the same result.

use serde_json::Value;
use tests::{Finished, baton, ready, run_text, scenarios, small, without_host_time};

fn shipped(name: &str, further: &[&str]) -> Finished {
    let file = scenarios().join(format!("{name}.toml"));
    let mut arguments = vec!["run".to_owned(), file.to_str().unwrap().to_owned()];
    arguments.extend(further.iter().map(|argument| (*argument).to_owned()));
    baton(arguments)
}

fn passed(name: &str) -> Option<Finished> {
    if !ready(name) {
        return None;
    }
    let run = shipped(name, &[]);
    assert_eq!(run.status, 0, "{}", run.text);
    assert_eq!(run.scenario()["verdict"], "pass");
    Some(run)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn memfd_under_dma_is_intact() {
    let Some(run) = passed("memfd-under-dma") else {
        return;
    };
    let scenario = run.scenario();
    assert_eq!(number(&scenario["preserved_pages"]), 16384);
    for phase in ["jump", "boot-new", "restore"] {
        assert!(
            number(&scenario["device_writes"][phase]) > 0,
            "the device wrote during {phase}"
        );
    }
    let rules = scenario["rules"].as_array().unwrap().iter();
    for rule in rules.filter(|rule| rule["expected"] != "any") {
        assert_eq!(rule["held"], true, "{rule}");
        assert!(number(&rule["looked_at"]) > 0, "{rule}");
    }
    assert_eq!(scenario["findings"].as_array().unwrap().len(), 0);
    assert!(number(&scenario["blackout_ns"]) > 1_000_000);
    let kernels = scenario["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), 2);
    assert!(
        kernels
            .iter()
            .all(|k| k["build_id"].as_str().is_some_and(|id| id.len() == 40)),
        "{kernels:?}"
    );
}

#[test]
fn unpreserved_target_names_device_writes_and_the_cpu_that_overwrote_them() {
    let Some(run) = passed("unpreserved-target") else {
        return;
    };
    let stray = run.findings("dma-only-to-preserved");
    assert!(!stray.is_empty());
    assert!(
        stray.iter().all(|f| f["last_writer"]["who"] == "device"),
        "{stray:?}"
    );
    assert!(
        stray
            .iter()
            .any(|f| f["owner"].as_str().unwrap().contains("kernel of generation 1")),
        "a page that the new kernel owns: {stray:?}"
    );
    let lost = run.findings("device-writes-landed");
    assert!(!lost.is_empty());
    let author = &lost[0]["last_writer"];
    assert_eq!(author["who"], "cpu", "{author}");
    assert_eq!(author["generation"], 1, "{author}");
    assert!(
        author["symbol"].as_str().unwrap().contains("+0x"),
        "a symbol: {author}"
    );
    assert!(number(&author["instructions"]) > 0);
    assert_ne!(lost[0]["expected"], lost[0]["actual"]);
}

#[test]
fn receiver_kho_off_says_what_was_kept() {
    let Some(run) = passed("receiver-kho-off") else {
        return;
    };
    assert_eq!(run.scenario()["outcome"]["kind"], "session-lost");
    let lost = run.findings("session-retrieved");
    assert!(!lost.is_empty());
    assert!(
        lost.iter()
            .any(|f| f["text"].as_str().unwrap().contains("4096 of 4096 pages intact")),
        "7.3.4 still revives the memory: {lost:?}"
    );
    assert_eq!(run.rule("preserved-content")["held"], true);
}

#[test]
fn bus_master_honoured_says_when_and_by_whom() {
    let Some(run) = passed("bus-master-honoured") else {
        return;
    };
    let silent = run.findings("device-never-silent");
    let writer = &silent[0]["last_writer"];
    assert_eq!(
        (&writer["who"], &writer["phase"]),
        (&"cpu".into(), &"handover".into()),
        "{writer}"
    );
    assert!(writer["symbol"].as_str().unwrap().starts_with("pci_"), "{writer}");
    assert_eq!(
        run.scenario()["device_writes"]["boot-new"].as_u64().unwrap_or(0),
        0
    );
}

#[test]
fn chain_of_three_holds_in_each_generation() {
    let Some(run) = passed("chain-of-three") else {
        return;
    };
    assert_eq!(run.scenario()["kernels"].as_array().unwrap().len(), 4);
    assert_eq!(run.scenario()["blackouts_ns"].as_array().unwrap().len(), 3);
    assert_eq!(run.rule("nothing-leaked")["held"], true);
    assert!(number(&run.rule("nothing-leaked")["looked_at"]) > 0);
}

#[test]
fn memory_that_nobody_asks_for_is_given_back_when_its_session_is_finished_and_else_kept() {
    let (Some(finished), Some(left)) = (passed("sessions/finished-unretrieved"), passed("sessions/left"))
    else {
        return;
    };
    // Both memfds are closed in the one, and only that which was retrieved in the other.
    assert_eq!(number(&finished.rule("nothing-leaked")["looked_at"]), 64 + 256);
    assert_eq!(number(&left.rule("nothing-leaked")["looked_at"]), 64);
    assert_eq!(number(&left.rule("kept-from-allocator")["looked_at"]), 64 + 256);
    // The rules see it if the kernel does not keep what nobody has asked for.
    assert!(passed("sessions/left-and-overwritten").is_some());
}

#[test]
fn memory_reserved_by_name_is_kept_and_its_loss_is_told() {
    let (Some(kept), Some(lost)) = (passed("own/reserved-memory"), passed("own/reserved-memory-lost")) else {
        return;
    };
    assert_eq!(number(&kept.scenario()["preserved_pages"]), 256 + 18);
    assert_eq!(lost.scenario()["outcome"]["kind"], "session-lost");
    let found = lost.findings("session-retrieved");
    let elsewhere = |finding: &&Value| finding["text"].as_str().unwrap().contains("and it was at 0x");
    assert!(found.iter().any(elsewhere), "{found:?}");
    // Kernels without LUO, which write the handover when they are asked to.
    for kernel in ["6.17.8", "6.18.15"] {
        if tests::built_for("memory reserved by name", kernel, &[]).is_none() {
            continue;
        }
        let run = shipped("own/reserved-memory", &["--kernel", kernel]);
        assert_eq!(run.status, 0, "{}", run.text);
    }
}

#[test]
fn each_interrupt_of_the_device_reaches_the_driver() {
    let Some(run) = passed("more/interrupts") else {
        return;
    };
    let rule = run.rule("interrupts-neither-lost-nor-invented");
    assert_eq!(rule["held"], true, "{rule}");
    // 12,000 interrupts a second come while the agent waits, 5 ms in each kernel.
    assert!(number(&rule["looked_at"]) > 100, "{rule}");
}

#[test]
fn all_memory_is_used_and_what_was_preserved_is_not_touched() {
    let Some(run) = passed("more/all-memory") else {
        return;
    };
    for rule in ["kept-from-allocator", "nothing-leaked"] {
        assert_eq!(number(&run.rule(rule)["looked_at"]) % 4096, 0, "{rule}");
        assert_eq!(run.rule(rule)["held"], true, "{rule}");
    }
    // Nearly every page of the closed memfd is in use again.
    let note = run.rule("nothing-leaked")["note"].as_str().unwrap();
    let again = note.split(" pages in use again").next().unwrap();
    let again: u64 = again.split(' ').next_back().unwrap().parse().unwrap();
    assert!(again > 4096 / 2, "{note}");
}

/// Neither does the next kernel get it from the one before, because memory in scratch is not handed over.
#[test]
fn memory_that_a_new_kernel_reserves_lies_in_scratch() {
    let Some(run) = passed("more/new-reserved-memory") else {
        return;
    };
    for (found, generation) in run.findings("kernel-quiet").iter().zip(["1", "2"]) {
        let owner = found["owner"].as_str().unwrap();
        assert!(
            owner.starts_with(&format!("kernel of generation {generation}, kho_preserve_pages+")),
            "{owner}"
        );
    }
}

/// The report without the fields that depend on the host.
fn timeless(report: &Value) -> Value {
    let mut report = without_host_time(report);
    for scenario in report["scenarios"].as_array_mut().into_iter().flatten() {
        scenario["scenario_file"] = Value::Null;
        scenario["reproduce"] = Value::Null;
    }
    report
}

#[test]
fn a_run_can_be_had_again_and_judged_again_and_another_seed_is_another_run() {
    if !ready("determinism") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("evidence");
    let out = out.to_str().unwrap();
    let text = small("");
    let first = run_text(&text, &["--out", out]);
    let second = run_text(&text, &[]);
    assert_eq!(first.status, 0, "{}", first.text);
    assert_eq!(timeless(&first.report), timeless(&second.report));
    let judged = baton(["judge", out]);
    assert_eq!(judged.status, 0, "{}", judged.text);
    assert_eq!(timeless(&first.report), timeless(&judged.report));
    let other = run_text(&text, &["--seed", "2"]);
    assert_eq!(other.scenario()["verdict"], "pass", "{}", other.text);
    assert_ne!(
        other.scenario()["ledger_digest"],
        first.scenario()["ledger_digest"]
    );
    assert_ne!(other.scenario()["state_hash"], first.scenario()["state_hash"]);
}

#[test]
fn tampered_evidence_is_found_out() {
    if !ready("tampered evidence") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("evidence");
    let run = run_text(&small(""), &["--out", out.to_str().unwrap()]);
    assert_eq!(run.status, 0, "{}", run.text);
    for entry in std::fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        if path.is_dir() || whole.len() < 16 || path.ends_with("console.txt") {
            continue;
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let judged = baton(["judge", out.to_str().unwrap()]);
        assert_eq!(judged.status, 3, "{} cut short: {}", path.display(), judged.text);
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_run_that_must_fail_does_fail() {
    if !ready("negative control") {
        return;
    }
    // Expects a violation where there is none, and none where there is one.
    let intact = run_text(&small("\n[expect]\npreserved-content = \"violated\"\n"), &[]);
    assert_eq!(
        (intact.status, &intact.scenario()["verdict"]),
        (1, &"fail".into()),
        "{}",
        intact.text
    );
    let silent = run_text(&small("bus_master = \"honoured\"\n"), &[]);
    assert_eq!(silent.status, 1, "{}", silent.text);
    assert_eq!(silent.rule("device-never-silent")["met"], false);
    // A rule with nothing to look at.
    let nothing = r#"
name = "no-device"
ram = "256 MiB"

[[memfd]]
name = "memory"
size = "1 MiB"
token = 1
"#;
    let unjudged = run_text(nothing, &[]);
    assert_eq!(unjudged.status, 1, "{}", unjudged.text);
    assert_eq!(unjudged.rule("device-never-silent")["looked_at"], 0);
}

#[test]
fn an_engine_is_not_started_where_it_does_not_reach() {
    for name in ["dma/reach-all", "dma/reach-above"] {
        let Some(run) = passed(name) else { return };
        assert!(number(&run.scenario()["device_writes"]["boot-new"]) > 0, "{name}");
    }
    let Some(refused) = passed("dma/reach-refused") else {
        return;
    };
    let outcome = &refused.scenario()["outcome"];
    assert_eq!(
        (&outcome["kind"], &outcome["generation"]),
        (&"setup-failed".into(), &0.into())
    );
    let text = outcome["text"].as_str().unwrap();
    let place = text.split_once("page 0 of memfd \"vm\" is at 0x1").expect(text).1;
    assert!(place.ends_with("; the engine reaches 32 bits)"), "{text}");
    let writes = refused.scenario()["device_writes"].as_object().unwrap();
    assert!(writes.values().all(|count| number(count) == 0), "{writes:?}");
}

#[test]
fn an_engine_faults_where_it_does_not_reach() {
    let Some(run) = passed("dma/reach-ignored") else {
        return;
    };
    let silent = run.findings("device-never-silent");
    let text = silent[0]["text"].as_str().unwrap();
    let reason = "it stopped at 0x106000000 because the address has more bits than the engine";
    assert!(text.contains(reason), "{text}");
}

#[test]
fn addresses_taken_before_the_preservation_are_found() {
    let Some(run) = passed("dma/addresses-before-preservation") else {
        return;
    };
    let stray = run.findings("dma-only-to-preserved");
    assert!(
        stray
            .iter()
            .all(|finding| finding["last_writer"]["who"] == "device"),
        "{stray:?}"
    );
    let right = passed("dma/addresses-after-preservation").expect("kernels are ready");
    assert_eq!(right.scenario()["findings"].as_array().unwrap().len(), 0);
    assert_eq!(right.rule("dma-only-to-preserved")["held"], true);
}
