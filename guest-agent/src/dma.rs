//! The driver of the DMA engine.

use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::memory::Objects;
use crate::pci::Function;
use crate::sys::Mapping;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use guest_agent::device::DMA_DEVICE_ID;
use guest_agent::device::dma::{
    ADDRESS_BITS, BAR0_SIZE, COMPLETED, COMPLETION_ADDRESS, CONSUMED, CONTROL, CONTROL_ENABLE,
    CONTROL_FREE_RUN, CONTROL_INTERRUPT, CONTROL_RESET, DESCRIPTOR_BYTES, LIST_WORD_BYTES, MAGIC,
    MAGIC_VALUE, MAX_RING_ENTRIES, RING_ENTRIES, RING_PAGES, STATUS,
};
use guest_agent::pagemap;
use guest_agent::pattern::PAGE_BYTES;
use guest_agent::protocol::{DmaRing, ObjectId, PageRun, Place, Reply};

/// Bytes in a page.
const PAGE: u64 = PAGE_BYTES as u64;

/// Pages that [`find`] resolves at a time.
const SEARCH_STEP: usize = 32 * 1024;

/// The engine, mapped at its first use.
#[derive(Default)]
pub struct Engine {
    opened: Option<Opened>,
    /// Where the engine writes its completion count; `None` if that is in no known object.
    completion: Option<Place>,
    /// Its interrupts, while they are armed.
    interrupts: Option<Interrupts>,
}

struct Opened {
    function: Function,
    bar: Mapping,
}

impl Engine {
    /// Writes the list of the ring's pages and the descriptors, programs the engine and enables it. The completion
    /// count in memory becomes 0 first. If the engine does not reach a page, it is left alone, and the answer says so.
    pub fn start(&mut self, objects: &Objects, ring: &DmaRing) -> Result<Reply, Failure> {
        let addresses = buffer_addresses(objects, ring)?;
        let pages = ring_pages(objects, ring)?;
        let bits = self.opened()?.bar.read_u32(ADDRESS_BITS);
        if let Some(refusal) = out_of_reach(objects, ring, bits)? {
            return Ok(refusal);
        }
        let list = address(
            &objects.resolve_place(ring.list, pages.len() as u64 * LIST_WORD_BYTES)?,
            ring.list.offset,
            0,
        )?;
        let completion = address(
            &objects.resolve_place(ring.completion, 8)?,
            ring.completion.offset,
            0,
        )?;

        for (index, page) in (0..).zip(&pages) {
            let word = Place {
                offset: ring.list.offset + index * LIST_WORD_BYTES,
                ..ring.list
            };
            objects.write_u64(word, *page)?;
        }
        for (entry, buffer) in (0..).zip(&addresses) {
            let descriptor = Place {
                offset: ring.descriptors.offset + entry * DESCRIPTOR_BYTES,
                ..ring.descriptors
            };
            objects.write_u64(descriptor, *buffer)?;
            let length = Place {
                offset: descriptor.offset + 8,
                ..descriptor
            };
            objects.write_u64(length, u64::from(ring.buffer_bytes))?;
        }
        objects.write_u64(ring.completion, 0)?;

        let free_run = if ring.free_run { CONTROL_FREE_RUN } else { 0 };
        let interrupt = if self.interrupts.is_some() {
            CONTROL_INTERRUPT
        } else {
            0
        };
        let Opened { function, bar } = self.opened()?;
        bar.write_u32(CONTROL, CONTROL_RESET);
        bar.write_u64(RING_PAGES, list);
        bar.write_u32(RING_ENTRIES, ring.entries);
        bar.write_u64(COMPLETION_ADDRESS, completion);
        bar.write_u64(CONSUMED, 0);
        function.set_bus_master()?;
        bar.write_u32(CONTROL, CONTROL_ENABLE | free_run | interrupt);
        self.completion = Some(ring.completion);
        Ok(Reply::Done)
    }

    /// Releases every block completed so far. Reads the register before memory: the engine writes the count to memory
    /// before the register shows it, so the count in memory must not be lower.
    pub fn consume(&mut self, objects: &Objects) -> Result<Reply, Failure> {
        let bar = &self.opened()?.bar;
        let completed = bar.read_u64(COMPLETED);
        let completion_address = bar.read_u64(COMPLETION_ADDRESS);
        if self.completion.is_none() {
            self.completion = find(objects, completion_address)?;
        }
        let completed_in_memory = self.completion.map(|place| objects.read_u64(place)).transpose()?;
        let bar = &self.opened()?.bar;
        bar.write_u64(CONSUMED, completed);
        Ok(Reply::Dma {
            completed_in_memory,
            completed,
            consumed: completed,
            status: bar.read_u32(STATUS),
        })
    }

    /// Lets the engine interrupt. VFIO clears the bus-master bit when it opens a function, so that a running engine
    /// gets it back.
    pub fn arm_interrupts(&mut self) -> Result<(), Failure> {
        let armed = Interrupts::arm(&self.opened()?.function)?;
        self.interrupts = Some(armed);
        let Opened { function, bar } = self.opened()?;
        if bar.read_u32(CONTROL) & CONTROL_ENABLE != 0 {
            function.set_bus_master()?;
        }
        Ok(())
    }

    /// Waits for `ns` nanoseconds, and wakes for each interrupt.
    pub fn await_interrupts(&mut self, ns: u64) -> Result<(), Failure> {
        let armed = self.interrupts.as_mut();
        armed.ok_or_else(|| refused("no interrupts are armed"))?.wait(ns)
    }

    /// Ends the interrupts, and returns how many came.
    pub fn disarm_interrupts(&mut self) -> Result<Reply, Failure> {
        let armed = self.interrupts.take();
        let count = armed
            .ok_or_else(|| refused("no interrupts are armed"))?
            .disarm()?;
        Ok(Reply::Interrupts { count })
    }

    /// Disables the engine.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let bar = &self.opened()?.bar;
        bar.write_u32(CONTROL, bar.read_u32(CONTROL) & !CONTROL_ENABLE);
        Ok(())
    }

    /// Forgets the completion count's place if it is in the object that is being closed.
    pub fn forget(&mut self, object: ObjectId) {
        if self.completion.is_some_and(|place| place.object == object) {
            self.completion = None;
        }
    }

    fn opened(&mut self) -> Result<&Opened, Failure> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => Opened::open(Function::find(DMA_DEVICE_ID)?)?,
        };
        Ok(self.opened.insert(opened))
    }
}

impl Opened {
    fn open(function: Function) -> Result<Self, Failure> {
        let bar = function.map_bar0(BAR0_SIZE)?;
        let magic = bar.read_u32(MAGIC);
        if magic != MAGIC_VALUE {
            return Err(refused(format!("MAGIC is {magic:#x}, not {MAGIC_VALUE:#x}")));
        }
        Ok(Self { function, bar })
    }
}

/// The guest physical address of each page of the ring.
fn ring_pages(objects: &Objects, ring: &DmaRing) -> Result<Vec<u64>, Failure> {
    for (what, place) in [("list of pages", ring.list), ("ring", ring.descriptors)] {
        if !place.offset.is_multiple_of(PAGE) {
            let offset = place.offset;
            return Err(refused(format!(
                "the {what} at {offset:#x}: expected a multiple of {PAGE}"
            )));
        }
    }
    let bytes = u64::from(ring.entries) * DESCRIPTOR_BYTES;
    let runs = objects.resolve_place(ring.descriptors, bytes)?;
    (0..bytes.div_ceil(PAGE))
        .map(|page| address(&runs, ring.descriptors.offset, page * PAGE))
        .collect()
}

/// The answer for an engine with `bits` address bits, if it does not reach a page that the ring names. Preserved pages
/// stay where they are, so what it reaches now it reaches in every later kernel.
fn out_of_reach(objects: &Objects, ring: &DmaRing, bits: u32) -> Result<Option<Reply>, Failure> {
    if bits >= u64::BITS {
        return Ok(None);
    }
    let entries = u64::from(ring.entries);
    let descriptors = entries * DESCRIPTOR_BYTES;
    let mut parts = vec![
        (ring.list, descriptors.div_ceil(PAGE) * LIST_WORD_BYTES),
        (ring.descriptors, descriptors),
        (ring.completion, 8),
    ];
    if ring.wild_addresses.is_empty() {
        parts.push((ring.buffers, entries * u64::from(ring.buffer_bytes)));
    }
    for (place, bytes) in parts {
        let runs = objects.resolve_place(place, bytes)?;
        if let Some((index, frame)) = pagemap::first_beyond(&runs, bits) {
            return Ok(Some(Reply::OutOfReach {
                object: place.object,
                page: place.offset / PAGE + index,
                address: frame * PAGE,
                bits,
            }));
        }
    }
    Ok(None)
}

/// One guest physical address per descriptor.
fn buffer_addresses(objects: &Objects, ring: &DmaRing) -> Result<Vec<u64>, Failure> {
    if !(1..=MAX_RING_ENTRIES).contains(&ring.entries) {
        return Err(refused(format!(
            "{} descriptors: expected 1 to {MAX_RING_ENTRIES}",
            ring.entries
        )));
    }
    let size = u64::from(ring.buffer_bytes);
    if size == 0 || !PAGE.is_multiple_of(size) || !ring.buffers.offset.is_multiple_of(size) {
        let offset = ring.buffers.offset;
        return Err(refused(format!(
            "buffers of {size} bytes at {offset:#x}: expected a divisor of {PAGE}, and aligned"
        )));
    }
    let entries = u64::from(ring.entries);
    if !ring.wild_addresses.is_empty() {
        return Ok(ring
            .wild_addresses
            .iter()
            .copied()
            .cycle()
            .take(ring.entries as usize)
            .collect());
    }
    let runs = objects.resolve_place(ring.buffers, entries * size)?;
    (0..entries)
        .map(|entry| address(&runs, ring.buffers.offset, entry * size))
        .collect()
}

/// The guest physical address of byte `distance` after `offset`, where `runs` begin with the page of `offset`.
fn address(runs: &[PageRun], offset: u64, distance: u64) -> Result<u64, Failure> {
    let byte = offset % PAGE + distance;
    let frame = pagemap::frame_at(runs, byte / PAGE).ok_or_else(|| refused("a buffer has no page"))?;
    Ok(frame * PAGE + byte % PAGE)
}

/// The object, and the offset in it, at this guest physical address.
fn find(objects: &Objects, address: u64) -> Result<Option<Place>, Failure> {
    if address == 0 || !address.is_multiple_of(8) {
        return Ok(None);
    }
    for object in objects.ids() {
        let size = objects.page_count(object)?;
        for first in (0..size).step_by(SEARCH_STEP) {
            let runs = objects.resolve(object, first, (size - first).min(SEARCH_STEP as u64))?;
            if let Some(page) = pagemap::index_of(&runs, address / PAGE) {
                let offset = (first + page) * PAGE + address % PAGE;
                return Ok(Some(Place { object, offset }));
            }
        }
    }
    Ok(None)
}

fn refused(detail: impl Into<String>) -> Failure {
    Failure::refused("DMA engine", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fake;

    const RUNS: [PageRun; 2] = [
        PageRun {
            first: 0x100,
            count: 2,
        },
        PageRun {
            first: 0x80,
            count: 1,
        },
    ];

    fn ring(entries: u32, buffer_bytes: u32, offset: u64, wild_addresses: &[u64]) -> DmaRing {
        let place = Place { object: 1, offset };
        let wild_addresses = wild_addresses.to_vec();
        DmaRing {
            list: place,
            descriptors: place,
            entries,
            completion: place,
            buffers: place,
            buffer_bytes,
            free_run: false,
            wild_addresses,
        }
    }

    #[test]
    fn addresses_follow_the_runs() {
        assert_eq!(address(&RUNS, 0x1800, 0), Ok(0x10_0800));
        assert_eq!(address(&RUNS, 0x1800, 0x1000), Ok(0x10_1800));
        assert_eq!(address(&RUNS, 0x1800, 0x1800), Ok(0x8_0000));
        assert!(address(&RUNS, 0, 0x3000).is_err());
    }

    #[test]
    fn wild_addresses_repeat_over_the_ring() {
        let addresses = buffer_addresses(&Objects::default(), &ring(5, 2048, 0, &[7, 8])).unwrap();
        assert_eq!(addresses, [7, 8, 7, 8, 7]);
    }

    #[test]
    fn a_list_or_ring_that_begins_inside_a_page_is_refused() {
        let inside = Place {
            object: 1,
            offset: 16,
        };
        let good = ring(1, 4096, 0, &[1]);
        for (ring, what) in [
            (
                DmaRing {
                    list: inside,
                    ..good.clone()
                },
                "list of pages",
            ),
            (
                DmaRing {
                    descriptors: inside,
                    ..good
                },
                "ring",
            ),
        ] {
            let failure = ring_pages(&Objects::default(), &ring).unwrap_err();
            assert!(
                failure.detail.starts_with(&format!("the {what} at 0x10")),
                "{}",
                failure.detail
            );
        }
    }

    #[test]
    fn rings_that_cannot_be_are_refused() {
        let objects = Objects::default();
        for (entries, buffer_bytes, offset) in [
            (0, 4096, 0),
            (4097, 4096, 0),
            (1, 0, 0),
            (1, 3000, 0),
            (1, 8192, 0),
            (1, 4096, 2048),
        ] {
            let failure = buffer_addresses(&objects, &ring(entries, buffer_bytes, offset, &[1])).unwrap_err();
            assert_eq!((failure.call.as_str(), failure.errno), ("DMA engine", 0));
        }
    }

    #[test]
    fn consuming_gives_back_what_the_register_says() {
        let sysfs = fake::sysfs(DMA_DEVICE_ID, BAR0_SIZE, MAGIC_VALUE);
        let bar = fake::bar(&sysfs, BAR0_SIZE);
        bar.write_u64(COMPLETED, 41);
        let mut objects = Objects::default();
        objects.create_buffer(3, PAGE).unwrap();
        let completion = Place {
            object: 3,
            offset: 16,
        };
        objects.write_u64(completion, 42).unwrap();
        let function = Function::find_in(fake::path(&sysfs), DMA_DEVICE_ID).unwrap();
        let mut engine = Engine {
            opened: Some(Opened::open(function).unwrap()),
            completion: Some(completion),
            interrupts: None,
        };

        let reply = engine.consume(&objects).unwrap();
        let expected = Reply::Dma {
            completed_in_memory: Some(42),
            completed: 41,
            consumed: 41,
            status: 0,
        };
        assert_eq!(reply, expected);
        assert_eq!(bar.read_u64(CONSUMED), 41);

        engine.forget(3);
        let Reply::Dma {
            completed_in_memory, ..
        } = engine.consume(&objects).unwrap()
        else {
            panic!("not Dma")
        };
        assert_eq!(completed_in_memory, None, "COMPLETION_ADDRESS is 0");
    }

    #[test]
    fn stopping_leaves_the_other_bits() {
        let sysfs = fake::sysfs(DMA_DEVICE_ID, BAR0_SIZE, MAGIC_VALUE);
        let bar = fake::bar(&sysfs, BAR0_SIZE);
        bar.write_u32(CONTROL, CONTROL_ENABLE | CONTROL_FREE_RUN);
        let function = Function::find_in(fake::path(&sysfs), DMA_DEVICE_ID).unwrap();
        let mut engine = Engine {
            opened: Some(Opened::open(function).unwrap()),
            completion: None,
            interrupts: None,
        };
        engine.stop().unwrap();
        assert_eq!(bar.read_u32(CONTROL), CONTROL_FREE_RUN);
    }
}
