//! `baton resume`: ends a run that was held in a snapshot.

use super::outputs::Outputs;
use super::run::{Task, report_on};
use super::{Exit, ResumeArgs, complain};
use harness::conductor::chain;
use harness::run::Hold;
use harness::snapshot::RunSnapshot;

/// Reads the snapshot, ends its run, and reports as `baton run` does.
pub(super) fn resume(args: &ResumeArgs) -> Exit {
    let mut snapshot = match RunSnapshot::read(&args.file) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            complain(chain(&error));
            return Exit::Usage;
        }
    };
    snapshot.translation = args.soft.backend().translation;
    let holds: Vec<Hold> = args
        .snapshot
        .iter()
        .map(|held| held.hold(&snapshot.plan))
        .collect();
    let outputs = Outputs::new(&args.reports, args.out.as_ref(), &args.snapshot);
    if let Err(error) = outputs.check() {
        complain(error);
        return Exit::Usage;
    }
    if let Err(failed) = outputs.confine([snapshot.plan.as_ref()]) {
        return failed;
    }
    let task = Task {
        said: outputs.said(),
        console: false,
        plan: &snapshot.plan,
        out: args.out.clone(),
        work: &|listeners| harness::run::resume(&snapshot, &holds, listeners),
    };
    let (report, exit) = report_on(&task);
    match args.reports.write(vec![report]) {
        Ok(()) => exit,
        Err(failed) => failed,
    }
}
