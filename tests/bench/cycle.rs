//! A small live update on each backend, phase by phase.

use crate::child;
use crate::phases::{self, Phase};
use serde::Serialize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A cycle takes minutes if KVM emulates guest kernels; one that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(1200);

/// One cycle.
#[derive(Debug, Serialize)]
pub struct Split {
    /// Name of the backend.
    pub backend: String,
    /// Wall time of the whole process, in seconds.
    pub wall_s: f64,
    /// Its processor time, in seconds.
    pub cpu_s: f64,
    /// Wall time of each phase.
    pub phases: Vec<Phase>,
}

/// Runs the small scenario of the tests once.
pub fn measure(program: &Path, backend: &str, work: &Path) -> Result<Split, String> {
    let (scenario, report) = (work.join("small.toml"), work.join("small.json"));
    std::fs::write(&scenario, ::tests::small("")).map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command
        .arg("run")
        .arg(&scenario)
        .args(["--backend", backend, "--json"])
        .arg(&report)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let sample = child::run_for(&mut command, PATIENCE);
    let text = std::fs::read_to_string(&report);
    // The reasons of a failed verdict say more than the exit status.
    let phases = match (text, &sample) {
        (Ok(text), _) => phases::passed(&text, backend)?,
        (Err(_), Err(error)) => return Err(error.clone()),
        (Err(error), Ok(_)) => return Err(format!("{}: {error}", report.display())),
    };
    let sample = sample?;
    Ok(Split {
        backend: backend.to_owned(),
        wall_s: sample.wall_s,
        cpu_s: sample.cpu_s,
        phases,
    })
}
