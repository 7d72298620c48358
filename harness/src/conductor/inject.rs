//! Answers injections that ask what to do, and takes what became of each as evidence.

use super::{Run, chain};
use crate::evidence::{FiringEvidence, InjectedAt, InjectionEvidence, PAGE, describe};
use crate::oracle::{many, millis};
use crate::plan::{InjectionPlan, Plan};
use crate::resolve::{Known, deed, needs_never_written};
use crate::snapshot::RunSnapshot;
use std::sync::Arc;
use vmm::injection::{Deed, Done, Firing, Running};
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

    fn answer(&mut self, number: usize) -> Result<Deed, String> {
        let planned = self.plan.injections.get(number);
        let ask = planned.and_then(|planned| planned.ask.as_ref());
        let ask = ask.ok_or("the plan does not say what it is to do")?;
        let mut never_written = Vec::new();
        if needs_never_written(ask) {
            never_written = self.machine.never_written().map_err(|error| chain(&error))?;
        }
        let known = Known {
            machine: &self.machine,
            plan: &self.plan,
            evidence: &self.evidence,
            number,
            never_written,
        };
        deed(ask, &known)
    }

    /// Adds injections to a run that has begun, such as a branch. If one waits for the beginning of the current phase,
    /// that counts if no time has passed since. At a kernel's entry the handover in the evidence was captured before.
    pub fn inject(&mut self, injections: &[InjectionPlan]) -> Result<(), MachineError> {
        let added: Vec<_> = injections
            .iter()
            .map(|planned| planned.injection.clone())
            .collect();
        self.machine.add_injections(&added)?;
        // The plan knows how to answer what they ask.
        Arc::make_mut(&mut self.plan)
            .injections
            .extend_from_slice(injections);
        self.answer_injections();
        Ok(())
    }

    /// A run of `plan` that goes on from a snapshot of a plan that begins as it does, without injections: it must have
    /// been taken at the beginning of a phase, before the first of the injections is armed.
    pub(crate) fn branched(snapshot: &RunSnapshot, plan: &Plan) -> Result<Self, MachineError> {
        let mut run = Self::from_snapshot(snapshot, &[])?;
        run.plan = Arc::new(Plan {
            injections: Vec::new(),
            ..plan.clone()
        });
        run.evidence.scenario_text.clone_from(&plan.scenario_text);
        if plan.is_survey() {
            // The snapshot's run goes on to another kernel.
            let fresh = super::setup::blank(plan, &run.evidence.backend);
            let begun = run.evidence.kernels.len().min(run.cursor.generation as usize + 1);
            run.evidence.kernels.truncate(begun);
            run.evidence.kernels.extend(fresh.kernels.into_iter().skip(begun));
            run.evidence.overrides = fresh.overrides;
        }
        run.inject(&plan.injections)?;
        Ok(run)
    }

    /// What has become of each injection.
    pub(super) fn injection_evidence(&self) -> Vec<InjectionEvidence> {
        let planned = self.plan.injections.iter();
        let all = planned.zip(self.machine.injections());
        all.map(|(planned, running)| self.one_injection(planned, running))
            .collect()
    }

    /// What an injection did, in words.
    fn told_of(&self, firing: &Firing) -> String {
        let generation = firing.stamp.generation.into();
        match firing.done {
            Done::Changed { entry, change } => {
                let meant = self
                    .machine
                    .ledger()
                    .entries()
                    .iter()
                    .find(|found| found.index == entry);
                meant.map_or(firing.done.to_string(), |meant| {
                    let (bytes, to) = (meant.length, self.place_of(meant.address, generation));
                    format!(
                        "write of {bytes} bytes ({}) to {to} was {change}",
                        describe(meant)
                    )
                })
            }
            Done::Wrote { address, bytes, .. } => {
                let to = self.place_of(address, generation);
                format!("{} written at {to}", many(bytes, "byte"))
            }
            Done::Acted(act) => act.to_string(),
        }
    }

    /// An address with the object that it belongs to, in words.
    fn place_of(&self, address: u64, generation: u32) -> String {
        let owned = self.evidence.objects.iter().find_map(|object| {
            let frames = object.frames(generation);
            let page = frames.iter().position(|frame| *frame == address / PAGE)?;
            Some(format!("page {page} of \"{}\" ({address:#x})", object.name))
        });
        owned.unwrap_or_else(|| format!("{address:#x}"))
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
            what: self.told_of(firing),
        });
        let unable = running.unable.iter();
        InjectionEvidence {
            words: planned.words.clone(),
            acts_on_machine: planned.injection.acts_on_machine(),
            armed: running.armed.map(|(time, stamp)| at(time, stamp)),
            fired: running.fired,
            firings: firings.collect(),
            unable: unable
                .map(|(time, reason)| format!("at {}: {reason}", millis(*time)))
                .collect(),
        }
    }
}
