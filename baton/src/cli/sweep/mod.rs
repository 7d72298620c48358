//! `baton sweep`: one kind of fault at every place.

mod blob;
mod dma;
mod sink;

use super::outputs::{Outputs, Said, write_all};
use super::{Exit, SoftArgs, complain};
use crate::report::write_text;
use campaign::sweep::read;
use clap::{Args, Subcommand};
use harness::plan::{Overrides, Plan};
use serde::de::DeserializeOwned;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(subcommand)]
    command: SweepCommand,
}

#[derive(Debug, Subcommand)]
enum SweepCommand {
    /// Give every field of the handover every wrong value, and class what the new kernel makes of it.
    #[command(after_help = EXIT_HELP)]
    Blob(blob::BlobArgs),
    /// Drop a device write, or add one, at one moment after the other, and say which rule catches it.
    #[command(after_help = EXIT_HELP)]
    Dma(dma::DmaArgs),
}

const EXIT_HELP: &str = "Exit status: 0 all cases were run (whatever their classes), 2 bad usage or scenario, 3 a case \
could not be run.";

/// What every sweep is told.
#[derive(Debug, Args)]
struct Common {
    /// Scenario file with one kexec or more; the second kernel is the one that is tested.
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Kernel, the same for all generations: a version or the path of a bzImage. May be given several times, for one
    /// sweep each; without it the scenario's.
    #[arg(long, value_name = "VERSION|PATH")]
    kernel: Vec<String>,
    /// Seed of every random choice.
    #[arg(long)]
    seed: Option<u64>,
    /// Cases that run at the same time; one per processor unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Print the results as lines of JSON, each when it is there; the table goes to standard error then.
    #[arg(long)]
    json: bool,
    /// Append results to DIR/results.jsonl, leave out the cases that are in it already, and keep the evidence of
    /// interesting cases in a folder each.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write a report to read in a browser: one file that fetches nothing; - is standard output, and the table goes to
    /// standard error then.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    soft: SoftArgs,
}

impl Common {
    /// The plan of each kernel, with the kernel as it was given.
    fn plans(&self) -> Result<Vec<(Option<&String>, Plan)>, Exit> {
        let kernels: Vec<Option<&String>> = match &self.kernel[..] {
            [] => vec![None],
            some => some.iter().map(Some).collect(),
        };
        let plan = |kernel: Option<&String>| {
            let overrides = Overrides {
                kernel: kernel.cloned(),
                seed: self.seed,
                ..Overrides::default()
            };
            super::run::prepare(&self.scenario, &overrides).map_err(|error| {
                complain(error);
                Exit::Usage
            })
        };
        let plans = kernels.into_iter().map(|kernel| Ok((kernel, plan(kernel)?)));
        plans.collect()
    }

    /// Whether the reports' places can be written, and who else has standard output.
    fn check(&self) -> Result<Said, Exit> {
        let outputs = self.outputs();
        let usage = |error: &dyn std::fmt::Display| {
            complain(error);
            Exit::Usage
        };
        outputs.check().map_err(|error| usage(&error))?;
        if self.json && outputs.said() == Said::Error {
            return Err(usage(&"--json and --html - are both standard output"));
        }
        Ok(outputs.said())
    }

    /// Confines this process, once all has been read that the plans' guests need.
    fn confine(&self, plans: &[(Option<&String>, Plan)]) -> Result<(), Exit> {
        self.outputs().confine(plans.iter().map(|(_, plan)| plan))
    }

    fn outputs(&self) -> Outputs<'_> {
        Outputs {
            reports: self.html.iter().map(PathBuf::as_path).collect(),
            out: self.out.as_deref(),
            snapshots: Vec::new(),
        }
    }

    /// Prints the table, and writes the page.
    fn report(&self, said: Said, table: &str, page: &dyn Fn() -> String) -> Result<(), Exit> {
        if self.json || said == Said::Error {
            eprint!("{table}");
        } else {
            super::print(table)?;
        }
        write_all(&[(&self.html, &|path| write_text(&page(), path))])
    }

    fn jobs(&self) -> usize {
        self.jobs.map_or_else(super::processors, usize::from)
    }

    /// The file of results.
    fn results(&self) -> Option<PathBuf> {
        self.out.as_ref().map(|out| out.join("results.jsonl"))
    }

    /// The results that are there already.
    fn lines<L: DeserializeOwned>(&self) -> Result<Vec<L>, Exit> {
        match self.results().filter(|file| file.exists()) {
            Some(file) => read(&file).map_err(|error| {
                complain(error);
                Exit::Failed
            }),
            None => Ok(Vec::new()),
        }
    }

    /// The command line that runs a case again, up to `--only`.
    fn command(&self, sweep: &str, kernel: Option<&String>, seed: u64) -> String {
        let mut command = format!("baton sweep {sweep} {} --seed {seed}", self.scenario.display());
        if let Some(kernel) = kernel {
            command = format!("{command} --kernel {kernel}");
        }
        command
    }
}

/// Runs the command.
pub(super) fn sweep(args: &SweepArgs) -> Exit {
    let done = match &args.command {
        SweepCommand::Blob(args) => blob::blob(args),
        SweepCommand::Dma(args) => dma::dma(args),
    };
    done.unwrap_or_else(|failed| failed)
}
