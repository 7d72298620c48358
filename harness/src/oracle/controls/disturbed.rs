//! Injections that act on the machine itself: what they explain, and what they do not.

use super::result;
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, good};
use vmm::ledger::{Content, EngineEvent, EngineEventKind, Entry, Injected, Kind};
use vmm::phase::Stamp;

/// Evidence in which injection 0 acted on the machine, or not on it, once in this phase.
fn acted(acts_on_machine: bool, generation: u32, phase: Phase) -> Evidence {
    let mut evidence = good();
    evidence.injections = vec![InjectionEvidence {
        acts_on_machine,
        ..testing::fired(generation, phase, 500_000)
    }];
    evidence
}

#[test]
fn a_complaint_after_an_act_on_the_machine_is_explained_by_it() {
    for (acts, generation, phase, expected) in [
        (true, 0, Phase::Jump, vec![0]),
        (true, 1, Phase::BootNew, vec![0]),
        (true, 1, Phase::Done, vec![]),
        (false, 0, Phase::Jump, vec![]),
    ] {
        let mut evidence = acted(acts, generation, phase);
        evidence.console += "[    0.250000] No irq handler for 0.119\n";
        let found = result(&evidence, RuleName::KernelQuiet).findings.kept;
        assert_eq!(found.len(), 1);
        assert!(
            found[0].text.starts_with("unexpected interrupt"),
            "{}",
            found[0].text
        );
        assert_eq!(found[0].explained_by, expected, "{generation} {phase}");
    }
}

#[test]
fn what_was_never_retrieved_is_explained_if_the_run_was_cut_short() {
    for (kind, expected) in [
        (OutcomeKind::UnexpectedReset, vec![0]),
        (OutcomeKind::SessionLost, vec![]),
    ] {
        let mut evidence = acted(true, 0, Phase::Jump);
        evidence.outcome.kind = kind;
        evidence.retrievals.clear();
        let found = result(&evidence, RuleName::SessionRetrieved).findings.kept;
        assert!(!found.is_empty());
        assert!(
            found.iter().all(|finding| finding.explained_by == expected),
            "{kind:?}"
        );
    }
}

/// Evidence in which the device writes elsewhere after its driver stopped it, with these engine events before.
fn wrote_after(events: &[(u64, EngineEventKind)]) -> Vec<u32> {
    let mut evidence = acted(true, 1, Phase::Restore);
    let stamp = Stamp::START;
    let event = |&(time, kind): &(u64, EngineEventKind)| EngineEvent { time, stamp, kind };
    evidence.ledger.events = events.iter().map(event).collect();
    let kind = Kind::Block {
        sequence: 20,
        descriptor: 0,
    };
    let write = testing::device_write(40, 2_390_000, 0x3000 * PAGE, 4096, kind);
    evidence.ledger.entries.push(write);
    let found = result(&evidence, RuleName::DmaOnlyToPreserved).findings.kept;
    assert_eq!(found.len(), 1);
    found[0].explained_by.clone()
}

#[test]
fn a_write_after_the_stop_is_explained_by_what_acted_on_the_device() {
    use EngineEventKind::{Injected, Start, Stop};
    let injected = Injected { injection: 0 };
    assert_eq!(
        wrote_after(&[(1, Start), (2, injected), (2_000_000, Stop)]),
        [0],
        "the device ignored the stop"
    );
    assert_eq!(
        wrote_after(&[(1, Start), (2_000_000, Stop)]),
        [] as [u32; 0],
        "nobody acted on it"
    );
    assert_eq!(
        wrote_after(&[(1, Start), (2, injected), (2_000_000, Stop), (2_380_000, Start)]),
        [] as [u32; 0],
        "the driver started it again"
    );
}

#[test]
fn a_message_that_only_an_injection_sent_is_its_finding() {
    let mut evidence = acted(true, 1, Phase::Restore);
    let is_message = |entry: &&Entry| matches!(entry.kind, Kind::Msi { .. });
    let message = *evidence
        .ledger
        .entries
        .iter()
        .rev()
        .find(is_message)
        .expect("there are some");
    let Kind::Msi { data } = message.kind else {
        panic!()
    };
    let ledger = &mut evidence.ledger;
    for bytes in [data.to_le_bytes(), (data + 1).to_le_bytes()] {
        let number = u32::try_from(ledger.injected.len()).unwrap();
        ledger.injected.push(Injected {
            injection: 0,
            of: None,
            content: Content::Bytes(bytes.to_vec()),
        });
        ledger.entries.push(Entry {
            kind: Kind::Injected { number },
            ..message
        });
    }
    let found = result(&evidence, RuleName::InterruptsNeitherLostNorInvented)
        .findings
        .kept;
    assert_eq!(found.len(), 1, "another vector is not the device's: {found:?}");
    assert_eq!(
        (found[0].actual.as_str(), &found[0].explained_by[..]),
        ("a message", &[0][..])
    );
    assert!(
        found[0]
            .last_writer
            .to_string()
            .contains("which sent an interrupt message")
    );
}
