use super::*;
use crate::evidence::{BlobEvidence, CpuWrite, DmaEvidence, EventCause, Hello, MemoryRecord, Outcome};
use crate::testing::{MEMFD, change_page, cpu_write, good};
use proptest::prelude::*;
use vmm::ledger::{Counters, EngineEvent, EngineEventKind, Kind as Written};
use vmm::phase::Stamp;
use vmm::trace::Record;

const ARMED: Stamp = Stamp {
    generation: 0,
    phase: Phase::Armed,
};

/// The evidence with something of every kind in it.
fn full() -> Evidence {
    let mut evidence = good();
    let event = |time, kind| EngineEvent {
        time,
        stamp: ARMED,
        kind,
    };
    evidence.ledger.events = vec![
        event(600_000, EngineEventKind::Start),
        event(700_000, EngineEventKind::WaitBegin),
    ];
    evidence.ledger.counters = vec![(ARMED, Counters::default())];
    evidence.injections = vec![crate::evidence::InjectionEvidence {
        words: "once".into(),
        acts_on_machine: false,
        armed: None,
        fired: 1,
        firings: Vec::new(),
        unable: Vec::new(),
    }];
    evidence.event_causes = vec![EventCause {
        event: 0,
        rip: 0xffff_ffff_8100_0000,
        symbol: Some("start_dma+0x10".into()),
        instructions: Some(590_001),
        cpl: 0,
    }];
    evidence.cpu_writes = vec![
        cpu_write(MEMFD * PAGE, 1_200_000),
        cpu_write((MEMFD + 1) * PAGE, 1_300_000),
    ];
    evidence.failures.push(crate::evidence::AgentFailure {
        generation: 1,
        phase: Phase::Restore,
        request: "load".into(),
        call: "kexec_file_load".into(),
        errno: 0,
        detail: String::new(),
    });
    evidence.kernels[1].hello = Some(Hello {
        release: "7.3.4".into(),
        build_id: "ab".into(),
        command_line: String::new(),
        liveupdate: true,
        kho_incoming: true,
        kho_debugfs: false,
        unknown_parameters: Vec::new(),
        processors: 1,
    });
    evidence
}

const PAGE: u64 = crate::evidence::PAGE;

fn first(change: impl FnOnce(&mut Evidence)) -> Option<RecordDifference> {
    let mut other = full();
    change(&mut other);
    first_difference(&full(), &other).and_then(|difference| difference.record)
}

fn sentence(change: impl FnOnce(&mut Evidence)) -> String {
    first(change).map(|first| first.sentence()).unwrap_or_default()
}

#[test]
fn equal_runs_are_equal_and_it_is_said_what_was_compared() {
    let (one, mut other) = (full(), full());
    // What the host decides.
    other.phases[0].wall_us += 1000;
    other.scenario_file = "elsewhere.toml".into();
    other.kernels[0].path = "/elsewhere/bzImage".into();
    assert_eq!(first_difference(&one, &other), None);
    let text = compare(&one, &other).to_string();
    assert!(
        text.starts_with("equal: 42 trace records (8 of them messages), 43 ledger entries"),
        "{text}"
    );
    assert!(text.ends_with("state hash 11"), "{text}");
}

#[test]
fn a_read_that_gave_another_value_is_told_with_both() {
    let found = first(|evidence| evidence.trace.records[10].value = 0x20).unwrap();
    assert_eq!((found.part, found.index), (Part::Trace, 10));
    assert_eq!(
        found.to_string(),
        "first difference: at 0.650000 ms, instruction 650000, processor 0: read of port 0x3fd (serial port) gave 0x60 in the \
         first and 0x20 in the second\n  \
         in armed of generation 0\n  \
         before it, equal in both:\n    \
         0.470000 ms, instruction 470000, processor 0: interrupt had vector 0x31\n    \
         0.530000 ms, instruction 530000, processor 0: message from the agent had 12 bytes with XXH3 0x0000000000001234\n    \
         0.590000 ms, instruction 590000, processor 0: read of MSR 0x1b gave 0xfee00900"
    );
}

#[test]
fn the_function_is_told_where_evidence_has_it() {
    let found = first(|evidence| evidence.trace.records[9].value = 1).unwrap();
    assert_eq!(found.function.as_deref(), Some("start_dma+0x10"));
}

#[test]
fn what_comes_later_or_not_at_all_is_told_so() {
    let later = sentence(|evidence| evidence.trace.records[10].time += 5);
    assert_eq!(
        later,
        "first difference: at 0.650000 ms, instruction 650000, processor 0: read of port 0x3fd (serial port) gave 0x60 in the \
         first; the same at 0.650005 ms, instruction 650005, processor 0 in the second"
    );
    let earlier = sentence(|evidence| evidence.trace.records[10].time -= 5);
    assert!(
        earlier.starts_with("first difference: at 0.649995 ms, instruction 649995, processor 0: read of")
            && earlier.ends_with(
                "gave 0x60 in the second; the same at 0.650000 ms, instruction 650000, processor 0 in the first"
            ),
        "{earlier}"
    );
    let asleep = sentence(|evidence| evidence.trace.idle[1].1 += 7);
    assert!(asleep.contains("instruction 1829993"), "{asleep}");
    let shorter = sentence(|evidence| evidence.trace.records.truncate(39));
    assert!(
        shorter.ends_with("gave 0xfee00900 in the first, and the second has no more of these"),
        "{shorter}"
    );
    let other = sentence(|evidence| evidence.trace.records[12].processor = 3);
    assert!(
        other.ends_with("(processor 0 in the first, 3 in the second)"),
        "{other}"
    );
    let kind = sentence(|evidence| evidence.trace.records[12].kind = Kind::Nmi);
    assert!(
        kind.ends_with("interrupt had vector 0x31 in the first; NMI came in the second"),
        "{kind}"
    );
}

/// One change, the kind of record it is found in, and words of the answer.
type Case = (Part, fn(&mut Evidence), &'static str);

#[test]
fn every_kind_differing_alone_is_named() {
    let cases: Vec<Case> = vec![
        (Part::Trace, |e| e.trace.dropped = 1, "rest of the trace"),
        (
            Part::Ledger,
            |e| e.ledger.entries[3].checksum ^= 1,
            "ledger entry 3 was completion count 2",
        ),
        (
            Part::EngineEvent,
            |e| e.ledger.events[1].kind = EngineEventKind::WaitEnd,
            "DMA engine was waiting",
        ),
        (
            Part::EventCause,
            |e| e.event_causes[0].rip = 5,
            "and the instruction before 0x5 at",
        ),
        (
            Part::CpuWrite,
            |e| e.cpu_writes[1].rip = None,
            "first CPU write to page 0x1001 went to 0x1001000 by clear_page",
        ),
        (
            Part::Phase,
            |e| e.phases[2].guest_ns += 1,
            "phase armed of generation 0 took",
        ),
        (
            Part::Step,
            |e| e.steps[0].what.push('!'),
            "answer 1 to a step, create session",
        ),
        (
            Part::Retrieval,
            |e| e.retrievals[0].failure = Some(0),
            "retrieved, after",
        ),
        (
            Part::Blob,
            |e| e.blobs[0].boot_params = 9,
            "address of the boot parameters handed over by generation 0",
        ),
        (Part::Blob, |e| blob_byte(&mut e.blobs[0]), "handover page"),
        (
            Part::Capture,
            |e| change_page(e, 0, 17, |page| page[0x3a0] ^= 0xff),
            "at byte 0x3a0 in the second",
        ),
        (
            Part::Capture,
            |e| drop(e.captures.checkpoints.pop()),
            "the second has no more of these",
        ),
        (
            Part::Digest,
            |e| e.captures.digests[0].values[2] ^= 1,
            "the agent's digest of page 2 of object 1",
        ),
        (
            Part::Failure,
            |e| e.failures[0].errno = 12,
            "kexec_file_load failed",
        ),
        (Part::Kernel, |e| hello(e).processors = 4, "4 processors"),
        (Part::Object, |e| e.objects[0].closed = None, "closed after"),
        (
            Part::Object,
            |e| e.objects[0].preserved_by.clear(),
            "preserved by generations [0]",
        ),
        (
            Part::Object,
            |e| runs(e)[0].count = 3,
            "run 0 of the pages of memfd",
        ),
        (Part::Dma, |e| dma(e).stopped = None, "told to stop after"),
        (
            Part::Dma,
            |e| dma(e).setup.ring.descriptors.offset = 8,
            "set-up of the DMA engine",
        ),
        (
            Part::Interrupts,
            |e| e.interrupts[0].armed.ledger_length += 1,
            "interrupts of the DMA engine",
        ),
        (Part::Injection, |e| e.injections[0].fired = 2, "injection 0"),
        (
            Part::Memory,
            |e| memory(e).free_pages += 1,
            "memory as the agent saw it",
        ),
        (
            Part::Memory,
            |e| e.page_flags[0].flags[0].count += 1,
            "run 0 of the flags of object 1",
        ),
        (
            Part::Memory,
            |e| e.pressure[1].taken_pages += 1,
            "all memory was taken",
        ),
        (
            Part::Memory,
            |e| e.reused[0].pages[0].count += 1,
            "run 0 of the pages of closed object 1 in use again",
        ),
        (
            Part::Blackout,
            |e| e.blackouts_ns[0] += 1,
            "blackout was 900000 ns in the first and 900001 ns in",
        ),
        (
            Part::Blackout,
            |e| e.jumps_not_before[0] = Some(3),
            "not before 3 ns",
        ),
        (Part::Counters, |e| e.ledger.digest ^= 1, "digest of the ledger"),
        (
            Part::Counters,
            |e| e.ledger.made += 1,
            "number of ledger entries made",
        ),
        (
            Part::Counters,
            |e| e.ledger.counters[0].1.waits = 2,
            "device in armed of generation 0",
        ),
        (
            Part::Counters,
            |e| e.cpu_writes_until_ns = Some(7),
            "record of CPU writes",
        ),
        (
            Part::Console,
            |e| e.console.push_str("Oops"),
            "line 4 of the console was \"\" in the first and \"Oops\"",
        ),
        (
            Part::Console,
            |e| e.console_parts[1].lost = 3,
            "console output in boot-new of generation 1",
        ),
        (
            Part::KernelLog,
            |e| e.kernel_logs[1].records[0].level = 3,
            "record 1 of the log of generation 1",
        ),
        (
            Part::KernelLog,
            |e| e.kernel_logs[0].lost = 3,
            "records missing in the log of generation 0",
        ),
        (
            Part::Outcome,
            |e| outcome(e).text = "hm".into(),
            "outcome was completed in done",
        ),
        (
            Part::StateHash,
            |e| e.state_hash = "12".into(),
            "hash of the final state was 11 in the first and 12 in",
        ),
    ];
    for (part, change, words) in cases {
        let found = first(change).unwrap_or_else(|| panic!("{part:?} ({words}): not seen"));
        assert_eq!(found.part, part, "{found}");
        assert!(found.sentence().contains(words), "{words}: {found}");
    }
}

fn blob_byte(blob: &mut BlobEvidence) {
    blob.pages.values_mut().next().unwrap()[7] ^= 1;
}

fn hello(evidence: &mut Evidence) -> &mut Hello {
    evidence.kernels[1].hello.as_mut().unwrap()
}

fn runs(evidence: &mut Evidence) -> &mut Vec<guest_agent::protocol::PageRun> {
    evidence.objects[0].pages.get_mut(&0).unwrap()
}

fn dma(evidence: &mut Evidence) -> &mut DmaEvidence {
    evidence.dma.as_mut().unwrap()
}

fn memory(evidence: &mut Evidence) -> &mut MemoryRecord {
    &mut evidence.memory[1]
}

fn outcome(evidence: &mut Evidence) -> &mut Outcome {
    &mut evidence.outcome
}

#[test]
fn the_earliest_counts_whatever_its_kind() {
    let found = first(|evidence| {
        evidence.state_hash = "12".into();
        evidence.trace.records[39].value = 1;
        evidence.ledger.entries[4].checksum ^= 1;
        evidence.cpu_writes[0].rip = None;
    });
    assert_eq!(found.unwrap().part, Part::Ledger);
    let found = first(|evidence| {
        let time = evidence.ledger.entries[4].time;
        evidence.ledger.entries[4].checksum ^= 1;
        evidence.trace.records.truncate(8);
        evidence.trace.records.push(Record {
            time,
            ..evidence.trace.records[0]
        });
    });
    assert_eq!(found.unwrap().part, Part::Trace);
}

#[test]
fn a_page_that_mattered_in_one_run_only_says_nothing_of_its_writes() {
    let found = first(|evidence| {
        let stray: CpuWrite = cpu_write(0x7000, 1_100_000);
        evidence.cpu_writes.insert(0, stray);
        let last = evidence.ledger.entries.last_mut().unwrap();
        (last.address, last.kind) = (0x7000, Written::Completion { count: 1 });
    });
    let found = found.unwrap();
    assert_eq!((found.part, found.index), (Part::Ledger, 42), "{found}");
}

#[test]
fn inputs_that_differ_are_told_before_the_record() {
    let mut other = full();
    other.seed = 2;
    other.scenario_text = other.scenario_text.replace("128 MiB", "256 MiB");
    other.kernels[1].command_line.push_str(" kho=off");
    let text = compare(&full(), &other).to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("different inputs: seed was "), "{text}");
    assert!(
        lines[1].contains("line 2 of the scenario was \"ram = \\\"128 MiB\\\"\""),
        "{text}"
    );
    assert!(lines[2].contains("command line of generation 1"), "{text}");
    assert_eq!(lines[3], "every record is equal; only the inputs differ");
    other.trace.records[0].value = 9;
    let text = compare(&full(), &other).to_string();
    assert!(
        text.lines()
            .nth(3)
            .unwrap()
            .starts_with("first difference: at 0.050000 ms"),
        "{text}"
    );
}

#[test]
fn a_trace_that_was_full_says_how_far_it_reaches() {
    let full = || {
        let mut evidence = full();
        (evidence.trace.dropped, evidence.trace.dropped_digest) = (1234, 5);
        evidence.trace.records.truncate(10);
        evidence
    };
    let text = compare(&full(), &full()).to_string();
    assert!(
        text.starts_with(
            "equal as far as recorded: 10 trace records (2 of them messages) and 1,234 more by digest only"
        ),
        "{text}"
    );
    let found = |change: fn(&mut Evidence)| {
        let mut other = full();
        change(&mut other);
        first_difference(&full(), &other).unwrap().record.unwrap()
    };
    let unknown = found(|evidence| evidence.trace.dropped_digest = 6);
    assert_eq!(
        (unknown.part, unknown.trace_ends_ns),
        (Part::Trace, Some(590_000))
    );
    let later = found(|evidence| evidence.ledger.entries.last_mut().unwrap().checksum ^= 1);
    assert_eq!((later.part, later.trace_ends_ns), (Part::Ledger, Some(590_000)));
    assert!(
        later.to_string().contains("the trace was full at 0.590000 ms"),
        "{later}"
    );
    let before = found(|evidence| evidence.trace.records[9].value = 1);
    assert_eq!((before.index, before.trace_ends_ns), (9, None));
}

#[test]
fn what_cannot_be_compared_says_why() {
    let reason = |change: fn(&mut Evidence, &mut Evidence)| {
        let (mut one, mut other) = (full(), full());
        change(&mut one, &mut other);
        compare(&one, &other).to_string()
    };
    assert!(
        reason(|one, _| one.backend = "kvm".into())
            .starts_with("not comparable: two runs are never equal on kvm")
    );
    assert!(
        reason(|_, other| other.backend = "kvm".into()).starts_with("not comparable: two runs are never")
    );
    let unfinished = reason(|_, other| other.outcome.kind = OutcomeKind::Unfinished);
    assert!(
        unfinished.contains("the second run has not ended"),
        "{unfinished}"
    );
}

#[test]
fn a_difference_is_json_too() {
    let mut other = full();
    other.trace.records[10].value = 0x20;
    let json = serde_json::to_value(compare(&full(), &other)).unwrap();
    assert_eq!(json["result"], "different");
    assert_eq!(json["record"]["part"], "trace");
    assert_eq!(json["record"]["at"]["phase"], "armed");
    assert_eq!(json["record"]["first"]["value"], "0x60");
    assert_eq!(
        serde_json::to_value(compare(&full(), &full())).unwrap()["result"],
        "equal"
    );
    other.backend = "kvm".into();
    let json = serde_json::to_value(compare(&full(), &other)).unwrap();
    assert_eq!(
        (&json["result"], &json["reason"]),
        (&"incomparable".into(), &"unrepeatable".into())
    );
}

proptest! {
    #[test]
    fn one_changed_field_of_one_trace_record_is_found(index in 0..40_usize, field in 0..6_u8, by in 1..100_u8) {
        let found = first(|evidence| {
            let record = &mut evidence.trace.records[index];
            match field {
                0 => record.time += u64::from(by),
                1 => record.address ^= u64::from(by),
                2 => record.value ^= u64::from(by),
                3 => record.size ^= by,
                4 => record.processor ^= by,
                _ => record.kind = Kind::Nmi,
            }
        }).unwrap();
        prop_assert_eq!((found.part, found.index), (Part::Trace, index as u64));
        prop_assert_eq!(found.at.time_ns, Some(full().trace.records[index].time));
        prop_assert!(found.before.len() == index.min(3));
    }

    #[test]
    fn one_changed_field_of_one_device_write_is_found(index in 0..40_usize, field in 0..5_u8, by in 1..100_u8) {
        let found = first(|evidence| {
            let entry = &mut evidence.ledger.entries[index];
            match field {
                0 => entry.time += u64::from(by),
                1 => entry.address ^= u64::from(by),
                2 => entry.length ^= u32::from(by),
                3 => entry.checksum ^= u64::from(by),
                _ => entry.kind = Written::Msi { data: by.into() },
            }
        }).unwrap();
        prop_assert_eq!((found.part, found.index), (Part::Ledger, index as u64));
    }

    #[test]
    fn one_changed_byte_of_one_captured_page_is_found(page in 0..18_usize, byte in 0..4096_usize, bit in 0..8_u8) {
        let found = first(|evidence| change_page(evidence, 1, page, |bytes| bytes[byte] ^= 1 << bit)).unwrap();
        prop_assert_eq!((found.part, found.index), (Part::Capture, 18 + page as u64));
        let value = found.second.unwrap().value;
        prop_assert!(value.ends_with(&format!(" at byte {byte:#x}")), "{}", value);
    }
}
