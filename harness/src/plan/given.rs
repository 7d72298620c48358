//! The steps of a generation whose scenario gives its own: those, and what baton looks at between them.

use super::given_dma::Engine;
use super::steps::{self, Step};
use super::{ObjectPlan, Plan};
use crate::evidence::{CheckpointKind, MemfdEnd, MemoryPoint, Phase};
use crate::scenario::{Deed, Fault, Given, Scenario, Workload};
use guest_agent::protocol::Side;

/// Sets what the steps make of the objects: over how many kexecs they go, and what becomes of them after the last one.
/// `handed` is whether generation 1 is booted first, and gets all of them filled with their patterns.
pub(super) fn settle(objects: &mut [ObjectPlan], given: &[Given], handed: bool) {
    let succeeds = |given: &&Given| given.errno.is_none() && !given.looped;
    for object in objects {
        let of = |wanted: u32| wanted == object.id;
        let mut preserved = given
            .iter()
            .filter(succeeds)
            .filter_map(|given| match &given.deed {
                Deed::Preserve {
                    object,
                    session,
                    side: Side::Outgoing,
                    ..
                } if of(*object) => Some((given.generation, session)),
                _ => None,
            });
        object.blank = !handed;
        let own = object.preserve().map(|(session, _)| session);
        let handed = own.filter(|_| handed).map(|session| (0, session));
        let Some((last, session)) = preserved.next_back().or(handed) else {
            object.hops = 0;
            continue;
        };
        let mut after = given
            .iter()
            .filter(succeeds)
            .filter(|given| given.generation == last + 1);
        let retrieved = after
            .clone()
            .any(|given| matches!(&given.deed, Deed::Retrieve { object, .. } if of(*object)));
        let finished = after.any(|given| match &given.deed {
            Deed::Finish { session: of, side } | Deed::CloseSession { session: of, side } => {
                of == session && *side == Side::Incoming
            }
            _ => false,
        });
        object.hops = last + 1;
        object.end = match (retrieved, finished) {
            (true, _) => MemfdEnd::Retrieved,
            (false, true) => MemfdEnd::Finished,
            (false, false) => MemfdEnd::Left,
        };
    }
}

/// Steps of `generation`, after its agent's greeting. `all` are those of every generation.
pub(super) fn of(plan: &Plan, scenario: &Scenario, all: &[Given], generation: u32) -> Vec<Step> {
    if generation < scenario.first_generation() {
        return Vec::new();
    }
    let given: Vec<&Given> = all
        .iter()
        .filter(|given| given.generation == generation)
        .collect();
    let last = generation == plan.kexecs;
    let fault = scenario.fault.as_ref().map(toml::Spanned::get_ref);
    let mut list = List {
        plan,
        scenario,
        generation,
        preparing: generation == 0,
        engine: Engine::entering(plan, scenario, all, generation),
        fault: fault.filter(|fault| fault.generation == generation),
        steps: Vec::new(),
    };
    list.begin();
    let retrievals = given.iter().rposition(|given| is_retrieval(&given.deed));
    if generation > 0 && retrievals.is_none() {
        list.retrieved();
    }
    let mut closing = false;
    for (number, one) in given.iter().enumerate() {
        let closes = last && closed(&one.deed).is_some();
        let leaves = matches!(one.deed, Deed::Load | Deed::Kexec) && one.errno.is_none();
        if closes || leaves {
            list.fault();
        }
        if closes && !closing {
            let mut group = given[number..].iter().map_while(|one| closed(&one.deed));
            let stop = group.any(|object| list.engine.uses(object));
            list.capture_end(stop);
        }
        closing = closes;
        list.add(one);
        if retrievals == Some(number) && generation > 0 {
            list.retrieved();
        }
    }
    if last {
        list.end(closing);
    }
    list.steps
}

/// The memfd that a step closes.
fn closed(deed: &Deed) -> Option<u32> {
    match deed {
        Deed::CloseMemfd { object } => Some(*object),
        _ => None,
    }
}

fn is_retrieval(deed: &Deed) -> bool {
    matches!(deed, Deed::Retrieve { .. } | Deed::RetrieveSession { .. })
}

/// The steps so far.
struct List<'a> {
    plan: &'a Plan,
    scenario: &'a Scenario,
    generation: u32,
    /// Whether the phase is `prepare`, or a later one.
    preparing: bool,
    engine: Engine,
    /// The fault of this generation, until it is in the list.
    fault: Option<&'a Fault>,
    steps: Vec<Step>,
}

impl List<'_> {
    fn begin(&mut self) {
        let (plan, generation) = (self.plan, self.generation);
        if generation > 0 {
            let at = MemoryPoint::BeforeRetrieval;
            self.steps.push(Step::Phase(Phase::Restore));
            self.steps.push(Step::Memory(at));
            steps::flags(plan, generation, at, &mut self.steps);
            steps::under_pressure(self.scenario, at, Vec::new(), &mut self.steps);
            return;
        }
        self.steps.push(Step::Phase(Phase::Prepare));
        let regions = steps::regions(plan);
        self.steps
            .extend(regions.clone().next().map(|_| Step::FindRegions));
        self.steps
            .extend(regions.map(|region| Step::FillRegion(region.id)));
    }

    /// Lets the guest die or its kernel complain, if it is to and has not yet.
    fn fault(&mut self) {
        let Some(fault) = self.fault.take() else { return };
        self.steps.extend(fault.misbehave.map(Step::Misbehave));
        self.steps.extend(fault.provoke.map(Step::Provoke));
    }

    /// A wait of `ns` nanoseconds.
    fn wait(&mut self, ns: u64) {
        self.steps.push(if self.engine.armed {
            Step::AwaitInterrupts(ns)
        } else {
            Step::Pass(ns)
        });
    }

    fn add(&mut self, given: &Given) {
        let (generation, plan) = (self.generation, self.plan);
        let prepares = matches!(
            given.deed,
            Deed::CreateMemfd { .. } | Deed::CreateSession { .. } | Deed::Preserve { .. } | Deed::Load
        );
        if prepares && !self.preparing && generation < plan.kexecs {
            self.preparing = true;
            self.steps.push(Step::Phase(Phase::Prepare));
        }
        let armed = self.engine.armed;
        match &given.deed {
            // The kernel moves interrupts to other processors meanwhile, and VFIO does not know of it.
            Deed::JumpBack => self.engine.disarm(&mut self.steps),
            Deed::Load => self.steps.extend(plan.is_survey().then_some(Step::StageKernel)),
            Deed::Kexec => {
                self.steps.push(Step::Phase(Phase::Armed));
                self.wait(self.scenario.run.armed.0);
                if given.errno.is_none() {
                    self.engine.disarm(&mut self.steps);
                }
                // What it logs from here on is on the console alone.
                self.steps.push(Step::KernelLog);
            }
            _ => {}
        }
        self.engine.before(given, &mut self.steps);
        let kept = closed(&given.deed).filter(|object| self.is_kept(*object));
        self.steps.push(match kept {
            Some(object) => Step::KeepOpen(object),
            None => Step::Given(given.clone()),
        });
        let succeeds = given.errno.is_none() && !given.looped;
        match &given.deed {
            // Once it is preserved it has all its pages, so looking for them makes none.
            Deed::Preserve { object, .. } if succeeds => self.steps.push(Step::ResolvePages(*object)),
            Deed::Retrieve { object, .. } => self.steps.push(Step::Digest(*object)),
            Deed::JumpBack if armed => self.engine.arm(&mut self.steps),
            _ => {}
        }
        self.engine.after(given, &mut self.steps);
    }

    /// Whether the agent is to keep a memfd open when it should close it.
    fn is_kept(&self, object: u32) -> bool {
        let fault = self.scenario.fault.as_ref().map(toml::Spanned::get_ref);
        let kept = fault.and_then(|fault| fault.keep.as_ref());
        let name = self.plan.objects.iter().find(|known| known.id == object);
        kept.is_some_and(|kept| name.is_some_and(|known| known.name == *kept.get_ref()))
    }

    /// What is looked at once all is retrieved.
    fn retrieved(&mut self) {
        let (plan, generation) = (self.plan, self.generation);
        self.find_pages();
        let regions = steps::regions(plan).next().map(|_| Step::FindRegions);
        self.steps.extend(regions);
        self.steps.push(Step::Capture(CheckpointKind::Retrieved));
        steps::flags(plan, generation, MemoryPoint::Retrieved, &mut self.steps);
        self.engine.retrieved(&mut self.steps);
        self.wait(self.scenario.run.restore.0);
    }

    /// Asks anew where the pages of memfds are: steps may have moved them.
    fn find_pages(&mut self) {
        let carried = steps::carried(self.plan, self.generation.saturating_sub(1));
        self.steps
            .extend(carried.map(|object| Step::ResolvePages(object.id)));
    }

    /// What is looked at before memfds are closed. `stop` is whether the engine stops for it.
    fn capture_end(&mut self, stop: bool) {
        let (plan, generation) = (self.plan, self.generation);
        self.find_pages();
        let carried = steps::carried(plan, generation.saturating_sub(1));
        self.steps.extend(carried.map(|object| Step::Digest(object.id)));
        if generation > 0 {
            steps::flags(plan, generation, MemoryPoint::Held, &mut self.steps);
            steps::under_pressure(self.scenario, MemoryPoint::Held, Vec::new(), &mut self.steps);
        }
        self.steps.push(Step::Phase(Phase::Done));
        if stop {
            self.engine.stop(&mut self.steps);
        }
        self.steps.push(Step::Capture(CheckpointKind::End));
    }

    /// The end of the last generation. What the steps have not closed is left open. `closed` is whether the last step
    /// was to close a memfd.
    fn end(&mut self, closed: bool) {
        self.fault();
        if !closed || self.engine.running {
            self.capture_end(true);
        }
        let carried = steps::carried(self.plan, self.generation.saturating_sub(1));
        let carried: Vec<u32> = carried.map(|object| object.id).collect();
        if !carried.is_empty() {
            let at = MemoryPoint::AfterClose;
            // This also makes the kernel empty caches that hold references to freed pages.
            self.steps.push(Step::Memory(at));
            let flags = carried.into_iter().map(|object| Step::PageFlags(at, object));
            let pressed = self.scenario.run.workload == Some(Workload::All);
            self.steps.extend(pressed.then_some(Step::TakeMemory(at)));
            self.steps.extend(flags);
            self.steps.extend(pressed.then_some(Step::ReleaseMemory));
        }
        self.steps.push(Step::KernelLog);
        self.steps.push(Step::PowerOff);
    }
}
