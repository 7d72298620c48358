//! What injections make of the engine.

use serde::{Deserialize, Serialize};

use super::ring::Pace;
use super::{DmaEngine, Registers};
use crate::devices::pci::{COMMAND, COMMAND_MASTER};
use crate::dma_view::DmaView;
use crate::injection::Act;
use crate::interrupt::Msi;
use crate::ledger::EngineEventKind;

/// What injections made of the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Faults {
    /// It goes on when it is disabled before then.
    deaf_until: u64,
    /// It goes on although it is disabled.
    goes_on: bool,
    /// It writes nothing before then.
    silent_until: Option<u64>,
    /// It is gone for good.
    gone: bool,
    /// Each access to a register takes so much longer, in nanoseconds, before the time that follows.
    slow: (u64, u64),
    /// The processors stand until then, because of such accesses.
    stand_until: u64,
}

impl DmaEngine {
    /// Does what injection `number` does to the engine, or says why that cannot be done.
    pub fn act(&mut self, now: u64, view: &mut DmaView, number: u16, act: Act) -> Result<(), String> {
        if self.faults.gone {
            return Err("the device is gone already".into());
        }
        self.check(act)?;
        let injection = EngineEventKind::Injected { injection: number };
        view.ledger.event(now, view.stamp(), injection);
        match act {
            Act::IgnoreStop { ns } => {
                let until = ns.map_or(u64::MAX, |ns| now.saturating_add(ns));
                self.faults.deaf_until = self.faults.deaf_until.max(until);
            }
            Act::Silence { ns } => {
                let until = now.saturating_add(ns);
                self.faults.silent_until = self.faults.silent_until.max(Some(until));
            }
            Act::Burst { blocks } => self.burst(now, view, blocks),
            Act::BusMaster { .. } => {
                let command = self.config.command() ^ COMMAND_MASTER;
                self.config_write(now, view, COMMAND, 2, command.into());
            }
            Act::ResetFunction => {
                self.end_activity(now, view);
                self.config.reset();
                self.msix.reset();
                self.registers = Registers::default();
                self.mastered = false;
                self.faults.goes_on = false;
                self.settle(now);
            }
            Act::Remove => {
                self.faults.gone = true;
                self.settle(now);
            }
            Act::MoveBar { bar, to } => {
                self.config.move_bar(bar.into(), to);
            }
            Act::SlowAccesses { by, ns } => self.faults.slow = (by, now.saturating_add(ns)),
            _ => return Err("it is nothing that the device can do".into()),
        }
        Ok(())
    }

    /// Why an injection cannot be done now.
    fn check(&self, act: Act) -> Result<(), String> {
        let is_set = self.config.command() & COMMAND_MASTER != 0;
        match act {
            Act::Burst { .. } if !self.running() => Err("the device does not run".into()),
            Act::Burst { .. } if self.waiting_since.is_some() => {
                Err("the device waits for a descriptor".into())
            }
            Act::BusMaster { on } if on == is_set => Err(format!(
                "the bus master bit is {} already",
                if on { "set" } else { "clear" }
            )),
            Act::MoveBar { bar, to } if !self.config.clone().move_bar(bar.into(), to) => {
                Err(format!("BAR {bar} cannot be at {to:#x}"))
            }
            _ => Ok(()),
        }
    }

    /// Writes blocks now. The pace of the others stays.
    fn burst(&mut self, now: u64, view: &mut DmaView, blocks: u32) {
        let pace = self.pace;
        for _ in 0..blocks {
            if self.waiting_since.is_some() || !self.running() {
                return;
            }
            self.one_block(now, view);
        }
        if self.running() && self.waiting_since.is_none() {
            self.pace = pace;
        }
    }

    /// The driver has disabled the engine. Returns whether it obeys.
    pub(super) fn obeys_stop(&mut self, now: u64) -> bool {
        self.faults.goes_on = now < self.faults.deaf_until;
        !self.faults.goes_on
    }

    /// The driver has enabled or reset the engine, so that it no longer goes on against the driver's will.
    pub(super) fn is_obedient_again(&mut self) {
        self.faults.goes_on = false;
    }

    pub(super) fn goes_on(&self) -> bool {
        self.faults.goes_on
    }

    /// Whether it is gone: reads give all ones, and writes are lost.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.faults.gone
    }

    /// When a block that is due at `due` is written.
    pub(super) fn written_at(&self, due: Option<u64>) -> Option<u64> {
        let silent = self.faults.silent_until.unwrap_or(0);
        let written = due.map(|due| due.max(silent));
        let stops = self.faults.goes_on.then_some(self.faults.deaf_until);
        written.into_iter().chain(stops).min()
    }

    /// Ends what has lasted long enough.
    pub(super) fn end_faults(&mut self, now: u64, view: &mut DmaView) {
        if self.faults.silent_until.is_some_and(|until| until <= now) {
            self.faults.silent_until = None;
            // What was due meanwhile is not made up for.
            self.pace = self.pace.map(|_| Pace::starting(now));
        }
        if self.faults.goes_on && self.faults.deaf_until <= now {
            self.faults.goes_on = false;
            self.end_activity(now, view);
            self.settle(now);
        }
    }

    /// Whether accesses to its registers take longer at `now`.
    #[must_use]
    pub fn is_slow(&self, now: u64) -> bool {
        now < self.faults.slow.1
    }

    /// A processor has accessed a register.
    pub fn accessed(&mut self, now: u64) {
        if self.is_slow(now) {
            // An instruction takes 1 ns.
            let from = self.faults.stand_until.max(now.saturating_add(1));
            self.faults.stand_until = from.saturating_add(self.faults.slow.0);
        }
    }

    /// Until when processors stand because of slow accesses; a time that has passed if they do not.
    #[must_use]
    pub fn stand_until(&self) -> u64 {
        self.faults.stand_until
    }

    /// The interrupt message that the driver has programmed for the engine, or else the last one that the engine sent;
    /// `None` if there is neither.
    #[must_use]
    pub fn message(&self) -> Option<Msi> {
        self.msix.programmed(0)
    }
}

#[cfg(test)]
mod tests;
