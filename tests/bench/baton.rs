//! The cycle on baton: `baton run` as a user runs it.

use crate::child;
use crate::phases::{self, Phase};
use crate::samples::{Executed, Sample};
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

impl Cycle {
    /// Runs `program` on a scenario, with its report in `work`.
    pub fn prepare(program: &Path, scenario: &Path, kernel: Option<&str>, work: &Path) -> Self {
        let report = work.join("report.json");
        let mut words = vec!["run".to_owned(), scenario.display().to_string()];
        words.extend([
            "--backend".into(),
            "soft".into(),
            "--json".into(),
            report.display().to_string(),
        ]);
        if let Some(kernel) = kernel {
            words.extend(["--kernel".into(), kernel.to_owned()]);
        }
        Self {
            program: program.to_owned(),
            arguments: words,
            report,
        }
    }

    /// The program and its arguments, with nothing on the terminal.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        quiet(&mut command);
        command
    }

    /// `other`, which takes the program and its arguments as its last ones.
    pub fn under(&self, mut other: Command) -> Command {
        other.arg(&self.program).args(&self.arguments);
        quiet(&mut other);
        other
    }

    /// Runs it once.
    pub fn run(&self) -> Result<Sample, String> {
        self.run_as(&mut self.command())
    }

    /// Runs a command that runs it once.
    pub fn run_as(&self, command: &mut Command) -> Result<Sample, String> {
        let said = |error: String| {
            format!(
                "{error}\n  to see why: {} {}",
                self.program.display(),
                self.arguments.join(" ")
            )
        };
        let sample = child::run(command).map_err(said)?;
        let text = std::fs::read_to_string(&self.report)
            .map_err(|error| error.to_string())
            .map_err(said)?;
        let phases = phases::passed(&text, "soft").map_err(said)?;
        let (boot, cycle) = executed(&phases).map_err(said)?;
        Ok(Sample {
            boot: Some(boot),
            cycle: Some(cycle),
            phases,
            ..sample
        })
    }
}

fn quiet(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
}

/// What was executed in the boot and in all.
fn executed(phases: &[Phase]) -> Result<(Executed, Executed), String> {
    let sum = |wanted: Option<&str>| {
        let phases = phases
            .iter()
            .filter(|phase| wanted.is_none_or(|name| phase.name == name));
        phases.fold(Executed::default(), |sum, phase| Executed {
            instructions: sum.instructions + phase.instructions.unwrap_or(0),
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

    fn phase(name: &str, instructions: u64, wall_ms: f64) -> Phase {
        Phase {
            name: name.into(),
            wall_ms,
            instructions: Some(instructions),
            ..Phase::default()
        }
    }

    #[test]
    fn boot_and_cycle_are_summed_from_phases() {
        let (boot, cycle) = executed(&[phase(BOOT, 60, 2.0), phase("jump", 40, 0.5)]).unwrap();
        assert_eq!((boot.instructions, cycle.instructions), (60, 100));
        assert_eq!((boot.wall_ms, cycle.wall_ms), (2.0, 2.5));
    }

    #[test]
    fn a_run_without_a_boot_is_not_measured() {
        let error = executed(&[phase("jump", 40, 0.5)]).unwrap_err();
        assert!(error.contains("boot-old"), "{error}");
    }
}
