//! A directory of results: what the plan is, its cells, and a line per result.
//!
//! A result is appended in one write. If the program is killed in the middle of one, the torn line is dropped when the
//! directory is opened again, and its cell is run again.

use crate::partition::Partition;
use crate::plan::{CampaignPlan, CellId, Label};
use crate::result::CellResult;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Version of the directory's format.
pub const VERSION: u32 = 1;

const PLAN: &str = "plan.json";
const CELLS: &str = "cells.jsonl";
const RESULTS: &str = "results.jsonl";

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

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
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no directory of results.
    #[error("{0}: no results of a campaign in it")]
    Nothing(PathBuf),
    /// A line is not what it should be.
    #[error("{path}:{line}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Why.
        reason: String,
    },
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

impl StoreError {
    fn file(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        Self::File { path, source }
    }
}

/// A directory that results are appended to. While it is open no other process may open it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    results: File,
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
        std::fs::create_dir_all(directory).map_err(|error| StoreError::file(directory, error))?;
        let path = directory.join(RESULTS);
        let error = |error| StoreError::file(&path, error);
        let mut options = OpenOptions::new();
        let mut results = options
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(error)?;
        if let Err(std::fs::TryLockError::WouldBlock) = results.try_lock() {
            return Err(StoreError::Busy(directory.to_path_buf()));
        }
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
        drop_torn_line(&mut results).map_err(error)?;
        read_results(directory, &mut |result| {
            done(result);
            Ok(())
        })?;
        Ok(Self { path, results })
    }

    /// Appends a result.
    pub fn append(&mut self, result: &CellResult) -> Result<(), StoreError> {
        let mut line =
            serde_json::to_vec(result).map_err(|error| StoreError::file(&self.path, error.into()))?;
        line.push(b'\n');
        self.results
            .write_all(&line)
            .map_err(|error| StoreError::file(&self.path, error))
    }
}

/// Writes cells, then the header.
fn begin(directory: &Path, header: &Header, cells: impl Iterator<Item = Listed>) -> Result<(), StoreError> {
    let mut text = Vec::new();
    for cell in cells {
        // A cell is texts and numbers, which always encode; writing to a Vec does not fail.
        if serde_json::to_writer(&mut text, &cell).is_ok() {
            text.push(b'\n');
        }
    }
    let head = serde_json::to_string_pretty(header).unwrap_or_default() + "\n";
    for (name, text) in [(CELLS, text), (PLAN, head.into_bytes())] {
        let (path, new) = (directory.join(name), directory.join(format!(".{name}.new")));
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|error| StoreError::file(&path, error))?;
    }
    Ok(())
}

/// Cuts off what follows the last line break.
fn drop_torn_line(file: &mut File) -> std::io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = length;
    let mut block = [0; 4096];
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - begin).unwrap_or(0)];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            end = begin + at as u64 + 1;
            break;
        }
        end = begin;
    }
    if end < length {
        file.set_len(end)?;
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
        Err(error) => return Err(StoreError::file(&path, error)),
    };
    let malformed = |reason: String| StoreError::Malformed {
        path: path.clone(),
        line: 1,
        reason,
    };
    let header: Header = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    if header.version != VERSION {
        let found = header.version;
        return Err(malformed(format!("version {found}, expected {VERSION}")));
    }
    Ok(header)
}

/// All cells of a directory's plan, by identity.
pub fn read_cells(directory: &Path) -> Result<BTreeMap<CellId, Label>, StoreError> {
    let mut cells = BTreeMap::new();
    lines(&directory.join(CELLS), &mut |listed: Listed| {
        cells.insert(listed.cell, listed.label);
        Ok(())
    })?;
    Ok(cells)
}

/// Passes each result of a directory to `each`, in the order in which they were made.
pub fn read_results(
    directory: &Path,
    each: &mut dyn FnMut(CellResult) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    lines(&directory.join(RESULTS), each)
}

/// Passes each whole line of a file to `each`. A torn last line is left out.
fn lines<T: serde::de::DeserializeOwned>(
    path: &Path,
    each: &mut dyn FnMut(T) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let error = |error| StoreError::file(path, error);
    let mut reader = BufReader::new(File::open(path).map_err(error)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let malformed = |reason: String| StoreError::Malformed {
            path: path.to_path_buf(),
            line: number,
            reason,
        };
        (&mut reader)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .map_err(error)?;
        if line.last() != Some(&b'\n') {
            if line.len() as u64 >= MAX_LINE {
                return Err(malformed(format!("a line of more than {MAX_LINE} bytes")));
            }
            break;
        }
        each(serde_json::from_slice(&line).map_err(|error| malformed(error.to_string()))?)?;
    }
    Ok(())
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
