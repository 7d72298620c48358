//! Complaints of kernels.

use super::only;
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::good;
use guest_agent::protocol::LogRecord;

const WARNING: &str = "WARNING: kernel/liveupdate/luo_session.c:1 at 0xffffffff81000107, CPU#0: init/1";

fn quiet(evidence: &Evidence, allowed: &[&str]) -> RuleResult {
    let allowed: Vec<String> = allowed.iter().map(|text| (*text).to_owned()).collect();
    let results = judge(evidence, &allowed).into_iter();
    let mut results = results.filter(|result| result.rule == RuleName::KernelQuiet);
    results.next().unwrap()
}

/// Evidence in which the second kernel warns on its console.
fn warned() -> Evidence {
    let mut evidence = good();
    evidence.console += &format!("[    0.250000] {WARNING}\n");
    evidence.log_symbols.push(LogSymbol {
        generation: 1,
        address: 0xffff_ffff_8100_0107,
        symbol: "luo_open+0x7".into(),
    });
    evidence
}

#[test]
fn a_complaint_of_a_kernel_is_found_once() {
    let mut evidence = warned();
    let record = LogRecord {
        time_us: 250_000,
        level: 4,
        text: WARNING.into(),
    };
    evidence.kernel_logs[1].records.push(record.clone());
    let findings = only(&evidence, &[RuleName::KernelQuiet]);
    assert_eq!(findings.len(), 1);
    let finding = &findings[0];
    assert_eq!(finding.owner, "kernel of generation 1, luo_open+0x7");
    assert!(finding.actual.contains("at luo_open+0x7, CPU#0"), "{finding:#?}");
    for part in [
        "warning at luo_open+0x7",
        "generation 1 in boot-new",
        "at 0.250000 s",
    ] {
        assert!(finding.text.contains(part), "{part}: {}", finding.text);
    }
    // Only in the log, and of the first kernel.
    let mut evidence = good();
    evidence.kernel_logs[0].records.push(record);
    let findings = only(&evidence, &[RuleName::KernelQuiet]);
    assert_eq!(findings[0].owner, "kernel of generation 0, 0xffffffff81000107");
}

#[test]
fn an_allowed_complaint_is_no_deviation() {
    for (allowed, held) in [
        ("luo_open", true),
        ("luo_session.c:1 ", true),
        ("luo_close", false),
    ] {
        let result = quiet(&warned(), &[allowed]);
        assert_eq!(result.held(), held, "{allowed}: {result:#?}");
        assert_eq!(result.looked_at.note.contains("1 complaints allowed"), held);
        assert_eq!(result.looked_at.note.contains("never seen: \"luo_close\""), !held);
    }
}

#[test]
fn what_was_not_seen_of_a_kernel_is_not_judged() {
    // Each change, and whether the rule can be judged after it.
    type Change = fn(&mut Evidence);
    let cases: [(Change, bool); 8] = [
        (|e| e.kernel_logs.clear(), true),
        (|e| e.console.clear(), true),
        (|e| e.console_parts[1].lost = 1, true),
        (|e| e.kernel_logs[1].lost = 1, true),
        (
            |e| (e.console_parts[1].lost, e.kernel_logs[1].lost) = (1, 1),
            false,
        ),
        (
            |e| {
                e.kernel_logs.pop();
                e.console
                    .truncate(usize::try_from(e.console_parts[1].begin).unwrap());
            },
            false,
        ),
        (
            |e| {
                e.kernel_logs.clear();
                e.console += "[    0.300000] ** 7 printk messages dropped **\n";
            },
            false,
        ),
        (
            |e| {
                e.kernel_logs.clear();
                e.console.clear();
            },
            false,
        ),
    ];
    for (index, (change, judged)) in cases.into_iter().enumerate() {
        let mut evidence = good();
        change(&mut evidence);
        let result = quiet(&evidence, &[]);
        assert_eq!(result.held(), judged, "{index}: {result:#?}");
        assert_eq!(result.unjudged().is_some(), !judged, "{index}: {result:#?}");
    }
}
