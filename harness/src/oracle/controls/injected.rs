//! Injections: what they did is told, and no kernel is blamed for it; what a kernel did beside is told, too.

use super::result;
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, BLOCKS, MEMFD, OWN, PAGES, change_page, good};
use crate::verdict::{Judged, Verdict};
use vmm::ledger::{Content, Entry, Injected, Kind};
use xxhash_rust::xxh3::xxh3_64;

/// Adds an entry of an injection to the end of the ledger.
fn inject(evidence: &mut Evidence, of: Option<u64>, address: u64, content: Content, length: u32) -> Entry {
    let ledger = &mut evidence.ledger;
    let number = u32::try_from(ledger.injected.len()).unwrap();
    ledger.injected.push(Injected {
        injection: 0,
        of,
        content,
    });
    let (index, kind) = (ledger.made, Kind::Injected { number });
    let mut entry = testing::device_write(index, 1_990_000, address, length, kind);
    entry.checksum = xxh3_64(&bytes_of(&evidence.ledger, &entry, 42));
    evidence.ledger.entries.push(entry);
    evidence.ledger.made += 1;
    evidence.injections = vec![testing::fired(1, Phase::BootNew, 1_500_000)];
    // The last checkpoint, which is the only one here, and the close come after it.
    let (length, checkpoints) = (evidence.ledger.made, &mut evidence.captures.checkpoints);
    checkpoints.drain(..checkpoints.len() - 1);
    checkpoints[0].at.ledger_length = length;
    evidence.objects[0].closed.as_mut().unwrap().ledger_length = length;
    evidence.captures.digests.clear();
    entry
}

/// Rules with findings, and all these.
fn found(evidence: &Evidence) -> Vec<Finding> {
    let results = judge(evidence, &[]);
    results
        .into_iter()
        .flat_map(|result| result.findings.kept)
        .collect()
}

fn rules(found: &[Finding]) -> Vec<RuleName> {
    let mut rules: Vec<_> = found.iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

fn all_injected(found: &[Finding]) {
    for finding in found {
        assert!(
            matches!(finding.last_writer, Writer::Injected { injection: 0, .. }),
            "{finding:?}"
        );
        assert_eq!(finding.explained_by, [0]);
    }
}

#[test]
fn a_byte_that_an_injection_wrote_is_its_own() {
    let mut evidence = good();
    let content = Content::Bytes(vec![0xaa]);
    inject(&mut evidence, None, (MEMFD + 15) * PAGE + 100, content, 1);
    change_page(&mut evidence, 0, 15, |page| page[100] = 0xaa);
    let told = found(&evidence);
    assert_eq!(rules(&told), [RuleName::PreservedContent]);
    all_injected(&told);
    assert_eq!(
        (told.len(), told[0].address),
        (1, Some((MEMFD + 15) * PAGE + 100))
    );
    assert_eq!(told[0].actual, "aa");

    // A kernel's own damage to the same page is told beside it.
    change_page(&mut evidence, 0, 15, |page| page[7] ^= 1);
    let told = found(&evidence);
    let (injected, others): (Vec<_>, Vec<_>) = told
        .into_iter()
        .partition(|finding| matches!(finding.last_writer, Writer::Injected { .. }));
    assert_eq!((injected.len(), others.len()), (1, 1));
    assert_eq!(others[0].address, Some((MEMFD + 15) * PAGE + 7));
    assert!(others[0].explained_by.is_empty());

    // What a kernel has written over is not the injection's any more.
    let mut evidence = good();
    let content = Content::Bytes(vec![0xaa]);
    inject(&mut evidence, None, (MEMFD + 15) * PAGE + 100, content, 1);
    let told = found(&evidence);
    assert!(!told.is_empty());
    assert!(
        told.iter()
            .all(|finding| !matches!(finding.last_writer, Writer::Injected { .. }))
    );
}

/// The position of the last block, which nobody overwrote.
fn last_block() -> usize {
    usize::try_from(2 * (BLOCKS.0 - 1)).unwrap()
}

/// Evidence in which injection 0 withheld the last block, so that memory has the one before it.
fn withheld() -> Evidence {
    let mut evidence = good();
    let block = last_block();
    evidence.injections = vec![testing::fired(1, Phase::BootNew, 1_500_000)];
    evidence.ledger.entries[block].withheld = Some(0);
    let before = written_bytes(&evidence.ledger.entries[block - 16], 42);
    let index = evidence.ledger.entries[block].address / PAGE - MEMFD;
    change_page(&mut evidence, 1, usize::try_from(index).unwrap(), |page| {
        page.copy_from_slice(&before)
    });
    evidence
}

#[test]
fn a_block_that_an_injection_withheld_is_missed_by_two_rules() {
    let told = found(&withheld());
    assert_eq!(
        rules(&told),
        [RuleName::PreservedContent, RuleName::DeviceWritesLanded]
    );
    all_injected(&told);
    assert!(told[1].text.contains("block 19"), "{}", told[1].text);
    // Its effect is nil if it was made later: nothing is told.
    let mut evidence = good();
    let block = evidence.ledger.entries[last_block()];
    evidence.ledger.entries[last_block()].withheld = Some(0);
    inject(
        &mut evidence,
        Some(block.index),
        block.address,
        Content::AsMeant { from: 0 },
        block.length,
    );
    assert_eq!(found(&evidence), []);
    assert_eq!(Judged::new(evidence).unwrap().judgement.verdict, Verdict::Pass);
}

#[test]
fn a_block_sent_elsewhere_is_missed_here_and_found_there() {
    let mut evidence = withheld();
    let block = evidence.ledger.entries[last_block()];
    let elsewhere = 0x3000 * PAGE;
    inject(
        &mut evidence,
        Some(block.index),
        elsewhere,
        Content::AsMeant { from: 0 },
        block.length,
    );
    let told = found(&evidence);
    assert_eq!(
        rules(&told),
        [
            RuleName::PreservedContent,
            RuleName::DeviceWritesLanded,
            RuleName::DmaOnlyToPreserved
        ]
    );
    all_injected(&told);
    assert_eq!(told.last().unwrap().page, Some(0x3000));
}

#[test]
fn a_silence_that_injections_made_is_theirs() {
    let mut evidence = good();
    evidence.injections = vec![testing::fired(1, Phase::BootNew, 1_500_000)];
    for entry in &mut evidence.ledger.entries[24..30] {
        entry.withheld = matches!(entry.kind, Kind::Block { .. }).then_some(0);
    }
    let silence = result(&evidence, RuleName::DeviceNeverSilent).findings.kept;
    assert_eq!(silence.len(), 1);
    all_injected(&silence);
    assert!(silence[0].text.contains("injection 0"), "{}", silence[0].text);
}

#[test]
fn a_message_that_was_withheld_is_no_kernels_loss() {
    const RULE: RuleName = RuleName::InterruptsNeitherLostNorInvented;
    let mut evidence = good();
    evidence.injections = vec![testing::fired(1, Phase::BootNew, 1_500_000)];
    // The last message was not sent, so no interrupt came of it.
    evidence.ledger.entries.last_mut().unwrap().withheld = Some(0);
    evidence.trace.records.pop();
    evidence.interrupts[0].disarmed.as_mut().unwrap().count = 1;
    let told = found(&evidence);
    assert_eq!(rules(&told), [RULE]);
    all_injected(&told);
    // If the kernel misses another one, that is told beside it.
    evidence.trace.records.pop();
    let told = found(&evidence);
    assert!(
        told.iter()
            .any(|finding| matches!(finding.last_writer, Writer::Device { .. })),
        "{told:#?}"
    );
}

#[test]
fn a_handover_that_an_injection_wrote_to_explains_what_is_wrong_with_it() {
    // The map lacks a page.
    let without_a_page = || {
        let mut evidence = good();
        evidence.blobs = vec![testing::blob((MEMFD..MEMFD + PAGES - 1).chain([OWN]))];
        evidence
    };
    let in_blob = *without_a_page().blobs[0].pages.keys().next().unwrap();
    let parameters = without_a_page().blobs[0].boot_params / PAGE + 1;
    for (frame, explained) in [(in_blob, true), (parameters, true), (MEMFD - 1, false)] {
        let mut evidence = without_a_page();
        assert_eq!(evidence.blobs[0].pages.contains_key(&frame), frame == in_blob);
        inject(&mut evidence, None, frame * PAGE, Content::Bytes(vec![0xaa]), 1);
        let told = found(&evidence);
        let mut of_map = told
            .iter()
            .filter(|finding| finding.rule == RuleName::MapCoversPreserved);
        let finding = of_map.next().unwrap();
        assert_eq!(
            finding.explained_by,
            if explained { vec![0] } else { vec![] },
            "{frame:#x}"
        );
    }
}

#[test]
fn an_injection_that_never_fired_is_an_error() {
    let judged = |change: fn(&mut InjectionEvidence)| {
        let mut evidence = good();
        let mut injection = testing::fired(1, Phase::BootNew, 1_500_000);
        change(&mut injection);
        evidence.injections = vec![injection];
        Judged::new(evidence).unwrap().judgement
    };
    assert_eq!(judged(|_| {}).verdict, Verdict::Pass);
    let idle = |injection: &mut InjectionEvidence| (injection.fired, injection.firings) = (0, Vec::new());
    for (change, why) in [
        (
            idle as fn(&mut InjectionEvidence),
            "what it waits for did not happen",
        ),
        (
            |injection| (injection.fired, injection.armed) = (0, None),
            "did not come to where it is armed",
        ),
        (
            |injection| (injection.fired, injection.unable) = (0, vec!["at 1 ms: there is none".into()]),
            "could not be done at 1 ms: there is none",
        ),
    ] {
        let judgement = judged(change);
        assert_eq!(judgement.verdict, Verdict::Error);
        assert!(
            judgement.reasons[0].starts_with("injection 0 never fired (at some time"),
            "{judgement:?}"
        );
        assert!(judgement.reasons[0].ends_with(why), "{judgement:?}");
    }
}

#[test]
fn memory_of_no_object_that_an_injection_wrote_to_explains_what_was_not_retrieved() {
    for (frame, explained) in [(MEMFD - 1, true), (MEMFD + 15, false)] {
        let mut evidence = good();
        evidence.retrievals.clear();
        evidence.blobs.clear();
        inject(&mut evidence, None, frame * PAGE, Content::Bytes(vec![0xaa]), 1);
        let told = found(&evidence);
        let mut lost = told
            .iter()
            .filter(|finding| finding.rule == RuleName::SessionRetrieved);
        let by = if explained { vec![0] } else { vec![] };
        assert_eq!(lost.next().unwrap().explained_by, by, "{frame:#x}");
    }
}
