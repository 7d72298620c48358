//! Content of preserved memory, and who changed it.

use super::{only, result};
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, JUMP, MEMFD, PAGES, change_page, cpu_write, good};

#[test]
fn a_changed_pattern_byte_is_found() {
    let mut evidence = good();
    change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    assert_eq!(findings[0].page, Some(MEMFD + 15));
    assert_eq!(findings[0].address, Some((MEMFD + 15) * PAGE + 100));
    assert_eq!(findings[0].expected.len(), 2);
    assert_eq!(
        findings[0].question,
        Some(Question {
            checkpoint: 1,
            address: (MEMFD + 15) * PAGE + 100
        })
    );
}

#[test]
fn a_changed_descriptor_is_found() {
    let mut evidence = good();
    change_page(&mut evidence, 0, 0, |page| page[16] ^= 1);
    only(&evidence, &[RuleName::PreservedContent]);
}

#[test]
fn a_changed_list_of_the_ring_s_pages_is_found() {
    let list = usize::try_from(testing::LIST).unwrap();
    let mut evidence = good();
    change_page(&mut evidence, 0, list, |page| page[1] ^= 0x10);
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    assert_eq!(findings[0].address, Some((MEMFD + testing::LIST) * PAGE + 1));
    // Its other words are the pattern's.
    let mut evidence = good();
    change_page(&mut evidence, 0, list, |page| page[8] ^= 1);
    only(&evidence, &[RuleName::PreservedContent]);
}

#[test]
fn a_lost_device_write_is_found_with_its_author_once_known() {
    let mut evidence = good();
    change_page(&mut evidence, 1, 4, |page| page[8..24].fill(0));
    let findings = only(
        &evidence,
        &[RuleName::DeviceWritesLanded, RuleName::PreservedContent],
    );
    assert!(findings[0].text.starts_with("block 18 "), "{}", findings[0].text);
    assert!(matches!(findings[0].last_writer, Writer::Unknown { .. }));
    let address = (MEMFD + 4) * PAGE + 8;
    let write = Some(cpu_write(address, 2_300_000));
    evidence.authors.push(Author {
        checkpoint: 1,
        address,
        write,
    });
    let findings = only(
        &evidence,
        &[RuleName::DeviceWritesLanded, RuleName::PreservedContent],
    );
    let Writer::Cpu {
        symbol, instructions, ..
    } = &findings[0].last_writer
    else {
        panic!("{findings:#?}")
    };
    assert_eq!(
        (symbol.as_str(), *instructions),
        ("clear_page+0x7", Some(1_150_000))
    );
    assert_eq!(findings[0].question, None);
}

#[test]
fn what_differs_at_two_checkpoints_is_told_apart() {
    let mut evidence = good();
    for checkpoint in [0, 1] {
        change_page(&mut evidence, checkpoint, 15, |page| page[100] ^= 0xff);
    }
    let findings = only(&evidence, &[RuleName::PreservedContent]);
    let when = ["after the retrieval in generation 1", "at the end of the run"];
    assert_eq!(findings.len(), when.len());
    for (finding, when) in findings.iter().zip(when) {
        assert!(
            finding.text.contains(&format!("captured {when}")),
            "{}",
            finding.text
        );
    }
}

#[test]
fn a_stale_block_is_no_substitute_for_the_last_one() {
    let mut evidence = good();
    let stale = written_bytes(&evidence.ledger.entries[2 * 10], testing::dma().setup.engine.seed);
    change_page(&mut evidence, 1, 4, |page| page.copy_from_slice(&stale));
    only(
        &evidence,
        &[RuleName::DeviceWritesLanded, RuleName::PreservedContent],
    );
}

#[test]
fn a_ledger_that_lies_about_its_bytes_cannot_be_judged() {
    let mut evidence = good();
    evidence.ledger.entries[39].checksum ^= 1;
    let result = result(&evidence, RuleName::DeviceWritesLanded);
    assert_eq!((result.findings.total, result.judged()), (0, false));
    assert!(
        result.blind[0].starts_with("the ledger is damaged: 1 of its"),
        "{:?}",
        result.blind
    );
}

#[test]
fn what_was_not_captured_cannot_be_judged() {
    let blind = |evidence: &Evidence| -> Vec<RuleName> {
        let results = judge(evidence, &[]).into_iter().filter(|result| !result.judged());
        results.map(|result| result.rule).collect()
    };
    let mut evidence = good();
    evidence.captures.checkpoints[1].strays_left_out = 3;
    assert_eq!(blind(&evidence), [RuleName::DeviceWritesLanded]);
    let mut evidence = good();
    evidence.blobs[0].complete = false;
    assert_eq!(
        blind(&evidence),
        [RuleName::BlobWellFormed, RuleName::MapCoversPreserved]
    );
}

#[test]
fn a_digest_that_differs_is_found() {
    let mut evidence = good();
    evidence.captures.digests[0].values[16] ^= 1;
    only(&evidence, &[RuleName::PreservedContent]);
    // A page that the device writes to while the agent reads it has no single digest.
    let mut evidence = good();
    evidence.captures.digests[0].values[2] ^= 1;
    evidence.captures.digests[0].ledger_before -= 32;
    assert!(result(&evidence, RuleName::PreservedContent).held());
}

#[test]
fn a_cpu_write_before_the_retrieval_is_found() {
    let mut evidence = good();
    evidence
        .cpu_writes
        .push(cpu_write((MEMFD + 12) * PAGE + 64, JUMP.0 + 10));
    let findings = only(&evidence, &[RuleName::NoCpuWriteBeforeRetrieval]);
    assert!(matches!(&findings[0].last_writer, Writer::Cpu { symbol, .. } if symbol == "clear_page+0x7"));
    for (frame, time) in [
        (MEMFD + 12, testing::RETRIEVED + 1),
        (MEMFD + 12, JUMP.0 - 1),
        (MEMFD + PAGES, JUMP.1),
    ] {
        let mut evidence = good();
        evidence.cpu_writes.push(cpu_write(frame * PAGE, time));
        assert!(
            result(&evidence, RuleName::NoCpuWriteBeforeRetrieval).held(),
            "{frame:#x} at {time}"
        );
    }
    // A record that ends before the retrieval shows nothing of what came then; one that ends later is enough.
    for (until, judged) in [(testing::RETRIEVED - 1, false), (testing::RETRIEVED, true)] {
        let mut evidence = good();
        evidence.cpu_writes_until_ns = Some(until);
        let result = result(&evidence, RuleName::NoCpuWriteBeforeRetrieval);
        assert_eq!((result.held(), result.judged()), (judged, judged), "{result:#?}");
    }
}

/// The first CPU write to a page, as recorded by a backend that knows pages only.
fn page_write(address: u64, since_ns: u64) -> CpuWrite {
    CpuWrite {
        length: None,
        rip: None,
        symbol: None,
        instructions: None,
        ..cpu_write(address, since_ns)
    }
}

#[test]
fn a_page_written_before_retrieval_is_found_without_an_instruction() {
    let mut evidence = good();
    evidence
        .cpu_writes
        .push(page_write((MEMFD + 15) * PAGE, JUMP.0 + 1000));
    let findings = only(&evidence, &[RuleName::NoCpuWriteBeforeRetrieval]);
    let text = findings[0].last_writer.to_string();
    assert!(
        matches!(findings[0].last_writer, Writer::CpuPage { .. }),
        "{text}"
    );
    assert!(text.contains("dirty log"), "{text}");
}

#[test]
fn a_changed_byte_names_the_phase_in_which_its_page_was_written() {
    let mut evidence = good();
    change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
    let taken_at = evidence.captures.checkpoints[1].at.time_ns;
    evidence
        .cpu_writes
        .push(page_write((MEMFD + 15) * PAGE, taken_at - 1));
    // A write after the checkpoint cannot be the last writer.
    evidence
        .cpu_writes
        .push(page_write((MEMFD + 15) * PAGE, taken_at + 1));
    let findings = result(&evidence, RuleName::PreservedContent).findings.kept;
    let Writer::CpuPage { since_ns, .. } = findings[0].last_writer else {
        panic!("{findings:#?}")
    };
    assert_eq!((since_ns, &findings[0].question), (taken_at - 1, &None));
}
