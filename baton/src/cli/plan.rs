//! `baton plan`: what a scenario does, step by step, without running it.

use super::outputs::write_all;
use super::overrides::OverrideArgs;
use super::{Exit, complain, print, scenarios};
use crate::report::{PlanReport, plan_text, write_json};
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Scenario file, or the name of a scenario that baton brings.
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    #[command(flatten)]
    overrides: OverrideArgs,
    /// Write the plan as JSON; - is standard output, and nothing else is printed there then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn plan(args: &PlanArgs) -> Exit {
    show(args).unwrap_or_else(|failed| failed)
}

fn show(args: &PlanArgs) -> Result<Exit, Exit> {
    let usage = |error: &dyn std::fmt::Display| {
        complain(error);
        Exit::Usage
    };
    let (scenario, text) = scenarios::read(&args.scenario).map_err(|error| usage(&error))?;
    let file = args.scenario.display().to_string();
    let overrides = args.overrides.overrides();
    let plan = harness::plan::outline(&scenario, &file, &text, &overrides).map_err(|error| usage(&error))?;
    let report = PlanReport::new(&plan, &scenario);
    if args.json.as_deref() != Some(Path::new("-")) {
        print(&plan_text(&report))?;
    }
    write_all(&[(&args.json, &|path: &Path| write_json(&report, path))])?;
    Ok(Exit::Met)
}
