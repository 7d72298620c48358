//! The handover: blob, map and sessions.

use super::{only, result};
use crate::evidence::*;
use crate::oracle::*;
use crate::testing::{self, MEMFD, OWN, PAGES, change_page, good};

#[test]
fn a_hole_in_the_map_and_a_page_too_many_are_found() {
    let mut evidence = good();
    evidence.blobs = vec![testing::blob((MEMFD..MEMFD + PAGES - 1).chain([OWN]))];
    let findings = only(&evidence, &[RuleName::MapCoversPreserved]);
    assert_eq!((findings[0].page, findings.len()), (Some(MEMFD + PAGES - 1), 1));
    evidence.blobs = vec![testing::blob((MEMFD..=MEMFD + PAGES).chain([OWN]))];
    let findings = only(&evidence, &[RuleName::MapCoversPreserved]);
    assert_eq!(
        (findings[0].page, findings[0].owner.as_str()),
        (Some(MEMFD + PAGES), "nobody")
    );
    evidence.blobs[0].kho = None;
    only(
        &evidence,
        &[RuleName::MapCoversPreserved, RuleName::BlobWellFormed],
    );
}

#[test]
fn a_damaged_blob_is_found() {
    let mut evidence = good();
    // The entry of the map's root table that leads to all pages points outside RAM.
    let root = evidence.blobs[0].pages.get_mut(&(OWN + 1)).unwrap();
    let used = root
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .find(|entry| **entry != [0; 8])
        .unwrap();
    *used = (testing::RAM * 2).to_le_bytes();
    let findings = only(
        &evidence,
        &[RuleName::BlobWellFormed, RuleName::MapCoversPreserved],
    );
    assert!(findings[0].text.contains("unsound"), "{}", findings[0].text);
}

#[test]
fn a_lost_session_is_found_with_what_was_kept() {
    let mut evidence = good();
    evidence.failures.push(AgentFailure {
        generation: 1,
        phase: Phase::Restore,
        request: "retrieve session \"s\"".into(),
        call: "open(/dev/liveupdate)".into(),
        errno: 2,
        detail: String::new(),
    });
    evidence.retrievals.truncate(1);
    evidence.retrievals[0].failure = Some(0);
    let findings = only(&evidence, &[RuleName::SessionRetrieved]);
    assert!(
        findings[0]
            .text
            .contains("open(/dev/liveupdate) failed with No such file"),
        "{}",
        findings[0].text
    );
    assert!(
        findings[1].text.contains("18 of 18 pages intact"),
        "{}",
        findings[1].text
    );
    change_page(&mut evidence, 1, 3, |page| page[0] ^= 1);
    let findings = result(&evidence, RuleName::SessionRetrieved).findings.kept;
    assert!(
        findings[1].text.contains("17 of 18 pages intact"),
        "{}",
        findings[1].text
    );
}
