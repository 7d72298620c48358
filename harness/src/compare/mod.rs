//! Finds the earliest record in which the evidence of two runs differs.
//!
//! Two runs of the same inputs on softcpu are equal in everything, so the cause of a difference is at or just before
//! the first record that differs. Records with a time are compared in the order of guest time. Facts without one (the
//! console, the state hash) count only if every record with a time is equal.

mod device;
mod inputs;
mod item;
mod parts;
mod records;
mod text;

#[cfg(test)]
mod tests;

use crate::evidence::{Evidence, OutcomeKind, Phase};
pub use inputs::InputDifference;
use serde::Serialize;
use vmm::trace::Kind;

/// Result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Comparison {
    /// Equal, as far as recorded.
    Equal(Compared),
    /// Different.
    Different(Box<Difference>),
    /// They cannot be compared.
    Incomparable {
        /// The reason.
        reason: Incomparable,
    },
}

/// Why two runs cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Incomparable {
    /// One ran on `kvm`.
    #[error("two runs are never equal on kvm, where time is the host's: only runs on soft can be compared")]
    Unrepeatable,
    /// One was killed or has not ended.
    #[error("the {} run has not ended: expected evidence of a whole run", .0.name())]
    Unfinished(Which),
}

/// One of the two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// The one named first.
    First,
    /// The one named second.
    Second,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// Kind of record that differs. Of records at the same time, the kind listed first here is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// A record of the trace.
    Trace,
    /// A write of the device.
    Ledger,
    /// An engine event.
    EngineEvent,
    /// The access that caused an engine event.
    EventCause,
    /// First write of a processor to a page in a phase.
    CpuWrite,
    /// A phase; its time is that of its end.
    Phase,
    /// A step that the scenario gives.
    Step,
    /// An attempt to retrieve something.
    Retrieval,
    /// A page or a pointer of what was handed over at a jump.
    Blob,
    /// A page as the host captured it.
    Capture,
    /// The agent's digest of a page.
    Digest,
    /// A request that the agent could not fulfil.
    Failure,
    /// Greeting of an agent.
    Kernel,
    /// A memory object of the agent.
    Object,
    /// The set-up of the DMA engine.
    Dma,
    /// A time during which the agent received the engine's interrupts.
    Interrupts,
    /// What has become of an injection.
    Injection,
    /// Free memory as the agent saw it.
    Memory,
    /// A blackout.
    Blackout,
    /// Counters and digest of the ledger.
    Counters,
    /// A line that the guest printed.
    Console,
    /// A record of a kernel's log.
    KernelLog,
    /// How the run ended.
    Outcome,
    /// The hash of the machine's final state.
    StateHash,
}

/// The difference between two runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Inputs that differ. Runs of different inputs need not be equal.
    pub inputs: Vec<InputDifference>,
    /// The first record that differs; `None` if only the inputs differ.
    pub record: Option<RecordDifference>,
}

/// The first record that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordDifference {
    /// Kind of record.
    pub part: Part,
    /// Number of equal records of this kind before it.
    pub index: u64,
    /// Time and place of the earlier of the two.
    pub at: At,
    /// Function in which it happened, where evidence has a symbol.
    pub function: Option<String>,
    /// The record in the first run; `None` if that has no more of this kind.
    pub first: Option<Told>,
    /// The record in the second run.
    pub second: Option<Told>,
    /// The last records of the kind that are equal in both, in order.
    pub before: Vec<Told>,
    /// If the traces dropped records: guest time of the last record that both hold. The runs may have parted at any
    /// time after it.
    pub trace_ends_ns: Option<u64>,
}

/// Time and place of a record, as far as known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct At {
    /// Guest time in nanoseconds.
    pub time_ns: Option<u64>,
    /// Instructions that all processors had retired.
    pub instructions: Option<u64>,
    /// Processor, from 0.
    pub processor: Option<u8>,
    /// Kernel generation.
    pub generation: Option<u32>,
    /// Phase.
    #[serde(serialize_with = "inputs::phase_name")]
    pub phase: Option<Phase>,
}

/// A record in words: "read of port 0x3fd", "gave", "0x60".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Time and place in the run.
    pub at: At,
    /// Subject.
    pub subject: String,
    /// Verb.
    pub verb: &'static str,
    /// Value.
    pub value: String,
}

/// Amounts compared and found equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Records of the trace.
    pub trace_records: u64,
    /// Records that the traces dropped: equal in number and digest.
    pub trace_dropped: u64,
    /// Messages and answers among the records of the trace.
    pub messages: u64,
    /// Device writes.
    pub ledger_entries: u64,
    /// Engine events.
    pub engine_events: u64,
    /// First writes of processors to pages.
    pub cpu_writes: u64,
    /// Phases.
    pub phases: u64,
    /// Retrievals.
    pub retrievals: u64,
    /// Captured pages.
    pub captured_pages: u64,
    /// The agent's digests of pages.
    pub digests: u64,
    /// Pages of handover blobs.
    pub blob_pages: u64,
    /// Bytes on the console.
    pub console_bytes: u64,
    /// Hash of the final state.
    pub state_hash: String,
}

/// Compares two runs.
pub fn compare(first: &Evidence, second: &Evidence) -> Comparison {
    if let Some(reason) = incomparable(first, second) {
        return Comparison::Incomparable { reason };
    }
    match first_difference(first, second) {
        Some(difference) => Comparison::Different(Box::new(difference)),
        None => Comparison::Equal(Compared::of(first)),
    }
}

/// Why these two cannot be compared; `None` if they can.
pub fn incomparable(first: &Evidence, second: &Evidence) -> Option<Incomparable> {
    let unfinished = |evidence: &Evidence| evidence.outcome.kind == OutcomeKind::Unfinished;
    if [first, second].iter().any(|evidence| evidence.is_from_kvm()) {
        Some(Incomparable::Unrepeatable)
    } else if unfinished(first) {
        Some(Incomparable::Unfinished(Which::First))
    } else if unfinished(second) {
        Some(Incomparable::Unfinished(Which::Second))
    } else {
        None
    }
}

/// The earliest record in which two runs differ, and which of their inputs do. `None` when everything recorded is
/// equal.
///
/// Wall-clock times, paths, and last writers from a second run are not compared.
pub fn first_difference(first: &Evidence, second: &Evidence) -> Option<Difference> {
    let inputs = inputs::differences(first, second);
    let record = parts::first(first, second);
    let differ = !inputs.is_empty() || record.is_some();
    differ.then_some(Difference { inputs, record })
}

impl Compared {
    fn of(evidence: &Evidence) -> Self {
        let messages = |kind: Kind| matches!(kind, Kind::Message | Kind::Answer);
        let records = &evidence.trace.records;
        let captures = &evidence.captures;
        let pages = captures.checkpoints.iter().flat_map(|checkpoint| {
            let objects = checkpoint.objects.iter().map(|object| object.pages.len());
            objects.chain([checkpoint.strays.len()])
        });
        Self {
            trace_records: records.len() as u64,
            trace_dropped: evidence.trace.dropped,
            messages: records.iter().filter(|record| messages(record.kind)).count() as u64,
            ledger_entries: evidence.ledger.entries.len() as u64,
            engine_events: evidence.ledger.events.len() as u64,
            cpu_writes: evidence.cpu_writes.len() as u64,
            phases: evidence.phases.len() as u64,
            retrievals: evidence.retrievals.len() as u64,
            captured_pages: pages.sum::<usize>() as u64,
            digests: captures
                .digests
                .iter()
                .map(|record| record.values.len() as u64)
                .sum(),
            blob_pages: evidence.blobs.iter().map(|blob| blob.pages.len() as u64).sum(),
            console_bytes: evidence.console.len() as u64,
            state_hash: evidence.state_hash.clone(),
        }
    }
}
