//! The DMA engine beside the steps that a scenario gives: it starts with the preservation of the memfd that holds its
//! ring, and runs until that memfd is closed, or to the end.

use super::{Plan, Step};
use crate::scenario::{Deed, Given, Scenario, Start};
use guest_agent::protocol::Side;

/// The engine at some place in the list of steps.
pub(super) struct Engine {
    /// The memfds or buffers that it works on: the ring's, and that of the buffers.
    objects: Option<[u32; 2]>,
    /// The step that preserves the ring's memfd for the first time.
    preserved_by: Option<u32>,
    start: Start,
    /// Whether the agent is to receive its interrupts.
    interrupts: bool,
    pub(super) running: bool,
    /// Whether the agent receives its interrupts now.
    pub(super) armed: bool,
}

impl Engine {
    /// The engine at the beginning of a generation.
    pub(super) fn entering(plan: &Plan, scenario: &Scenario, given: &[Given], generation: u32) -> Self {
        let ring = plan.dma.as_ref().map(|dma| &dma.ring);
        let objects = ring.map(|ring| [ring.list.object, ring.buffers.object]);
        let first = objects.and_then(|[ring, _]| first_preserved(given, ring));
        let handed = objects.is_some() && scenario.handover.is_some();
        let start = scenario.dma.as_ref().map(|dma| dma.get_ref().start);
        Self {
            objects,
            preserved_by: first.filter(|_| !handed).map(|given| given.number),
            start: start.unwrap_or_default(),
            interrupts: scenario.has_interrupts(),
            running: handed || first.is_some_and(|given| given.generation < generation),
            armed: false,
        }
    }

    /// Whether the engine runs, and works on this object.
    pub(super) fn uses(&self, object: u32) -> bool {
        self.running && self.objects.is_some_and(|objects| objects.contains(&object))
    }

    /// What comes before a step.
    pub(super) fn before(&mut self, given: &Given, steps: &mut Vec<Step>) {
        if self.start == Start::BeforePreservation {
            self.start(given, steps);
        }
    }

    /// What comes after a step, and after the pages that it has preserved were looked up.
    pub(super) fn after(&mut self, given: &Given, steps: &mut Vec<Step>) {
        if self.start == Start::Preserved {
            self.start(given, steps);
        }
    }

    fn start(&mut self, given: &Given, steps: &mut Vec<Step>) {
        let Some([ring, buffers]) = self.objects.filter(|_| self.preserved_by == Some(given.number)) else {
            return;
        };
        if buffers != ring {
            steps.extend([Step::Create(buffers), Step::ResolvePages(buffers)]);
        }
        self.arm(steps);
        steps.push(Step::StartDma);
        self.running = true;
    }

    /// Lets the agent receive the engine's interrupts, if it is to.
    pub(super) fn arm(&mut self, steps: &mut Vec<Step>) {
        self.armed = self.interrupts;
        steps.extend(self.armed.then_some(Step::ArmInterrupts));
    }

    /// What comes once a new kernel has given all back.
    pub(super) fn retrieved(&mut self, steps: &mut Vec<Step>) {
        if self.running && !self.armed {
            self.arm(steps);
        }
    }

    /// Ends the interrupts, before a kexec.
    pub(super) fn disarm(&mut self, steps: &mut Vec<Step>) {
        steps.extend(std::mem::take(&mut self.armed).then_some(Step::DisarmInterrupts));
    }

    /// Stops the engine, if it runs.
    pub(super) fn stop(&mut self, steps: &mut Vec<Step>) {
        if std::mem::take(&mut self.running) {
            steps.push(Step::StopDma);
        }
        self.disarm(steps);
    }
}

/// The step that preserves an object for the first time, with success.
pub(crate) fn first_preserved(given: &[Given], object: u32) -> Option<&Given> {
    given.iter().find(|given| preserves(given, object))
}

/// Whether a step preserves an object for the next kernel.
pub(crate) fn preserves(given: &Given, object: u32) -> bool {
    let preserved = match &given.deed {
        Deed::Preserve {
            object,
            side: Side::Outgoing,
            ..
        } => Some(*object),
        _ => None,
    };
    preserved == Some(object) && given.errno.is_none() && !given.looped
}
