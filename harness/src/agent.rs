//! The agent's program, which goes into every guest as /init.

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

/// Where the agent is: `$BATON_AGENT`, or beside this program, or where the build that made this program leaves it.
pub fn locate() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("BATON_AGENT").filter(|value| !value.is_empty()) {
        return Some(given.into());
    }
    let program = std::env::current_exe().ok()?;
    let beside = program.with_file_name(INSTALLED);
    let built = program.ancestors().skip(1).map(|directory| directory.join(BUILT));
    std::iter::once(beside).chain(built).find(|path| path.is_file())
}

/// Reads the agent.
pub fn load() -> Result<Vec<u8>, AgentError> {
    let path = locate().ok_or(AgentError::Missing)?;
    read(&path).map_err(|reason| AgentError::Unusable { path, reason })
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
