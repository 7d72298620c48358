//! Answers injections that ask what to do, and takes what became of each as evidence.

use super::Run;
use crate::evidence::{FiringEvidence, InjectedAt, InjectionEvidence};
use crate::oracle::millis;
use crate::plan::InjectionPlan;
use crate::resolve::{Known, deed};
use std::sync::Arc;
use vmm::injection::{Deed, Running};
use vmm::machine::MachineError;
use vmm::phase::Stamp;

impl Run {
    /// Answers every injection that asks. To be called before the machine goes on.
    pub(super) fn answer_injections(&mut self) {
        while let Some(number) = self.machine.injection_asks() {
            let answer = self.answer(number);
            self.machine.answer_injection(number, answer);
        }
    }

    fn answer(&self, number: usize) -> Result<Deed, String> {
        let planned = self.plan.injections.get(number);
        let ask = planned.and_then(|planned| planned.ask.as_ref());
        let ask = ask.ok_or("the plan does not say what it is to do")?;
        let known = Known {
            machine: &self.machine,
            plan: &self.plan,
            evidence: &self.evidence,
            number,
        };
        deed(ask, &known)
    }

    /// Adds an injection to a run that has begun, such as a branch. If it waits for the beginning of the current phase,
    /// that counts if no time has passed since. At a kernel's entry the handover in the evidence was captured before.
    pub fn inject(&mut self, injection: InjectionPlan) -> Result<(), MachineError> {
        // The plan knows how to answer before the machine asks.
        let plan = Arc::make_mut(&mut self.plan);
        plan.injections.push(injection.clone());
        if let Err(error) = self.machine.add_injection(injection.injection) {
            Arc::make_mut(&mut self.plan).injections.pop();
            return Err(error);
        }
        self.answer_injections();
        Ok(())
    }

    /// What has become of each injection.
    pub(super) fn injection_evidence(&self) -> Vec<InjectionEvidence> {
        let planned = self.plan.injections.iter();
        let all = planned.zip(self.machine.injections());
        all.map(|(planned, running)| self.one_injection(planned, running))
            .collect()
    }

    fn one_injection(&self, planned: &InjectionPlan, running: &Running) -> InjectionEvidence {
        let at = |time, stamp: Stamp| InjectedAt {
            generation: stamp.generation.into(),
            phase: stamp.phase,
            time_ns: time,
            instructions: self.machine.instructions_at(time),
        };
        let firings = running.firings.iter().map(|firing| FiringEvidence {
            at: at(firing.time, firing.stamp),
            what: firing.done.to_string(),
        });
        let unable = running.unable.iter();
        InjectionEvidence {
            words: planned.words.clone(),
            armed: running.armed.map(|(time, stamp)| at(time, stamp)),
            fired: running.fired,
            firings: firings.collect(),
            unable: unable
                .map(|(time, reason)| format!("at {}: {reason}", millis(*time)))
                .collect(),
        }
    }
}
