//! Talks about steps that a scenario gives.

use super::*;
use crate::evidence::{MemfdEnd, StepRecord};
use guest_agent::protocol::{Change, Side};

/// A scenario with these steps, in which one memfd of 5 MiB takes two portions.
fn plan(steps: &[&str]) -> Plan {
    let head = "name = \"talk\"\nram = \"128 MiB\"\n[[memfd]]\nname = \"m\"\nsize = \"5 MiB\"\nsession = \"vm\"\ntoken = 1\n";
    let steps = steps.iter().map(|step| format!("[[step]]\n{step}\n"));
    testing::plan(&format!("{head}{}", steps.collect::<String>()))
}

const LIFE: [&str; 9] = [
    "do = \"create\"\nobject = \"m\"",
    "do = \"write\"\nobject = \"m\"",
    "do = \"create\"\nsession = \"vm\"",
    "do = \"preserve\"\nobject = \"m\"",
    "do = \"punch-hole\"\nobject = \"m\"\nsize = \"4 KiB\"\nerrno = \"EPERM\"",
    "do = \"retrieve\"\nsession = \"vm\"\ngeneration = 1",
    "do = \"retrieve\"\nobject = \"m\"",
    "do = \"finish\"\nsession = \"vm\"",
    "do = \"close\"\nobject = \"m\"",
];

fn is_punch(request: &Request) -> bool {
    matches!(
        request,
        Request::Change {
            change: Change::PunchHole(_),
            ..
        }
    )
}

/// A guest that answers `what` to the requests that it is asked about, beside the refusal that the life cycle expects.
fn twist(of: impl Fn(&Request) -> bool, what: What) -> impl Fn(&Guest<'_>, &Move) -> Option<What> {
    move |guest, due| {
        let asked = guest.asked.as_ref().filter(|_| *due == Move::Run)?;
        match asked {
            asked if of(asked) => Some(what.clone()),
            asked if is_punch(asked) => Some(failed(1)),
            _ => None,
        }
    }
}

fn unexpected(evidence: &Evidence) -> Vec<&StepRecord> {
    evidence
        .steps
        .iter()
        .filter(|step| !step.is_as_expected())
        .collect()
}

#[test]
fn a_good_guest_does_what_the_scenario_says_and_no_more() {
    let plan = plan(&LIFE);
    let told = talk(&plan, &twist(|_| false, What::Done));
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    let evidence = &told.evidence;
    let numbers: Vec<u32> = evidence.steps.iter().map(|step| step.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 0, 0, 6, 7, 8, 9]);
    assert!(unexpected(evidence).is_empty(), "{:?}", evidence.steps);
    let object = &evidence.objects[0];
    assert_eq!(
        (object.end, &object.preserved_by),
        (MemfdEnd::Retrieved, &vec![0])
    );
    assert_eq!(object.closed.map(|at| at.generation), Some(1));
    // The write came in two portions, and the hole was refused.
    let laid = object.laid.as_ref().unwrap().iter();
    let laid: Vec<u64> = laid.map(|laid| laid.part.bytes >> 20).collect();
    assert_eq!(laid, [4, 1]);
    assert_eq!(evidence.retrievals.len(), 2);
    assert!(!told.requests().any(|one| matches!(one, Request::Fill { .. })));
}

#[test]
fn another_answer_is_on_record_and_the_run_goes_on() {
    // A failure instead of success: what was written before it is there.
    let second = |request: &Request| matches!(request, Request::Change { change: Change::Write { part, .. }, .. } if part.offset > 0);
    let told = talk(&plan(&LIFE), &twist(second, failed(28)));
    assert_eq!(told.ending().0, OutcomeKind::Completed);
    let records = unexpected(&told.evidence);
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].number, records[0].got().as_str()), (2, "ENOSPC"));
    assert_eq!(told.evidence.objects[0].laid.as_ref().map(Vec::len), Some(1));
    // Success instead of a failure: the hole is there, too.
    let told = talk(&plan(&LIFE), &twist(is_punch, What::Message(Ok(Reply::Done))));
    let records = unexpected(&told.evidence);
    assert_eq!(
        (records.len(), records[0].number, records[0].got().as_str()),
        (1, 5, "success")
    );
    assert_eq!(told.evidence.objects[0].laid.as_ref().map(Vec::len), Some(3));
    // The wrong error, and what the agent itself refuses.
    for (errno, got) in [(16, "EBUSY"), (0, "the agent's refusal (no)")] {
        let told = talk(&plan(&LIFE), &twist(is_punch, failed(errno)));
        assert_eq!(unexpected(&told.evidence)[0].got(), got);
        assert_eq!(told.ending().0, OutcomeKind::Completed);
    }
}

#[test]
fn a_memfd_is_lost_only_if_it_should_have_been_retrieved() {
    let retrieve = |request: &Request| matches!(request, Request::RetrieveMemfd { .. });
    let told = talk(&plan(&LIFE), &twist(retrieve, failed(5)));
    assert_eq!(told.ending().0, OutcomeKind::SessionLost);
    assert!(unexpected(&told.evidence).iter().any(|step| step.number == 7));
    let mut steps = LIFE.to_vec();
    steps[6] = "do = \"retrieve\"\nobject = \"m\"\nerrno = \"EIO\"";
    let told = talk(&plan(&steps[..8]), &twist(retrieve, failed(5)));
    assert_eq!(told.ending().0, OutcomeKind::Completed);
    assert_eq!(told.evidence.retrievals.len(), 1);
    assert!(unexpected(&told.evidence).is_empty());
}

#[test]
fn nothing_follows_what_cannot_be_made_or_entered() {
    let create = |request: &Request| matches!(request, Request::CreateSession { .. });
    let told = talk(&plan(&LIFE), &twist(create, failed(2)));
    assert_eq!(told.ending().0, OutcomeKind::SetupFailed);
    assert_eq!(unexpected(&told.evidence)[0].number, 3);
    // The agent says that it could not reboot once it has been released to do so.
    let refused = |guest: &Guest<'_>, due: &Move| {
        let jumps = matches!(guest.released, Some(Request::Kexec)) && *due == Move::Run;
        jumps.then(|| failed(22))
    };
    let told = talk(&plan(&LIFE[..1]), &refused);
    assert_eq!(told.ending().0, OutcomeKind::SetupFailed);
    assert!(told.ending().1.contains("Kexec"), "{}", told.ending().1);
    // The usual life cycle ends in the same way.
    let told = talk(&testing::plan(SCENARIO), &refused);
    assert_eq!(told.ending().0, OutcomeKind::SetupFailed);
}

#[test]
fn a_kexec_that_has_to_fail_is_followed_by_the_next_step() {
    let steps = [LIFE[0], "do = \"kexec\"\nerrno = \"EINVAL\"", LIFE[1]];
    let first = |guest: &Guest<'_>, due: &Move| {
        let jumps = matches!(guest.released, Some(Request::Kexec)) && *due == Move::Run;
        (jumps && guest.at.phase == Phase::Handover && guest.at.moment.time_ns < 5_100_000)
            .then(|| failed(22))
    };
    let told = talk(&plan(&steps), &first);
    assert_eq!(told.ending().0, OutcomeKind::Completed, "{}", told.ending().1);
    let numbers: Vec<u32> = told.evidence.steps.iter().map(|step| step.number).collect();
    assert_eq!(numbers, [1, 2, 3, 0, 0]);
    assert!(unexpected(&told.evidence).is_empty());
}

#[test]
fn a_session_that_is_closed_preserves_nothing_unless_another_does() {
    let close = "do = \"unpreserve\"\nsession = \"vm\"";
    let other = [
        "do = \"create\"\nsession = \"other\"",
        "do = \"preserve\"\nobject = \"m\"\nsession = \"other\"",
    ];
    let told = talk(
        &plan(&[&LIFE[..4], &[close]].concat()),
        &twist(|_| false, What::Done),
    );
    assert!(told.evidence.objects[0].preserved_by.is_empty());
    let told = talk(
        &plan(&[&LIFE[..4], &other, &[close]].concat()),
        &twist(|_| false, What::Done),
    );
    assert_eq!(told.evidence.objects[0].preserved_by, [0]);
    let closes = |one: &Request| {
        *one == Request::CloseSession {
            name: "vm".into(),
            side: Side::Outgoing,
        }
    };
    assert_eq!(told.requests().filter(|one| closes(one)).count(), 1);
}

/// A ring of four small buffers at the beginning of the memfd, which has all its life behind them.
const DMA: &str = "[dma]\nrate = \"1 MB/s\"\nring = 4\nbuffer = \"64 B\"\nwhen_full = \"wait\"\n";

fn plan_with(steps: &[&str], more: &str) -> Plan {
    let text = plan(steps).scenario_text;
    testing::plan(&format!("{text}{more}"))
}

#[test]
fn the_engine_runs_from_the_preservation_to_the_last_close_and_is_consumed_meanwhile() {
    let mut steps = LIFE.to_vec();
    steps.insert(4, "do = \"wait\"\ntime = \"8 ms\"");
    let told = talk(&plan_with(&steps, DMA), &twist(|_| false, What::Done));
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    assert!(unexpected(&told.evidence).is_empty(), "{:?}", told.evidence.steps);
    let asked: Vec<&Request> = told.requests().collect();
    let at = |of: &dyn Fn(&Request) -> bool| asked.iter().position(|one| of(one)).unwrap();
    let preserved = at(&|one| matches!(one, Request::Preserve { .. }));
    let started = at(&|one| matches!(one, Request::StartDma(_)));
    let consumed = at(&|one| *one == Request::ConsumeDma);
    let refused = at(&is_punch);
    let stopped = at(&|one| *one == Request::StopDma);
    let closed = at(&|one| matches!(one, Request::Close { .. }));
    assert!(
        preserved < started
            && started < consumed
            && consumed < refused
            && refused < stopped
            && stopped < closed
    );
    let dma = told.evidence.dma.as_ref().unwrap();
    let generations = [dma.started, dma.stopped].map(|at| at.map(|at| at.generation));
    assert_eq!(generations, [Some(0), Some(1)]);
}

#[test]
fn an_engine_whose_memory_was_refused_is_left_alone() {
    let preserve = |request: &Request| matches!(request, Request::Preserve { .. });
    let told = talk(&plan_with(&LIFE, DMA), &twist(preserve, failed(28)));
    let touches =
        |one: &Request| matches!(one, Request::StartDma(_) | Request::StopDma | Request::ConsumeDma);
    assert_eq!(told.requests().filter(|one| touches(one)).count(), 0);
    assert!(told.evidence.dma.as_ref().unwrap().started.is_none());
    assert!(unexpected(&told.evidence).iter().any(|step| step.number == 4));
}

#[test]
fn a_jump_back_is_announced_and_is_no_new_generation() {
    let mut steps = LIFE.to_vec();
    steps.insert(4, "do = \"jump-back\"");
    let told = talk(&plan(&steps), &twist(|_| false, What::Done));
    assert_eq!(told.ending().0, OutcomeKind::Completed, "{}", told.ending().1);
    let jumps = |due: &Move| *due == Move::Say(Request::JumpBack);
    let at = told.moves.iter().position(jumps).unwrap();
    assert_eq!(told.moves[at - 1], Move::ExpectReturn);
    let answered = told.evidence.steps.iter().find(|step| step.number == 5).unwrap();
    assert!(answered.is_as_expected());
    assert_eq!(told.evidence.objects[0].preserved_by, [0]);
    // A kernel that cannot says so, and the run goes on; one that does not come back is a kernel that hangs.
    let refused = talk(&plan(&steps), &twist(|one| *one == Request::JumpBack, failed(38)));
    assert_eq!(refused.ending().0, OutcomeKind::Completed);
    assert_eq!(unexpected(&refused.evidence)[0].got(), "ENOSYS");
    let gone = |guest: &Guest<'_>, due: &Move| {
        let asked = guest.asked == Some(Request::JumpBack) && *due == Move::Run;
        asked.then(|| {
            event(Event::NoProgress {
                at: here(),
                since: 1,
                limit: 2,
            })
        })
    };
    assert_eq!(talk(&plan(&steps), &gone).ending().0, OutcomeKind::GuestHang);
}

#[test]
fn no_interrupts_are_received_over_a_jump_back() {
    let mut steps = LIFE.to_vec();
    steps.insert(4, "do = \"jump-back\"");
    let told = talk(
        &plan_with(&steps, &format!("{DMA}interrupts = true\n")),
        &twist(|_| false, What::Done),
    );
    assert_eq!(told.ending().0, OutcomeKind::Completed, "{}", told.ending().1);
    let of_interest = |one: &&Request| {
        matches!(
            one,
            Request::ArmInterrupts | Request::DisarmInterrupts | Request::JumpBack | Request::Kexec
        )
    };
    let order: Vec<&Request> = told.requests().filter(of_interest).collect();
    let (arm, disarm) = (&Request::ArmInterrupts, &Request::DisarmInterrupts);
    let expected = [
        arm,
        disarm,
        &Request::JumpBack,
        arm,
        disarm,
        &Request::Kexec,
        arm,
        disarm,
    ];
    assert_eq!(order, expected);
}

#[test]
fn a_finalization_is_taken_back_where_the_kernel_lets_it() {
    let mut steps = LIFE.to_vec();
    steps.insert(4, "do = \"abort-finalize\"");
    let told = talk(&plan(&steps), &twist(|_| false, What::Done));
    assert_eq!(told.ending().0, OutcomeKind::Completed, "{}", told.ending().1);
    assert!(told.requests().any(|one| *one == Request::AbortFinalize));
    let refused = talk(
        &plan(&steps),
        &twist(|one| *one == Request::AbortFinalize, failed(22)),
    );
    assert_eq!(refused.ending().0, OutcomeKind::Completed);
    assert_eq!(unexpected(&refused.evidence)[0].got(), "EINVAL");
}
