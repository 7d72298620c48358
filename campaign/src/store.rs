//! A directory of results: what the plan is, its cells, and a line per result.
//!
//! If the program is killed while it appends a result, its cell is run again when the directory is opened again.

use crate::json_lines::{self, Appender, LinesError};
use crate::partition::Partition;
use crate::plan::{CampaignPlan, CellId, Label};
use crate::result::CellResult;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Version of the directory's format.
pub const VERSION: u32 = 1;

const PLAN: &str = "plan.json";
const CELLS: &str = "cells.jsonl";
const RESULTS: &str = "results.jsonl";

/// Which plan a directory's results are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `"baton-campaign"`.
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of baton.
    pub baton: String,
    /// Name of the campaign.
    pub name: String,
    /// Identity of the plan.
    pub plan: CellId,
    /// Number of cells of the whole plan.
    pub cells: u64,
    /// Which of them were to be run here.
    pub partition: String,
}

/// A cell of the plan, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its identity.
    pub cell: CellId,
    /// Its name.
    #[serde(flatten)]
    pub label: Label,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written, or has a line that cannot be read.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// It is no directory of results.
    #[error("{0}: no results of a campaign in it")]
    Nothing(PathBuf),
    /// It holds results of another plan.
    #[error(
        "{path}: results of another plan ({found}, {name}); this one is {expected}: scenarios, kernels, baton or the \
         campaign file have changed"
    )]
    OtherPlan {
        /// The directory.
        path: PathBuf,
        /// Its plan.
        found: CellId,
        /// The name of its campaign.
        name: String,
        /// The plan that was expected.
        expected: CellId,
    },
    /// Another process works in it.
    #[error("{0}: another baton is running a campaign in it")]
    Busy(PathBuf),
    /// A result is of no cell of the plan.
    #[error("{path}: a result of cell {cell}, which is not in the plan")]
    Stranger {
        /// The file.
        path: PathBuf,
        /// The cell.
        cell: CellId,
    },
    /// Two results of one cell differ.
    #[error(
        "cell {} ({}) has two different results: {} with state {} and {} with state {}",
        .first.cell, .first.label, .first.status.name(), .first.state_hash, .second.status.name(), .second.state_hash
    )]
    Unequal {
        /// One.
        first: Box<CellResult>,
        /// The other.
        second: Box<CellResult>,
    },
}

/// A directory that results are appended to. While it is open no other process may open it.
#[derive(Debug)]
pub struct Store {
    results: Appender,
}

impl Store {
    /// Opens the results of `plan` in `directory`, or begins them, and passes each result that is there to `done`.
    pub fn open(
        directory: &Path,
        plan: &CampaignPlan,
        partition: Partition,
        done: &mut dyn FnMut(CellResult),
    ) -> Result<Self, StoreError> {
        let cells = plan.cells.iter().map(|cell| Listed {
            cell: cell.id,
            label: plan.label(cell),
        });
        let header = Header {
            schema: "baton-campaign".into(),
            version: VERSION,
            baton: env!("CARGO_PKG_VERSION").into(),
            name: plan.name.clone(),
            plan: plan.id(),
            cells: plan.cells.len() as u64,
            partition: partition.to_string(),
        };
        Self::open_with(directory, &header, cells, done)
    }

    pub(crate) fn open_with(
        directory: &Path,
        header: &Header,
        cells: impl Iterator<Item = Listed>,
        done: &mut dyn FnMut(CellResult),
    ) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| LinesError::file(directory, error))?;
        let results = Appender::open(&directory.join(RESULTS)).map_err(|error| match error {
            LinesError::Busy(_) => StoreError::Busy(directory.to_path_buf()),
            other => other.into(),
        })?;
        match read_header(directory) {
            Ok(found) if found.plan != header.plan => {
                return Err(StoreError::OtherPlan {
                    path: directory.to_path_buf(),
                    found: found.plan,
                    name: found.name,
                    expected: header.plan,
                });
            }
            Ok(_) => {}
            // The header is written last, so a directory without one holds nothing yet.
            Err(StoreError::Nothing(_)) => begin(directory, header, cells)?,
            Err(other) => return Err(other),
        }
        read_results(directory, &mut |result| {
            done(result);
            Ok(())
        })?;
        Ok(Self { results })
    }

    /// Appends a result.
    pub fn append(&mut self, result: &CellResult) -> Result<(), StoreError> {
        Ok(self.results.append(&json_lines::line(result)?)?)
    }
}

/// Writes cells, then the header.
fn begin(directory: &Path, header: &Header, cells: impl Iterator<Item = Listed>) -> Result<(), StoreError> {
    let mut text = String::new();
    for cell in cells {
        text.push_str(&json_lines::line(&cell)?);
    }
    let head = serde_json::to_string_pretty(header).unwrap_or_default() + "\n";
    for (name, text) in [(CELLS, text), (PLAN, head)] {
        let (path, new) = (directory.join(name), directory.join(format!(".{name}.new")));
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|error| LinesError::file(&path, error))?;
    }
    Ok(())
}

/// The header of a directory of results.
pub fn read_header(directory: &Path) -> Result<Header, StoreError> {
    let path = directory.join(PLAN);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(StoreError::Nothing(directory.to_path_buf()));
        }
        Err(error) => return Err(LinesError::file(&path, error).into()),
    };
    let malformed = |reason: String| LinesError::Malformed {
        path: path.clone(),
        line: 1,
        reason,
    };
    let header: Header = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    if header.version != VERSION {
        let found = header.version;
        return Err(malformed(format!("version {found}, expected {VERSION}")).into());
    }
    Ok(header)
}

/// All cells of a directory's plan, by identity.
pub fn read_cells(directory: &Path) -> Result<BTreeMap<CellId, Label>, StoreError> {
    let mut cells = BTreeMap::new();
    json_lines::read(&directory.join(CELLS), &mut |listed: Listed| {
        cells.insert(listed.cell, listed.label);
        Ok::<(), StoreError>(())
    })?;
    Ok(cells)
}

/// Passes each result of a directory to `each`, in the order in which they were made.
pub fn read_results(
    directory: &Path,
    each: &mut dyn FnMut(CellResult) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    json_lines::read(&directory.join(RESULTS), each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Status;

    fn header(plan: &str) -> Header {
        Header {
            schema: "baton-campaign".into(),
            version: VERSION,
            baton: "1".into(),
            name: "n".into(),
            plan: CellId::of(&[plan.as_bytes()]),
            cells: 2,
            partition: "whole".into(),
        }
    }

    pub(crate) fn result(name: &str) -> CellResult {
        let label = Label {
            scenario: name.into(),
            kernels: String::new(),
            seed: 1,
            variant: String::new(),
        };
        CellResult::without_run(CellId::of(&[name.as_bytes()]), label, Status::Error, "reason")
    }

    fn open(directory: &Path, plan: &str) -> Result<(Store, Vec<CellResult>), StoreError> {
        let mut done = Vec::new();
        let store = Store::open_with(directory, &header(plan), std::iter::empty(), &mut |result| {
            done.push(result);
        })?;
        Ok((store, done))
    }

    #[test]
    fn a_torn_line_is_dropped_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, done) = open(folder.path(), "p").unwrap();
        assert!(done.is_empty());
        store.append(&result("a")).unwrap();
        store.append(&result("b")).unwrap();
        drop(store);
        let path = folder.path().join(RESULTS);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (mut store, done) = open(folder.path(), "p").unwrap();
            let expected = if length == whole.len() {
                2
            } else {
                usize::from(length >= first)
            };
            assert_eq!(done.len(), expected, "{length}");
            store.append(&result("c")).unwrap();
            drop(store);
            assert_eq!(open(folder.path(), "p").unwrap().1.last(), Some(&result("c")));
        }
    }

    #[test]
    fn another_plan_and_another_process_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path(), "p").unwrap();
        assert!(matches!(open(folder.path(), "p"), Err(StoreError::Busy(_))));
        drop(store);
        assert!(matches!(
            open(folder.path(), "q"),
            Err(StoreError::OtherPlan { .. })
        ));
        let nothing = tempfile::tempdir().unwrap();
        assert!(matches!(read_header(nothing.path()), Err(StoreError::Nothing(_))));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), "p").unwrap());
        let mut text = serde_json::to_string(&result("a")).unwrap();
        text.push_str("\n{}\n");
        std::fs::write(folder.path().join(RESULTS), text).unwrap();
        let error = open(folder.path(), "p").unwrap_err().to_string();
        assert!(error.contains("results.jsonl:2: missing field"), "{error}");
    }
}
