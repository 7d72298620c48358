//! The steps of one kernel generation.

use super::{Plan, WORKLOAD_OBJECT, payload_steps};
use crate::evidence::{CheckpointKind, MemfdEnd, MemoryPoint, ObjectKind, Phase};
use crate::scenario::{Given, Scenario, Start, Workload};
use guest_agent::protocol::{Misbehaviour, Provocation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One step of the conductor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A phase begins.
    Phase(Phase),
    /// Make an object and fill it with its pattern.
    Create(u32),
    /// Make a session.
    CreateSession(String),
    /// Preserve an object in its session.
    Preserve(u32),
    /// Ask for the physical pages of an object.
    ResolvePages(u32),
    /// Put the ring into memory and start the DMA engine.
    StartDma,
    /// Put the ring into the engine's own memory and start it, from outside.
    StartDevice,
    /// Stop it from outside.
    StopDevice,
    /// Run the payload's program of this generation, or let it be PID 1.
    Payload,
    /// Find the memory that the running kernel has reserved by name. In a new kernel that is its retrieval.
    FindRegions,
    /// Fill such memory with its pattern, from outside.
    FillRegion(u32),
    /// Give the agent the image of the next kernel.
    StageKernel,
    /// Load the next kernel.
    LoadKexec,
    /// Let guest time pass, in nanoseconds. If the engine waits for its consumer, blocks are released meanwhile.
    Pass(u64),
    /// Receive the engine's interrupts.
    ArmInterrupts,
    /// Let the agent sleep for this many nanoseconds while interrupts come. If the engine waits for its consumer,
    /// blocks are released meanwhile.
    AwaitInterrupts(u64),
    /// End the interrupts, and count them.
    DisarmInterrupts,
    /// Reboot into the next kernel.
    Kexec,
    /// Retrieve a session.
    RetrieveSession(String),
    /// Retrieve an object from its session.
    Retrieve(u32),
    /// Capture the pages of all objects.
    Capture(CheckpointKind),
    /// Let the agent digest all pages of an object.
    Digest(u32),
    /// Finish a session.
    FinishSession(String),
    /// Fill a file of that many bytes, so that the new kernel uses memory.
    UseMemory(u64),
    /// Stop the DMA engine.
    StopDma,
    /// Close an object.
    Close(u32),
    /// Pretend to close an object: a leak.
    KeepOpen(u32),
    /// Ask for free memory.
    Memory(MemoryPoint),
    /// Ask what the kernel says of the pages of an object.
    PageFlags(MemoryPoint, u32),
    /// Take all free memory.
    TakeMemory(MemoryPoint),
    /// Give it back.
    ReleaseMemory,
    /// Let the guest die.
    Misbehave(Misbehaviour),
    /// Let the kernel complain.
    Provoke(Provocation),
    /// Ask for what the kernel has logged.
    KernelLog,
    /// Power off.
    PowerOff,
    /// What the scenario says.
    Given(Given),
}

/// Steps of `generation`, after its agent's greeting.
pub(super) fn of(plan: &Plan, scenario: &Scenario, generation: u32) -> Vec<Step> {
    if generation == 0 && scenario.handover.is_some() {
        return Vec::new();
    }
    if let Some(payload) = &scenario.payload {
        return payload_steps::of(plan, scenario, payload.get_ref(), generation);
    }
    let last = generation == plan.kexecs;
    let interrupts = scenario.has_interrupts();
    let mut steps = Vec::new();
    if generation == 0 {
        steps.push(Step::Phase(Phase::Prepare));
        steps.extend(agents(plan).map(|object| Step::Create(object.id)));
        steps.extend(regions(plan).next().map(|_| Step::FindRegions));
        steps.extend(regions(plan).map(|region| Step::FillRegion(region.id)));
        let start = scenario.dma.as_ref().map(|dma| dma.get_ref().start);
        let start_dma = interrupts
            .then_some(Step::ArmInterrupts)
            .into_iter()
            .chain(plan.dma.is_some().then_some(Step::StartDma));
        if start == Some(Start::BeforePreservation) {
            steps.extend(start_dma.clone());
        }
        preserve(plan, generation, &mut steps);
        steps.extend(agents(plan).map(|object| Step::ResolvePages(object.id)));
        if start == Some(Start::Preserved) {
            steps.extend(start_dma);
        }
    } else {
        restore(plan, scenario, generation, &mut steps);
    }
    let fault = scenario.fault.as_ref().map(toml::Spanned::get_ref);
    let fault = fault.filter(|fault| fault.generation == generation);
    steps.extend(fault.and_then(|fault| fault.misbehave).map(Step::Misbehave));
    steps.extend(fault.and_then(|fault| fault.provoke).map(Step::Provoke));
    if last {
        end(plan, scenario, generation, &mut steps);
    } else {
        if generation > 0 {
            steps.push(Step::Phase(Phase::Prepare));
            preserve(plan, generation, &mut steps);
        }
        steps.extend(plan.is_survey().then_some(Step::StageKernel));
        steps.push(Step::LoadKexec);
        steps.push(Step::Phase(Phase::Armed));
        steps.push(wait(scenario, scenario.run.armed.0));
        if interrupts {
            steps.push(Step::DisarmInterrupts);
        }
        // What it logs from here on is on the console alone.
        steps.push(Step::KernelLog);
        steps.push(Step::Kexec);
    }
    steps
}

/// A wait of `ns` nanoseconds. Interrupts need a running guest, which otherwise stands while the host waits.
fn wait(scenario: &Scenario, ns: u64) -> Step {
    if scenario.has_interrupts() {
        Step::AwaitInterrupts(ns)
    } else {
        Step::Pass(ns)
    }
}

/// Objects that the agent makes.
fn agents(plan: &Plan) -> impl Iterator<Item = &super::ObjectPlan> {
    plan.objects
        .iter()
        .filter(|object| object.kind != ObjectKind::ReserveMem)
}

/// Memory that the kernel reserves by name. It is never closed.
pub(super) fn regions(plan: &Plan) -> impl Iterator<Item = &super::ObjectPlan> + Clone {
    plan.objects
        .iter()
        .filter(|object| object.kind == ObjectKind::ReserveMem)
}

/// Objects of the agent that are preserved over the kexec out of `generation`.
pub(super) fn carried(plan: &Plan, generation: u32) -> impl Iterator<Item = &super::ObjectPlan> {
    agents(plan).filter(move |object| generation < object.hops)
}

/// Those of them that the next kernel's agent retrieves.
fn retrieved(plan: &Plan, generation: u32) -> impl Iterator<Item = &super::ObjectPlan> {
    carried(plan, generation).filter(|object| object.end == MemfdEnd::Retrieved)
}

/// Sessions over the kexec out of `generation`, each once, in order.
fn sessions(plan: &Plan, generation: u32) -> BTreeSet<&String> {
    carried(plan, generation)
        .filter_map(super::ObjectPlan::preserve)
        .map(|(session, _)| session)
        .collect()
}

fn preserve(plan: &Plan, generation: u32, steps: &mut Vec<Step>) {
    steps.extend(
        sessions(plan, generation)
            .into_iter()
            .cloned()
            .map(Step::CreateSession),
    );
    steps.extend(carried(plan, generation).map(|object| Step::Preserve(object.id)));
}

fn restore(plan: &Plan, scenario: &Scenario, generation: u32, steps: &mut Vec<Step>) {
    let left = generation - 1;
    steps.push(Step::Phase(Phase::Restore));
    steps.push(Step::Memory(MemoryPoint::BeforeRetrieval));
    flags(plan, generation, MemoryPoint::BeforeRetrieval, steps);
    under_pressure(scenario, MemoryPoint::BeforeRetrieval, Vec::new(), steps);
    let asked: BTreeSet<&String> = carried(plan, left)
        .filter(|object| object.end != MemfdEnd::Left)
        .filter_map(super::ObjectPlan::preserve)
        .map(|(session, _)| session)
        .collect();
    steps.extend(asked.iter().copied().cloned().map(Step::RetrieveSession));
    steps.extend(retrieved(plan, left).map(|object| Step::Retrieve(object.id)));
    steps.extend(regions(plan).next().map(|_| Step::FindRegions));
    steps.push(Step::Capture(CheckpointKind::Retrieved));
    steps.extend(retrieved(plan, left).map(|object| Step::Digest(object.id)));
    flags(plan, generation, MemoryPoint::Retrieved, steps);
    if scenario.has_interrupts() {
        steps.push(Step::ArmInterrupts);
    }
    steps.push(wait(scenario, scenario.run.restore.0));
    steps.extend(asked.into_iter().cloned().map(Step::FinishSession));
    if let Some(Workload::Size(bytes)) = scenario.run.workload {
        steps.push(Step::UseMemory(bytes.0));
    }
    flags(plan, generation, MemoryPoint::Held, steps);
    under_pressure(scenario, MemoryPoint::Held, Vec::new(), steps);
    // Objects that are not preserved further are closed here. The last generation closes all at its end.
    let done = carried(plan, left).filter(|object| object.hops == generation && generation < plan.kexecs);
    close(scenario, done.collect(), steps);
}

/// Asks for the flags of all objects that were carried into `generation`.
pub(super) fn flags(plan: &Plan, generation: u32, at: MemoryPoint, steps: &mut Vec<Step>) {
    let all = carried(plan, generation - 1).chain(regions(plan));
    steps.extend(all.map(|object| Step::PageFlags(at, object.id)));
}

/// If the workload is all memory, takes it and gives it back. `meanwhile` is done in between, or else at once.
pub(super) fn under_pressure(
    scenario: &Scenario,
    at: MemoryPoint,
    meanwhile: Vec<Step>,
    steps: &mut Vec<Step>,
) {
    let all = scenario.run.workload == Some(Workload::All);
    steps.extend(all.then_some(Step::TakeMemory(at)));
    steps.extend(meanwhile);
    steps.extend(all.then_some(Step::ReleaseMemory));
}

/// Closes objects, and asks what has become of their pages.
fn close(scenario: &Scenario, objects: Vec<&super::ObjectPlan>, steps: &mut Vec<Step>) {
    let fault = scenario.fault.as_ref().map(toml::Spanned::get_ref);
    let kept = fault
        .and_then(|fault| fault.keep.as_ref())
        .map(toml::Spanned::get_ref);
    let held = objects.iter().filter(|object| object.end == MemfdEnd::Retrieved);
    steps.extend(held.map(|object| match kept {
        Some(kept) if *kept == object.name => Step::KeepOpen(object.id),
        _ => Step::Close(object.id),
    }));
    if objects.is_empty() {
        return;
    }
    let at = MemoryPoint::AfterClose;
    // This also makes the kernel empty caches that hold references to freed pages.
    steps.push(Step::Memory(at));
    let flags = objects.iter().map(|object| Step::PageFlags(at, object.id));
    under_pressure(scenario, at, flags.collect(), steps);
}

fn end(plan: &Plan, scenario: &Scenario, generation: u32, steps: &mut Vec<Step>) {
    steps.push(Step::Phase(Phase::Done));
    if plan.dma.is_some() {
        steps.push(Step::StopDma);
    }
    if scenario.has_interrupts() {
        steps.push(Step::DisarmInterrupts);
    }
    steps.push(Step::Capture(CheckpointKind::End));
    if let Some(Workload::Size(_)) = scenario.run.workload {
        steps.push(Step::Close(WORKLOAD_OBJECT));
    }
    close(scenario, carried(plan, generation - 1).collect(), steps);
    steps.push(Step::KernelLog);
    steps.push(Step::PowerOff);
}
