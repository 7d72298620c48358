//! A small live update on each backend, phase by phase.

use crate::child;
use serde::{Deserialize, Serialize};
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

/// One phase.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Kernel generation.
    pub generation: u32,
    /// Wall time in milliseconds.
    pub wall_ms: f64,
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
}

#[derive(Deserialize)]
struct Report {
    scenarios: Vec<Scenario>,
}

#[derive(Deserialize)]
struct Scenario {
    verdict: String,
    #[serde(default)]
    reasons: Vec<String>,
    phases: Vec<Phase>,
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
        (Ok(text), _) => phases(&text).map_err(|error| format!("{backend}: {error}"))?,
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

fn phases(report: &str) -> Result<Vec<Phase>, String> {
    let report: Report = serde_json::from_str(report).map_err(|error| format!("report: {error}"))?;
    let mut scenarios = report.scenarios.into_iter();
    match (scenarios.next(), scenarios.next()) {
        (Some(scenario), None) if scenario.verdict == "pass" => Ok(scenario.phases),
        (Some(scenario), None) => Err(format!(
            "verdict {}: {}",
            scenario.verdict,
            scenario.reasons.join("; ")
        )),
        _ => Err("report: expected one scenario".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_a_pass_are_read_and_of_nothing_else() {
        let report = |verdict: &str| {
            format!(
                r#"{{"scenarios": [{{"verdict": "{verdict}", "reasons": ["why"], "phases":
                [{{"name": "jump", "generation": 0, "wall_ms": 0.5, "guest_ns": 7, "instructions": null}}]}}]}}"#
            )
        };
        let read = phases(&report("pass")).unwrap();
        assert_eq!((read[0].name.as_str(), read[0].guest_ns), ("jump", 7));
        assert_eq!(phases(&report("error")).unwrap_err(), "verdict error: why");
        assert!(phases(r#"{"scenarios": []}"#).is_err());
    }
}
