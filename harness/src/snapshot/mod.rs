//! Snapshots of a run: machine, position and evidence at one moment, as one value.
//!
//! A run that continues from a [`RunSnapshot`] gives the same results as the run that it was taken of. In memory a
//! branch is cheap, because it shares the snapshot's guest RAM until it writes. The file holds everything needed to
//! continue elsewhere, including kernels and agent.

mod file;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm::machine::{MachineState, Snapshot};
use vmm::processors::Translation;

use crate::conductor::{Cursor, HostTimes};
use crate::evidence::{Captures, Evidence};
use crate::oracle::Question;
use crate::plan::Plan;
pub use file::{Header, SnapshotError, VERSION, is_snapshot};

/// A run at one moment.
#[derive(Debug, Clone)]
pub struct RunSnapshot {
    /// The plan of the run.
    pub plan: Arc<Plan>,
    /// The agent's program, /init of every generation.
    pub agent: Arc<Vec<u8>>,
    /// Position in the plan.
    pub cursor: Cursor,
    /// Evidence so far, without the records that are in the machine's state.
    pub evidence: Evidence,
    /// Bytes whose last writer is in question.
    pub questions: Vec<Question>,
    /// The machine.
    pub machine: Snapshot,
    /// Host time of each phase so far. It does not affect the run.
    pub host_times: HostTimes,
    /// Which guest code runs that continue from here translate. It is not stored.
    pub translation: Translation,
}

/// A snapshot without guest RAM, as encoded in a file.
#[derive(Serialize, Deserialize)]
struct Encoded<'a> {
    plan: Cow<'a, Plan>,
    agent: Cow<'a, [u8]>,
    cursor: Cow<'a, Cursor>,
    /// Without the fields that evidence stores in separate files. Ledger, trace and console are in the machine's state.
    evidence: Cow<'a, Evidence>,
    captures: Cow<'a, Captures>,
    /// Pages of each handover blob.
    blobs: Vec<Cow<'a, BTreeMap<u64, Vec<u8>>>>,
    questions: Cow<'a, [Question]>,
    machine: Cow<'a, MachineState>,
    host_times: Cow<'a, HostTimes>,
}

impl RunSnapshot {
    /// Guest time in nanoseconds.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.machine.state.moment().time
    }

    /// Description of this snapshot.
    #[must_use]
    pub fn header(&self) -> Header {
        let (plan, at) = (&self.plan, self.machine.state.moment());
        let kernel = |generation| {
            let kernel = plan.kernel(generation);
            (kernel.release.clone(), format!("{:016x}", kernel.hash))
        };
        Header {
            baton: env!("CARGO_PKG_VERSION").into(),
            scenario: plan.name.clone(),
            scenario_file: plan.scenario_file.clone(),
            seed: plan.seed,
            kernels: (0..=plan.kexecs).map(kernel).collect(),
            at: at.stamp.to_string(),
            time_ns: at.time,
            instructions: at.retired,
            ram_bytes: plan.ram_bytes,
            vcpus: plan.vcpus,
        }
    }

    /// Writes the snapshot to a file. A file of that name is replaced once the new one is complete.
    pub fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let Self {
            plan,
            agent,
            cursor,
            evidence,
            questions,
            machine: Snapshot { ram, state: machine },
            host_times,
            translation: _,
        } = self;
        let encoded = Encoded {
            plan: Cow::Borrowed(plan),
            agent: Cow::Borrowed(agent),
            cursor: Cow::Borrowed(cursor),
            evidence: Cow::Borrowed(evidence),
            captures: Cow::Borrowed(&evidence.captures),
            blobs: evidence
                .blobs
                .iter()
                .map(|blob| Cow::Borrowed(&blob.pages))
                .collect(),
            questions: Cow::Borrowed(questions),
            machine: Cow::Borrowed(machine),
            host_times: Cow::Borrowed(host_times),
        };
        let reading = file::Reading { path };
        let state = postcard::to_allocvec(&encoded).map_err(|error| reading.malformed("state", error))?;
        let ram = Arc::clone(ram);
        file::write(path, &self.header(), &file::Content { state, ram })
    }

    /// Reads a snapshot from a file. The file is untrusted.
    pub fn read(path: &Path) -> Result<Self, SnapshotError> {
        let (header, content) = file::read(path)?;
        let reading = file::Reading { path };
        let state: Encoded<'_> =
            postcard::from_bytes(&content.state).map_err(|error| reading.malformed("state", error))?;
        let Encoded {
            plan,
            agent,
            cursor,
            evidence,
            captures,
            blobs,
            questions,
            machine,
            host_times,
        } = state;
        let mut evidence = evidence.into_owned();
        evidence.captures = captures.into_owned();
        if blobs.len() != evidence.blobs.len() {
            let (found, expected) = (blobs.len(), evidence.blobs.len());
            return Err(reading.malformed(
                "state",
                format!("pages of {found} blobs, expected those of {expected}"),
            ));
        }
        for (blob, pages) in evidence.blobs.iter_mut().zip(blobs) {
            blob.pages = pages.into_owned();
        }
        let snapshot = Self {
            plan: Arc::new(plan.into_owned()),
            agent: Arc::new(agent.into_owned()),
            cursor: cursor.into_owned(),
            evidence,
            questions: questions.into_owned(),
            machine: Snapshot {
                ram: content.ram,
                state: machine.into_owned(),
            },
            host_times: host_times.into_owned(),
            translation: Translation::default(),
        };
        if snapshot.header() != header {
            return Err(reading.malformed("header", "it does not say what the state says"));
        }
        Ok(snapshot)
    }
}
