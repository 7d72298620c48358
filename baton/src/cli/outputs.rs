//! Where a command writes: files, directories and the two streams. What cannot be written is refused before anything is
//! started.

use super::place::SnapshotArg;
use std::fs::OpenOptions;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// What the command line asks to be written.
#[derive(Debug, Default)]
pub(super) struct Outputs<'a> {
    /// `--json`.
    pub json: Option<&'a Path>,
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
    /// Standard error, because standard output is the JSON report's.
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
    /// What `--json`, `--out` and `--snapshot` ask for.
    pub fn new(json: Option<&'a PathBuf>, out: Option<&'a PathBuf>, snapshots: &'a [SnapshotArg]) -> Self {
        Self {
            json: json.map(PathBuf::as_path),
            out: out.map(PathBuf::as_path),
            snapshots: snapshots.iter().map(SnapshotArg::file).collect(),
        }
    }

    /// Where reports as text go.
    pub fn said(&self) -> Said {
        if self.json.is_some_and(is_stdout) {
            Said::Error
        } else {
            Said::Output
        }
    }

    /// Checks that each file and directory can be written, on one line if not. Leaves existing files as they are, makes
    /// no new ones, and makes the directory of `--out`.
    pub fn check(&self) -> Result<(), String> {
        let json = self.json.filter(|path| !is_stdout(path));
        for file in json.into_iter().chain(self.snapshots.iter().copied()) {
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
                json: Some(&json),
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
                json: Some(folder.path()),
                ..Outputs::default()
            },
            Outputs {
                json: Some(&missing),
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
            json: Some(Path::new("-")),
            ..Outputs::default()
        };
        assert_eq!((dash.check(), dash.said()), (Ok(()), Said::Error));
    }
}
