//! Memory that the kernel reserves by name (`reserve_mem=`). It has no file, so the host does what the agent does for
//! memfds: it finds the memory in the kernel's own table, fills it with its pattern, and looks in the new kernel's
//! table whether that has it again.

use super::Run;
use super::cursor::{Cursor, Ending, Point};
use crate::evidence::{AgentFailure, Evidence, ObjectEvidence, ObjectKind, OutcomeKind, PAGE, Retrieval};
use crate::plan::{Plan, REGION_TABLE};
use crate::scenario::{MAX_REGIONS, REGION_NAME_BYTES};
use guest_agent::pattern::Pattern;
use guest_agent::protocol::PageRun;
use vmm::memory::MemoryError;
use vmm::translate::AddressSpace;

/// Bytes of an entry (mm/memblock.c, `struct reserve_mem_table`): the name, and two u64, start and size.
const ENTRY_BYTES: usize = REGION_NAME_BYTES + 16;

/// An entry of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Guest physical address.
    pub start: u64,
    /// Size in bytes.
    pub bytes: u64,
}

impl Region {
    /// An entry as the kernel has it; `None` if the entry is not in use.
    fn parse(entry: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (name, numbers) = entry.split_at(REGION_NAME_BYTES);
        let [start, bytes] = numbers.as_chunks().0 else {
            return None;
        };
        let bytes = u64::from_le_bytes(*bytes);
        let end = name.iter().position(|byte| *byte == 0)?;
        (bytes > 0 && end > 0).then(|| Self {
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            start: u64::from_le_bytes(*start),
            bytes,
        })
    }

    /// Its pages; `None` if it is not made of whole ones.
    fn pages(&self) -> Option<PageRun> {
        let whole = self.start.is_multiple_of(PAGE) && self.bytes.is_multiple_of(PAGE);
        whole.then_some(PageRun {
            first: self.start / PAGE,
            count: self.bytes / PAGE,
        })
    }
}

impl Run {
    /// The regions that the running kernel has; `None` if its table cannot be found or read.
    pub(super) fn regions(&self) -> Option<Vec<Region>> {
        let generation = self.cursor.generation;
        let kernel = self.plan.kernel(generation);
        let table = kernel.address_of(&self.evidence.fit(generation), REGION_TABLE)?;
        let spaces = AddressSpace::all_of(&self.machine.registers());
        let ram = self.machine.ram();
        let mut found = Vec::new();
        for number in 0..MAX_REGIONS as u64 {
            let mut entry = [0; ENTRY_BYTES];
            let at = table.checked_add(number * ENTRY_BYTES as u64)?;
            if !spaces.iter().any(|space| space.read(ram, at, &mut entry)) {
                return None;
            }
            found.extend(Region::parse(&entry));
        }
        Some(found)
    }

    /// Fills an object with its pattern, where the running kernel has it.
    pub(super) fn fill(&self, object: u32) -> Result<(), MemoryError> {
        let Some(known) = self.evidence.object(object) else {
            return Ok(());
        };
        let pattern = Pattern::new(known.pattern_seed);
        for (index, frame) in (0..).zip(known.frames(self.cursor.generation)) {
            let page = pattern.page(index);
            self.machine.ram().write(frame.saturating_mul(PAGE), &page)?;
        }
        Ok(())
    }
}

/// Handles what was found in the running kernel's table. In the first kernel each region must be there. In a new one it
/// must be where it was before.
pub(super) fn found(
    plan: &Plan,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    found: Option<Vec<Region>>,
    at: Point,
) -> Result<(), Ending> {
    let generation = cursor.generation;
    let Some(found) = found else {
        let text = format!(
            "{REGION_TABLE} of the kernel of generation {generation} cannot be read: its System.map does not fit it"
        );
        return Err(Ending::new(OutcomeKind::MachineFailed, text));
    };
    let is_first = generation == plan.first_generation();
    for number in 0..evidence.objects.len() {
        let object = &evidence.objects[number];
        if object.kind != ObjectKind::ReserveMem {
            continue;
        }
        let was_preserved = generation
            .checked_sub(1)
            .is_some_and(|left| object.preserved_by.contains(&left));
        if !is_first && !was_preserved {
            continue;
        }
        let (id, owner) = (object.id, object.owner());
        let here = found.iter().find(|region| region.name == object.name);
        let pages = here.and_then(Region::pages);
        let problem = if is_first {
            unusable(object, pages)
        } else {
            not_again(object, generation, pages)
        };
        let failure = problem.map(|detail| {
            evidence.failures.push(AgentFailure {
                generation,
                phase: at.phase,
                request: format!("{} {owner}", if is_first { "find" } else { "retrieve" }),
                call: format!("the look-up in {REGION_TABLE}"),
                errno: 0,
                detail,
            });
            evidence.failures.len() - 1
        });
        if failure.is_some() && is_first && !plan.is_survey() {
            let text = evidence.failures[evidence.failures.len() - 1].to_string();
            return Err(Ending::new(OutcomeKind::SetupFailed, text));
        }
        if !is_first {
            evidence.retrievals.push(Retrieval {
                generation,
                what: owner,
                object: Some(id),
                time_ns: at.moment.time_ns,
                ledger_length: at.moment.ledger_length,
                failure,
            });
            cursor.lost |= failure.is_some();
        }
        if let (None, Some(pages)) = (failure, pages) {
            cursor.held.insert(id);
            let object = &mut evidence.objects[number];
            object.pages.insert(generation, vec![pages]);
            if generation < plan.kexecs {
                object.preserved_by.push(generation);
            }
        }
    }
    Ok(())
}

/// Why a first kernel's region cannot be used; `None` if it can.
fn unusable(object: &ObjectEvidence, found: Option<PageRun>) -> Option<String> {
    match found {
        None => Some("the kernel has no memory of that name, or not of whole pages".into()),
        Some(pages) if pages.count != object.bytes / PAGE => {
            Some(format!("{} pages, expected {}", pages.count, object.bytes / PAGE))
        }
        Some(_) => None,
    }
}

/// Why a region of a new kernel is not the one that was preserved; `None` if it is.
fn not_again(object: &ObjectEvidence, generation: u32, found: Option<PageRun>) -> Option<String> {
    let before = object.frames(generation);
    let expected = PageRun {
        first: before.first().copied().unwrap_or_default(),
        count: before.len() as u64,
    };
    let address = |pages: PageRun| pages.first.saturating_mul(PAGE);
    match found {
        None => Some("the new kernel has no memory of that name".into()),
        Some(pages) if pages != expected => Some(format!(
            "the new kernel has it at {:#x}, and it was at {:#x}",
            address(pages),
            address(expected)
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, start: u64, bytes: u64) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[16..24].copy_from_slice(&start.to_le_bytes());
        entry[24..].copy_from_slice(&bytes.to_le_bytes());
        entry
    }

    #[test]
    fn an_entry_has_name_start_and_size() {
        let region = Region::parse(&entry("kept", 0x7000, 0x2000)).unwrap();
        assert_eq!(
            (region.name.as_str(), region.start, region.bytes),
            ("kept", 0x7000, 0x2000)
        );
        assert_eq!(region.pages(), Some(PageRun { first: 7, count: 2 }));
        // Released, never used, and not terminated.
        assert_eq!(Region::parse(&entry("kept", 0x7000, 0)), None);
        assert_eq!(Region::parse(&entry("", 0x7000, 0x2000)), None);
        assert_eq!(Region::parse(&[0xff; ENTRY_BYTES]), None);
        assert_eq!(
            Region::parse(&entry("odd", 0x7001, 0x2000)).unwrap().pages(),
            None
        );
    }
}
