//! `baton judge`: judges saved evidence again.

use super::outputs::Outputs;
use super::{Exit, JudgeArgs, complain, exit_of};
use crate::report::{ScenarioReport, text};
use harness::evidence::is_kept_in;
use harness::verdict::Judged;
use std::path::{Path, PathBuf};

/// Judges the evidence in the directory itself, or else in each of its subdirectories.
pub(super) fn judge(args: &JudgeArgs) -> Exit {
    let outputs = Outputs::new(&args.reports, None, &[]);
    if let Err(error) = outputs.check() {
        complain(error);
        return Exit::Usage;
    }
    let directories = kept(&args.directory);
    if directories.is_empty() {
        complain(format!("{}: no evidence in it", args.directory.display()));
        return Exit::Failed;
    }
    let (mut exit, mut reports) = (Exit::Met, Vec::new());
    for directory in directories {
        match judge_one(&directory) {
            Ok(judged) => {
                outputs.said().line(&text(&judged));
                exit = exit.max(exit_of(judged.judgement.verdict));
                reports.push(ScenarioReport::new(&judged));
            }
            Err(error) => {
                complain(&error);
                exit = Exit::Failed;
                let name = directory
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                reports.push(ScenarioReport::error(
                    name,
                    directory.display().to_string(),
                    0,
                    error,
                ));
            }
        }
    }
    args.reports
        .write(reports)
        .map_or_else(|failed| failed, |()| exit)
}

fn judge_one(directory: &Path) -> Result<Judged, String> {
    let evidence = harness::evidence::load(directory).map_err(|error| harness::conductor::chain(&error))?;
    Judged::new(evidence).map_err(|error| error.to_string())
}

/// This directory if it holds evidence, otherwise its subdirectories that do, sorted by name.
fn kept(directory: &Path) -> Vec<PathBuf> {
    let has = |directory: &PathBuf| is_kept_in(directory);
    if is_kept_in(directory) {
        return vec![directory.to_path_buf()];
    }
    let inside = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut inside: Vec<PathBuf> = inside.filter(has).collect();
    inside.sort();
    inside
}
