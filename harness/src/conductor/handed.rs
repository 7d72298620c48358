//! The handover that the host makes, in memory before the first kernel runs.

use super::Run;
use crate::evidence::PAGE;
use crate::handover::HandoverPlan;
use guest_agent::pattern::Pattern;
use guest_agent::protocol::Place;
use vmm::devices::dma::Programmed;
use vmm::machine::MachineError;
use vmm::memory::MemoryError;

impl Run {
    /// Puts the handover of the plan into memory, with the patterns of the objects; starts the DMA engine as a driver
    /// would have; and enters the kernel. Without a handover it does nothing.
    pub(super) fn hand_over(&mut self) -> Result<(), MachineError> {
        let plan = self.plan.clone();
        let Some(handover) = &plan.handover else {
            return Ok(());
        };
        self.write_handover(handover)?;
        if let Some(dma) = &plan.dma {
            let frames = |place: Place| self.frames_of(place.object);
            let ring = &dma.ring;
            for placed in dma.placed(&frames(ring.descriptors), &frames(ring.buffers)) {
                let place = Place {
                    object: ring.list.object,
                    offset: placed.offset,
                };
                self.write_object(place, &placed.bytes)?;
            }
            let programmed = Programmed {
                ring_pages: self.address_of(ring.list),
                ring_entries: ring.entries,
                completion_address: self.address_of(ring.completion),
                free_run: ring.free_run,
            };
            self.machine.start_dma(&programmed);
        }
        let event = self.machine.enter()?;
        self.entered(&event);
        Ok(())
    }

    fn write_handover(&self, handover: &HandoverPlan) -> Result<(), MemoryError> {
        let ram = self.machine.ram();
        for (frame, page) in &handover.pages {
            ram.write(frame.saturating_mul(PAGE), page)?;
        }
        for object in &self.plan.objects {
            let pattern = Pattern::new(object.seed);
            for (index, frame) in (0..).zip(self.frames_of(object.id)) {
                ram.write(frame.saturating_mul(PAGE), &pattern.page(index))?;
            }
        }
        Ok(())
    }

    fn frames_of(&self, object: u32) -> Vec<u64> {
        let object = self.evidence.object(object);
        object.map_or(Vec::new(), |object| object.frames(0))
    }

    /// Guest physical address of a place; 0 if it is in no page.
    fn address_of(&self, place: Place) -> u64 {
        let page = usize::try_from(place.offset / PAGE).unwrap_or(usize::MAX);
        let frame = self.frames_of(place.object).get(page).copied();
        frame.map_or(0, |frame| frame.saturating_mul(PAGE) + place.offset % PAGE)
    }

    /// Writes bytes into an object, which lies on any pages.
    fn write_object(&self, place: Place, bytes: &[u8]) -> Result<(), MemoryError> {
        let frames = self.frames_of(place.object);
        let (mut offset, mut rest) = (place.offset, bytes);
        while !rest.is_empty() {
            let room = usize::try_from(PAGE - offset % PAGE).unwrap_or(usize::MAX);
            let (part, others) = rest.split_at(room.min(rest.len()));
            let page = usize::try_from(offset / PAGE).unwrap_or(usize::MAX);
            if let Some(frame) = frames.get(page) {
                let at = frame.saturating_mul(PAGE) + offset % PAGE;
                self.machine.ram().write(at, part)?;
            }
            offset += part.len() as u64;
            rest = others;
        }
        Ok(())
    }
}
