//! Talks of a matrix's runs.

use super::*;

/// The plan of a run of a matrix.
fn survey(text: &str) -> Plan {
    testing::plan_with(text, |overrides| overrides.survey = true)
}

#[test]
fn in_a_matrix_the_next_kernel_comes_in_parts() {
    let plan = survey(OWN);
    let told = talk(&plan, &|_, _| None);
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    let mut image = Vec::new();
    for request in told.requests() {
        if let Request::StageKernel { offset, bytes } = request {
            assert_eq!(*offset, image.len() as u64);
            image.extend_from_slice(bytes);
        }
    }
    assert_eq!(image, *plan.kernel(1).image);
    let plain = talk(&testing::plan(OWN), &|_, _| None);
    let staged = |told: &Told| {
        told.requests()
            .any(|request| matches!(request, Request::StageKernel { .. }))
    };
    assert!(staged(&told) && !staged(&plain));
}

#[test]
fn in_a_matrix_what_the_first_kernel_refuses_is_left_out_and_the_rest_goes_on() {
    let refuse = saying(
        0,
        |request| matches!(request, Request::CreateSession { .. }),
        failed(2),
    );
    let told = talk(&survey(OWN), &refuse);
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    let asks = |what: fn(&Request) -> bool| told.requests().any(what);
    assert!(!asks(|request| matches!(request, Request::Preserve { .. })));
    assert!(!asks(|request| matches!(
        request,
        Request::RetrieveSession { .. } | Request::RetrieveMemfd { .. }
    )));
    // An engine without preserved memory would write to what the next kernel uses.
    assert!(!asks(|request| matches!(
        request,
        Request::StartDma(_) | Request::StopDma | Request::ConsumeDma
    )));
    assert_eq!(told.evidence.failures.len(), 1);
    assert_eq!(told.evidence.retrievals.len(), 1, "the region");
    // Alone it ends the run.
    let told = talk(&testing::plan(OWN), &refuse);
    assert_eq!(told.ending().0, OutcomeKind::SetupFailed);
}
