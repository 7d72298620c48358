//! The agent's program, which goes into every guest as /init.

use crate::embedded;
use std::path::{Path, PathBuf};

/// Where the build leaves it, below the target directory.
const BUILT: &str = "x86_64-unknown-linux-gnu/agent/guest-agent";
/// Its name beside an installed `baton`.
const INSTALLED: &str = "baton-agent";
/// Largest program that is believed to be an agent, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It is nowhere.
    #[error("the agent's program was not found: run `make agent`, or set BATON_AGENT to its path")]
    Missing,
    /// It cannot be used.
    #[error("agent {path}: {reason}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
}

/// Where the agent comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The program itself.
    Program,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Program => f.write_str("in the program"),
        }
    }
}

/// Where the agent is: `$BATON_AGENT`, in this program, beside it, or where the build that made this program leaves it.
pub fn locate() -> Option<Source> {
    if let Some(given) = std::env::var_os("BATON_AGENT").filter(|value| !value.is_empty()) {
        return Some(Source::File(given.into()));
    }
    if embedded::agent().is_some() {
        return Some(Source::Program);
    }
    let program = std::env::current_exe().ok()?;
    let beside = program.with_file_name(INSTALLED);
    let built = program.ancestors().skip(1).map(|directory| directory.join(BUILT));
    let found = std::iter::once(beside).chain(built).find(|path| path.is_file());
    found.map(Source::File)
}

/// Reads the agent.
pub fn load() -> Result<Vec<u8>, AgentError> {
    match locate().ok_or(AgentError::Missing)? {
        Source::File(path) => read(&path).map_err(|reason| AgentError::Unusable { path, reason }),
        Source::Program => embedded::agent().map(<[u8]>::to_vec).ok_or(AgentError::Missing),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!("{size} bytes, expected at most {MAX_BYTES}"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err("not an ELF program".into());
    }
    Ok(bytes)
}
