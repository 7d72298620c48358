//! The expected content of pages, and their owners.

use super::finding::{Question, Writer, millis};
use crate::evidence::{
    Checkpoint, CpuWrite, Evidence, ObjectEvidence, PAGE, PageContent, Placed, end_of, frames_of,
    written_bytes,
};
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use guest_agent::protocol::Place;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use vmm::ledger::Entry;

/// Evidence, and the indexes over it that several rules need.
pub(super) struct Context<'a> {
    pub evidence: &'a Evidence,
    /// Parts of lines of kernels' complaints that the scenario allows.
    pub allowed: &'a [String],
    patterns: HashMap<u32, Pattern>,
    /// Positions in the ledger's list of entries by page frame, ascending.
    writes: HashMap<u64, Vec<u32>>,
    /// CPU writes by page frame, in order of time.
    cpu_writes: HashMap<u64, Vec<&'a CpuWrite>>,
    /// What the agent itself put into objects.
    placed: BTreeMap<u32, Vec<Placed>>,
}

/// What a page ought to hold at some moment.
pub(super) struct ExpectedPage {
    pub bytes: [u8; PAGE_BYTES],
    /// The byte ranges of a page that come from device writes, each with the write's position in the ledger. They do
    /// not overlap.
    pub device: Vec<(Range<usize>, u32)>,
}

impl ExpectedPage {
    /// Which device write gave byte `offset`.
    pub fn author(&self, offset: usize) -> Option<u32> {
        self.device
            .iter()
            .find(|(range, _)| range.contains(&offset))
            .map(|(_, index)| *index)
    }
}

/// The part of page `frame` that `write` covers.
pub(super) fn part_in_page(write: &Entry, frame: u64) -> Range<usize> {
    let page = frame.saturating_mul(PAGE);
    let clamp = |address: u64| usize::try_from(address.saturating_sub(page).min(PAGE)).unwrap_or(PAGE_BYTES);
    clamp(write.address)..clamp(end_of(write))
}

impl<'a> Context<'a> {
    pub fn new(evidence: &'a Evidence, allowed: &'a [String]) -> Self {
        let mut writes: HashMap<u64, Vec<u32>> = HashMap::new();
        for (index, write) in (0u32..).zip(&evidence.ledger.entries) {
            for frame in frames_of(write) {
                writes.entry(frame).or_default().push(index);
            }
        }
        let mut cpu_writes: HashMap<u64, Vec<&CpuWrite>> = HashMap::new();
        for write in &evidence.cpu_writes {
            cpu_writes.entry(write.address / PAGE).or_default().push(write);
        }
        let patterns = evidence
            .objects
            .iter()
            .map(|object| (object.id, Pattern::new(object.pattern_seed)))
            .collect();
        let placed = evidence
            .dma
            .iter()
            .filter(|dma| dma.started.is_some())
            .filter_map(|dma| {
                let ring = &dma.setup.ring;
                let generation = dma.started.map_or(0, |started| started.generation);
                let frames = |place: Place| Some(evidence.object(place.object)?.frames(generation));
                let placed = dma
                    .setup
                    .placed(&frames(ring.descriptors)?, &frames(ring.buffers)?);
                Some((ring.descriptors.object, placed))
            });
        Self {
            evidence,
            allowed,
            patterns,
            writes,
            cpu_writes,
            placed: placed.collect(),
        }
    }

    /// The pattern of an object.
    pub fn pattern(&self, object: u32) -> Option<&Pattern> {
        self.patterns.get(&object)
    }

    /// Positions in the ledger of the writes to a page frame, ascending.
    pub fn device_writes(&self, frame: u64) -> &[u32] {
        self.writes.get(&frame).map_or(&[], Vec::as_slice)
    }

    /// Page frames that the device wrote to, ascending.
    pub fn written_frames(&self) -> Vec<u64> {
        let mut frames: Vec<u64> = self.writes.keys().copied().collect();
        frames.sort_unstable();
        frames
    }

    /// CPU writes on record for a page frame.
    pub fn cpu_writes(&self, frame: u64) -> &[&'a CpuWrite] {
        self.cpu_writes.get(&frame).map_or(&[], Vec::as_slice)
    }

    /// From when CPU writes are missing, in words, if that is before `time` (`None` is the end of the run).
    pub fn cpu_writes_missing_before(&self, time: Option<u64>) -> Option<String> {
        let until = self.evidence.cpu_writes_until_ns?;
        let early = time.is_none_or(|time| until < time);
        early.then(|| format!("CPU writes from {} on are not on record", millis(until)))
    }

    /// The ledger entry at a position.
    pub fn write(&self, position: u32) -> &'a Entry {
        &self.evidence.ledger.entries[position as usize]
    }

    /// Expected content of page `index` of `object`, at `frame`, after `ledger_length` device writes; `None` if it is
    /// the page's pattern.
    pub fn expected(
        &self,
        object: &ObjectEvidence,
        index: u64,
        frame: u64,
        ledger_length: u64,
    ) -> Option<ExpectedPage> {
        let touched = self
            .device_writes(frame)
            .first()
            .is_some_and(|first| self.write(*first).index < ledger_length);
        let all = self.placed.get(&object.id).into_iter().flatten();
        let placed: Vec<_> = all
            .filter_map(|placed| Some((placed, overlap(placed, index)?)))
            .collect();
        if !touched && placed.is_empty() {
            return None;
        }
        let mut bytes = self
            .pattern(object.id)
            .map_or([0; PAGE_BYTES], |pattern| pattern.page(index));
        for (placed, (at, from)) in placed {
            let length = at.len();
            bytes[at].copy_from_slice(&placed.bytes[from..from + length]);
        }
        let device = self.overlay(frame, ledger_length, &mut bytes);
        Some(ExpectedPage { bytes, device })
    }

    /// Overlays `bytes` with the device's writes to a frame. Goes from the last write back and stops when no byte is
    /// left, because most of the thousands of writes to a ring's pages have been overwritten.
    pub fn overlay(
        &self,
        frame: u64,
        ledger_length: u64,
        bytes: &mut [u8; PAGE_BYTES],
    ) -> Vec<(Range<usize>, u32)> {
        let seed = self.evidence.dma.as_ref().map_or(0, |dma| dma.setup.engine.seed);
        let mut covered = [false; PAGE_BYTES];
        let mut device = Vec::new();
        let before = |position: &&u32| self.write(**position).index < ledger_length;
        let earlier = self.device_writes(frame).iter().rev().filter(before);
        for index in earlier {
            let write = self.write(*index);
            let part = part_in_page(write, frame);
            if covered[part.clone()].iter().all(|covered| *covered) {
                continue;
            }
            let block = written_bytes(write, seed);
            let skip = usize::try_from((frame * PAGE).saturating_sub(write.address)).unwrap_or(usize::MAX);
            let mut run: Option<Range<usize>> = None;
            for at in part.clone() {
                if covered[at] {
                    device.extend(run.take().map(|run| (run, *index)));
                    continue;
                }
                covered[at] = true;
                bytes[at] = block.get(skip + at - part.start).copied().unwrap_or(0);
                run = Some(run.map_or(at..at + 1, |run| run.start..at + 1));
            }
            device.extend(run.map(|run| (run, *index)));
        }
        device
    }

    /// The captured bytes of a page; `None` if it could not be read.
    pub fn actual(&self, object: u32, index: u64, content: PageContent) -> Option<[u8; PAGE_BYTES]> {
        self.evidence
            .captures
            .bytes(self.pattern(object)?, index, content)
    }

    /// The last writer of the byte at `address`, which is known to differ from what the device wrote; and the
    /// question that a second run could answer.
    pub fn last_cpu_writer(&self, checkpoint: usize, address: u64) -> (Writer, Option<Question>) {
        let question = Question { checkpoint, address };
        let known =
            |author: &&crate::evidence::Author| author.checkpoint == checkpoint && author.address == address;
        match self.evidence.authors.iter().find(known) {
            Some(author) => match &author.write {
                Some(write) => (Writer::cpu(write), None),
                None => {
                    let reason = "no CPU write to this byte was seen in a second run that watched it".into();
                    (Writer::Unknown { reason }, None)
                }
            },
            None => {
                if let Some(write) = self.page_writer(checkpoint, address) {
                    return (Writer::cpu(write), None);
                }
                let first = self.cpu_writes(address / PAGE).first();
                let missing = self.evidence.cpu_writes_until_ns.map_or(String::new(), |until| {
                    format!(", but those from {} on are missing", millis(until))
                });
                let reason = first.map_or_else(
                    || format!("no CPU write to this page is on record{missing}"),
                    |write| {
                        format!(
                            "only the first CPU write to this page is on record: {}",
                            Writer::cpu(write)
                        )
                    },
                );
                (Writer::Unknown { reason }, Some(question))
            }
        }
    }

    /// The last CPU write to the page before a checkpoint, for backends that record pages only.
    fn page_writer(&self, checkpoint: usize, address: u64) -> Option<&'a CpuWrite> {
        let taken_at = self.evidence.captures.checkpoints.get(checkpoint)?.at.time_ns;
        let earlier = |write: &&&CpuWrite| write.rip.is_none() && write.time_ns < taken_at;
        self.cpu_writes(address / PAGE)
            .iter()
            .rev()
            .find(earlier)
            .copied()
    }

    /// Objects that were preserved over the jump into `generation`.
    pub fn preserved_into(&self, generation: u32) -> impl Iterator<Item = &'a ObjectEvidence> {
        let left = generation.checked_sub(1);
        self.evidence
            .objects
            .iter()
            .filter(move |object| left.is_some_and(|left| object.preserved_by.contains(&left)))
    }

    /// Checkpoints with their indexes.
    pub fn checkpoints(&self) -> impl Iterator<Item = (usize, &'a Checkpoint)> {
        self.evidence.captures.checkpoints.iter().enumerate()
    }
}

/// The overlap of `placed` bytes and page `index`: the range in the page, and its start in the bytes.
fn overlap(placed: &Placed, index: u64) -> Option<(Range<usize>, usize)> {
    let page = index.checked_mul(PAGE)?;
    let end = placed
        .offset
        .checked_add(placed.bytes.len() as u64)?
        .min(page.checked_add(PAGE)?);
    let start = placed.offset.max(page);
    if start >= end {
        return None;
    }
    let in_page = usize::try_from(start - page).ok()?..usize::try_from(end - page).ok()?;
    Some((in_page, usize::try_from(start - placed.offset).ok()?))
}
