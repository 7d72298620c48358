//! Measures the host time of phases, outside the run, which has no clock.

use super::Observer;
use crate::evidence::{Evidence, Phase, PhaseRecord};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Generation and phase.
type Key = (u32, Phase);

/// Measures the host time of each phase, and adds it to the phase records for another observer.
///
/// A phase is measured from [`Observer::phase`] to [`Observer::passed`] or to the next phase.
pub struct Stopwatch<'a> {
    observer: &'a dyn Observer,
    running: Cell<Option<(Key, Instant)>>,
    laps: RefCell<HostTimes>,
}

/// How long each phase has taken on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTimes(BTreeMap<Key, Duration>);

impl<'a> Stopwatch<'a> {
    /// Passes everything on to `observer`.
    pub fn new(observer: &'a dyn Observer) -> Self {
        Self::resumed(observer, HostTimes::default())
    }

    /// Passes everything on to `observer`, for a run whose phases have taken `before` so far.
    pub fn resumed(observer: &'a dyn Observer, before: HostTimes) -> Self {
        Self {
            observer,
            running: Cell::new(None),
            laps: RefCell::new(before),
        }
    }

    /// How long each phase has taken until now.
    pub fn times(&self) -> HostTimes {
        self.lap();
        self.laps.borrow().clone()
    }

    /// Sets [`PhaseRecord::wall_us`] of each phase measured; of the current phase, until now.
    pub fn fill(&self, evidence: &mut Evidence) {
        self.lap();
        evidence
            .phases
            .iter_mut()
            .for_each(|record| self.fill_one(record));
    }

    fn fill_one(&self, record: &mut PhaseRecord) {
        if let Some(lap) = self.laps.borrow().0.get(&(record.generation, record.phase)) {
            record.wall_us = u64::try_from(lap.as_micros()).unwrap_or(u64::MAX);
        }
    }

    /// Adds the time since the last call to the current phase.
    fn lap(&self) {
        let now = Instant::now();
        if let Some((key, since)) = self.running.get() {
            *self.laps.borrow_mut().0.entry(key).or_default() += now - since;
            self.running.set(Some((key, now)));
        }
    }
}

impl Observer for Stopwatch<'_> {
    fn phase(&self, generation: u32, phase: Phase) {
        self.lap();
        self.running.set(Some(((generation, phase), Instant::now())));
        self.observer.phase(generation, phase);
    }

    fn passed(&self, record: &PhaseRecord) {
        self.lap();
        self.running.set(None);
        let mut record = record.clone();
        self.fill_one(&mut record);
        self.observer.passed(&record);
    }

    fn goes_on(&self, guest_ns: u64) {
        self.observer.goes_on(guest_ns);
    }

    fn keeps(&self) -> bool {
        self.observer.keeps()
    }

    fn so_far(&self, mut evidence: Evidence) {
        self.fill(&mut evidence);
        self.observer.so_far(evidence);
    }

    fn listens(&self) -> bool {
        self.observer.listens()
    }

    fn printed(&self, output: &[u8]) {
        self.observer.printed(output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn phases_that_were_watched_get_their_time_and_no_others_change() {
        let watch = Stopwatch::new(&());
        watch.phase(0, Phase::Armed);
        std::thread::sleep(Duration::from_millis(2));
        let mut evidence = testing::good();
        watch.passed(&evidence.phases[2]);
        watch.fill(&mut evidence);
        assert!(evidence.phases[2].wall_us >= 2000);
        evidence.phases[2].wall_us = testing::good().phases[2].wall_us;
        assert!(evidence == testing::good());
    }

    #[test]
    fn a_phase_that_is_told_twice_is_one_phase() {
        let watch = Stopwatch::new(&());
        watch.phase(0, Phase::Armed);
        std::thread::sleep(Duration::from_millis(1));
        watch.phase(0, Phase::Armed);
        std::thread::sleep(Duration::from_millis(1));
        let mut evidence = testing::good();
        watch.fill(&mut evidence);
        assert!(evidence.phases[2].wall_us >= 2000);
    }
}
