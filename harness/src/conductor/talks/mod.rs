//! Whole runs without a machine: scripted guests talk with [`next`]. Each talk is held twice, once with cursor and
//! evidence made bytes and read again between every two inputs, which must change nothing.

mod anything;
mod guest;
mod matrix;
mod payload;
mod reserved;
mod steps;

use super::asks::PAGES_AT_ONCE;
use super::cursor::{Cursor, Ending, Move, Point, Said, What, next};
use super::setup::blank;
use crate::evidence::{Evidence, MemoryPoint, OutcomeKind, Phase, from_bytes, to_bytes};
use crate::plan::Plan;
use crate::testing;
use guest::{Guest, entry, event, failed, hello, here};
use guest_agent::protocol::{FlagRun, PageRun, Reply, Request, VERSION};
use vmm::machine::Event;

/// Two kexecs; one memfd takes two portions, another goes only over the first kexec.
const SCENARIO: &str = r#"
    name = "talk"
    ram = "128 MiB"
    kexecs = 2
    [[memfd]]
    name = "big"
    size = "5 MiB"
    token = 1
    [[memfd]]
    name = "small"
    size = "72 KiB"
    token = 2
    hops = 1
    session = "short"
    [dma]
    rate = "40 MiB/s"
    ring = 16
    when_full = "wait"
    [run]
    workload = "1 MiB"
"#;

/// An object of the agent's, and one that the kernel preserves by itself.
const OWN: &str = r#"
    name = "own"
    ram = "128 MiB"
    [[memfd]]
    name = "m"
    size = "72 KiB"
    token = 1
    session = "vm"
    [[reserve_mem]]
    name = "kept"
    size = "8 KiB"
    [dma]
    rate = "40 MiB/s"
    ring = 16
    buffer = "64 B"
"#;

/// What a talk leaves.
#[derive(Debug, PartialEq)]
struct Told {
    moves: Vec<Move>,
    cursor: Cursor,
    evidence: Evidence,
}

impl Told {
    fn ending(&self) -> (OutcomeKind, &str) {
        let Some(Move::End(Ending { kind, text, .. })) = self.moves.last() else {
            panic!("the talk has no end");
        };
        (*kind, text)
    }

    fn requests(&self) -> impl Iterator<Item = &Request> {
        self.moves.iter().filter_map(|one| match one {
            Move::Say(request) => Some(request),
            _ => None,
        })
    }
}

fn hold(cursor: &mut Cursor, evidence: &mut Evidence) {
    *cursor = postcard::from_bytes(&postcard::to_allocvec(cursor).unwrap()).unwrap();
    *evidence = from_bytes(&to_bytes(evidence).unwrap()).unwrap();
}

fn once(plan: &Plan, mut guest: Guest<'_>, held: bool) -> Told {
    let (mut cursor, mut evidence) = (Cursor::start(0), blank(plan, "none"));
    let mut moves = vec![cursor.due.clone()];
    while !matches!(cursor.due, Move::End(_)) {
        assert!(moves.len() < 10_000, "an endless talk");
        let what = guest.make(&cursor.due);
        if held {
            hold(&mut cursor, &mut evidence);
        }
        let said = Said { at: guest.at, what };
        moves.push(next(plan, &mut cursor, &mut evidence, said));
        assert_eq!(moves.last(), Some(&cursor.due));
    }
    Told {
        moves,
        cursor,
        evidence,
    }
}

/// Holds a talk, both ways.
fn talk(plan: &Plan, twist: &dyn Fn(&Guest<'_>, &Move) -> Option<What>) -> Told {
    let told = once(plan, Guest::new(twist), false);
    assert_eq!(once(plan, Guest::new(twist), true), told);
    told
}

/// A guest that says `what` once it runs after being asked `request`, in `generation`.
fn saying(
    generation: u32,
    request: impl Fn(&Request) -> bool,
    what: What,
) -> impl Fn(&Guest<'_>, &Move) -> Option<What> {
    move |guest, due| {
        let asked = guest.asked.as_ref().or(guest.released.as_ref());
        let hit = guest.at.moment.generation == generation && asked.is_some_and(&request);
        (hit && *due == Move::Run).then(|| what.clone())
    }
}

/// Checks how a talk ends in which the guest is such a one.
fn ends(generation: u32, request: impl Fn(&Request) -> bool, what: What, kind: OutcomeKind, text: &str) {
    let told = talk(&testing::plan(SCENARIO), &saying(generation, request, what));
    assert_eq!(told.ending().0, kind, "{text}: {told:?}");
    assert!(told.ending().1.contains(text), "{text}: {:?}", told.ending());
    assert_eq!(told.cursor.generation, generation);
}

#[test]
fn a_good_guest_is_taken_through_every_step() {
    let plan = testing::plan(SCENARIO);
    let told = talk(&plan, &|_, _| None);
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    let evidence = &told.evidence;
    assert!(evidence.kernels.iter().all(|kernel| kernel.hello.is_some()));
    assert_eq!(evidence.objects[0].preserved_by, [0, 1]);
    assert_eq!(evidence.objects[1].preserved_by, [0]);
    let resolved = evidence.objects[0].pages[&0].iter().map(|run| run.count);
    assert_eq!(resolved.sum::<u64>(), 1_280);
    let closed = evidence.objects.iter().map(|object| object.closed);
    let closed: Vec<_> = closed.map(|at| at.map(|at| at.generation)).collect();
    assert_eq!(closed, [Some(2), Some(1)]);
    let retrieved: Vec<_> = evidence
        .retrievals
        .iter()
        .map(|one| (one.generation, one.object))
        .collect();
    assert_eq!(
        retrieved,
        [
            (1, None),
            (1, None),
            (1, Some(1)),
            (1, Some(2)),
            (2, None),
            (2, Some(1))
        ]
    );
    // Two portions of one memfd and one of the other, then two of the first.
    assert_eq!(evidence.captures.digests.len(), 5);
    let (started, stopped) = (
        evidence.dma.as_ref().unwrap().started,
        evidence.dma.as_ref().unwrap().stopped,
    );
    assert_eq!(
        started.map(|at| (at.time_ns % 1000, at.ledger_length)),
        Some((700, 0))
    );
    assert_eq!(stopped.map(|at| at.generation), Some(2));
    let held: Vec<u64> = evidence.memory.iter().map(|record| record.held_pages).collect();
    assert_eq!(held, [1_280 + 18, 1_280, 1_280, 0]);
    // A consumer that the engine waits for has eight turns in each wait: armed twice, restore twice.
    let consumed = told.requests().filter(|request| **request == Request::ConsumeDma);
    assert_eq!(consumed.count(), 32);
    let splits = told.moves.iter().filter(|one| **one == Move::SplitPageWrites);
    // Before each of two closes by name and two of the workload's file, too.
    assert_eq!(splits.count(), evidence.retrievals.len() + 3);
    assert!(told.cursor.held.is_empty() && told.cursor.sessions.is_empty());
}

#[test]
fn all_memory_is_taken_before_the_retrieval_while_objects_are_held_and_once_they_are_closed() {
    let plan = testing::plan(&SCENARIO.replace("1 MiB", "all"));
    let told = talk(&plan, &|_, _| None);
    assert_eq!(told.ending().0, OutcomeKind::Completed);
    let (before, held, closed) = (
        MemoryPoint::BeforeRetrieval,
        MemoryPoint::Held,
        MemoryPoint::AfterClose,
    );
    let pressure = &told.evidence.pressure;
    let points: Vec<_> = pressure.iter().map(|one| (one.generation, one.at)).collect();
    let expected = [1, 2].map(|generation| [before, held, closed].map(|at| (generation, at)));
    assert_eq!(points, expected.concat());
    assert!(pressure.iter().all(|one| one.taken_pages == 2 * PAGES_AT_ONCE));
    assert!(pressure.iter().all(|one| one.end_ns > Some(one.begin_ns)));
    // Page writes are split before memory is taken and before it is given back.
    let at = |wanted: Request| {
        let moves = told.moves.iter().enumerate();
        moves.filter_map(move |(at, one)| (*one == Move::Say(wanted.clone())).then_some(at))
    };
    let releases: Vec<usize> = at(Request::ReleaseMemory).collect();
    assert_eq!(releases.len(), pressure.len());
    assert!(
        releases
            .iter()
            .all(|at| told.moves[at - 1] == Move::SplitPageWrites)
    );
    let takes: Vec<usize> = at(Request::TakeMemory { pages: PAGES_AT_ONCE }).collect();
    assert_eq!(takes.len(), 3 * pressure.len());
    let firsts = takes.iter().step_by(3);
    assert!(
        firsts
            .clone()
            .all(|at| told.moves[at - 1] == Move::SplitPageWrites)
    );
    // Of both memfds at three points in the first new kernel and of one in the second, and after each close.
    let flags = &told.evidence.page_flags;
    let of = |object| flags.iter().filter(move |record| record.object == object);
    assert_eq!([of(1).count(), of(2).count()], [3 + 3 + 1, 3 + 1]);
    assert!(of(1).all(|record| record.each().count() == 1_280));
    let closed: Vec<_> = flags.iter().filter(|record| record.at == closed).collect();
    assert_eq!(
        closed
            .iter()
            .map(|one| (one.generation, one.object))
            .collect::<Vec<_>>(),
        [(1, 2), (2, 1)]
    );
    // Flags of closed pages are asked for while memory is taken.
    assert!(closed[1].time_ns > pressure[5].end_ns.unwrap());
}

#[test]
fn a_memfd_that_is_to_leak_is_kept_open() {
    let plan = testing::plan(&format!("{SCENARIO}[fault]\nkeep = \"small\"\n"));
    let told = talk(&plan, &|_, _| None);
    assert_eq!(told.ending().0, OutcomeKind::Completed);
    let kept = |one: &&Request| matches!(one, Request::KeepOpen { object: 2 });
    assert_eq!(told.requests().filter(kept).count(), 1);
    assert!(!told.requests().any(|one| *one == Request::Close { object: 2 }));
    assert_eq!(told.evidence.objects[1].closed.map(|at| at.generation), Some(1));
}

#[test]
fn a_kernel_may_say_nothing_of_its_pages() {
    let flags = |one: &Request| matches!(one, Request::PageFlags { .. });
    let says = |runs| What::Message(Ok(Reply::PageFlags(runs)));
    let told = talk(&testing::plan(SCENARIO), &saying(1, flags, says(Vec::new())));
    assert_eq!(told.ending().0, OutcomeKind::Completed);
    let one = vec![FlagRun { flags: 0, count: 1 }];
    ends(1, flags, says(one), OutcomeKind::AgentDied, "flags of 1 pages");
}

#[test]
fn a_kexec_is_announced_before_the_agent_is_released() {
    let told = talk(&testing::plan(SCENARIO), &|_, _| None);
    let said = told
        .moves
        .iter()
        .position(|one| *one == Move::Say(Request::Kexec))
        .unwrap();
    let expected = [
        Move::Run,
        Move::Enter(Phase::Handover),
        Move::ExpectKexec,
        Move::Release,
        // To the jump, to the entry, to the greeting.
        Move::Run,
        Move::Run,
        Move::Run,
        Move::Enter(Phase::Restore),
    ];
    assert_eq!(told.moves[said + 1..][..expected.len()], expected);
}

#[test]
fn the_kernel_s_log_is_read_to_its_end_before_each_kernel_ends() {
    let told = talk(&testing::plan(SCENARIO), &|_, _| None);
    let logs = &told.evidence.kernel_logs;
    let read: Vec<_> = logs.iter().map(|log| (log.generation, log.lost)).collect();
    assert_eq!(read, [(0, 2), (1, 2), (2, 2)]);
    // Two portions of one record each.
    assert!(logs.iter().all(|log| log.records.len() == 2), "{logs:?}");
    let mut said = told
        .requests()
        .skip_while(|request| **request != Request::KernelLog);
    assert_eq!(said.nth(1), Some(&Request::KernelLog));
    assert_eq!(said.next(), Some(&Request::Kexec));
    // A log that cannot be read does not end the run.
    let asked = |request: &Request| *request == Request::KernelLog;
    let told = talk(&testing::plan(SCENARIO), &saying(1, asked, failed(2)));
    assert_eq!(told.ending().0, OutcomeKind::Completed);
    assert_eq!(told.evidence.kernel_logs.len(), 2);
}

#[test]
fn what_was_lost_ends_the_run_after_that_generation() {
    let lost = |request: &Request| matches!(request, Request::RetrieveMemfd { object: 1, .. });
    let told = talk(&testing::plan(SCENARIO), &saying(1, lost, failed(2)));
    let (kind, text) = told.ending();
    assert_eq!(kind, OutcomeKind::SessionLost);
    assert!(text.contains("retrieve token 1 from session \"baton\""), "{text}");
    assert!(told.cursor.winding_down && told.cursor.generation == 1);
    assert_eq!(told.evidence.retrievals[2].failure, Some(0));
    let last: Vec<_> = told.moves.iter().rev().take(3).rev().collect();
    assert_eq!(last[0..2], [&Move::Release, &Move::Run]);
    assert!(told.evidence.dma.as_ref().unwrap().stopped.is_some());
    // Nothing is asked of a session that was not retrieved.
    let gone = |request: &Request| matches!(request, Request::RetrieveSession { name } if name == "short");
    let told = talk(&testing::plan(SCENARIO), &saying(1, gone, failed(2)));
    assert_eq!(told.ending().0, OutcomeKind::SessionLost);
    assert!(
        !told
            .requests()
            .any(|one| matches!(one, Request::RetrieveMemfd { object: 2, .. }))
    );
}

#[test]
fn a_failure_ends_the_run_and_is_the_setup_s_only_in_the_first_generation() {
    use OutcomeKind::{AgentFailed, MachineFailed, SetupFailed};
    let preserve = |one: &Request| matches!(one, Request::Preserve { .. });
    ends(0, preserve, failed(22), SetupFailed, "preserve memfd 1");
    ends(1, preserve, failed(22), AgentFailed, "preserve memfd 1");
    let digest = |one: &Request| matches!(one, Request::Digest { .. });
    ends(1, digest, failed(0), AgentFailed, "Digest");
    ends(0, |one| *one == Request::Kexec, failed(16), SetupFailed, "Kexec");
    let close = |one: &Request| matches!(one, Request::Close { .. });
    let broken = What::Failed("no memory".into());
    ends(1, close, broken, MachineFailed, "no memory");
}

#[test]
fn memory_that_the_engine_does_not_reach_ends_the_run_before_the_kexec() {
    let refusal = |object| {
        What::Message(Ok(Reply::OutOfReach {
            object,
            page: 17,
            address: 0x1_2345_6000,
            bits: 32,
        }))
    };
    let start = |one: &Request| matches!(one, Request::StartDma(_));
    let text = "page 17 of memfd \"big\" is at 0x123456000; the engine reaches 32 bits";
    ends(0, start, refusal(1), OutcomeKind::SetupFailed, text);
    // An object that the host does not know, and an answer to another request.
    ends(
        0,
        start,
        refusal(77),
        OutcomeKind::SetupFailed,
        "page 17 of object 77",
    );
    let stop = |one: &Request| *one == Request::StopDma;
    ends(2, stop, refusal(1), OutcomeKind::AgentDied, "than done");
    let told = talk(&testing::plan(SCENARIO), &saying(0, start, refusal(1)));
    assert!(told.requests().all(|one| *one != Request::Kexec));
    assert_eq!(told.evidence.failures.len(), 1);
}

#[test]
fn the_engine_is_started_when_its_memory_is_preserved_or_before() {
    for (line, early) in [("", false), ("start = \"before-preservation\"", true)] {
        let text = SCENARIO.replace("[dma]", &format!("[dma]\n{line}"));
        let told = talk(&testing::plan(&text), &|_, _| None);
        assert_eq!(told.ending().0, OutcomeKind::Completed);
        let position = |found: &dyn Fn(&Request) -> bool| told.requests().position(found).unwrap();
        let starts = |one: &Request| matches!(one, Request::StartDma(_));
        let preserves = |one: &Request| matches!(one, Request::Preserve { .. });
        assert_eq!(position(&starts) < position(&preserves), early, "{line}");
        assert_eq!(told.requests().filter(|one| starts(one)).count(), 1, "{line}");
    }
}

#[test]
fn a_death_ends_the_run() {
    let consume = |one: &Request| *one == Request::ConsumeDma;
    let dies = |reason: &str| What::Event {
        event: Event::Reset { at: here(), by: None },
        panic: Some(format!("Kernel panic - not syncing: {reason}")),
    };
    let init = dies("Attempted to kill init!");
    ends(1, consume, init, OutcomeKind::AgentDied, "kill init");
    ends(1, consume, dies("oops"), OutcomeKind::GuestPanic, "oops");
    let halt = event(Event::DeadHalt {
        at: here(),
        interruptible: false,
    });
    ends(0, consume, halt, OutcomeKind::GuestHang, "halted");
    let full = event(Event::LedgerFull { at: here() });
    ends(2, consume, full, OutcomeKind::LedgerFull, "ledger is full");
}

#[test]
fn nonsense_ends_the_run() {
    use OutcomeKind::{AgentDied, AgentFailed};
    let says = |reply| What::Message(Ok(reply));
    let stop = |one: &Request| *one == Request::StopDma;
    let undecodable = What::Message(Err("3 bytes left over".into()));
    ends(2, stop, undecodable, AgentDied, "left over");
    ends(2, stop, says(hello(VERSION, 1)), AgentDied, "anew");
    let memory = |one: &Request| *one == Request::MemoryInfo;
    ends(2, memory, says(Reply::Done), AgentDied, "than memory");
    let session = |one: &Request| matches!(one, Request::CreateSession { .. });
    ends(0, session, says(Reply::Digests(vec![1])), AgentDied, "than done");
    let second = |one: &Request| {
        matches!(
            one,
            Request::ResolveRange {
                first_page: PAGES_AT_ONCE,
                ..
            }
        )
    };
    let three = vec![PageRun { first: 1, count: 3 }];
    ends(0, second, says(Reply::Pages(three)), AgentFailed, "1027 pages");
}

#[test]
fn a_greeting_must_be_the_expected_one() {
    let plan = testing::plan(SCENARIO);
    let greet = |generation, reply: fn() -> What| {
        talk(&plan, &move |guest, due| {
            let up = guest.asked.is_none() && guest.released.is_none();
            (up && guest.at.moment.generation == generation && *due == Move::Run).then(reply)
        })
    };
    let told = greet(0, || What::Message(Ok(hello(VERSION + 1, 1))));
    let text = format!("the agent speaks protocol {}, expected {VERSION}", VERSION + 1);
    assert_eq!(told.ending(), (OutcomeKind::AgentDied, text.as_str()));
    let told = greet(0, || What::Message(Ok(hello(VERSION, 3))));
    assert_eq!(told.ending().0, OutcomeKind::SetupFailed);
    let told = greet(1, || What::Message(Ok(hello(VERSION, 0))));
    assert_eq!(told.ending().0, OutcomeKind::AgentFailed);
    assert!(told.ending().1.contains("0 of 1 processors"), "{told:?}");
    let told = greet(1, || What::Message(Ok(Reply::Done)));
    assert_eq!(
        told.ending(),
        (OutcomeKind::AgentDied, "the agent's first message is no greeting")
    );
}

#[test]
fn a_jump_at_the_wrong_moment_is_noticed() {
    let plan = testing::plan(SCENARIO);
    // Amid work: the new kernel's agent greets where an answer is awaited.
    let told = talk(&plan, &|guest, due| {
        let digest = matches!(guest.asked, Some(Request::Digest { .. }));
        (digest && *due == Move::Run).then(|| entry(2))
    });
    assert_eq!(
        told.ending(),
        (OutcomeKind::AgentDied, "the agent began anew amid its work")
    );
    // Twice instead of once.
    let told = talk(&plan, &|guest, due| {
        let once = guest.at.moment.generation == 1 && guest.asked.is_none() && *due == Move::Run;
        once.then(|| entry(2))
    });
    assert_eq!(
        told.ending(),
        (OutcomeKind::MachineFailed, "generation 2 reported, expected 1")
    );
    // Instead of the end.
    let off = |request: &Request| *request == Request::PowerOff;
    let told = talk(&plan, &|guest, due| {
        let released = guest.released.as_ref().is_some_and(off);
        (released && *due == Move::Run).then(|| event(Event::Jump { time: 3 }))
    });
    assert_eq!(told.ending().0, OutcomeKind::MachineFailed);
    assert!(matches!(
        told.moves.last(),
        Some(Move::End(Ending { rip: Some(_), .. }))
    ));
}

#[test]
fn an_agent_that_ought_to_end_may_not_go_on() {
    let fault = format!("{SCENARIO}[fault]\nmisbehave = \"spin\"\ngeneration = 1\n");
    let plan = testing::plan(&fault);
    assert_eq!(talk(&plan, &|_, _| None).ending().0, OutcomeKind::GuestHang);
    let goes_on = |guest: &Guest<'_>, due: &Move| {
        let released = matches!(guest.released, Some(Request::Misbehave(_) | Request::PowerOff));
        (released && *due == Move::Run).then_some(What::Message(Ok(Reply::Done)))
    };
    for plan in [plan, testing::plan(SCENARIO)] {
        let told = talk(&plan, &goes_on);
        assert_eq!(
            told.ending(),
            (OutcomeKind::AgentFailed, "the agent went on and said Done")
        );
    }
    // A machine that switches itself off is no way to spin.
    let told = talk(&testing::plan(&fault), &|guest, due| {
        let spins = matches!(guest.released, Some(Request::Misbehave(_))) && *due == Move::Run;
        spins.then(|| event(Event::PowerOff { at: here(), by: None }))
    });
    assert_eq!(told.ending().0, OutcomeKind::UnexpectedReset);
}

/// Two memfds of a session, of which one is not retrieved, and a session that nobody asks for.
const ENDS: &str = r#"
    name = "ends"
    ram = "128 MiB"
    kexecs = 2
    [[memfd]]
    name = "wanted"
    size = "72 KiB"
    token = 1
    session = "vm"
    [[memfd]]
    name = "unwanted"
    size = "72 KiB"
    token = 2
    session = "vm"
    end = "finished"
    [[memfd]]
    name = "left"
    size = "72 KiB"
    token = 1
    session = "other"
    end = "left"
"#;

#[test]
fn what_is_finished_or_left_is_not_asked_for() {
    let told = talk(&testing::plan(ENDS), &|_, _| None);
    assert_eq!(told.ending(), (OutcomeKind::Completed, "every step was done"));
    let evidence = &told.evidence;
    let sessions: Vec<_> = told
        .requests()
        .filter(|one| matches!(one, Request::RetrieveSession { .. }))
        .collect();
    assert_eq!(sessions, [&Request::RetrieveSession { name: "vm".into() }; 2]);
    let memfds = told.requests().filter_map(|one| match one {
        Request::RetrieveMemfd { token, .. } => Some(*token),
        _ => None,
    });
    assert_eq!(memfds.collect::<Vec<_>>(), [1, 1]);
    let closed: Vec<_> = evidence
        .objects
        .iter()
        .map(|object| object.closed.map(|at| at.generation))
        .collect();
    assert_eq!(closed, [Some(2), Some(1), None]);
    // The memory of the finished one is looked at from the request that finished it on.
    let reused: Vec<_> = evidence
        .reused
        .iter()
        .map(|reused| (reused.object, reused.generation))
        .collect();
    assert_eq!(reused, [(2, 1), (1, 2)]);
    let preserved: Vec<_> = evidence
        .objects
        .iter()
        .map(|object| object.preserved_by.clone())
        .collect();
    assert_eq!(preserved, [vec![0, 1], vec![0], vec![0]]);
    let finish = |due: &Move| matches!(due, Move::Say(Request::FinishSession { .. }));
    let at = told.moves.iter().position(finish).unwrap();
    assert_eq!(told.moves[at - 1], Move::SplitPageWrites);
}
