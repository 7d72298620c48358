//! The cycle on baton: `baton run` as a user runs it.

use crate::samples::{Executed, Sample};
use crate::{Arguments, child};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The phase that ends with the first message of the first kernel's agent.
const BOOT: &str = "boot-old";

/// How to run baton.
#[derive(Debug)]
pub struct Cycle {
    program: PathBuf,
    arguments: Vec<String>,
    report: PathBuf,
}

/// The parts of baton's JSON report that the benchmark reads; docs/report.md describes all of it.
#[derive(Debug, Deserialize)]
struct Report {
    scenarios: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
struct Scenario {
    verdict: String,
    backend: String,
    phases: Vec<Phase>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    name: String,
    instructions: u64,
    wall_ms: f64,
}

impl Cycle {
    /// Runs `program` on the scenario, with its report in `work`.
    pub fn prepare(program: &Path, arguments: &Arguments, work: &Path) -> Self {
        let report = work.join("report.json");
        let mut words = vec!["run".to_owned(), arguments.scenario.display().to_string()];
        words.extend([
            "--backend".into(),
            "soft".into(),
            "--json".into(),
            report.display().to_string(),
        ]);
        if let Some(kernel) = &arguments.kernel {
            words.extend(["--kernel".into(), kernel.clone()]);
        }
        Self {
            program: program.to_owned(),
            arguments: words,
            report,
        }
    }

    /// Runs it once.
    pub fn run(&self) -> Result<Sample, String> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let said = |error: String| {
            format!(
                "{error}\n  to see why: {} {}",
                self.program.display(),
                self.arguments.join(" ")
            )
        };
        let sample = child::run(&mut command).map_err(said)?;
        let text = std::fs::read_to_string(&self.report)
            .map_err(|error| error.to_string())
            .map_err(said)?;
        let (boot, cycle) = executed(&text).map_err(said)?;
        Ok(Sample {
            boot: Some(boot),
            cycle: Some(cycle),
            ..sample
        })
    }
}

/// What was executed in the boot and in all.
fn executed(report: &str) -> Result<(Executed, Executed), String> {
    let report: Report = serde_json::from_str(report).map_err(|error| format!("report: {error}"))?;
    let [scenario] = report.scenarios.as_slice() else {
        return Err(format!(
            "report: {} scenarios, expected one",
            report.scenarios.len()
        ));
    };
    if (scenario.verdict.as_str(), scenario.backend.as_str()) != ("pass", "soft") {
        return Err(format!(
            "verdict {} on backend {}, expected pass on soft",
            scenario.verdict, scenario.backend
        ));
    }
    let sum = |wanted: Option<&str>| {
        let phases = scenario
            .phases
            .iter()
            .filter(|phase| wanted.is_none_or(|name| phase.name == name));
        phases.fold(Executed::default(), |sum, phase| Executed {
            instructions: sum.instructions + phase.instructions,
            wall_ms: sum.wall_ms + phase.wall_ms,
        })
    };
    match (sum(Some(BOOT)), sum(None)) {
        (boot, _) if boot.instructions == 0 => Err(format!("report: nothing was executed in phase {BOOT}")),
        sums => Ok(sums),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdict: &str, phase: &str) -> String {
        format!(
            r#"{{"version": 1, "scenarios": [{{"verdict": "{verdict}", "backend": "soft", "seed": 1, "phases": [
                {{"name": "{phase}", "instructions": 60, "wall_ms": 2.0, "guest_ns": 1}},
                {{"name": "jump", "instructions": 40, "wall_ms": 0.5, "guest_ns": 1}}]}}]}}"#
        )
    }

    #[test]
    fn boot_and_cycle_are_summed_from_phases() {
        let expected = (
            Executed {
                instructions: 60,
                wall_ms: 2.0,
            },
            Executed {
                instructions: 100,
                wall_ms: 2.5,
            },
        );
        assert_eq!(executed(&report("pass", BOOT)), Ok(expected));
    }

    #[test]
    fn what_did_not_pass_is_not_measured() {
        assert!(
            executed(&report("fail", BOOT))
                .unwrap_err()
                .contains("verdict fail")
        );
        assert!(
            executed(&report("pass", "jump"))
                .unwrap_err()
                .contains("boot-old")
        );
        assert!(
            executed("{\"scenarios\": []}")
                .unwrap_err()
                .contains("0 scenarios")
        );
    }
}
