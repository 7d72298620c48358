//! Files of JSON lines. A line is appended in one write, so a program that is killed leaves whole lines and at most one
//! that is torn. That one is cut off when the file is opened again, and left out when it is read.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value has no form as JSON.
    #[error("a line of JSON cannot be made: {0}")]
    Value(#[from] serde_json::Error),
    /// Another process appends to it.
    #[error("{0}: another process appends to it")]
    Busy(PathBuf),
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
}

impl LinesError {
    /// A file cannot be read or written.
    pub fn file(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        Self::File { path, source }
    }
}

/// A value as a line, with its line break.
pub fn line(value: &impl Serialize) -> Result<String, LinesError> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// A file that is appended to. While it is open no other process may open it so.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Opens the file or makes it, and cuts off a torn last line.
    pub fn open(path: &Path) -> Result<Self, LinesError> {
        let error = |error| LinesError::file(path, error);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(error)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(LinesError::Busy(path.to_path_buf()));
        }
        drop_torn_line(&mut file).map_err(error)?;
        let path = path.to_path_buf();
        Ok(Self { path, file })
    }

    /// Appends what [`line()`] made.
    pub fn append(&mut self, line: &str) -> Result<(), LinesError> {
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|error| LinesError::file(&self.path, error))
    }
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

/// Passes each whole line of a file to `each`.
pub fn read<T: DeserializeOwned, E: From<LinesError>>(
    path: &Path,
    each: &mut dyn FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let error = |error| LinesError::file(path, error);
    let mut reader = BufReader::new(File::open(path).map_err(error)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let malformed = |reason: String| LinesError::Malformed {
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
                return Err(malformed(format!("a line of more than {MAX_LINE} bytes")).into());
            }
            break;
        }
        each(serde_json::from_slice(&line).map_err(|error| malformed(error.to_string()))?)?;
    }
    Ok(())
}
