use super::*;
use harness::evidence::{AgentFailure, Hello, Phase};
use harness::testing;

/// Evidence of a sound live update with an agent that saw a handover.
fn good() -> Evidence {
    let mut evidence = testing::good();
    for kernel in &mut evidence.kernels {
        let hello = kernel.hello.get_or_insert_with(|| Hello {
            release: "7.3.4".into(),
            build_id: String::new(),
            command_line: String::new(),
            liveupdate: true,
            kho_debugfs: true,
            kho_incoming: true,
            unknown_parameters: vec![],
            processors: 1,
        });
        (hello.liveupdate, hello.kho_debugfs, hello.kho_incoming) = (true, true, true);
    }
    evidence
}

fn judged(evidence: Evidence) -> Judged {
    Judged::new(evidence).unwrap()
}

/// The class of a sound live update that was changed.
fn class(change: impl FnOnce(&mut Evidence)) -> Classed {
    let reference = Reference::new(&judged(good()));
    let mut evidence = good();
    change(&mut evidence);
    classify(&judged(evidence), &reference)
}

fn ended(kind: OutcomeKind) -> impl FnOnce(&mut Evidence) {
    move |evidence| {
        evidence.outcome.kind = kind;
        evidence.outcome.text = "as told".into();
    }
}

/// The last kernel prints a line.
fn prints(evidence: &mut Evidence, line: &str) {
    evidence.console.push_str(line);
    evidence.console.push('\n');
}

fn lose(evidence: &mut Evidence, of_object: impl Fn(Option<u32>) -> bool) {
    evidence.failures.push(AgentFailure {
        generation: 1,
        phase: Phase::Restore,
        request: "retrieve token 7".into(),
        call: "ioctl".into(),
        errno: 22,
        detail: String::new(),
    });
    let failure = evidence.failures.len() - 1;
    for retrieval in &mut evidence.retrievals {
        if of_object(retrieval.object) {
            retrieval.failure = Some(failure);
        }
    }
    evidence.outcome.kind = OutcomeKind::SessionLost;
}

#[test]
fn a_run_without_a_difference_had_no_effect() {
    let classed = class(|_| {});
    assert_eq!((classed.class, classed.warned), (Class::NoEffect, false));
}

#[test]
fn ends_of_the_guest_are_classes_of_their_own() {
    assert_eq!(class(ended(OutcomeKind::GuestPanic)).class, Class::Panic);
    assert_eq!(class(ended(OutcomeKind::GuestHang)).class, Class::Hang);
    assert_eq!(class(ended(OutcomeKind::TripleFault)).class, Class::Reset);
    assert_eq!(class(ended(OutcomeKind::UnexpectedReset)).class, Class::Reset);
    assert_eq!(class(ended(OutcomeKind::AgentFailed)).class, Class::AgentStuck);
    assert_eq!(class(ended(OutcomeKind::AgentDied)).class, Class::AgentStuck);
    assert_eq!(class(ended(OutcomeKind::MachineFailed)).class, Class::NotJudged);
    assert_eq!(class(ended(OutcomeKind::GuestPanic)).what, "as told");
}

#[test]
fn a_halt_after_a_fault_in_early_boot_is_no_hang() {
    let classed = class(|evidence| {
        ended(OutcomeKind::GuestHang)(evidence);
        prints(evidence, "[    0.001] KHO: found");
        prints(
            evidence,
            "PANIC: early exception 0x0d IP 10:ffffffff810af36f error 0 cr2 0x0",
        );
    });
    assert_eq!(classed.class, Class::Panic);
    assert!(
        classed.what.starts_with("PANIC: early exception 0x0d"),
        "{classed:?}"
    );
}

#[test]
fn a_kernel_that_was_handed_nothing_has_refused_it() {
    let classed = class(|evidence| {
        lose(evidence, |_| true);
        evidence.kernels[1].hello.as_mut().unwrap().kho_incoming = false;
        prints(evidence, "[    0.000000] KHO: disabling KHO revival: -2");
    });
    assert_eq!(
        (classed.class, classed.what.as_str()),
        (Class::Refused, "KHO: disabling KHO revival: -2")
    );
}

#[test]
fn without_any_retrieval_the_session_is_lost() {
    let classed = class(|evidence| lose(evidence, |_| true));
    assert_eq!(classed.class, Class::SessionLost);
    assert!(
        classed.what.starts_with("retrieve token 7: ioctl failed"),
        "{classed:?}"
    );
}

#[test]
fn a_line_that_the_unchanged_run_has_not_is_a_refusal_in_part() {
    let classed = class(|evidence| prints(evidence, "[    0.1] luo: ignored"));
    assert_eq!(
        (classed.class, classed.what.as_str()),
        (Class::RefusedInPart, "luo: ignored")
    );
}

#[test]
fn complaints_come_before_what_else_happened() {
    let warning = "[    0.500000] WARNING: kernel/x.c:5 at 0xffffffff81000107, CPU#0: init/1";
    let classed = class(|evidence| prints(evidence, warning));
    assert_eq!(
        (classed.class, classed.warned),
        (Class::Warning, true),
        "{classed:?}"
    );
    let oops = "[    0.500000] BUG: unable to handle page fault for address: ffffc9000000b001";
    let classed = class(|evidence| {
        prints(evidence, warning);
        prints(evidence, "[    0.500000] ---[ end trace 0000000000000000 ]---");
        prints(evidence, oops);
    });
    assert_eq!(
        classed.class,
        Class::Oops,
        "the worse complaint counts: {classed:?}"
    );
    let classed = class(|evidence| {
        prints(evidence, warning);
        ended(OutcomeKind::GuestPanic)(evidence);
    });
    assert_eq!((classed.class, classed.warned), (Class::Panic, true));
}

#[test]
fn what_the_agent_alone_sees_is_another_file_and_what_the_host_sees_a_loss() {
    let classed = class(|evidence| {
        for record in &mut evidence.captures.digests {
            record.values[0] ^= 1;
        }
    });
    assert_eq!(classed.class, Class::PartialAsWhole, "{classed:?}");
    let classed = class(|evidence| {
        let stray = evidence.captures.take_stray(&[0x5a; 4096]).unwrap();
        let last = evidence.captures.checkpoints.last_mut().unwrap();
        last.objects[0].pages[12] = stray;
    });
    assert_eq!(classed.class, Class::SilentLoss, "{classed:?}");
}
