//! What one kernel hands to the next: the staged image, the handover, scratch; and what belongs to nobody.

use super::Known;
use super::staged::{Next, Placed};
use crate::blob::capture;
use crate::evidence::{BlobEvidence, PAGE};
use kho_core::{KhoData, PhysicalMemory};
use std::collections::BTreeSet;
use vmm::boot::BootParams;
use vmm::boot::layout::{ENTRY_64, EXTENDED_START};
use vmm::phase::Phase;

/// Bytes of a scratch area in the list of them: address and size (`struct kho_scratch`).
const SCRATCH_BYTES: u64 = 16;
/// Most scratch areas that are read: one for low memory, one for any node, and one for each node.
const MAX_SCRATCH: u64 = 1 << 10;
/// Index of RDI in the registers.
const RDI: usize = 7;
/// Offset of the first word of the list of the image's pages (`head`, the first field of `struct kimage`).
const KIMAGE_HEAD: u64 = 0;

impl Known<'_> {
    /// The image that is staged for the next kernel: loaded and not entered yet, or entered just now.
    pub(super) fn next_kernel(&self) -> Result<Next<'_>, String> {
        let (ram, at) = (self.machine.ram(), self.machine.moment().stamp);
        let generation = u32::from(at.generation);
        if let Some(params) = self.entered_now() {
            let load_address = self.machine.registers().rip.saturating_sub(ENTRY_64);
            let file = &self.plan.kernel(generation).image;
            return Next::entered(&params, load_address, ram, file);
        }
        let head = if at.phase == Phase::Jump {
            // What relocate_kernel is called with, as long as it has not begun to copy
            // (arch/x86/kernel/relocate_kernel_64.S).
            let jumped = self
                .machine
                .phases()
                .last()
                .is_some_and(|phase| phase.start_ns == self.machine.moment().time);
            if !jumped {
                return Err("the image is being copied".into());
            }
            self.machine.registers().gpr[RDI]
        } else {
            let image = self.variable("kexec_image")?;
            if image == 0 {
                return Err("no kernel is loaded for a kexec".into());
            }
            let head = self.kernel_word(image.wrapping_add(KIMAGE_HEAD));
            head.ok_or("kexec_image leads to memory that is not mapped")?
        };
        let file = &self.plan.kernel(generation + 1).image;
        Next::waiting(Placed::by_list(ram, head)?, file)
    }

    /// The boot parameters of a kernel that is about to execute its first instruction.
    fn entered_now(&self) -> Option<BootParams> {
        BootParams::read(self.machine.ram(), self.entered_with()?).ok()
    }

    /// What the running kernel was handed, once it has been entered.
    fn handed(&self) -> Option<&BlobEvidence> {
        let generation = u32::from(self.machine.moment().stamp.generation);
        let last = self.evidence.blobs.last()?;
        (last.generation + 1 == generation).then_some(last)
    }

    /// Page frames of a handover: of the one that is staged, or else of the one that the running kernel was given.
    pub(super) fn blob(&self) -> Result<Vec<u64>, String> {
        let given = |reason: String| match self.handed() {
            Some(blob) if !blob.pages.is_empty() => Ok(blob.pages.keys().copied().collect()),
            _ => Err(reason),
        };
        match self.next_kernel() {
            Ok(next) => match next.kho {
                Some(kho) => {
                    let (pages, _) = capture(&next.memory, kho);
                    Ok(pages.keys().map(|frame| next.memory.now(*frame)).collect())
                }
                None => Err("the next kernel is given no KHO data".into()),
            },
            Err(reason) => given(reason),
        }
    }

    /// Page frames of the scratch areas, without those where a staged image lies or will lie.
    pub(super) fn scratch(&self) -> Result<Vec<u64>, String> {
        let next = self.next_kernel();
        let staged = next.as_ref().map_or(BTreeSet::new(), |next| next.memory.all());
        let areas = match (&next, self.handed()) {
            (Ok(next), _) if next.kho.is_some() => listed(&next.memory, next.kho),
            (_, Some(blob)) => listed(&crate::blob::memory(blob), blob.kho),
            _ => self.scratch_of_kernel()?,
        };
        let frames = areas
            .iter()
            .flat_map(|(address, size)| address.div_ceil(PAGE)..address.saturating_add(*size) / PAGE);
        let ram = self.machine.ram();
        Ok(frames
            .filter(|frame| !staged.contains(frame) && ram.contains(frame.saturating_mul(PAGE), PAGE))
            .collect())
    }

    /// The scratch areas as the running kernel has them in its variables.
    fn scratch_of_kernel(&self) -> Result<Vec<(u64, u64)>, String> {
        let list = self.variable("kho_scratch")?;
        // Of 4 bytes; what follows is not part of it.
        let count = self.variable("kho_scratch_cnt")? & u64::from(u32::MAX);
        if list == 0 {
            return Ok(Vec::new());
        }
        let area = |index: u64| {
            let at = list.wrapping_add(index * SCRATCH_BYTES);
            Some((self.kernel_word(at)?, self.kernel_word(at.wrapping_add(8))?))
        };
        let areas: Option<Vec<_>> = (0..count.min(MAX_SCRATCH)).map(area).collect();
        areas.ok_or_else(|| "the kernel's list of scratch areas is not mapped".into())
    }

    /// Page frames that belong to nobody: nobody has ever written to them, they are not scratch, nothing of a staged
    /// image will lie there, and they are above the first MiB, where firmware is.
    pub(super) fn free(&self) -> Result<Vec<u64>, String> {
        let mut taken: BTreeSet<u64> = self.scratch()?.into_iter().collect();
        if let Ok(next) = self.next_kernel() {
            taken.extend(next.memory.all());
        }
        let owned = self.evidence.objects.iter();
        let generation = u32::from(self.machine.moment().stamp.generation);
        taken.extend(owned.flat_map(|object| object.frames(generation)));
        let unwritten = self.never_written.iter().copied();
        let free = unwritten.filter(|frame| frame * PAGE >= EXTENDED_START && !taken.contains(frame));
        Ok(free.collect())
    }
}

/// The scratch areas in a list that was handed over.
fn listed(memory: &dyn PhysicalMemory, kho: Option<KhoData>) -> Vec<(u64, u64)> {
    let Some(kho) = kho else {
        return Vec::new();
    };
    let count = (kho.scratch.size / SCRATCH_BYTES).min(MAX_SCRATCH);
    let word = |address: u64| {
        let mut word = [0; 8];
        memory
            .read(address, &mut word)
            .ok()
            .map(|()| u64::from_le_bytes(word))
    };
    let area = |index: u64| {
        let at = kho.scratch.start.checked_add(index * SCRATCH_BYTES)?;
        Some((word(at)?, word(at.checked_add(8)?)?))
    };
    (0..count).map_while(area).collect()
}
