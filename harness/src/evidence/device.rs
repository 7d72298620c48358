//! Set-up and writes of the DMA engine.

use super::{Moment, PAGE};
use guest_agent::device::dma::DESCRIPTOR_BYTES;
use guest_agent::protocol::DmaRing;
use serde::{Deserialize, Serialize};
use vmm::devices::dma::DmaConfig;
use vmm::ledger::{Content, Entry, Injected, Kind, LedgerRecord};

/// An empty ledger.
pub fn empty_ledger() -> LedgerRecord {
    vmm::ledger::Ledger::new(1).to_record()
}

/// The bytes of an entry of `ledger`, in a run whose stream has seed `seed`, be it a device's write or an injection's.
pub fn bytes_of(ledger: &LedgerRecord, entry: &Entry, seed: u64) -> Vec<u8> {
    let Some(injected) = injected(ledger, entry) else {
        return written_bytes(entry, seed);
    };
    match &injected.content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::AsMeant { from } => {
            let from = *from as usize;
            let bytes = meant(ledger, injected).map_or(Vec::new(), |meant| written_bytes(meant, seed));
            let part = bytes.get(from..from.saturating_add(entry.length as usize));
            part.map_or(Vec::new(), <[u8]>::to_vec)
        }
    }
}

/// What is known of an entry that an injection made; `None` if a device made it.
pub fn injected<'a>(ledger: &'a LedgerRecord, entry: &Entry) -> Option<&'a Injected> {
    match entry.kind {
        Kind::Injected { number } => ledger.injected.get(number as usize),
        _ => None,
    }
}

/// The device's write that an injection made something else of.
pub fn meant<'a>(ledger: &'a LedgerRecord, injected: &Injected) -> Option<&'a Entry> {
    let index = usize::try_from(injected.of?).ok()?;
    ledger.entries.get(index)
}

/// The bytes of a device write, in a run whose stream has seed `seed`; none of an injection's.
pub fn written_bytes(entry: &Entry, seed: u64) -> Vec<u8> {
    match entry.kind {
        Kind::Block { sequence, .. } => {
            let mut bytes = vec![0; entry.length as usize];
            vmm::content::block_content(seed, sequence, &mut bytes);
            bytes
        }
        Kind::Completion { count } => count.to_le_bytes().to_vec(),
        Kind::Msi { data } => data.to_le_bytes().to_vec(),
        Kind::Injected { .. } => Vec::new(),
    }
}

/// First byte after a device write.
pub fn end_of(entry: &Entry) -> u64 {
    entry.address.saturating_add(u64::from(entry.length))
}

/// Page frames that a device write touches. An interrupt message to a local APIC touches none.
pub fn frames_of(entry: &Entry) -> impl Iterator<Item = u64> + use<> {
    let last = end_of(entry).saturating_sub(1).max(entry.address) / PAGE;
    let to_memory = entry.goes_to_memory();
    (entry.address / PAGE..=last).filter(move |_| to_memory)
}

/// What was written, in words.
pub fn describe(entry: &Entry) -> String {
    match entry.kind {
        Kind::Block { sequence, .. } => format!("block {sequence}"),
        Kind::Completion { count } => format!("completion count {count}"),
        Kind::Msi { data } if entry.goes_to_memory() => {
            format!("interrupt message {data:#x} to memory, where no local APIC is")
        }
        Kind::Msi { data } => format!("interrupt message {data:#x}"),
        Kind::Injected { .. } => format!("{} bytes of an injection", entry.length),
    }
}

/// The processor's access to the DMA engine that caused an engine event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCause {
    /// Index of the event in the ledger's list of events.
    pub event: usize,
    /// Instruction pointer.
    pub rip: u64,
    /// Symbol and offset of it, where known.
    pub symbol: Option<String>,
    /// Instructions retired since power-on, where the backend counts them.
    pub instructions: Option<u64>,
    /// Privilege level: 0 kernel, 3 user.
    pub cpl: u8,
}

/// How the DMA engine is set up: by the host when the machine is made, and by the agent's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaSetup {
    /// The device.
    pub engine: DmaConfig,
    /// What the driver programs it with.
    pub ring: DmaRing,
}

/// The DMA engine of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaEvidence {
    /// How it was set up.
    pub setup: DmaSetup,
    /// When the engine was told to start; `None` until then.
    pub started: Option<Moment>,
    /// When the engine was told to stop.
    pub stopped: Option<Moment>,
}

/// Bytes that the agent put into one of its objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Byte offset in the object.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl DmaSetup {
    /// Guest time that one block takes, in nanoseconds.
    pub fn period_ns(&self) -> u64 {
        u64::from(self.ring.buffer_bytes).saturating_mul(1_000_000_000) / self.engine.rate.max(1)
    }

    /// The agent's own writes to the ring's object before it enables the engine: the list of the ring's pages, the
    /// descriptors, and a completion count of 0. `ring_frames` are the page frames of that object, and `buffer_frames`
    /// those of the object with the buffers.
    pub fn placed(&self, ring_frames: &[u64], buffer_frames: &[u64]) -> Vec<Placed> {
        let count = Placed {
            offset: self.ring.completion.offset,
            bytes: vec![0; 8],
        };
        vec![self.list(ring_frames), self.descriptors(buffer_frames), count]
    }

    fn list(&self, ring_frames: &[u64]) -> Placed {
        let ring = &self.ring;
        let pages = (u64::from(ring.entries) * DESCRIPTOR_BYTES).div_ceil(PAGE);
        let words = (0..pages).flat_map(|page| {
            let index = usize::try_from(ring.descriptors.offset / PAGE + page).ok();
            let frame = index.and_then(|index| ring_frames.get(index));
            frame.map_or(0, |frame| frame * PAGE).to_le_bytes()
        });
        Placed {
            offset: ring.list.offset,
            bytes: words.collect(),
        }
    }

    fn descriptors(&self, buffer_frames: &[u64]) -> Placed {
        let ring = &self.ring;
        let mut bytes = Vec::new();
        for entry in 0..u64::from(ring.entries) {
            let offset = ring.buffers.offset + entry * u64::from(ring.buffer_bytes);
            let frame = usize::try_from(offset / PAGE)
                .ok()
                .and_then(|page| buffer_frames.get(page));
            let own = frame.map_or(0, |frame| frame * PAGE + offset % PAGE);
            let wild = &ring.wild_addresses;
            let address = match wild.len() {
                0 => own,
                #[allow(clippy::cast_possible_truncation)] // below wild.len()
                length => wild[(entry % length as u64) as usize],
            };
            bytes.extend_from_slice(&address.to_le_bytes());
            bytes.extend_from_slice(&ring.buffer_bytes.to_le_bytes());
            bytes.extend_from_slice(&0u32.to_le_bytes());
        }
        debug_assert_eq!(bytes.len() as u64, u64::from(ring.entries) * DESCRIPTOR_BYTES);
        Placed {
            offset: ring.descriptors.offset,
            bytes,
        }
    }
}
