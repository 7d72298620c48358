//! The expected content of pages, and their owners.

use super::finding::{Question, Writer, millis};
use crate::evidence::{
    Checkpoint, CpuWrite, Evidence, Moment, ObjectEvidence, PAGE, PageContent, Placed, bytes_of, end_of,
    frames_of,
};
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use guest_agent::protocol::Place;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use vmm::ledger::Entry;

/// Positions in the ledger's list of entries by page frame, ascending.
type Writes = HashMap<u64, Vec<u32>>;

fn of_frame(writes: &Writes, frame: u64) -> &[u32] {
    writes.get(&frame).map_or(&[], Vec::as_slice)
}

/// Evidence, and the indexes over it that several rules need.
pub(super) struct Context<'a> {
    pub evidence: &'a Evidence,
    /// Parts of lines of kernels' complaints that the scenario allows.
    pub allowed: &'a [String],
    patterns: HashMap<u32, Pattern>,
    /// The patterns that steps have written, by seed.
    seeds: HashMap<u64, Pattern>,
    /// The writes that were made.
    writes: Writes,
    /// The writes that the device meant to make. They differ where injections acted.
    meant: Writes,
    /// The writes that injections made or withheld.
    injected: Writes,
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
        let (mut writes, mut meant, mut injected) = (Writes::new(), Writes::new(), Writes::new());
        for (index, write) in (0u32..).zip(&evidence.ledger.entries) {
            for frame in frames_of(write) {
                let add = |to: &mut Writes| to.entry(frame).or_default().push(index);
                if write.was_made() {
                    add(&mut writes);
                }
                if write.was_meant() {
                    add(&mut meant);
                }
                if !(write.was_made() && write.was_meant()) {
                    add(&mut injected);
                }
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
        let laid = evidence.objects.iter().filter_map(|object| object.laid.as_ref());
        let seeds: BTreeSet<u64> = laid.flatten().filter_map(|laid| laid.seed).collect();
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
            seeds: seeds.into_iter().map(|seed| (seed, Pattern::new(seed))).collect(),
            writes,
            meant,
            injected,
            cpu_writes,
            placed: placed.collect(),
        }
    }

    /// The pattern of an object.
    pub fn pattern(&self, object: u32) -> Option<&Pattern> {
        self.patterns.get(&object)
    }

    /// Positions in the ledger of the writes to a page frame that were made, ascending.
    pub fn device_writes(&self, frame: u64) -> &[u32] {
        of_frame(&self.writes, frame)
    }

    /// Page frames that the device wrote to, or meant to, ascending.
    pub fn written_frames(&self) -> Vec<u64> {
        let frames: BTreeSet<u64> = self.writes.keys().chain(self.meant.keys()).copied().collect();
        frames.into_iter().collect()
    }

    /// Whether injections acted on writes to this page frame.
    pub fn is_injected(&self, frame: u64) -> bool {
        self.injected.contains_key(&frame)
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

    /// Expected content of page `index` of `object`, in `frame`, at a moment; `None` if it is the page's pattern. What
    /// injections wrote, and what they made of the device's writes, is in it.
    pub fn expected(
        &self,
        object: &ObjectEvidence,
        index: u64,
        frame: u64,
        at: Moment,
    ) -> Option<ExpectedPage> {
        self.page_of(&self.writes, object, index, frame, at)
    }

    /// The same, had no injection acted.
    pub fn meant(&self, object: &ObjectEvidence, index: u64, frame: u64, at: Moment) -> Option<ExpectedPage> {
        self.page_of(&self.meant, object, index, frame, at)
    }

    fn page_of(
        &self,
        writes: &Writes,
        object: &ObjectEvidence,
        index: u64,
        frame: u64,
        at: Moment,
    ) -> Option<ExpectedPage> {
        let ledger_length = at.ledger_length;
        let touched = of_frame(writes, frame)
            .first()
            .is_some_and(|first| self.write(*first).index < ledger_length);
        let all = self.placed.get(&object.id).into_iter().flatten();
        let placed: Vec<_> = all
            .filter_map(|placed| Some((placed, overlap(placed.offset, placed.bytes.len() as u64, index)?)))
            .collect();
        let laid = self.laid(object, index, at);
        if !touched && placed.is_empty() && laid.is_none() {
            return None;
        }
        let mut bytes = laid.unwrap_or_else(|| self.pattern_page(object, index));
        for (placed, (at, from)) in placed {
            let length = at.len();
            bytes[at].copy_from_slice(&placed.bytes[from..from + length]);
        }
        let device = self.laid_over(of_frame(writes, frame), frame, ledger_length, &mut bytes);
        Some(ExpectedPage { bytes, device })
    }

    /// Page `index` of the pattern of an object.
    pub fn pattern_page(&self, object: &ObjectEvidence, index: u64) -> [u8; PAGE_BYTES] {
        self.pattern(object.id)
            .map_or([0; PAGE_BYTES], |pattern| pattern.page(index))
    }

    /// What the scenario's steps have put into page `index` of an object by a moment; `None` if that is its pattern.
    fn laid(&self, object: &ObjectEvidence, index: u64, by: Moment) -> Option<[u8; PAGE_BYTES]> {
        let laid = object.laid.as_ref()?.iter();
        let laid = laid.take_while(|laid| laid.at.time_ns <= by.time_ns);
        let (mut bytes, mut is_pattern) = ([0; PAGE_BYTES], false);
        for one in laid {
            let Some((at, _)) = overlap(one.part.offset, one.part.bytes, index) else {
                continue;
            };
            is_pattern = one.seed == Some(object.pattern_seed) && (is_pattern || at.len() == PAGE_BYTES);
            match one.seed.and_then(|seed| self.seeds.get(&seed)) {
                Some(pattern) => bytes[at.clone()].copy_from_slice(&pattern.page(index)[at]),
                None => bytes[at].fill(0),
            }
        }
        (!is_pattern).then_some(bytes)
    }

    /// Overlays `bytes` with the writes to a frame that were made. Goes from the last write back and stops when no byte
    /// is left, because most of the thousands of writes to a ring's pages have been overwritten.
    pub fn overlay(
        &self,
        frame: u64,
        ledger_length: u64,
        bytes: &mut [u8; PAGE_BYTES],
    ) -> Vec<(Range<usize>, u32)> {
        self.laid_over(self.device_writes(frame), frame, ledger_length, bytes)
    }

    /// The same with the writes that the device meant to make.
    pub fn meant_overlay(
        &self,
        frame: u64,
        ledger_length: u64,
        bytes: &mut [u8; PAGE_BYTES],
    ) -> Vec<(Range<usize>, u32)> {
        self.laid_over(of_frame(&self.meant, frame), frame, ledger_length, bytes)
    }

    fn laid_over(
        &self,
        writes: &[u32],
        frame: u64,
        ledger_length: u64,
        bytes: &mut [u8; PAGE_BYTES],
    ) -> Vec<(Range<usize>, u32)> {
        let mut covered = [false; PAGE_BYTES];
        let mut left = PAGE_BYTES;
        let mut device = Vec::new();
        let before = |position: &&u32| self.write(**position).index < ledger_length;
        let earlier = writes.iter().rev().filter(before);
        for index in earlier {
            if left == 0 {
                break;
            }
            let write = self.write(*index);
            let part = part_in_page(write, frame);
            if covered[part.clone()].iter().all(|covered| *covered) {
                continue;
            }
            let block = self.bytes_of(write);
            let skip = usize::try_from((frame * PAGE).saturating_sub(write.address)).unwrap_or(usize::MAX);
            let mut at = part.start;
            while let Some(free) = covered[at..part.end].iter().position(|covered| !covered) {
                let from = at + free;
                let free = covered[from..part.end].iter().position(|covered| *covered);
                at = free.map_or(part.end, |length| from + length);
                covered[from..at].fill(true);
                left -= at - from;
                let source = skip.saturating_add(from - part.start);
                let known = block.get(source..).unwrap_or(&[]);
                let known = &known[..known.len().min(at - from)];
                bytes[from..from + known.len()].copy_from_slice(known);
                bytes[from + known.len()..at].fill(0);
                device.push((from..at, *index));
            }
        }
        device
    }

    /// The bytes of a write.
    pub fn bytes_of(&self, write: &Entry) -> Vec<u8> {
        let seed = self.evidence.dma.as_ref().map_or(0, |dma| dma.setup.engine.seed);
        bytes_of(&self.evidence.ledger, write, seed)
    }

    /// The entry by which an injection last acted on the byte at `address`: it wrote there, or withheld a write.
    pub fn injected_at(&self, address: u64, ledger_length: u64) -> Option<&'a Entry> {
        let acted = self.injected.get(&(address / PAGE)).into_iter().flatten().rev();
        let mut acted = acted.map(|position| self.write(*position));
        acted.find(|entry| entry.index < ledger_length && (entry.address..end_of(entry)).contains(&address))
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

/// The overlap of `bytes` bytes from `offset` on and page `index`: the range in the page, and its start in the bytes.
fn overlap(offset: u64, bytes: u64, index: u64) -> Option<(Range<usize>, usize)> {
    let page = index.checked_mul(PAGE)?;
    let end = offset.checked_add(bytes)?.min(page.checked_add(PAGE)?);
    let start = offset.max(page);
    if start >= end {
        return None;
    }
    let in_page = usize::try_from(start - page).ok()?..usize::try_from(end - page).ok()?;
    Some((in_page, usize::try_from(start - offset).ok()?))
}
