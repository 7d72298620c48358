//! The handover that the host makes, in memory before the first kernel runs.

use super::Run;
use crate::evidence::PAGE;
use crate::handover::HandoverPlan;
use guest_agent::pattern::Pattern;
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
        self.start_dma()?;
        let event = self.machine.enter()?;
        self.entered(&event);
        Ok(())
    }

    /// Fills the DMA engine's own memory with its pattern, and starts the engine there as a driver would have.
    pub(super) fn start_device(&mut self) -> Result<(), MachineError> {
        let device = self.plan.dma.as_ref().map(|dma| dma.ring.list.object);
        device.map_or(Ok(()), |object| self.fill(object))?;
        self.start_dma()
    }

    /// Puts the ring into memory and starts the engine, if there is one.
    fn start_dma(&mut self) -> Result<(), MachineError> {
        let plan = self.plan.clone();
        let Some(dma) = &plan.dma else {
            return Ok(());
        };
        let ring = &dma.ring;
        // The buffers are beside the ring.
        let frames = self.frames_of(ring.list.object);
        for placed in dma.placed(&frames, &frames) {
            self.write_object(&frames, placed.offset, &placed.bytes)?;
        }
        self.machine.start_dma(&Programmed {
            ring_pages: address_of(&frames, ring.list.offset),
            ring_entries: ring.entries,
            completion_address: address_of(&frames, ring.completion.offset),
            free_run: ring.free_run,
        });
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

    /// Writes bytes into an object, which lies on these pages.
    fn write_object(&self, frames: &[u64], mut offset: u64, mut rest: &[u8]) -> Result<(), MemoryError> {
        while !rest.is_empty() {
            let room = usize::try_from(PAGE - offset % PAGE).unwrap_or(usize::MAX);
            let (part, others) = rest.split_at(room.min(rest.len()));
            self.machine.ram().write(address_of(frames, offset), part)?;
            offset += part.len() as u64;
            rest = others;
        }
        Ok(())
    }
}

/// Guest physical address of a byte of an object that lies on these pages; outside RAM if it is on none.
fn address_of(frames: &[u64], offset: u64) -> u64 {
    let page = usize::try_from(offset / PAGE).unwrap_or(usize::MAX);
    let frame = frames.get(page).copied().unwrap_or(u64::MAX);
    frame.saturating_mul(PAGE).saturating_add(offset % PAGE)
}
