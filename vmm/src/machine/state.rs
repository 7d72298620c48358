//! The whole machine as plain data. The state hash covers exactly the contents of a snapshot.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::run::Kexec;
use super::{Blackout, Cause, Event, Machine, MachineError, Moment, Phases};
use crate::devices::SystemBus;
use crate::devices::bus::BusState;
use crate::memory::{GuestRam, PAGE_BYTES, PAGE_SIZE, RamImage};
use crate::phase::Stamp;
use crate::platform::{Platform, Progress};
use crate::processors::{Processors, ProcessorsState};
use crate::provenance::Provenance;
use crate::soft::stepped::Stepped;

/// Records of the run so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Records {
    pub stamp: Stamp,
    pub phases: Phases,
    pub provenance: Provenance,
    pub blackouts: Vec<Blackout>,
    pub kexec: Kexec,
    pub reply_owed: bool,
    /// Linked addresses of kernel instructions at which to stop, see [`Machine::stop_before`].
    pub stops: Vec<u64>,
    pub ended: Option<Event>,
}

impl Records {
    /// Records of a machine that is switched on in this phase.
    pub fn new(stamp: Stamp) -> Self {
        let mut provenance = Provenance::default();
        provenance.begin(stamp);
        Self {
            stamp,
            phases: Phases::new(stamp),
            provenance,
            blackouts: Vec::new(),
            kexec: Kexec::NotWatching,
            reply_owed: false,
            stops: Vec::new(),
            ended: None,
        }
    }
}

/// The state of a machine without its RAM: processors, devices and records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    now: u64,
    processors: ProcessorsState,
    devices: BusState,
    causes: Vec<Cause>,
    progress: Progress,
    records: Records,
}

impl MachineState {
    /// Where the machine stands.
    #[must_use]
    pub fn moment(&self) -> Moment {
        let (retired, rip) = match &self.processors {
            ProcessorsState::Soft(state) => (Some(state.retired()), Some(state.rip())),
            ProcessorsState::Kvm(_) => (None, None),
        };
        Moment {
            time: self.now,
            retired,
            rip,
            stamp: self.records.stamp,
        }
    }

    /// XXH3-128 of each part's encoding, with the part's name. It serves to name the part in which two states differ.
    pub fn parts(&self) -> Result<Vec<(&'static str, u128)>, MachineError> {
        let Self {
            now,
            processors,
            devices,
            causes,
            progress,
            records,
        } = self;
        Ok(vec![
            ("time", digest(now)?),
            ("processors", digest(processors)?),
            ("devices", digest(devices)?),
            ("causes of engine events", digest(causes)?),
            ("signs of progress", digest(progress)?),
            ("records", digest(records)?),
        ])
    }
}

#[cfg(test)]
impl MachineState {
    pub(super) fn set_time(&mut self, now: u64) {
        self.now = now;
    }
}

#[cfg(test)]
mod parts {
    use super::{BusState, MachineState, ProcessorsState, Records};
    use crate::processors::SteppedState;

    super::super::parts_of!(MachineState {
        now,
        processors,
        devices,
        causes,
        progress,
        records,
    });
    super::super::parts_of!(Records {
        stamp,
        phases,
        provenance,
        blackouts,
        kexec,
        reply_owed,
        stops,
        ended,
    });
    super::super::parts_of!(SteppedState {
        vcpus,
        activities,
        turn,
        idle,
    });

    /// `state` with each part by itself as it is in `other`: parts of the machine, and of its processors, devices and
    /// records.
    pub fn each_part(state: &MachineState, other: &MachineState) -> Vec<(&'static str, MachineState)> {
        let with = |change: &dyn Fn(&mut MachineState)| {
            let mut changed = state.clone();
            change(&mut changed);
            changed
        };
        let mut all = state.each_part(other);
        for (name, devices) in BusState::each_part(&state.devices, &other.devices) {
            all.push((name, with(&|state| state.devices = devices.clone())));
        }
        for (name, records) in state.records.each_part(&other.records) {
            all.push((name, with(&|state| state.records = records.clone())));
        }
        let (ProcessorsState::Soft(ours), ProcessorsState::Soft(theirs)) =
            (&state.processors, &other.processors)
        else {
            panic!("a machine on soft");
        };
        for (name, processors) in ours.each_part(theirs) {
            let processors = ProcessorsState::Soft(processors);
            all.push((name, with(&|state| state.processors = processors.clone())));
        }
        all
    }
}
#[cfg(test)]
pub(super) use parts::each_part;

fn digest<T: Serialize>(part: &T) -> Result<u128, MachineError> {
    let encoded = postcard::to_allocvec(part).map_err(|error| MachineError::Encoding(error.to_string()))?;
    Ok(xxh3_128(&encoded))
}

/// The state of a machine at one moment. Any number of machines can continue from it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Guest RAM.
    pub ram: Arc<RamImage>,
    /// Everything else.
    pub state: MachineState,
}

impl Machine {
    /// The state without RAM.
    #[must_use]
    pub fn state(&self) -> MachineState {
        let Self {
            platform,
            processors,
            records,
            input_may_come: _,
        } = self;
        let Platform {
            ram: _,
            bus,
            causes,
            progress,
        } = platform;
        MachineState {
            now: processors.now(),
            processors: processors.state(),
            devices: bus.state(),
            causes: causes.clone(),
            progress: progress.clone(),
            records: records.clone(),
        }
    }

    /// Takes a snapshot. The machine continues as if none had been taken.
    ///
    /// Fails on the `kvm` backend.
    pub fn snapshot(&mut self) -> Result<Snapshot, MachineError> {
        let state = self.state();
        if let ProcessorsState::Kvm(_) = state.processors {
            return Err(MachineError::NoSnapshot);
        }
        self.mark_page_writes()?;
        Ok(Snapshot {
            ram: self.platform.ram.image()?,
            state,
        })
    }

    /// A machine that continues from `snapshot`, with the same results as the one that it was taken of. It shares each
    /// page of the snapshot's RAM until it writes to the page.
    pub fn from_snapshot(snapshot: &Snapshot) -> Result<Self, MachineError> {
        let MachineState {
            now,
            processors,
            devices,
            causes,
            progress,
            records,
        } = &snapshot.state;
        let ProcessorsState::Soft(processors) = processors else {
            return Err(MachineError::NoSnapshot);
        };
        let ram = GuestRam::from_image(&snapshot.ram, snapshot.ram.pages().saturating_mul(PAGE_SIZE))?;
        let bus = SystemBus::from_state(devices, Arc::clone(&ram), processors.count(), *now)
            .map_err(|device| MachineError::UnsoundState { device })?;
        let resumed = Stepped::from_state(processors, &ram)?;
        if resumed.now() != *now {
            return Err(MachineError::UnsoundState {
                device: "clock of the processors",
            });
        }
        let mut machine = Self {
            processors: Box::new(resumed),
            platform: Platform {
                ram,
                bus,
                causes: causes.clone(),
                progress: progress.clone(),
            },
            records: records.clone(),
            input_may_come: false,
        };
        machine.await_addresses();
        Ok(machine)
    }

    /// XXH3-128 over the whole state: the digest of each part, then number and content of every page of RAM that is not
    /// all zero.
    pub fn state_hash(&mut self) -> Result<u128, MachineError> {
        self.mark_page_writes()?;
        let mut hash = Xxh3::new();
        for (_, digest) in self.state().parts()? {
            hash.update(&digest.to_le_bytes());
        }
        let ram = &self.platform.ram;
        let mut page = [0; PAGE_BYTES];
        for pfn in ram.touched_pages() {
            if ram.read(pfn * PAGE_SIZE, &mut page).is_ok() && page.iter().any(|&byte| byte != 0) {
                hash.update(&pfn.to_le_bytes());
                hash.update(&page);
            }
        }
        Ok(hash.digest128())
    }

    /// Marks in RAM the pages that processors wrote in the current phase, which have not been marked yet.
    pub(super) fn mark_page_writes(&mut self) -> Result<(), MachineError> {
        let ram = &self.platform.ram;
        Ok(self
            .processors
            .epoch_writes(&mut |write| ram.mark(write.gpa, write.len.into()))?)
    }
}
