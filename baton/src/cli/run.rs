//! `baton run`: runs scenarios one after another and reports on each.

use super::outputs::{Outputs, Said};
use super::{BackendChoice, Exit, RunArgs, backend_of, complain, exit_of, scenarios};
use crate::report::{Progress, ScenarioReport, text};
use harness::conductor::{Observer, chain};
use harness::evidence::{Evidence, Keeper, Phase, PhaseRecord};
use harness::plan::{Overrides, Plan, PlanError, plan};
use harness::run::{Again, Hold, Listeners, RunError};
use harness::scenario::wrong_at;
use harness::verdict::Judged;
use std::cell::Cell;
use std::io::Write;
use std::path::{Path, PathBuf};
use vmm::machine::MachineError;

/// Runs scenarios. All of them are read and resolved before the first is started.
pub(super) fn run(args: &RunArgs) -> Exit {
    let overrides = args.overrides.overrides();
    let scenarios = match scenarios::expand(&args.scenarios) {
        Ok(scenarios) => scenarios,
        Err(error) => {
            complain(error);
            return Exit::Usage;
        }
    };
    let mut plans = Vec::new();
    for file in &scenarios {
        match prepare(file, &overrides) {
            Ok(plan) => plans.push(plan),
            Err(error) => {
                complain(error);
                return Exit::Usage;
            }
        }
    }
    if let (Some(_), Some(name)) = (&args.out, twice(&plans)) {
        complain(format!(
            "two scenarios are named \"{name}\", and --out keeps evidence by name"
        ));
        return Exit::Usage;
    }
    if !args.snapshot.is_empty() && plans.len() > 1 {
        complain("--snapshot names one file, and several scenarios were given");
        return Exit::Usage;
    }
    let choice = match (args.execution.backend, args.snapshot.is_empty()) {
        (BackendChoice::Kvm, false) => {
            complain(RunError::Hold(MachineError::NoSnapshot));
            return Exit::Usage;
        }
        // The only one that can do it.
        (_, false) => BackendChoice::Soft,
        (choice, true) => choice,
    };
    let alone = plans.iter().find_map(|plan| Some((plan, plan.needs_soft()?)));
    let choice = match (choice, alone) {
        (BackendChoice::Kvm, Some((plan, reason))) => {
            complain(format!("{}: {reason}", plan.name));
            return Exit::Usage;
        }
        (BackendChoice::Auto, Some(_)) => BackendChoice::Soft,
        (choice, _) => choice,
    };
    let outputs = Outputs::new(&args.reports, args.out.as_ref(), &args.snapshot);
    if let Err(error) = outputs.check() {
        complain(error);
        return Exit::Usage;
    }
    let backend = match backend_of(choice, &args.execution) {
        Ok(backend) => backend,
        Err(failed) => return failed,
    };
    let agent = match harness::agent::load() {
        Ok(agent) => agent,
        Err(error) => {
            complain(error);
            return Exit::Failed;
        }
    };
    if let Err(failed) = outputs.confine(&plans) {
        return failed;
    }
    let (mut exit, mut reports) = (Exit::Met, Vec::new());
    for plan in &plans {
        let out = args.out.as_ref().map(|out| {
            if plans.len() == 1 {
                out.clone()
            } else {
                out.join(&plan.name)
            }
        });
        let holds: Vec<Hold> = args.snapshot.iter().map(|held| held.hold(plan)).collect();
        let (report, this) = report_on(&Task {
            plan,
            out,
            said: outputs.said(),
            console: args.console,
            work: &|listeners| harness::run::run(plan, &agent, backend.as_ref(), &holds, listeners),
        });
        reports.push(report);
        exit = exit.max(this);
    }
    if plans.len() > 1 {
        summary(&reports, outputs.said());
    }
    match args.reports.write(reports) {
        Ok(()) => exit,
        Err(failed) => failed,
    }
}

/// Reads a scenario and resolves it to a plan. Errors name file, line and column if the plan knows the place.
pub(super) fn prepare(file: &Path, overrides: &Overrides) -> Result<Plan, String> {
    let (scenario, text) = scenarios::read(file)?;
    let name = file.display().to_string();
    let plan = plan(&scenario, &name, &text, overrides);
    plan.map_err(|PlanError { span, source }| match span {
        Some(span) => wrong_at(&name, &text, span, source.to_string()).to_string(),
        // The file does not name this kernel.
        None => source.to_string(),
    })
}

/// First name, in alphabetical order, that two plans share.
fn twice(plans: &[Plan]) -> Option<&str> {
    let mut names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
    names.sort_unstable();
    names
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
}

/// A run that is to be reported on.
pub(super) struct Task<'a> {
    /// What is run.
    pub plan: &'a Plan,
    /// Where its evidence is kept.
    pub out: Option<PathBuf>,
    /// Where its report as text goes.
    pub said: Said,
    /// Whether the guest's console is shown.
    pub console: bool,
    /// Runs it.
    pub work: &'a dyn Fn(&Listeners<'_>) -> Result<Judged, RunError>,
}

/// Runs a task with progress, keeps its evidence and prints its report.
pub(super) fn report_on(task: &Task<'_>) -> (ScenarioReport, Exit) {
    let plan = task.plan;
    let failed = |error: String| {
        complain(format!("{}: {error}", plan.name));
        let (name, file) = (plan.name.clone(), plan.scenario_file.clone());
        (ScenarioReport::error(name, file, plan.seed, error), Exit::Failed)
    };
    let keeper = match task.out.as_deref().map(Keeper::begin).transpose() {
        Ok(keeper) => keeper,
        Err(error) => return failed(chain(&error)),
    };
    let progress = if task.console {
        Progress::in_lines(&plan.name)
    } else {
        Progress::new(&plan.name)
    };
    let observer = Keeping {
        console: task.console,
        progress: &progress,
        keeper,
        failed: Cell::new(false),
    };
    let result = (task.work)(&Listeners {
        observer: &observer,
        again: &|Again { bytes, from }| {
            let from = if from.time == 0 {
                "power-on".into()
            } else {
                from.stamp.to_string()
            };
            progress.note(&format!(
                "running once more from {from} to see who wrote {bytes} bytes last"
            ));
        },
    });
    progress.finish();
    let judged = match result {
        Ok(judged) => judged,
        Err(error) => return failed(error.to_string()),
    };
    // Evidence is saved before anything is printed, because a closed standard output ends the program.
    let kept = keep(&judged, task.out.clone());
    task.said.line(&text(&judged));
    let exit = exit_of(judged.judgement.verdict);
    (
        ScenarioReport::new(&judged),
        kept.map_or_else(|failed| failed, |()| exit),
    )
}

/// Observer that shows progress and the console and, with `--out`, saves the evidence gathered so far.
struct Keeping<'a> {
    progress: &'a Progress,
    /// Whether the guest's console is shown.
    console: bool,
    keeper: Option<Keeper>,
    /// Set after the first failed save: the user has been told, and no further save is tried.
    failed: Cell<bool>,
}

impl Observer for Keeping<'_> {
    fn phase(&self, generation: u32, phase: Phase) {
        self.progress.phase(generation, phase);
    }

    fn passed(&self, record: &PhaseRecord) {
        self.progress.passed(record);
    }

    fn goes_on(&self, guest_ns: u64) {
        self.progress.goes_on(guest_ns);
    }

    fn keeps(&self) -> bool {
        self.keeper.is_some() && !self.failed.get()
    }

    fn listens(&self) -> bool {
        self.console
    }

    fn printed(&self, output: &[u8]) {
        // An error means that standard error is closed, so that it cannot be reported there either.
        let _ = std::io::stderr().write_all(output);
    }

    fn so_far(&self, evidence: Evidence) {
        if let Some(Err(error)) = self.keeper.as_ref().map(|keeper| keeper.keep(&evidence)) {
            self.failed.set(true);
            self.progress
                .note(&format!("evidence so far is no longer kept: {}", chain(&error)));
        }
    }
}

/// Saves evidence, if there is a directory for it.
pub(super) fn keep(judged: &Judged, out: Option<PathBuf>) -> Result<(), Exit> {
    let Some(directory) = out else { return Ok(()) };
    harness::evidence::save(&judged.evidence, &directory).map_err(|error| {
        complain(chain(&error));
        Exit::Failed
    })
}

fn summary(reports: &[ScenarioReport], said: Said) {
    for report in reports {
        said.line(&format!("{:<5} {}", report.verdict().name(), report.name()));
    }
}
