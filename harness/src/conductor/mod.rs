//! The conductor: takes a machine through a plan and comes back with evidence, whatever happens on the way.
//!
//! It answers the agent's messages with the plan's steps, one after the other, and keeps what it sees. The guest stands whenever the
//! conductor works, so that nothing here takes guest time.

mod collect;
mod memory;
mod steps;
mod talk;

use crate::evidence::{
    Captures, DmaEvidence, Evidence, KernelEvidence, NOT_ENDED, ObjectEvidence, ObjectKind, Outcome,
    OutcomeKind, Phase, PhaseRecord, VERSION, empty_ledger,
};
use crate::initramfs;
use crate::oracle::Question;
use crate::plan::Plan;
use std::collections::BTreeSet;
use vmm::devices::dma::{BusMaster, DmaConfig};
use vmm::machine::{Machine, MachineConfig, MachineError};
use vmm::processors::Backend;

/// Rate of a DMA engine that is never started.
const IDLE_RATE: u64 = 1_000_000;

/// Who wants to know how a run goes on.
pub trait Observer {
    /// A phase begins.
    fn phase(&self, generation: u32, phase: Phase);
    /// A phase is over.
    fn passed(&self, record: &PhaseRecord);
    /// Whether [`Observer::so_far`] is wanted, which costs time at each phase change.
    fn keeps(&self) -> bool {
        false
    }
    /// A phase has begun, and this is the evidence of all before.
    fn so_far(&self, _: &Evidence) {}
}

/// Nobody wants to know.
impl Observer for () {
    fn phase(&self, _: u32, _: Phase) {}
    fn passed(&self, _: &PhaseRecord) {}
}

/// A run that goes on.
struct Run<'a> {
    plan: &'a Plan,
    machine: Machine,
    observer: &'a dyn Observer,
    /// Bytes whose last writer is to be told, by checkpoint.
    questions: &'a [Question],
    evidence: Evidence,
    generation: u32,
    /// Objects that the running agent holds.
    held: BTreeSet<u32>,
    /// Sessions that the running agent holds.
    sessions: BTreeSet<String>,
    /// Something could not be retrieved.
    lost: bool,
    /// Phase records that the observer was told of.
    reported: usize,
}

/// Why a run breaks off.
struct Break {
    kind: OutcomeKind,
    text: String,
}

impl Break {
    fn new(kind: OutcomeKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}

impl From<MachineError> for Break {
    fn from(error: MachineError) -> Self {
        Self::new(OutcomeKind::MachineFailed, chain(&error))
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs `plan` on `backend` with `agent` as /init. Questions make it a second run that watches the bytes in question; they cost time and change
/// nothing else. An error means that there was no machine to begin with.
pub fn conduct(
    plan: &Plan,
    agent: &[u8],
    backend: &dyn Backend,
    observer: &dyn Observer,
    questions: &[Question],
) -> Result<Evidence, MachineError> {
    // What the host's KVM needs is told to every generation.
    let plan = &plan.with_command_line(backend.command_line());
    let mut machine = Machine::new(&machine_config(plan, agent), backend)?;
    machine.watch(
        questions
            .iter()
            .map(|question| question.address / crate::evidence::PAGE),
    );
    let mut run = Run {
        plan,
        machine,
        observer,
        questions,
        evidence: blank(plan, backend.name()),
        generation: 0,
        held: BTreeSet::new(),
        sessions: BTreeSet::new(),
        lost: false,
        reported: 0,
    };
    run.tell_observer();
    let ended = run.all();
    Ok(run.finish(ended))
}

fn machine_config(plan: &Plan, agent: &[u8]) -> MachineConfig {
    let rate = plan.dma.as_ref().map_or(IDLE_RATE, |dma| dma.rate);
    let honoured = plan.dma.as_ref().is_some_and(|dma| dma.bus_master_honoured);
    MachineConfig {
        ram_bytes: plan.ram_bytes,
        kernel: plan.old_kernel.image.as_ref().clone(),
        initramfs: initramfs::build(agent, Some(&plan.new_kernel.image)),
        command_line: plan.old_command_line.clone(),
        seed: crate::seed::seed_for(plan.seed, "machine"),
        dma: DmaConfig {
            rate,
            seed: plan.dma.as_ref().map_or(0, |dma| dma.seed),
            bus_master: if honoured {
                BusMaster::Honoured
            } else {
                BusMaster::Retained
            },
        },
        progress_limit_ns: plan.progress_ns,
        vcpus: u8::try_from(plan.vcpus).unwrap_or(u8::MAX),
        ledger_entries: usize::try_from(plan.ledger_entries).unwrap_or(usize::MAX),
    }
}

/// Evidence of a run in which nothing has happened yet.
fn blank(plan: &Plan, backend: &str) -> Evidence {
    let kernel = |generation| {
        let kernel = plan.kernel(generation);
        KernelEvidence {
            path: kernel.path.display().to_string(),
            image_hash: format!("{:016x}", kernel.hash),
            image_release: kernel.release.clone(),
            command_line: plan.command_line(generation).to_owned(),
            hello: None,
        }
    };
    let object = |object: &crate::plan::ObjectPlan| ObjectEvidence {
        id: object.id,
        name: object.name.clone(),
        kind: match &object.preserve {
            Some((session, token)) => ObjectKind::Memfd {
                session: session.clone(),
                token: *token,
            },
            None => ObjectKind::Anonymous,
        },
        bytes: object.bytes,
        pattern_seed: object.seed,
        pages: Default::default(),
        preserved_by: Vec::new(),
        closed: None,
    };
    let dma = plan.dma.as_ref().map(|dma| DmaEvidence {
        seed: dma.seed,
        rate: dma.rate,
        buffer_bytes: dma.buffer_bytes,
        entries: dma.entries,
        free_run: dma.free_run,
        bus_master_honoured: dma.bus_master_honoured,
        ring_object: dma.ring_object,
        ring_offset: 0,
        completion_offset: 0,
        buffer_object: dma.buffer_object,
        buffer_offset: 0,
        wild_addresses: dma.wild_addresses.clone(),
        started: None,
        stopped: None,
    });
    Evidence {
        version: VERSION,
        baton: env!("CARGO_PKG_VERSION").into(),
        scenario_file: plan.scenario_file.clone(),
        scenario_text: plan.scenario_text.clone(),
        name: plan.name.clone(),
        backend: backend.into(),
        seed: plan.seed,
        overrides: plan.overrides.arguments(),
        ram_bytes: plan.ram_bytes,
        kexecs: plan.kexecs,
        kernels: (0..=plan.kexecs).map(kernel).collect(),
        phases: Vec::new(),
        objects: plan.objects.iter().map(object).collect(),
        dma,
        event_causes: Vec::new(),
        cpu_writes: Vec::new(),
        cpu_writes_recorded: false,
        authors: Vec::new(),
        memory: Vec::new(),
        retrievals: Vec::new(),
        failures: Vec::new(),
        blobs: Vec::new(),
        blackouts_ns: Vec::new(),
        jumps_not_before: Vec::new(),
        device_lateness_ns: 0,
        emulated: Vec::new(),
        outcome: Outcome {
            kind: OutcomeKind::Unfinished,
            generation: 0,
            phase: Phase::BootOld,
            text: NOT_ENDED.into(),
        },
        state_hash: String::new(),
        ledger: empty_ledger(),
        captures: Captures::default(),
        console: String::new(),
    }
}
