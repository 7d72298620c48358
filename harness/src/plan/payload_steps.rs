//! The steps of one kernel generation of a run with a payload.

use super::{Plan, Step};
use crate::evidence::{CheckpointKind, Phase};
use crate::scenario::{KexecBy, Payload, Scenario};

/// Steps of `generation`, after its agent's greeting. Those after [`Step::Payload`] are taken if the payload ends
/// without a kexec of its own.
pub(super) fn of(plan: &Plan, scenario: &Scenario, payload: &Payload, generation: u32) -> Vec<Step> {
    let phase = if generation == 0 {
        Phase::Prepare
    } else {
        Phase::Restore
    };
    let mut steps = vec![Step::Phase(phase)];
    if generation == 0 && plan.dma.is_some() {
        steps.push(Step::StartDevice);
    }
    let last = generation == plan.kexecs;
    if payload.init.is_some() || !last && payload.kexec_by() == KexecBy::Payload {
        // What it logs from here on is on the console alone.
        steps.extend([Step::KernelLog, Step::Payload]);
        return steps;
    }
    steps.push(Step::Payload);
    if last {
        steps.push(Step::Phase(Phase::Done));
        steps.extend(plan.dma.is_some().then_some(Step::StopDevice));
        steps.extend([
            Step::Capture(CheckpointKind::End),
            Step::KernelLog,
            Step::PowerOff,
        ]);
    } else {
        steps.extend([
            Step::LoadKexec,
            Step::Phase(Phase::Armed),
            Step::Pass(scenario.run.armed.0),
            Step::KernelLog,
            Step::Kexec,
        ]);
    }
    steps
}
