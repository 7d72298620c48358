//! Records of a run: phases and blackouts.

use serde::{Deserialize, Serialize};

use crate::phase::{Generation, Stamp};

/// One phase of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Generation and phase.
    pub stamp: Stamp,
    /// Guest time at its beginning, in nanoseconds.
    pub start_ns: u64,
    /// Guest time at its end, in nanoseconds (exclusive).
    pub end_ns: u64,
    /// Instructions retired in it, where the backend counts them.
    pub instructions: Option<u64>,
    /// Bytes that the guest had printed on its console when it began.
    pub printed: u64,
}

/// The phases so far, and the beginning of the current one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Phases {
    closed: Vec<PhaseRecord>,
    stamp: Stamp,
    start_ns: u64,
    retired: Option<u64>,
    printed: u64,
}

impl Phases {
    pub fn new(stamp: Stamp) -> Self {
        Self {
            closed: Vec::new(),
            stamp,
            start_ns: 0,
            retired: Some(0),
            printed: 0,
        }
    }

    /// The current phase, ending now.
    pub fn current(&self, now: u64, retired: Option<u64>) -> PhaseRecord {
        PhaseRecord {
            stamp: self.stamp,
            start_ns: self.start_ns,
            end_ns: now,
            instructions: retired.zip(self.retired).map(|(now, before)| now - before),
            printed: self.printed,
        }
    }

    /// Begins a phase, when the guest has printed `printed` bytes.
    pub fn change(&mut self, stamp: Stamp, now: u64, retired: Option<u64>, printed: u64) {
        self.closed.push(self.current(now, retired));
        *self = Self {
            closed: std::mem::take(&mut self.closed),
            stamp,
            start_ns: now,
            retired,
            printed,
        };
    }

    pub fn all(&self, now: u64, retired: Option<u64>) -> Vec<PhaseRecord> {
        let mut all = self.closed.clone();
        all.push(self.current(now, retired));
        all
    }

    /// Which phase a time belongs to.
    pub fn stamp_at(&self, time: u64) -> Stamp {
        let after = self.closed.partition_point(|phase| phase.end_ns <= time);
        self.closed.get(after).map_or(self.stamp, |phase| phase.stamp)
    }
}

/// The time without user code around a kexec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blackout {
    /// Generation of the new kernel.
    pub generation: Generation,
    /// When the old kernel's user code ran last, in guest nanoseconds.
    pub left_user_at: Option<u64>,
    /// When the new kernel's user code ran first, in guest nanoseconds.
    pub entered_user_at: Option<u64>,
    /// Lower bound on the time of the jump, in guest nanoseconds; `None` if the backend saw the jump itself.
    pub jump_not_before: Option<u64>,
}

impl Blackout {
    /// Its length in nanoseconds, once both ends are known.
    #[must_use]
    pub fn nanoseconds(&self) -> Option<u64> {
        self.entered_user_at?.checked_sub(self.left_user_at?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::Phase;

    #[test]
    fn a_time_belongs_to_the_phase_that_had_begun() {
        let stamp = |phase| Stamp { generation: 0, phase };
        let mut phases = Phases::new(stamp(Phase::BootOld));
        phases.change(stamp(Phase::Prepare), 100, Some(90), 5);
        phases.change(stamp(Phase::Armed), 100, Some(90), 5);
        phases.change(stamp(Phase::Handover), 150, Some(120), 7);
        let at = |time| phases.stamp_at(time).phase;
        assert_eq!(
            (at(0), at(99), at(100), at(149)),
            (Phase::BootOld, Phase::BootOld, Phase::Armed, Phase::Armed)
        );
        assert_eq!((at(150), at(u64::MAX)), (Phase::Handover, Phase::Handover));
        let all = phases.all(200, Some(160));
        let instructions: Vec<u64> = all.iter().filter_map(|phase| phase.instructions).collect();
        assert_eq!(instructions, [90, 0, 30, 40]);
        let printed: Vec<u64> = all.iter().map(|phase| phase.printed).collect();
        assert_eq!(printed, [0, 5, 5, 7]);
        assert_eq!((all[3].start_ns, all[3].end_ns), (150, 200));
    }

    #[test]
    fn a_blackout_needs_both_ends() {
        let mut blackout = Blackout {
            generation: 1,
            left_user_at: Some(10),
            entered_user_at: None,
            jump_not_before: None,
        };
        assert_eq!(blackout.nanoseconds(), None);
        blackout.entered_user_at = Some(25);
        assert_eq!(blackout.nanoseconds(), Some(15));
    }
}
