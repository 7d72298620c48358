//! Places in a run, as the command line names them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use harness::conductor::Until;
use harness::plan::Plan;
use harness::run::Hold;
use vmm::phase::{Generation, Phase, Stamp};

/// `PLACE=FILE`: where to take a snapshot, and the file to write it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotArg {
    place: Place,
    file: PathBuf,
}

/// A place in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The beginning of a phase; without a generation, of the first that has it, and of the last one's `done`.
    Phase(Option<Generation>, Phase),
    /// A number of instructions retired.
    Instructions(u64),
}

impl SnapshotArg {
    /// The file that the snapshot is written to.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What it means for a run of `plan`.
    pub fn hold(&self, plan: &Plan) -> Hold {
        Hold {
            at: self.place.until(plan),
            file: self.file.clone(),
        }
    }
}

impl Place {
    fn until(self, plan: &Plan) -> Until {
        let (generation, phase) = match self {
            Self::Instructions(count) => return Until::Instructions(count),
            Self::Phase(generation, phase) => (generation, phase),
        };
        let usual = || match phase {
            Phase::BootOld | Phase::Prepare | Phase::Armed | Phase::Handover | Phase::Jump => 0,
            Phase::BootNew | Phase::Restore => 1,
            Phase::Done => Generation::try_from(plan.kexecs).unwrap_or(Generation::MAX),
        };
        let generation = generation.unwrap_or_else(usual);
        Until::Phase(Stamp { generation, phase })
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(count) = text.parse() {
            return Ok(Self::Instructions(count));
        }
        let (generation, name) = match text.split_once(':') {
            Some((generation, name)) => {
                let number = generation.parse();
                let wrong = |_| format!("\"{generation}\" is not a kernel generation: expected 0, 1, 2 ...");
                (Some(number.map_err(wrong)?), name)
            }
            None => (None, text),
        };
        let phase = match name {
            // The new kernel's first instruction begins its boot.
            "entry" => Some(Phase::BootNew),
            _ => Phase::from_name(name),
        };
        let names: Vec<&str> = Phase::ALL.iter().map(|phase| phase.name()).collect();
        let unknown = || {
            format!(
                "\"{name}\" is no place in a run: expected a phase ({}), entry, or a number of instructions",
                names.join(", ")
            )
        };
        Ok(Self::Phase(generation, phase.ok_or_else(unknown)?))
    }
}

impl FromStr for SnapshotArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, file) = text
            .split_once('=')
            .filter(|(_, file)| !file.is_empty())
            .ok_or("expected PLACE=FILE, such as armed=run.snapshot")?;
        Ok(Self {
            place: place.parse()?,
            file: file.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(text: &str) -> Result<Until, String> {
        let plan = harness::testing::plan(harness::testing::SCENARIO);
        Ok(text.parse::<Place>()?.until(&plan))
    }

    fn phase(generation: Generation, phase: Phase) -> Result<Until, String> {
        Ok(Until::Phase(Stamp { generation, phase }))
    }

    #[test]
    fn places_have_the_usual_generation_unless_told() {
        assert_eq!(until("armed"), phase(0, Phase::Armed));
        assert_eq!(until("restore"), phase(1, Phase::Restore));
        assert_eq!(until("entry"), phase(1, Phase::BootNew));
        assert_eq!(until("2:jump"), phase(2, Phase::Jump));
        assert_eq!(until("done"), phase(1, Phase::Done));
        assert_eq!(until("12345"), Ok(Until::Instructions(12345)));
    }

    #[test]
    fn what_is_no_place_is_told() {
        for (text, why) in [
            (
                "arms=f",
                "\"arms\" is no place in a run: expected a phase (boot-old, prepare",
            ),
            ("x:jump=f", "\"x\" is not a kernel generation"),
            ("armed", "expected PLACE=FILE"),
            ("armed=", "expected PLACE=FILE"),
            ("=f", "\"\" is no place in a run"),
        ] {
            let error = text.parse::<SnapshotArg>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
