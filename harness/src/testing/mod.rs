//! Hand-made evidence of a small live update in which every rule holds, for tests that then damage it.
//!
//! The memory in it is computed here by simply doing all writes in order, not by the oracle's code.

mod blob;
mod bzimage;

pub use blob::blob;
pub use bzimage::bzimage;

use crate::evidence::*;
use crate::kernel::{Fit, KernelImage, Symbols};
use crate::plan::{Overrides, Plan, with_kernels};
use crate::scenario::KexecBy;
use guest_agent::kpageflags::{BUDDY, LRU};
use guest_agent::pattern::{PAGE_BYTES, PAGE_WORDS, Pattern, page_digest};
use guest_agent::protocol::{DmaRing, FlagRun, LogRecord, PageRun, Place, ProgramEnd};
use vmm::devices::dma::{BusMaster, DmaConfig};
use vmm::ledger::{Entry, Kind, LedgerRecord};
use vmm::phase::Stamp;
use vmm::trace::{Kind as TraceKind, Record, TraceRecord};
use xxhash_rust::xxh3::xxh3_64;

/// Guest RAM in bytes.
pub const RAM: u64 = 128 << 20;
/// First page frame of the memfd.
pub const MEMFD: u64 = 0x1000;
/// Pages of the memfd: ring, completion count, eight buffers, the list of the ring's pages, and seven that nobody
/// writes to.
pub const PAGES: u64 = 18;
/// Page of the memfd with the list of the ring's pages.
pub const LIST: u64 = 10;
/// First page frame of the handover's own pages: FDT, then six levels of the map.
pub const OWN: u64 = 0x200;
/// When the old kernel jumped, and when the new one was entered.
pub const JUMP: (u64, u64) = (1_000_000, 1_001_000);
/// When the memfd was retrieved.
pub const RETRIEVED: u64 = 2_000_000;
/// When the device was stopped.
pub const STOPPED: u64 = 2_400_000;
/// Device blocks in all, and those before the retrieval.
pub const BLOCKS: (u64, u64) = (20, 16);
/// Time of the first interrupt message, time between two, and their number.
pub const MESSAGES: (u64, u64, u64) = (2_410_000, 10_000, 3);
const MESSAGE_VECTOR: u8 = 0x41;
const PERIOD: u64 = 100_000;
const STARTED: u64 = 450_000;
const SYMBOLS: &str = "ffffffff81000100 T clear_page\n";
/// The scenario of it.
pub const SCENARIO: &str =
    "name = \"small\"\nram = \"128 MiB\"\n[[memfd]]\nname = \"m\"\nsize = \"72 KiB\"\ntoken = 7\n";

fn phase(time: u64) -> (u32, Phase) {
    match time {
        ..400_000 => (0, Phase::BootOld),
        400_000..500_000 => (0, Phase::Prepare),
        500_000..900_000 => (0, Phase::Armed),
        900_000..1_000_000 => (0, Phase::Handover),
        1_000_000..1_001_000 => (0, Phase::Jump),
        1_001_000..1_800_000 => (1, Phase::BootNew),
        1_800_000..STOPPED => (1, Phase::Restore),
        _ => (1, Phase::Done),
    }
}

/// What the DMA engine of the evidence is like.
pub fn dma() -> DmaEvidence {
    let place = |offset| Place { object: 1, offset };
    DmaEvidence {
        setup: DmaSetup {
            engine: DmaConfig {
                rate: PAGE * 1_000_000_000 / PERIOD,
                seed: 42,
                bus_master: BusMaster::Retained,
                ..DmaConfig::default()
            },
            ring: DmaRing {
                list: place(LIST * PAGE),
                descriptors: place(0),
                entries: 8,
                completion: place(PAGE),
                buffers: place(2 * PAGE),
                buffer_bytes: 4096,
                free_run: true,
                wild_addresses: Vec::new(),
            },
        },
        started: Some(Moment {
            generation: 0,
            time_ns: STARTED,
            ledger_length: 0,
        }),
        stopped: Some(Moment {
            generation: 1,
            time_ns: STOPPED,
            ledger_length: 2 * BLOCKS.0,
        }),
    }
}

/// A device write at `time`.
pub fn device_write(index: u64, time: u64, address: u64, length: u32, kind: Kind) -> Entry {
    let (generation, phase) = phase(time);
    let stamp = Stamp {
        generation: generation.try_into().unwrap(),
        phase,
    };
    let mut write = Entry {
        index,
        time,
        stamp,
        address,
        length,
        kind,
        checksum: 0,
        withheld: None,
    };
    write.checksum = xxh3_64(&written_bytes(&write, dma().setup.engine.seed));
    write
}

fn ledger() -> LedgerRecord {
    let block = |sequence: u64| {
        let time = STARTED + (sequence + 1) * PERIOD - PERIOD / 10;
        let address = (MEMFD + 2 + sequence % 8) * PAGE;
        let count = Kind::Completion { count: sequence + 1 };
        [
            device_write(
                2 * sequence,
                time,
                address,
                4096,
                Kind::Block {
                    sequence,
                    descriptor: 0,
                },
            ),
            device_write(2 * sequence + 1, time, (MEMFD + 1) * PAGE, 8, count),
        ]
    };
    let message = |number: u64| {
        let time = MESSAGES.0 + number * MESSAGES.1;
        let data = MESSAGE_VECTOR.into();
        device_write(2 * BLOCKS.0 + number, time, 0xfee0_0000, 4, Kind::Msi { data })
    };
    LedgerRecord {
        entries: (0..BLOCKS.0)
            .flat_map(block)
            .chain((0..MESSAGES.2).map(message))
            .collect(),
        made: 2 * BLOCKS.0 + MESSAGES.2,
        injected: Vec::new(),
        events: Vec::new(),
        counters: Vec::new(),
        digest: 7,
    }
}

/// A driver that had the vector armed while three messages came, of which the second merged with the first.
fn armed() -> ArmedRecord {
    let moment = |time_ns, ledger_length| Moment {
        generation: 1,
        time_ns,
        ledger_length,
    };
    let end = 2 * BLOCKS.0 + MESSAGES.2;
    ArmedRecord {
        armed: moment(MESSAGES.0 - 1_000, 2 * BLOCKS.0),
        disarmed: Some(DisarmedRecord {
            asked: moment(MESSAGES.0 + 50_000, end),
            answered: moment(MESSAGES.0 + 60_000, end),
            count: 2,
        }),
    }
}

/// A few records of each phase: a port read, an interrupt, a message.
fn trace() -> TraceRecord {
    let kinds = [
        (TraceKind::PortRead, 1, 0x3fd, 0x60),
        (TraceKind::MmioWrite, 4, 0xfee0_00b0, 0),
        (TraceKind::Interrupt, 0, 0, 0x31),
        (TraceKind::Message, 0, 12, 0x1234),
        (TraceKind::MsrRead, 8, 0x1b, 0xfee0_0900),
    ];
    let records = (0..).zip(kinds.iter().cycle().take(40));
    let records = records.map(|(index, &(kind, size, address, value)): (u64, _)| Record {
        time: 50_000 + index * 60_000,
        address,
        value,
        kind,
        size,
        processor: 0,
    });
    let taken = [MESSAGES.0 + 12_000, MESSAGES.0 + 21_000].map(|time| Record {
        time,
        address: 0,
        value: MESSAGE_VECTOR.into(),
        kind: TraceKind::Interrupt,
        size: 0,
        processor: 0,
    });
    TraceRecord {
        records: records.chain(taken).collect(),
        idle: vec![(0, 0), (30, 20_000)],
        ..TraceRecord::default()
    }
}

/// The memfd's pages after the first `writes` entries of the ledger.
fn memory(evidence: &Evidence, writes: usize) -> Vec<[u8; PAGE_BYTES]> {
    let pattern = Pattern::new(evidence.objects[0].pattern_seed);
    let mut bytes: Vec<u8> = (0..PAGES).flat_map(|index| pattern.page(index)).collect();
    for entry in 0..8u64 {
        let at = usize::try_from(entry).unwrap() * 16;
        bytes[at..at + 8].copy_from_slice(&((MEMFD + 2 + entry) * PAGE).to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&4096u64.to_le_bytes());
    }
    bytes[4096..4104].fill(0);
    let list = usize::try_from(LIST * PAGE).unwrap();
    bytes[list..list + 8].copy_from_slice(&(MEMFD * PAGE).to_le_bytes());
    for write in &evidence.ledger.entries[..writes] {
        let at = usize::try_from(write.address - MEMFD * PAGE).unwrap();
        let data = written_bytes(write, 42);
        bytes[at..at + data.len()].copy_from_slice(&data);
    }
    bytes.as_chunks().0.to_vec()
}

fn checkpoint(evidence: &mut Evidence, kind: CheckpointKind, time_ns: u64, writes: u64) {
    let pattern = Pattern::new(evidence.objects[0].pattern_seed);
    let pages = memory(evidence, usize::try_from(writes).unwrap());
    let captures = &mut evidence.captures;
    let pages = (0..)
        .zip(&pages)
        .map(|(index, page)| captures.take(&pattern, index, page).unwrap())
        .collect();
    captures.checkpoints.push(Checkpoint {
        kind,
        phase: phase(time_ns).1,
        at: Moment {
            generation: 1,
            time_ns,
            ledger_length: writes,
        },
        objects: vec![ObjectCapture { object: 1, pages }],
        strays: Vec::new(),
        strays_left_out: 0,
    });
}

fn digests(evidence: &mut Evidence) {
    let words = |page: &[u8; PAGE_BYTES]| -> [u64; PAGE_WORDS] {
        std::array::from_fn(|at| u64::from_le_bytes(page[at * 8..at * 8 + 8].try_into().unwrap()))
    };
    let pages = memory(evidence, usize::try_from(2 * BLOCKS.1).unwrap());
    evidence.captures.digests.push(DigestRecord {
        generation: 1,
        object: 1,
        first_page: 0,
        values: pages.iter().map(|page| page_digest(&words(page))).collect(),
        ledger_before: 2 * BLOCKS.1,
        ledger_after: 2 * BLOCKS.1,
        asked_ns: RETRIEVED,
    });
}

/// What the kernel says of the memfd's pages: first nothing, then that it is in use; once it is closed, that one page
/// is free and one has no flags.
fn page_flags() -> Vec<PageFlagsRecord> {
    let run = |flags, count| FlagRun { flags, count };
    let used = vec![run(LRU, PAGES)];
    let closed = vec![run(LRU, PAGES - 2), run(BUDDY, 1), run(0, 1)];
    let record = |at, time_ns, flags| PageFlagsRecord {
        generation: 1,
        at,
        object: 1,
        time_ns,
        flags,
    };
    vec![
        record(MemoryPoint::BeforeRetrieval, 1_810_000, vec![run(0, PAGES)]),
        record(MemoryPoint::Retrieved, 2_050_000, used.clone()),
        record(MemoryPoint::Held, 2_090_000, used),
        record(MemoryPoint::AfterClose, 2_480_000, closed),
    ]
}

/// When all memory was taken. One page was left in a per-CPU list each time.
fn pressure() -> Vec<PressureRecord> {
    let record = |at, begin_ns| PressureRecord {
        generation: 1,
        at,
        begin_ns,
        end_ns: Some(begin_ns + 10_000),
        taken_pages: 20_000,
        free_pages: 1000,
        per_cpu_pages: 1,
    };
    vec![
        record(MemoryPoint::BeforeRetrieval, 1_820_000),
        record(MemoryPoint::Held, 2_100_000),
        record(MemoryPoint::AfterClose, 2_460_000),
    ]
}

const OLD: &str = "[    0.000000] Linux version 7.3.4\n[    0.500000] old\n";
const NEW: &str = "[    0.000000] Linux version 7.3.4\n";

fn console_part(generation: u32, phase: Phase, begin: usize) -> ConsolePart {
    ConsolePart {
        generation,
        phase,
        begin: begin as u64,
        lost: 0,
    }
}

fn kernel_log(generation: u32) -> KernelLog {
    KernelLog {
        generation,
        records: vec![LogRecord {
            time_us: 0,
            level: 5,
            text: "Linux version 7.3.4".into(),
        }],
        lost: 0,
    }
}

/// Evidence of a run in which everything went well.
pub fn good() -> Evidence {
    let record = |generation, phase, begin_ns, end_ns: u64| PhaseRecord {
        generation,
        phase,
        begin_ns,
        guest_ns: end_ns - begin_ns,
        instructions: Some((end_ns - begin_ns) / 2),
        wall_us: 10,
    };
    let retrieval = |object| Retrieval {
        generation: 1,
        what: if object == Some(1) {
            "memfd \"m\"".into()
        } else {
            "session \"s\"".into()
        },
        object,
        time_ns: RETRIEVED,
        ledger_length: 2 * BLOCKS.1,
        failure: None,
    };
    let memory_record = |at, free_pages, held_pages| MemoryRecord {
        generation: 1,
        at,
        total_pages: 30_000,
        free_pages,
        held_pages,
    };
    let hello = Hello {
        release: "7.3.4".into(),
        build_id: "abcd".into(),
        command_line: "console=ttyS0".into(),
        liveupdate: true,
        kho_debugfs: false,
        kho_incoming: false,
        unknown_parameters: Vec::new(),
        processors: 1,
    };
    let kernel = KernelEvidence {
        path: "bzImage".into(),
        image_hash: "00".into(),
        image_release: "7.3.4".into(),
        command_line: "console=ttyS0".into(),
        hello: Some(hello),
        symbols: Fit::At(0),
    };
    let mut evidence = Evidence {
        version: VERSION,
        baton: "0".into(),
        scenario_file: "small.toml".into(),
        scenario_text: SCENARIO.into(),
        name: "small".into(),
        backend: "soft".into(),
        seed: 1,
        overrides: Vec::new(),
        ram_bytes: RAM,
        kexecs: 1,
        handover: None,
        payload: Some(PayloadEvidence {
            hash: "00".into(),
            commands: vec!["/test 1".into(), "/test 2".into()],
            is_init: false,
            kexec: KexecBy::Baton,
            passed: Vec::new(),
            failed: Vec::new(),
            ktap: false,
            retrievals_seen: false,
            ends: [(0, 490_000), (1, 1_900_000)]
                .map(|(generation, time_ns)| PayloadEnd {
                    generation,
                    time_ns,
                    end: ProgramEnd::Exit(0),
                })
                .into(),
        }),
        kernels: vec![kernel.clone(), kernel],
        phases: vec![
            record(0, Phase::BootOld, 0, 400_000),
            record(0, Phase::Prepare, 400_000, 500_000),
            record(0, Phase::Armed, 500_000, 900_000),
            record(0, Phase::Handover, 900_000, JUMP.0),
            record(0, Phase::Jump, JUMP.0, JUMP.1),
            record(1, Phase::BootNew, JUMP.1, 1_800_000),
            record(1, Phase::Restore, 1_800_000, STOPPED),
            record(1, Phase::Done, STOPPED, 2_500_000),
        ],
        objects: vec![ObjectEvidence {
            id: 1,
            name: "m".into(),
            kind: ObjectKind::Memfd {
                session: "s".into(),
                token: 7,
            },
            end: MemfdEnd::Retrieved,
            bytes: PAGES * PAGE,
            pattern_seed: 99,
            laid: None,
            pages: [(
                0,
                vec![PageRun {
                    first: MEMFD,
                    count: PAGES,
                }],
            )]
            .into(),
            preserved_by: vec![0],
            closed: Some(Moment {
                generation: 1,
                time_ns: 2_450_000,
                ledger_length: 2 * BLOCKS.0,
            }),
        }],
        test_kho: false,
        dma: Some(dma()),
        injections: Vec::new(),
        event_causes: Vec::new(),
        cpu_writes: Vec::new(),
        cpu_writes_until_ns: None,
        authors: Vec::new(),
        memory: vec![
            memory_record(MemoryPoint::BeforeRetrieval, 20_000, 1000),
            memory_record(MemoryPoint::AfterClose, 20_990, 0),
        ],
        page_flags: page_flags(),
        pressure: pressure(),
        reused: vec![Reused {
            object: 1,
            generation: 1,
            since_ns: 2_449_000,
            complete: true,
            pages: vec![PageRun {
                first: MEMFD,
                count: PAGES - 2,
            }],
        }],
        steps: vec![StepRecord {
            number: 1,
            what: "create session \"s\"".into(),
            expected: None,
            failure: None,
            fills: None,
            at: Moment {
                generation: 0,
                time_ns: 410_000,
                ledger_length: 0,
            },
        }],
        retrievals: vec![retrieval(None), retrieval(Some(1))],
        failures: Vec::new(),
        interrupts: vec![armed()],
        blobs: vec![blob((MEMFD..MEMFD + PAGES).chain([OWN]))],
        blackouts_ns: vec![900_000],
        blackout_begins_ns: vec![950_000],
        jumps_not_before: vec![None],
        device_lateness_ns: 0,
        slowdown: 1,
        emulated: Vec::new(),
        console_parts: vec![
            console_part(0, Phase::BootOld, 0),
            console_part(1, Phase::BootNew, OLD.len()),
        ],
        kernel_logs: (0..2).map(kernel_log).collect(),
        log_symbols: Vec::new(),
        outcome: Outcome {
            kind: OutcomeKind::Completed,
            generation: 1,
            phase: Phase::Done,
            text: "every step was done".into(),
        },
        state_hash: "11".into(),
        ledger: ledger(),
        trace: trace(),
        captures: Captures::default(),
        console: format!("{OLD}{NEW}"),
    };
    checkpoint(&mut evidence, CheckpointKind::Retrieved, RETRIEVED, 2 * BLOCKS.1);
    digests(&mut evidence);
    checkpoint(&mut evidence, CheckpointKind::End, STOPPED + 10, 2 * BLOCKS.0);
    evidence
}

/// Evidence of the same run, had its ledger been full after `writes` device writes.
pub fn cut(writes: u64) -> Evidence {
    let mut evidence = good();
    let kept = usize::try_from(writes).unwrap();
    // The next write was refused, and with it the run ended.
    let end = evidence.ledger.entries[kept].time;
    evidence.ledger.entries.truncate(kept);
    evidence.ledger.made = writes;
    evidence.phases.retain(|record| record.begin_ns <= end);
    if let Some(last) = evidence.phases.last_mut() {
        last.guest_ns = end - last.begin_ns;
    }
    let (generation, phase) = phase(end);
    if let Some(dma) = &mut evidence.dma {
        dma.stopped = None;
    }
    evidence.objects[0].closed = None;
    let begun = |record: &MemoryRecord| record.at == MemoryPoint::BeforeRetrieval && phase >= Phase::Restore;
    evidence.memory.retain(begun);
    evidence.interrupts.retain(|record| record.armed.time_ns <= end);
    evidence
        .retrievals
        .retain(|retrieval| retrieval.ledger_length <= writes);
    evidence.blobs.retain(|blob| blob.time_ns <= end);
    let captures = &mut evidence.captures;
    captures
        .checkpoints
        .retain(|checkpoint| checkpoint.at.ledger_length <= writes);
    captures.digests.retain(|record| record.ledger_after <= writes);
    if generation > 0 {
        checkpoint(&mut evidence, CheckpointKind::End, end, writes);
    }
    evidence.outcome = Outcome {
        kind: OutcomeKind::LedgerFull,
        generation,
        phase,
        text: "the ledger is full".into(),
    };
    evidence
}

/// The plan of a scenario, with a kernel that nothing can boot.
pub fn plan(scenario: &str) -> Plan {
    plan_with(scenario, |_| {})
}

/// The same with what the command line overrides.
pub fn plan_with(scenario: &str, change: impl FnOnce(&mut Overrides)) -> Plan {
    let parsed = crate::scenario::parse("small.toml", scenario).unwrap();
    let kernel = KernelImage::in_memory("7.3.4", SYMBOLS);
    let mut overrides = Overrides::default();
    change(&mut overrides);
    with_kernels(&parsed, "small.toml", scenario, &overrides, kernel, None)
}

/// A CPU write to `address` at `time`.
pub fn cpu_write(address: u64, time_ns: u64) -> CpuWrite {
    let (generation, phase) = phase(time_ns);
    let symbols = Symbols::parse(SYMBOLS.into());
    let rip = 0xffff_ffff_8100_0107;
    let symbol = symbols.lookup(rip);
    CpuWrite {
        generation,
        phase,
        address,
        length: Some(8),
        rip: Some(rip),
        symbol,
        time_ns,
        instructions: Some(time_ns / 2),
        cpl: 0,
    }
}

/// An injection that was armed and fired once, at that place and guest time.
pub fn fired(generation: u32, phase: Phase, time_ns: u64) -> InjectionEvidence {
    let at = InjectedAt {
        generation,
        phase,
        time_ns,
        instructions: None,
    };
    InjectionEvidence {
        words: "at some time: something".into(),
        acts_on_machine: false,
        armed: Some(at),
        fired: 1,
        firings: vec![FiringEvidence {
            at,
            what: "it was done".into(),
        }],
        unable: Vec::new(),
    }
}

/// Replaces page `index` of the memfd in checkpoint `checkpoint` by what `change` makes of it.
pub fn change_page(evidence: &mut Evidence, checkpoint: usize, index: usize, change: impl FnOnce(&mut [u8])) {
    let pattern = Pattern::new(evidence.objects[0].pattern_seed);
    let number = index as u64;
    let content = evidence.captures.checkpoints[checkpoint].objects[0].pages[index];
    let mut page = evidence.captures.bytes(&pattern, number, content).unwrap();
    change(&mut page);
    let content = evidence.captures.take(&pattern, number, &page).unwrap();
    evidence.captures.checkpoints[checkpoint].objects[0].pages[index] = content;
}
