//! Talks about programs of the user's own.

use super::*;
use crate::payload::PayloadPlan;
use crate::scenario::KexecBy;
use guest_agent::protocol::{Program, ProgramEnd};
use vmm::machine::Event;

/// The plan of a payload with these keys.
fn plan(keys: &str) -> Plan {
    let text = format!("name = \"p\"\n[payload]\ninitramfs = \"i\"\n{keys}[dma]\nrate = \"1 MB/s\"\n");
    let scenario = crate::scenario::parse("p.toml", &text).unwrap();
    let payload = scenario.payload.as_ref().unwrap().get_ref();
    let program = |words: Vec<String>| Program {
        words,
        initrd_at: None,
    };
    let commands = payload.run.iter().chain(&payload.init);
    let mut plan = testing::plan(&text);
    plan.payload = Some(PayloadPlan {
        initramfs: b"070701".to_vec(),
        programs: commands
            .map(|command| program(command.get_ref().words()))
            .collect(),
        is_init: payload.init.is_some(),
        kexec: payload.kexec_by(),
        kernel_at: None,
        passed: Vec::new(),
        failed: Vec::new(),
        ktap: false,
    });
    plan
}

const RUN: &str = "run = [\"/t 1\", \"/t 2\"]\n";
const INIT: &str = "init = \"/init\"\npassed = [\"PASSED\"]\n";

fn runs(guest: &Guest<'_>) -> bool {
    matches!(guest.asked, Some(Request::RunProgram(_)))
}

fn is_init(guest: &Guest<'_>) -> bool {
    matches!(guest.released, Some(Request::Become(_)))
}

/// A guest whose programs end so.
fn ends(end: [ProgramEnd; 2]) -> impl Fn(&Guest<'_>, &Move) -> Option<What> {
    move |guest, due| {
        let end = end[guest.at.moment.generation as usize];
        (runs(guest) && *due == Move::Run).then_some(What::Message(Ok(Reply::Ended(end))))
    }
}

#[test]
fn baton_kexecs_between_two_programs() {
    let plan = plan(RUN);
    let told = talk(&plan, &ends([ProgramEnd::Exit(0); 2]));
    assert_eq!(told.ending().0, OutcomeKind::Completed, "{told:?}");
    let made: Vec<&str> = told
        .requests()
        .map(|request| match request {
            Request::RunProgram(program) => &program.words[1],
            Request::LoadKexec { .. } => "load",
            Request::Kexec => "kexec",
            Request::PowerOff => "off",
            _ => "log",
        })
        .collect();
    assert_eq!(
        made,
        ["1", "load", "log", "log", "kexec", "2", "log", "log", "off"]
    );
    let own = |wanted: Move| told.moves.iter().filter(|due| **due == wanted).count();
    assert_eq!((own(Move::StartDevice), own(Move::StopDevice)), (1, 1));
    let dma = told.evidence.dma.as_ref().unwrap();
    assert_eq!(dma.started.map(|started| started.generation), Some(0));
    assert_eq!(dma.stopped.map(|stopped| stopped.generation), Some(1));
    let payload = told.evidence.payload.as_ref().unwrap();
    assert_eq!((payload.kexec, payload.ends.len()), (KexecBy::Baton, 2));
    // The engine's memory needs nobody to preserve it, and no agent.
    assert_eq!(told.evidence.objects.len(), 1);
    assert_eq!(told.evidence.objects[0].preserved_by, [0]);
}

#[test]
fn a_program_that_fails_ends_the_run_before_the_kexec_alone() {
    let failed = |end| talk(&plan(RUN), &ends(end));
    let early = failed([ProgramEnd::Signal(11), ProgramEnd::Exit(0)]);
    assert_eq!(
        early.ending(),
        (
            OutcomeKind::PayloadFailed,
            "the payload of generation 0 ended with signal 11, before the kexec"
        )
    );
    let late = failed([ProgramEnd::Exit(0), ProgramEnd::Exit(1)]);
    assert_eq!(late.ending().0, OutcomeKind::Completed);
    assert_eq!(late.evidence.payload.unwrap().ends[1].end, ProgramEnd::Exit(1));
}

#[test]
fn a_program_may_kexec_by_itself_if_it_is_said_to() {
    let jumps = |guest: &Guest<'_>, due: &Move| {
        if !runs(guest) || *due != Move::Run {
            return None;
        }
        Some(match (guest.at.moment.generation, guest.at.moment.time_ns % 2) {
            (0, _) if guest.at.phase == Phase::Prepare => entry(1),
            _ => What::Message(Ok(Reply::Ended(ProgramEnd::Exit(0)))),
        })
    };
    let told = talk(&plan(&format!("{RUN}kexec = \"payload\"\n")), &jumps);
    assert_eq!(told.ending().0, OutcomeKind::Completed, "{told:?}");
    assert!(!told.requests().any(|request| *request == Request::Kexec));
    let stays = ends([ProgramEnd::Exit(0); 2]);
    let told = talk(&plan(&format!("{RUN}kexec = \"payload\"\n")), &stays);
    assert_eq!(
        told.ending(),
        (
            OutcomeKind::PayloadFailed,
            "the payload of generation 0 ended with exit status 0, before its kexec"
        )
    );
    let unasked = talk(&plan(RUN), &|guest, due| {
        (runs(guest) && *due == Move::Run).then(|| event(Event::Jump { time: 5 }))
    });
    assert_eq!(
        unasked.ending(),
        (
            OutcomeKind::PayloadFailed,
            "the payload of generation 0 kexeced unasked"
        )
    );
}

/// A guest whose payload is init: it kexecs, and `then` is what comes of the second kernel.
fn init<'a>(then: &'a dyn Fn() -> What) -> impl Fn(&Guest<'_>, &Move) -> Option<What> + 'a {
    move |guest, due| {
        if *due != Move::Run {
            return None;
        }
        match guest.at.moment.generation {
            0 if is_init(guest) => Some(entry(1)),
            1 if guest.asked.is_none() && guest.released.is_none() => Some(then()),
            1 if is_init(guest) => Some(off()),
            _ => None,
        }
    }
}

fn off() -> What {
    event(Event::PowerOff { at: here(), by: None })
}

#[test]
fn an_init_ends_the_machine_with_an_agent_in_the_second_kernel_or_without() {
    let became = |told: &Told| {
        told.requests()
            .filter(|request| matches!(request, Request::Become(_)))
            .count()
    };
    let with = talk(&plan(INIT), &init(&|| What::Message(Ok(hello(VERSION, 1)))));
    assert_eq!(
        (with.ending().0, became(&with)),
        (OutcomeKind::Completed, 2),
        "{with:?}"
    );
    assert!(with.evidence.kernels[1].hello.is_some());
    let without = talk(&plan(INIT), &init(&off));
    assert_eq!(
        (without.ending().0, became(&without)),
        (OutcomeKind::Completed, 1),
        "{without:?}"
    );
    assert!(
        without
            .ending()
            .1
            .starts_with("the payload ended the machine: power off")
    );
}

#[test]
fn an_init_that_ends_too_early_or_goes_too_far_has_failed() {
    let early = talk(&plan(INIT), &|guest, due| {
        (is_init(guest) && *due == Move::Run).then(off)
    });
    assert_eq!(early.ending().0, OutcomeKind::PayloadFailed);
    assert!(early.ending().1.contains("before its kexec"), "{early:?}");
    let far = talk(&plan(INIT), &init(&|| event(Event::Jump { time: 5 })));
    assert_eq!(
        far.ending(),
        (
            OutcomeKind::PayloadFailed,
            "the payload of generation 1 kexeced unasked"
        )
    );
    let dead = talk(&plan(INIT), &|guest, due| {
        (is_init(guest) && *due == Move::Run).then(|| What::Event {
            event: Event::Reset { at: here(), by: None },
            panic: Some("Kernel panic - not syncing: Attempted to kill init! exitcode=0x100".into()),
        })
    });
    assert_eq!(dead.ending().0, OutcomeKind::PayloadFailed);
    // It could not be started.
    let refused = |guest: &Guest<'_>, due: &Move| (is_init(guest) && *due == Move::Run).then(|| failed(2));
    assert_eq!(talk(&plan(INIT), &refused).ending().0, OutcomeKind::SetupFailed);
}
