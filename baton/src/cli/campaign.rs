//! `baton campaign`: many runs, in worker processes, each result a line of a file.

use super::outputs::{Outputs, ReportFiles, Said, write_all};
use super::run::keep;
use super::{Exit, SoftArgs, complain, exit_of};
use crate::report::{
    CampaignReport, CountProgress, MinimalPlace, Places, ScenarioReport, campaign_text, html, run_line, text,
    write_json, write_text,
};
use campaign::drive::{DriveError, Ended, Settings, drive};
use campaign::file;
use campaign::merge::merge;
use campaign::minimise::minimise;
use campaign::partition::Partition;
use campaign::plan::{CampaignPlan, Cell, plan};
use campaign::result::{CellResult, Status};
use campaign::store::{Store, StoreError};
use campaign::summary::Summary;
use campaign::worker;
use clap::{Args, Subcommand};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use vmm::soft::Soft;

/// How many groups of failures have evidence kept, unless `--keep` says.
const KEPT: usize = 10;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct CampaignArgs {
    #[command(subcommand)]
    command: Option<CampaignCommand>,
    #[command(flatten)]
    run: CampaignRunArgs,
}

#[derive(Debug, Subcommand)]
enum CampaignCommand {
    /// List the cells of a campaign, a line each: identity and name.
    Plan(PlanArgs),
    /// Run one cell again in this process, and report on it as `baton run` does.
    Cell(CellArgs),
    /// Put results of several machines together: they must be of one plan, whole, and agree.
    Merge(MergeArgs),
    /// Run cells that a campaign sends on standard input.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
struct WorkerArgs {
    #[command(flatten)]
    soft: SoftArgs,
}

#[derive(Debug, Args)]
struct CampaignRunArgs {
    /// Campaign file.
    #[arg(required = true, value_name = "CAMPAIGN.toml")]
    file: Option<PathBuf>,
    /// Worker processes; without it one per processor of the host.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Run only a part of the cells: slice:2/8 or hash:2/8.
    #[arg(
        long,
        value_name = "KIND:PART/PARTS",
        default_value = "slice:1/1",
        hide_default_value = true
    )]
    partition: Partition,
    /// Directory of the results. If it holds some already, the campaign goes on. Without it, NAME.campaign in the
    /// current directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keep evidence of one failure of each of the worst N groups, in DIR/evidence.
    #[arg(long, value_name = "N", default_value_t = KEPT)]
    keep: usize,
    /// For the failures whose evidence is kept: look for the smallest scenario that fails in the same way, by leaving
    /// out injections and narrowing them, and write it to DIR/minimal.
    #[arg(long)]
    minimise: bool,
    /// Host time in seconds that a cell may take before its worker is killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    cell_timeout: u64,
    #[command(flatten)]
    files: CampaignFiles,
    #[command(flatten)]
    soft: SoftArgs,
}

/// The files that a campaign's report is written to.
#[derive(Debug, Args)]
struct CampaignFiles {
    /// Write a JSON report; - is standard output, and all else goes to standard error then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report to read in a browser: one file that fetches nothing; - as for --json.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// Campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    file: PathBuf,
    /// List only a part of the cells: slice:2/8 or hash:2/8.
    #[arg(
        long,
        value_name = "KIND:PART/PARTS",
        default_value = "slice:1/1",
        hide_default_value = true
    )]
    partition: Partition,
}

#[derive(Debug, Args)]
struct CellArgs {
    /// Campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    file: PathBuf,
    /// The cell's identity, or its beginning.
    #[arg(value_name = "CELL")]
    cell: String,
    /// Keep the evidence in DIR.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    reports: ReportFiles,
    #[command(flatten)]
    soft: SoftArgs,
}

#[derive(Debug, Args)]
struct MergeArgs {
    /// Directories of results.
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Directory that gets all results.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    files: CampaignFiles,
}

/// Runs the subcommand.
pub(super) fn campaign(args: &CampaignArgs) -> Exit {
    let done = match (&args.command, &args.run.file) {
        (Some(CampaignCommand::Plan(args)), _) => list(args),
        (Some(CampaignCommand::Cell(args)), _) => again(args),
        (Some(CampaignCommand::Merge(args)), _) => together(args),
        (Some(CampaignCommand::Worker(args)), _) => work(args),
        (None, Some(file)) => run(file, &args.run),
        (None, None) => Err(Failed(Exit::Usage, "no campaign file".into())),
    };
    done.unwrap_or_else(|Failed(exit, error)| {
        complain(error);
        exit
    })
}

/// An error with its exit status.
struct Failed(Exit, String);

impl Failed {
    fn usage(error: impl ToString) -> Self {
        Self(Exit::Usage, error.to_string())
    }

    fn run(error: impl ToString) -> Self {
        Self(Exit::Failed, error.to_string())
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::run(error)
    }
}

impl From<DriveError> for Failed {
    fn from(error: DriveError) -> Self {
        Self::run(error)
    }
}

/// What a campaign writes: its reports, and a directory.
fn outputs<'a>(files: &'a CampaignFiles, out: Option<&'a PathBuf>) -> Outputs<'a> {
    let reports = [&files.json, &files.html].into_iter().flatten();
    Outputs {
        reports: reports.map(PathBuf::as_path).collect(),
        out: out.map(PathBuf::as_path),
        snapshots: Vec::new(),
    }
}

fn planned(path: &Path) -> Result<CampaignPlan, Failed> {
    let (campaign, text) = file::load(path).map_err(Failed::usage)?;
    plan(&campaign, path, &text).map_err(Failed::usage)
}

fn list(args: &PlanArgs) -> Result<Exit, Failed> {
    let plan = planned(&args.file)?;
    let mut out = std::io::stdout().lock();
    let mut count = 0u64;
    for (index, cell) in plan.cells.iter().enumerate() {
        if args.partition.has(index, cell.id) {
            count += 1;
            writeln!(out, "{} {}", cell.id, plan.label(cell)).map_err(Failed::run)?;
        }
    }
    eprintln!("plan {}: {count} of {} cells", plan.id(), plan.cells.len());
    Ok(Exit::Met)
}

fn again(args: &CellArgs) -> Result<Exit, Failed> {
    let outputs = Outputs::new(&args.reports, args.out.as_ref(), &[]);
    outputs.check().map_err(Failed::usage)?;
    let plan = planned(&args.file)?;
    let mut cells = plan.cells_by_prefix(&args.cell);
    let cell = match (cells.next(), cells.next()) {
        (Some(cell), None) => cell,
        (None, _) => return Err(Failed::usage(format!("no cell {} in the plan", args.cell))),
        (Some(_), Some(_)) => return Err(Failed::usage(format!("several cells begin with {}", args.cell))),
    };
    let (judged, _) = worker::run_again(&plan, cell, args.soft.backend()).map_err(Failed::run)?;
    let kept = keep(&judged, args.out.clone());
    outputs.said().line(&format!("{}\n", plan.label(cell)));
    outputs.said().line(&text(&judged));
    let exit = exit_of(judged.judgement.verdict);
    args.reports
        .write(vec![ScenarioReport::new(&judged)])
        .and(kept)
        .map_or_else(Ok, |()| Ok(exit))
}

fn together(args: &MergeArgs) -> Result<Exit, Failed> {
    let outputs = outputs(&args.files, args.out.as_ref());
    outputs.check().map_err(Failed::usage)?;
    let merged = merge(&args.directories, args.out.as_deref())?;
    let report = CampaignReport::new(&merged.header, &merged.summary, &merged.missing);
    say(&report, &args.files, outputs.said(), &Places::default())?;
    Ok(status(&merged.summary, merged.missing.len()))
}

fn work(args: &WorkerArgs) -> Result<Exit, Failed> {
    // A worker that outlives its campaign would work for nobody.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let soft = args.soft.backend();
    worker::work(soft, std::io::stdin().lock(), std::io::stdout().lock()).map_err(Failed::run)?;
    Ok(Exit::Met)
}

fn run(path: &Path, args: &CampaignRunArgs) -> Result<Exit, Failed> {
    let plan = Arc::new(planned(path)?);
    let soft = args.soft.backend();
    let directory = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{}.campaign", plan.name)));
    let outputs = outputs(&args.files, Some(&directory));
    outputs.check().map_err(Failed::usage)?;
    let (mut summary, mut met) = (Summary::default(), BTreeSet::new());
    let mut store = Store::open(&directory, &plan, args.partition, &mut |result| {
        if met.insert(result.cell) {
            summary.add(&result);
        }
    })?;
    let before = summary.done();
    let ours = |(index, cell): &(usize, &Cell)| args.partition.has(*index, cell.id);
    let all: Vec<usize> = plan
        .cells
        .iter()
        .enumerate()
        .filter(ours)
        .map(|(index, _)| index)
        .collect();
    let due: Vec<usize> = all
        .iter()
        .copied()
        .filter(|index| !met.contains(&plan.cells[*index].id))
        .collect();
    let progress = CountProgress::new(&plan.name, all.len() as u64, before, "failing");
    let ended = drive(&plan, &due, &settings(args)?, &mut |result| {
        store.append(&result)?;
        summary.add(&result);
        progress.show(summary.done(), summary.failing());
        Ok::<(), Failed>(())
    });
    progress.finish();
    if ended? == Ended::Interrupted {
        let done = summary.done();
        let goes_on = "the same command goes on";
        return Err(Failed::run(format!(
            "interrupted after {done} of {} cells; {goes_on}",
            all.len()
        )));
    }
    let mut places = Places {
        campaign: Some(path.to_path_buf()),
        ..Places::default()
    };
    if args.minimise {
        minimise_groups(&plan, &summary, &directory, args.keep, soft, &mut places)?;
    }
    let unequal = keep_evidence(&plan, &summary, &directory, args.keep, soft, &mut places)?;
    let header = campaign::store::read_header(&directory)?;
    let report = CampaignReport::new(&header, &summary, &[]);
    say(&report, &args.files, outputs.said(), &places)?;
    match unequal {
        Some(cell) => Err(Failed::run(format!(
            "cell {cell} gave another result when it was run again; results cannot be trusted"
        ))),
        None => Ok(status(&summary, 0)),
    }
}

fn settings(args: &CampaignRunArgs) -> Result<Settings, Failed> {
    let program = std::env::current_exe().map_err(Failed::run)?;
    Ok(Settings {
        worker: (
            program,
            vec!["campaign".into(), "worker".into(), args.soft.option()],
        ),
        jobs: args.jobs.map_or_else(super::processors, usize::from),
        cell_timeout: Duration::from_secs(args.cell_timeout),
    })
}

/// The smallest failure of each of the worst groups, with its cell. One that was never judged cannot be looked at
/// again.
fn smallest_failures<'a>(
    plan: &'a CampaignPlan,
    summary: &'a Summary,
    groups: usize,
) -> impl Iterator<Item = (&'a Cell, &'a CellResult)> {
    let worst = summary.ranked().into_iter().take(groups);
    let failures = worst.map(|(_, group)| &group.smallest);
    let judged = failures.filter(|failure| failure.status != Status::Died && !failure.state_hash.is_empty());
    judged.filter_map(|failure| {
        let cell = plan.cells.iter().find(|cell| cell.id == failure.cell)?;
        Some((cell, failure))
    })
}

/// Runs the smallest failure of each of the worst groups again and keeps its evidence, unless it is kept already.
/// Returns a cell whose result differed.
fn keep_evidence(
    plan: &CampaignPlan,
    summary: &Summary,
    directory: &Path,
    groups: usize,
    soft: Soft,
    places: &mut Places,
) -> Result<Option<campaign::plan::CellId>, Failed> {
    for (cell, failure) in smallest_failures(plan, summary, groups) {
        let id = cell.id;
        let place = directory.join("evidence").join(id.to_string());
        if !harness::evidence::is_kept_in(&place) {
            let (judged, result) = worker::run_again(plan, cell, soft).map_err(Failed::run)?;
            if keep(&judged, Some(place.clone())).is_err() {
                return Err(Failed::run("evidence was not kept"));
            }
            if !result.is_same_as(failure) {
                return Ok(Some(id));
            }
        }
        places.evidence.push((id, place));
    }
    Ok(None)
}

/// Looks for the smallest scenario that fails as the smallest failure of each of the worst groups does.
fn minimise_groups(
    plan: &CampaignPlan,
    summary: &Summary,
    directory: &Path,
    groups: usize,
    soft: Soft,
    places: &mut Places,
) -> Result<(), Failed> {
    for (cell, failure) in smallest_failures(plan, summary, groups) {
        let id = cell.id;
        let minimal = minimise(plan, cell, failure, soft).map_err(Failed::run)?;
        let Some(minimal) = minimal else { continue };
        let folder = directory.join("minimal");
        let file = folder.join(format!("{id}.toml"));
        let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, &minimal.text));
        written.map_err(|error| Failed::run(format!("{}: cannot be written: {error}", file.display())))?;
        let (base, _) = &plan.bases[cell.base];
        places.minimal.push((
            id,
            MinimalPlace {
                injections: (minimal.injections, minimal.of),
                reproduce: run_line(
                    &file.display().to_string(),
                    base.seed,
                    "soft",
                    &base.overrides().arguments(),
                ),
            },
        ));
    }
    Ok(())
}

fn say(report: &CampaignReport, files: &CampaignFiles, said: Said, places: &Places) -> Result<(), Failed> {
    said.line(&campaign_text(report, places));
    let written = write_all(&[
        (&files.json, &|path| write_json(report, path)),
        (&files.html, &|path| {
            write_text(&html::campaign(report, places), path)
        }),
    ]);
    written.map_err(|_| Failed::run("a report was not written"))
}

/// Exit status: that of the worst cell; a cell without a result counts as one that could not be run.
fn status(summary: &Summary, missing: usize) -> Exit {
    let bad = summary.count(Status::Error) + summary.count(Status::Died);
    if missing > 0 || bad > 0 {
        Exit::Failed
    } else if summary.failing() > 0 {
        Exit::Unmet
    } else {
        Exit::Met
    }
}
