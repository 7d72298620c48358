//! Controls of rules about programs of the user's own.

use super::*;
use crate::evidence::{ObjectKind, PayloadEvidence};
use crate::testing::{JUMP, RETRIEVED, cpu_write};
use guest_agent::protocol::{PageRun, ProgramEnd};

/// A page frame of a file that a payload has preserved.
const FOUND: u64 = 0x3100;

/// Good evidence of a run with a payload, changed.
fn with(change: impl FnOnce(&mut PayloadEvidence)) -> Evidence {
    let mut evidence = good();
    change(evidence.payload.as_mut().unwrap());
    evidence
}

fn texts(evidence: &Evidence) -> Vec<String> {
    let found = result(evidence, RuleName::PayloadPassed).findings.kept;
    found.into_iter().map(|finding| finding.text).collect()
}

#[test]
fn a_text_has_to_be_there_or_must_not_be() {
    let mut evidence = with(|payload| {
        payload.passed = vec!["ALL PASSED".into()];
        payload.failed = vec!["not ok".into()];
    });
    evidence.console = "x: ALL PASSED\r\n".into();
    assert!(result(&evidence, RuleName::PayloadPassed).held());
    evidence.console = "not ok 1 a\n".into();
    assert_eq!(
        texts(&evidence),
        [
            "no line of the console has \"ALL PASSED\"",
            "the console has \"not ok 1 a\""
        ]
    );
    // What was not kept may have had the text.
    evidence.console = "nothing\n".into();
    evidence.console_parts[0].lost = 1;
    let cut = result(&evidence, RuleName::PayloadPassed);
    assert!(cut.findings.total == 0 && cut.blind.len() == 2, "{cut:?}");
}

#[test]
fn results_in_ktap_are_counted_and_none_is_no_pass() {
    let mut evidence = with(|payload| payload.ktap = true);
    evidence.console = "TAP version 13\n1..2\nok 1 a\nok 2 b # SKIP no\n".into();
    let held = result(&evidence, RuleName::PayloadPassed);
    assert!(
        held.held() && held.looked_at.note.contains("2 tests in KTAP, 1 skipped"),
        "{held:?}"
    );
    evidence.console = "1..2\nok 1 a\nnot ok 2 b\n".into();
    assert_eq!(texts(&evidence), ["test 2 \"b\" is not ok"]);
    evidence.console = "1..2\nok 1 a\n".into();
    assert_eq!(texts(&evidence), ["the plan says 2 tests, and 1 results follow"]);
    evidence.console = "all went well\n".into();
    assert!(!result(&evidence, RuleName::PayloadPassed).judged());
}

#[test]
fn a_program_that_has_not_ended_is_not_judged() {
    let evidence = with(|payload| payload.ends.truncate(1));
    let open = result(&evidence, RuleName::PayloadPassed);
    assert!(
        !open.judged() && open.blind[0].contains("\"/test 2\" of generation 1"),
        "{open:?}"
    );
    let signal = with(|payload| payload.ends[0].end = ProgramEnd::Signal(11));
    assert_eq!(
        texts(&signal),
        ["\"/test 1\" of generation 0 ended with signal 11"]
    );
}

/// Good evidence with a file that a payload has preserved.
fn found(seen: bool) -> Evidence {
    let mut evidence = with(|payload| payload.retrievals_seen = seen);
    let mut file = evidence.objects[0].clone();
    (file.id, file.closed, file.bytes) = (5000, None, 4096);
    file.kind = ObjectKind::Found {
        session: "s".into(),
        token: 9,
    };
    file.pages = [(
        0,
        vec![PageRun {
            first: FOUND,
            count: 1,
        }],
    )]
    .into();
    evidence.objects.push(file);
    evidence
}

#[test]
fn what_a_payload_preserved_may_be_written_to_once_it_is_retrieved() {
    let written = |seen: bool, retrieved: bool, time: u64| {
        let mut evidence = found(seen);
        if retrieved {
            let mut retrieval = evidence.retrievals[0].clone();
            (retrieval.object, retrieval.time_ns) = (Some(5000), RETRIEVED);
            evidence.retrievals.push(retrieval);
        }
        evidence.cpu_writes.push(cpu_write(FOUND * PAGE, time));
        result(&evidence, RuleName::NoCpuWriteBeforeRetrieval)
            .findings
            .total
    };
    assert_eq!(written(true, true, RETRIEVED + 10), 0);
    assert_eq!(written(true, true, RETRIEVED - 10), 1);
    assert_eq!(written(true, false, RETRIEVED + 10), 1);
    // Where retrievals are not seen, user space may have the file from its first instruction on.
    let user = found(false).user_entered(JUMP.0).unwrap();
    assert_eq!(written(false, false, user + 10), 0);
    assert_eq!(written(false, false, user - 10), 1);
}

#[test]
fn the_device_may_not_write_to_what_a_payload_preserved() {
    let mut evidence = found(true);
    let kind = vmm::ledger::Kind::Block {
        sequence: 20,
        descriptor: 0,
    };
    let write = crate::testing::device_write(40, 2_390_000, FOUND * PAGE, 4096, kind);
    evidence.ledger.entries.push(write);
    let told = result(&evidence, RuleName::DmaOnlyToPreserved).findings.kept;
    assert!(
        told[0].text.contains("nobody has given to the device"),
        "{told:?}"
    );
}
