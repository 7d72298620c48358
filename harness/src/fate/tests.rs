use super::*;
use crate::evidence::{AgentFailure, Phase};
use crate::testing::good;
use guest_agent::protocol::LogRecord;

fn judged(evidence: Evidence) -> Judged {
    Judged::new(evidence).unwrap()
}

fn fate_of(evidence: Evidence) -> (Fate, String) {
    let fates = fates(&judged(evidence)).unwrap();
    assert_eq!(fates.len(), 1, "{fates:?}");
    assert_eq!(fates[0].kind, Kind::Memfd);
    (fates[0].fate, fates[0].why.clone())
}

fn fail_retrieval(evidence: &mut Evidence, errno: i32) {
    evidence.failures.push(AgentFailure {
        generation: 1,
        phase: Phase::Restore,
        request: "retrieve token 7".into(),
        call: "ioctl".into(),
        errno,
        detail: String::new(),
    });
    evidence.retrievals[1].failure = Some(0);
    evidence.outcome.kind = OutcomeKind::SessionLost;
}

fn log(evidence: &mut Evidence, level: u8, text: &str) {
    evidence.kernel_log(1).records.push(LogRecord {
        time_us: 1,
        level,
        text: text.into(),
    });
}

#[test]
fn what_is_retrieved_with_its_content_is_kept() {
    assert_eq!(fate_of(good()), (Fate::Kept, String::new()));
}

#[test]
fn what_a_call_does_not_give_back_is_lost_and_said() {
    let mut evidence = good();
    fail_retrieval(&mut evidence, 2);
    let (fate, why) = fate_of(evidence);
    assert_eq!(fate, Fate::LostAndSaid);
    assert!(why.contains("retrieve token 7"), "{why}");
}

#[test]
fn what_nobody_asks_for_and_nothing_tells_is_lost_silently() {
    let mut evidence = good();
    evidence.retrievals.clear();
    let (fate, why) = fate_of(evidence.clone());
    assert_eq!(fate, Fate::LostSilently);
    assert!(why.contains("never retrieved"), "{why}");
    // A line of no consequence, one of another kind, and one of a low level tell nothing.
    log(&mut evidence, 4, "workqueue: slow");
    log(&mut evidence, 4, "KHO: FDT 'kho_test' of test_kho is odd");
    log(&mut evidence, 6, "KHO: memfd is gone");
    assert_eq!(fate_of(evidence.clone()).0, Fate::LostSilently);
    log(&mut evidence, 4, "memfd_luo: no folios");
    assert_eq!(fate_of(evidence).0, Fate::LostAndSaid);
}

#[test]
fn damage_to_the_memory_is_a_silent_loss_although_the_calls_succeed() {
    let mut evidence = good();
    // A byte of the first page that no device wrote.
    let capture = &mut evidence.captures.checkpoints[0].objects[0].pages;
    let pattern = crate::evidence::PageContent::Pattern;
    let page = capture.iter().position(|content| *content == pattern).unwrap();
    capture[page] = crate::evidence::PageContent::Unreadable;
    let (fate, why) = fate_of(evidence);
    assert_eq!(fate, Fate::LostSilently);
    assert!(why.contains("outside guest memory"), "{why}");
}

#[test]
fn a_handover_that_is_declined_as_a_whole_is_refused_even_if_calls_fail() {
    let mut evidence = good();
    fail_retrieval(&mut evidence, 2);
    log(&mut evidence, 4, "KHO: disabling KHO revival: -2");
    let (fate, why) = fate_of(evidence);
    assert_eq!(fate, Fate::Refused);
    assert!(why.starts_with("by the new kernel: KHO: disabling"), "{why}");
    // The same line beside objects that are all there refuses nothing.
    let mut evidence = good();
    log(&mut evidence, 4, "KHO: disabling KHO revival: -2");
    assert_eq!(fate_of(evidence).0, Fate::Kept);
}

#[test]
fn a_death_is_told_by_its_kernel() {
    for (generation, kind, fate, who) in [
        (1, OutcomeKind::GuestPanic, Fate::Panic, "guest-panic"),
        (1, OutcomeKind::TripleFault, Fate::Panic, "triple-fault"),
        (0, OutcomeKind::GuestPanic, Fate::Panic, "of the first kernel"),
        (0, OutcomeKind::SetupFailed, Fate::Refused, "by the first kernel"),
    ] {
        let mut evidence = good();
        (evidence.outcome.kind, evidence.outcome.generation) = (kind, generation);
        let (found, why) = fate_of(evidence);
        assert_eq!(found, fate, "{kind:?}");
        assert!(why.starts_with(who), "{why}");
    }
    let mut evidence = good();
    evidence.outcome.kind = OutcomeKind::MachineFailed;
    assert!(fates(&judged(evidence)).is_err());
}

#[test]
fn what_the_first_kernel_did_not_preserve_is_refused_by_it() {
    let mut evidence = good();
    evidence.objects[0].preserved_by.clear();
    let (fate, why) = fate_of(evidence);
    assert_eq!(fate, Fate::Refused);
    assert!(why.contains("was not preserved"), "{why}");
}

#[test]
fn a_region_must_be_in_the_handover_and_the_test_must_have_run() {
    let mut evidence = good();
    evidence.test_kho = true;
    evidence.objects[0].kind = ObjectKind::ReserveMem;
    let fates = fates(&judged(evidence)).unwrap();
    let all: Vec<_> = fates.iter().map(|fate| (fate.kind, fate.fate)).collect();
    assert_eq!(
        all,
        [(Kind::ReserveMem, Fate::Refused), (Kind::TestKho, Fate::Refused)]
    );
    assert!(
        fates[0].why.contains("is not in the handover"),
        "{}",
        fates[0].why
    );
    assert!(
        fates[1].why.contains("CONFIG_TEST_KEXEC_HANDOVER"),
        "{}",
        fates[1].why
    );
}
