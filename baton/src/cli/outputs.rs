//! Where a command writes: files, directories and the two streams. What cannot be written is refused before anything is
//! started.

use super::place::SnapshotArg;
use super::{Exit, complain};
use crate::report::{Report, ScenarioReport, html, junit, ktap, write_json, write_text};
use clap::Args;
use harness::conductor::chain;
use harness::plan::Plan;
use std::fs::OpenOptions;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use vmm::confine::{Places, confine};

/// The files that reports for programs and other tools are written to.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ReportFiles {
    /// Write a JSON report; - is standard output, and all else goes to standard error then.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a JUnit report: a test suite per scenario, a test case per rule; - as for --json.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write a report in the kernel's test protocol KTAP: a test per scenario, a subtest per rule; - as for --json.
    #[arg(long, value_name = "FILE")]
    pub ktap: Option<PathBuf>,
    /// Write a report to read in a browser: one file that fetches nothing; - as for --json.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl ReportFiles {
    /// All that are asked for.
    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.json, &self.junit, &self.ktap, &self.html]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }

    /// Writes the reports.
    pub fn write(&self, scenarios: Vec<ScenarioReport>) -> Result<(), Exit> {
        let report = Report::new(scenarios);
        write_all(&[
            (&self.json, &|path| write_json(&report, path)),
            (&self.junit, &|path| {
                let text = junit(&report).map_err(|error| Error::other(error.to_string()))?;
                write_text(&text, path)
            }),
            (&self.ktap, &|path| write_text(&ktap(&report), path)),
            (&self.html, &|path| write_text(&html::runs(&report), path)),
        ])
    }
}

/// A file that may be asked for, and what writes it.
pub(super) type Written<'a> = (&'a Option<PathBuf>, &'a dyn Fn(&Path) -> Result<(), Error>);

/// Writes the files that are asked for. Says which cannot be written, and goes on with the others.
pub(super) fn write_all(files: &[Written<'_>]) -> Result<(), Exit> {
    let write = |(path, write): &Written<'_>| match path {
        Some(path) => write(path).map_err(|error| {
            complain(unwritable(path, &error));
            Exit::Failed
        }),
        None => Ok(()),
    };
    let written: Vec<Result<(), Exit>> = files.iter().map(write).collect();
    written.into_iter().collect()
}

/// What the command line asks to be written.
#[derive(Debug, Default)]
pub(super) struct Outputs<'a> {
    /// `--json` and its like.
    pub reports: Vec<&'a Path>,
    /// `--out`.
    pub out: Option<&'a Path>,
    /// The files of `--snapshot`.
    pub snapshots: Vec<&'a Path>,
}

/// The stream of reports as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Standard output.
    Output,
    /// Standard error, because standard output is another report's.
    Error,
}

impl Said {
    /// Prints a text and a line break.
    pub fn line(self, text: &str) {
        match self {
            Self::Output => println!("{text}"),
            Self::Error => eprintln!("{text}"),
        }
    }
}

impl<'a> Outputs<'a> {
    /// What the options for reports, `--out` and `--snapshot` ask for.
    pub fn new(reports: &'a ReportFiles, out: Option<&'a PathBuf>, snapshots: &'a [SnapshotArg]) -> Self {
        Self {
            reports: reports.paths().collect(),
            out: out.map(PathBuf::as_path),
            snapshots: snapshots.iter().map(SnapshotArg::file).collect(),
        }
    }

    /// Reads what is left to read for the guests of these plans, and confines this process from then on: it can open
    /// nothing but these outputs. To be called while there is one thread. Says why if it cannot.
    pub fn confine<'p>(&self, plans: impl IntoIterator<Item = &'p Plan>) -> Result<(), Exit> {
        plans.into_iter().for_each(Plan::read_files);
        self.places()
            .and_then(|places| confine(&places).map_err(|error| chain(&error)))
            .map(drop)
            .map_err(|error| {
                complain(error);
                Exit::Failed
            })
    }

    /// What stays open. A report's file is made, empty, if there is none; a snapshot's folder is left writable, because a
    /// snapshot is written beside its file and then renamed.
    fn places(&self) -> Result<Places, String> {
        let mut places = Places {
            folders: self.out.iter().map(|out| out.to_path_buf()).collect(),
            files: Vec::new(),
            // Its own program, in which a backtrace finds names.
            readable: std::env::current_exe()
                .into_iter()
                .filter(|path| path.exists())
                .collect(),
        };
        for file in self.reports.iter().copied().filter(|path| !is_stdout(path)) {
            let made = OpenOptions::new().append(true).create(true).open(file);
            made.map_err(|error| unwritable(file, &error))?;
            // A pipe such as /dev/stdout is in no folder: it needs no right, and there can be none for it.
            if file.canonicalize().is_ok() {
                places.files.push(file.to_path_buf());
            }
        }
        for file in &self.snapshots {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            places
                .folders
                .push(folder.unwrap_or(Path::new(".")).to_path_buf());
        }
        Ok(places)
    }

    /// Where reports as text go.
    pub fn said(&self) -> Said {
        if self.reports.iter().copied().any(is_stdout) {
            Said::Error
        } else {
            Said::Output
        }
    }

    /// Checks that each file and directory can be written, and that no two reports go to the same place, on one line if
    /// not. Leaves existing files as they are, makes no new ones, and makes the directory of `--out`.
    pub fn check(&self) -> Result<(), String> {
        for (number, path) in self.reports.iter().enumerate() {
            if self.reports[..number].contains(path) {
                return Err(format!("{}: named for two reports", path.display()));
            }
        }
        let files = self.reports.iter().copied().filter(|path| !is_stdout(path));
        for file in files.chain(self.snapshots.iter().copied()) {
            check_file(file).map_err(|error| unwritable(file, &error))?;
        }
        match self.out {
            Some(directory) => check_directory(directory).map_err(|error| unwritable(directory, &error)),
            None => Ok(()),
        }
    }
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn unwritable(path: &Path, error: &Error) -> String {
    format!("{}: cannot be written: {error}", path.display())
}

fn check_file(path: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            OpenOptions::new().write(true).create_new(true).open(path)?;
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

fn check_directory(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path)?;
    check_file(&path.join(format!(".baton-{}", std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("old.json"), "old").unwrap();
        for name in ["old.json", "new.json"] {
            let (json, out) = (at(name), at("a/b"));
            let outputs = Outputs {
                reports: vec![&json],
                out: Some(&out),
                snapshots: vec![&json],
            };
            outputs.check().unwrap();
            assert_eq!(outputs.said(), Said::Output);
        }
        assert_eq!(std::fs::read(at("old.json")).unwrap(), b"old");
        assert!(!at("new.json").exists());
        assert_eq!(std::fs::read_dir(at("a/b")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (below, missing) = (file.join("x"), folder.path().join("no/such/x.json"));
        for bad in [
            Outputs {
                reports: vec![folder.path()],
                ..Outputs::default()
            },
            Outputs {
                reports: vec![&file, &missing],
                ..Outputs::default()
            },
            Outputs {
                out: Some(&below),
                ..Outputs::default()
            },
            Outputs {
                snapshots: vec![&missing],
                ..Outputs::default()
            },
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.contains("cannot be written"), "{error}");
        }
        let dash = Outputs {
            reports: vec![&file, Path::new("-")],
            ..Outputs::default()
        };
        assert_eq!((dash.check(), dash.said()), (Ok(()), Said::Error));
        let twice = Outputs {
            reports: vec![Path::new("-"), Path::new("-")],
            ..Outputs::default()
        };
        assert_eq!(twice.check(), Err("-: named for two reports".into()));
    }
}
