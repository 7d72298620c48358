//! Runs that have their beginning in common: runs of one plan with different injections.
//!
//! Until its first injection is armed, such a run is that of the plan without injections. So that run is made once, is
//! held at the beginning of phases, and each other run branches from the latest of these snapshots at which none of its
//! injections has been armed. It ends as if it had run from power-on.

use vmm::injection::Injection;
use vmm::phase::{Phase, Stamp};
use vmm::soft::Soft;

use crate::conductor::{HostTimes, Progress, Run, Until, WarmRuns};
use crate::evidence::Evidence;
use crate::plan::Plan;
use crate::run::{Listeners, MAX_HELD, RunError, SILENT, finish, run};
use crate::snapshot::RunSnapshot;
use crate::verdict::Judged;

/// The common beginning. It runs on the `soft` backend.
#[derive(Debug)]
pub struct Trunk {
    /// Without injections.
    plan: Plan,
    agent: Vec<u8>,
    /// Snapshots at the beginnings of phases, in order.
    held: Vec<(Stamp, RunSnapshot)>,
    /// From this place on there are no snapshots: the run ends before it, or has written too much memory.
    none_from: Option<Stamp>,
    /// The whole run.
    plain: Option<Judged>,
    soft: Soft,
    /// Code that the runs leave for each other.
    warm: WarmRuns,
}

impl Trunk {
    /// The beginning of all runs that begin as `plan`. Nothing runs yet.
    #[must_use]
    pub fn new(plan: &Plan, agent: &[u8], soft: Soft) -> Self {
        Self {
            plan: Plan {
                injections: Vec::new(),
                ..plan.clone()
            },
            agent: agent.to_vec(),
            held: Vec::new(),
            none_from: None,
            plain: None,
            soft,
            warm: WarmRuns::default(),
        }
    }

    /// Whether runs of `plan` begin so.
    #[must_use]
    pub fn serves(&self, plan: &Plan) -> bool {
        self.plan.begins_as(plan)
    }

    /// The run without injections.
    pub fn plain(&mut self) -> Result<&Judged, RunError> {
        let judged = match self.plain.take() {
            Some(judged) => judged,
            None => {
                let plan = self.plan.clone();
                self.run(&plan, &SILENT)?
            }
        };
        Ok(self.plain.insert(judged))
    }

    /// Runs a plan and judges it as [`run()`] does. A plan that begins otherwise runs from power-on.
    pub fn run(&mut self, plan: &Plan, listeners: &Listeners<'_>) -> Result<Judged, RunError> {
        if !self.serves(plan) {
            return run(plan, &self.agent, &self.soft, &[], listeners);
        }
        // Runs of a matrix part where the first kernel's agent has greeted.
        let parted = plan.is_survey().then_some(Stamp {
            generation: u16::try_from(plan.first_generation()).unwrap_or(u16::MAX),
            phase: Phase::Prepare,
        });
        let same = plan.injections.is_empty() && self.plan.has_new_kernel_of(plan);
        if let Some(plain) = self.plain.as_ref().filter(|_| same) {
            return Ok(Judged::new(Evidence {
                scenario_text: plan.scenario_text.clone(),
                ..plain.evidence.clone()
            })?);
        }
        let before = plan
            .injections
            .iter()
            .map(|planned| parts_at(&planned.injection, plan.first_generation()))
            .chain(parted)
            .min();
        let branch = match self.last_at(before)? {
            Some(snapshot) => Run::branched(snapshot, plan),
            None => Run::new(plan, &self.agent, &self.soft, &[]),
        }
        .map_err(RunError::Machine)?;
        finish(
            branch,
            HostTimes::default(),
            &self.soft,
            &[],
            Some(&self.warm),
            listeners,
        )
    }

    /// The last snapshot at `place` or before it; the last of all if there is no place. Goes on to the place first.
    fn last_at(&mut self, place: Option<Stamp>) -> Result<Option<&RunSnapshot>, RunError> {
        if let Some(place) = place {
            self.hold(place)?;
        }
        let before = |held: &&(Stamp, RunSnapshot)| place.is_none_or(|place| held.0 <= place);
        let held = self.held.iter().rfind(before);
        Ok(held.map(|(_, snapshot)| snapshot))
    }

    /// Takes a snapshot at the beginning of a phase, unless there is one or cannot be.
    fn hold(&mut self, place: Stamp) -> Result<(), RunError> {
        let at = match self.held.binary_search_by_key(&place, |held| held.0) {
            Err(at) if place > Stamp::START && self.none_from.is_none_or(|none| place < none) => at,
            _ => return Ok(()),
        };
        let before = at.checked_sub(1).map(|before| &self.held[before].1);
        let mut run = match before {
            Some(snapshot) => Run::from_snapshot(snapshot, &[]),
            None => Run::new(&self.plan, &self.agent, &self.soft, &[]),
        }
        .map_err(RunError::Machine)?;
        run.warm_up(&self.warm);
        let reached = run.proceed(&[Until::Phase(place)], &()) == Progress::Paused(0);
        if reached && run.touched_bytes() <= MAX_HELD {
            let snapshot = run.snapshot().map_err(RunError::Hold)?;
            run.leave_code(&self.warm);
            self.held.insert(at, (place, snapshot));
        } else {
            self.none_from = Some(place);
        }
        Ok(())
    }
}

/// The last beginning of a phase at which a run with this injection is still the run without it.
fn parts_at(injection: &Injection, first_generation: u32) -> Stamp {
    match injection.trigger.since {
        // The kernel that is booted is entered before anything else.
        Some(Stamp {
            generation,
            phase: Phase::BootNew,
        }) if u32::from(generation) == first_generation => Stamp::START,
        // At a kernel's entry memory is changed before the handover is captured, and a run that pauses there has it
        // captured already.
        Some(Stamp {
            generation,
            phase: Phase::BootNew,
        }) => Stamp {
            generation: generation.saturating_sub(1),
            phase: Phase::Jump,
        },
        Some(stamp) => stamp,
        None => Stamp::START,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::injection::{Deed, Delay, Occurrence, Repeat, Trigger};

    #[test]
    fn a_run_parts_no_later_than_its_injection_is_armed() {
        let stamp = |generation, phase| Stamp { generation, phase };
        let of = |since, first_generation| {
            let injection = Injection {
                trigger: Trigger {
                    since,
                    on: Occurrence::Begin,
                    nth: 1,
                    delay: Delay::Time(0),
                },
                deed: Deed::Write(Vec::new()),
                repeat: Repeat::ONCE,
            };
            parts_at(&injection, first_generation)
        };
        let at = |since| of(since, 0);
        assert_eq!(at(None), Stamp::START);
        let armed = stamp(0, Phase::Armed);
        assert_eq!(at(Some(armed)), armed);
        assert_eq!(at(Some(stamp(2, Phase::BootNew))), stamp(1, Phase::Jump));
        // A machine that begins with generation 1 is never at a jump of generation 0.
        assert_eq!(of(Some(stamp(1, Phase::BootNew)), 1), Stamp::START);
        assert_eq!(of(Some(stamp(2, Phase::BootNew)), 1), stamp(1, Phase::Jump));
    }
}
