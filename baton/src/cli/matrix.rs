//! `baton matrix`: one scenario with every pair of kernels.

use super::outputs::{Outputs, Said, write_all};
use super::{Exit, SoftArgs, complain};
use crate::report::{MatrixReport, html, matrix_text, write_json, write_text};
use campaign::matrix::{PairLine, rows, run};
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = EXIT_HELP)]
pub(super) struct MatrixArgs {
    /// Scenario file. Its objects are what is looked at, and its expectations play no part.
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Kernels, each before each and itself: versions or paths of bzImages, with commas between them.
    #[arg(long, required = true, value_delimiter = ',', value_name = "KERNEL,...")]
    kernels: Vec<String>,
    /// Seed of every random choice.
    #[arg(long)]
    seed: Option<u64>,
    /// First kernels whose pairs run at the same time; one per processor unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Write a JSON report; - is standard output, and all else goes to standard error then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report to read in a browser: one file that fetches nothing; - as for --json.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    soft: SoftArgs,
}

const EXIT_HELP: &str = "Exit status: 0 all pairs were run (whatever became of the objects), 2 bad usage or scenario, 3 a \
pair could not be run or judged.";

/// Runs the command.
pub(super) fn matrix(args: &MatrixArgs) -> Exit {
    run_matrix(args).unwrap_or_else(|failed| failed)
}

fn run_matrix(args: &MatrixArgs) -> Result<Exit, Exit> {
    let usage = |error: &dyn std::fmt::Display| {
        complain(error);
        Exit::Usage
    };
    let outputs = Outputs {
        reports: [&args.json, &args.html]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect(),
        ..Outputs::default()
    };
    outputs.check().map_err(|error| usage(&error))?;
    let distinct: BTreeSet<&String> = args.kernels.iter().collect();
    if distinct.len() != args.kernels.len() || distinct.iter().any(|name| name.is_empty()) {
        return Err(usage(
            &"--kernels: expected names with commas between them, each once",
        ));
    }
    let (scenario, text) = harness::scenario::load(&args.scenario).map_err(|error| usage(&error))?;
    let file = args.scenario.display().to_string();
    if scenario.handover.is_some() {
        return Err(usage(&format!(
            "{file}: [handover] has no first kernel, so there are no pairs"
        )));
    }
    if scenario.memfd.is_empty() && scenario.reserve_mem.is_empty() && scenario.test_kho.is_none() {
        return Err(usage(&format!(
            "{file}: no object: expected [[memfd]], [[reserve_mem]] or [test_kho]"
        )));
    }
    let rows = rows(&scenario, &file, &text, &args.kernels, args.seed).map_err(|error| usage(&error))?;
    let agent = harness::agent::load().map_err(|error| {
        complain(error);
        Exit::Failed
    })?;
    let jobs = args.jobs.map_or_else(super::processors, usize::from);
    let soft = args.soft.backend();
    let pairs = rows.iter().flat_map(|row| &row.pairs);
    outputs.confine(pairs.map(|(_, plan)| plan))?;
    let lines = run(&rows, &agent, soft, jobs, &tell);
    let report = MatrixReport::new(scenario.name.get_ref(), &file, &args.kernels, lines);
    said(&report, outputs.said());
    write_all(&[
        (&args.json, &|path: &Path| write_json(&report, path)),
        (&args.html, &|path: &Path| write_text(&html::pairs(&report), path)),
    ])?;
    Ok(if report.problems().next().is_some() {
        Exit::Failed
    } else {
        Exit::Met
    })
}

fn said(report: &MatrixReport, said: Said) {
    said.line(&matrix_text(report));
}

/// Tells of a pair on standard error.
fn tell(line: &PairLine) {
    let fates = line
        .kinds
        .iter()
        .map(|one| format!("{} {}", one.kind.name(), one.fate.name()));
    let fates: Vec<String> = fates.chain(line.problem.clone()).collect();
    eprintln!("baton: {} -> {}: {}", line.old, line.new, fates.join(", "));
}
