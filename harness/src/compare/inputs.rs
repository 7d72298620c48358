//! The inputs of two runs.

use crate::evidence::{Evidence, KernelEvidence, Phase};
use serde::{Serialize, Serializer};

/// An input that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputDifference {
    /// Which input.
    pub what: String,
    /// Its value in the first run.
    pub first: String,
    /// Its value in the second run.
    pub second: String,
}

/// All inputs that differ; of the scenario's text, the first line that differs. Paths are not inputs, but the files'
/// contents are.
pub(super) fn differences(first: &Evidence, second: &Evidence) -> Vec<InputDifference> {
    let mut found = Vec::new();
    let mut look = |what: &str, first: String, second: String| {
        if first != second {
            let what = what.to_owned();
            found.push(InputDifference { what, first, second });
        }
    };
    look("version of baton", first.baton.clone(), second.baton.clone());
    look("backend", first.backend.clone(), second.backend.clone());
    look("seed", first.seed.to_string(), second.seed.to_string());
    if let Some((line, one, other)) = first_line(&first.scenario_text, &second.scenario_text) {
        look(&format!("line {line} of the scenario"), one, other);
    }
    look(
        "RAM in bytes",
        first.ram_bytes.to_string(),
        second.ram_bytes.to_string(),
    );
    look(
        "number of kexecs",
        first.kexecs.to_string(),
        second.kexecs.to_string(),
    );
    let handover = |evidence: &Evidence| {
        let handover = evidence.handover.as_ref();
        handover.map_or("none".into(), |handover| {
            format!("{handover} ({})", handover.hash)
        })
    };
    look("handover", handover(first), handover(second));
    for generation in 0..first.kernels.len().max(second.kernels.len()) {
        let of = |evidence: &Evidence, get: &dyn Fn(&KernelEvidence) -> String| {
            evidence
                .kernels
                .get(generation)
                .map_or_else(|| "none".into(), get)
        };
        let mut both = |what: &str, get: &dyn Fn(&KernelEvidence) -> String| {
            let what = format!("{what} of generation {generation}");
            look(&what, of(first, get), of(second, get));
        };
        both("kernel image", &|kernel| {
            format!("{} ({})", kernel.image_release, kernel.image_hash)
        });
        both("command line", &|kernel| format!("{:?}", kernel.command_line));
    }
    found
}

/// Number of the first line that differs, from 1, with both lines in quotes.
fn first_line(first: &str, second: &str) -> Option<(usize, String, String)> {
    let (mut one, mut other) = (first.lines(), second.lines());
    let quoted = |line: Option<&str>| line.map_or_else(|| "no line".into(), |line| format!("{line:?}"));
    for number in 1.. {
        match (one.next(), other.next()) {
            (None, None) => return None,
            (first, second) if first != second => return Some((number, quoted(first), quoted(second))),
            _ => {}
        }
    }
    None
}

/// A phase by its name in reports.
pub(super) fn phase_name<S: Serializer>(phase: &Option<Phase>, serializer: S) -> Result<S::Ok, S::Error> {
    phase.map(Phase::name).serialize(serializer)
}
