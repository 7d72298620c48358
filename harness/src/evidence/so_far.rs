//! Evidence of a run that has not ended, so that a run that is killed leaves its evidence until then.
//!
//! Three names in the evidence directory, each a directory with the same files as finished evidence:
//!
//! | name | what it is |
//! | --- | --- |
//! | `so-far.new` | being written or deleted: never read |
//! | `so-far` | whole |
//! | `so-far.old` | whole as long as there is no `so-far`, being deleted otherwise |
//!
//! Directories change only by rename, and at least one whole directory exists before and after each rename. Therefore a
//! kill at any point leaves one. Files are not synced, because the kernel keeps the writes of a killed process, and
//! this does not protect against power loss.

use super::store::{FILES, LARGE, StoreError, io, write_small};
use super::{Evidence, Outcome, OutcomeKind};
use std::cell::Cell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const SO_FAR: &str = "so-far";
const NEW: &str = "so-far.new";
const OLD: &str = "so-far.old";

/// Text of the outcome in such evidence.
pub(crate) const NOT_ENDED: &str = "the run has not ended";

/// Keeps evidence so far in a directory.
#[derive(Debug)]
pub struct Keeper {
    directory: PathBuf,
    /// Amount of evidence in the large files of `so-far`.
    large: Cell<Option<Large>>,
}

/// Amount of evidence in the large files. Evidence only grows, so equal numbers mean equal files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Large {
    checkpoints: usize,
    digests: usize,
    blobs: usize,
}

impl Keeper {
    /// Makes the directory if it is missing. Deletes evidence of an earlier run in it, because it could be mistaken for
    /// this run's.
    pub fn begin(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(|e| io(directory, "written", e))?;
        for name in FILES {
            absent(&directory.join(name), |path| std::fs::remove_file(path))?;
        }
        retire(directory)?;
        Ok(Self {
            directory: directory.into(),
            large: Cell::new(None),
        })
    }

    /// Replaces the evidence kept before by this.
    pub fn keep(&self, evidence: &Evidence) -> Result<(), StoreError> {
        let [so_far, new, old] = [SO_FAR, NEW, OLD].map(|name| self.directory.join(name));
        remove(&new)?;
        write_small(evidence, &new)?;
        let large = Some(Large {
            checkpoints: evidence.captures.checkpoints.len(),
            digests: evidence.captures.digests.len(),
            blobs: evidence.blobs.len(),
        });
        let unchanged = self.large.replace(large) == large;
        for (name, write) in LARGE {
            // If the file system has no hard links, the files are written again.
            let link = || std::fs::hard_link(so_far.join(name), new.join(name)).is_ok();
            if !(unchanged && link()) {
                write(evidence, &new.join(name))?;
            }
        }
        if !so_far.exists() {
            return rename(&new, &so_far);
        }
        remove(&old)?;
        rename(&so_far, &old)?;
        rename(&new, &so_far)?;
        remove(&old)
    }
}

/// The directory with evidence so far, if `directory` is that of a run that has not ended.
pub(super) fn find(directory: &Path) -> Option<PathBuf> {
    [SO_FAR, OLD]
        .into_iter()
        .map(|name| directory.join(name))
        .find(|path| path.is_dir())
}

/// Whether this is one of the names that this module uses.
pub(super) fn is_ours(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| [SO_FAR, NEW, OLD].iter().any(|ours| name == *ours))
}

/// Sets the outcome to "not ended", whatever the files say.
pub(super) fn marked(mut evidence: Evidence) -> Evidence {
    if evidence.outcome.kind != OutcomeKind::Unfinished {
        evidence.outcome = Outcome {
            kind: OutcomeKind::Unfinished,
            text: NOT_ENDED.into(),
            ..evidence.outcome
        };
    }
    evidence
}

/// Removes the evidence so far, after the finished evidence has been written.
pub(super) fn retire(directory: &Path) -> Result<(), StoreError> {
    let [so_far, new, old] = [SO_FAR, NEW, OLD].map(|name| directory.join(name));
    if !so_far.exists() && old.exists() {
        rename(&old, &so_far)?;
    }
    remove(&old)?;
    remove(&new)?;
    if so_far.exists() {
        rename(&so_far, &new)?;
    }
    remove(&new)
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(|e| io(to, "written", e))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    absent(path, |path| std::fs::remove_dir_all(path))
}

/// Removes something; it is no error if it does not exist.
fn absent(path: &Path, remove: impl Fn(&Path) -> std::io::Result<()>) -> Result<(), StoreError> {
    match remove(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path, "removed", error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{is_kept_in, load, save};
    use super::*;
    use crate::testing;
    use crate::verdict::Verdict;
    use std::collections::BTreeSet;

    fn going_on(seed: u64) -> Evidence {
        let mut evidence = testing::good();
        evidence.seed = seed;
        marked(evidence)
    }

    fn seed(directory: &tempfile::TempDir) -> u64 {
        load(directory.path()).unwrap().seed
    }

    fn names(directory: &Path) -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_latest_is_read_until_the_end_and_then_nothing_of_it_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::begin(directory.path()).unwrap();
        assert!(!is_kept_in(directory.path()));
        for seed in 1..4 {
            keeper.keep(&going_on(seed)).unwrap();
            assert_eq!(names(directory.path()), BTreeSet::from([SO_FAR.to_owned()]));
            assert!(load(directory.path()).unwrap() == going_on(seed), "{seed}");
        }
        save(&testing::good(), directory.path()).unwrap();
        assert_eq!(
            names(directory.path()),
            FILES.iter().map(ToString::to_string).collect()
        );
        assert!(load(directory.path()).unwrap() == testing::good());
    }

    #[test]
    fn captures_are_written_again_when_there_are_more_of_them() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(SO_FAR).join("captures.bin.zst");
        let keeper = Keeper::begin(directory.path()).unwrap();
        let mut evidence = going_on(1);
        let mut keep = |change: &dyn Fn(&mut Evidence)| {
            change(&mut evidence);
            keeper.keep(&evidence).unwrap();
            assert!(load(directory.path()).unwrap() == evidence);
            std::fs::metadata(&file).unwrap().ino()
        };
        let first = keep(&|_| {});
        assert_eq!(keep(&|evidence| evidence.seed = 2), first);
        assert_ne!(keep(&|evidence| drop(evidence.captures.checkpoints.pop())), first);
    }

    #[test]
    fn a_run_begins_without_the_evidence_of_an_earlier_one() {
        let directory = tempfile::tempdir().unwrap();
        save(&testing::good(), directory.path()).unwrap();
        std::fs::write(directory.path().join("notes.txt"), "not ours").unwrap();
        Keeper::begin(directory.path()).unwrap();
        assert!(!is_kept_in(directory.path()));
        assert_eq!(names(directory.path()), BTreeSet::from(["notes.txt".to_owned()]));
    }

    #[test]
    fn whatever_a_kill_leaves_is_read_as_the_last_that_was_whole() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let torn = |name: &str| {
            std::fs::create_dir_all(at(name)).unwrap();
            std::fs::write(at(name).join("evidence.json"), "{").unwrap();
        };
        let keeper = Keeper::begin(directory.path()).unwrap();
        // While the first was being written.
        torn(NEW);
        assert!(!is_kept_in(directory.path()));
        // While the second was, and while an older one was being deleted.
        keeper.keep(&going_on(1)).unwrap();
        torn(NEW);
        torn(OLD);
        assert_eq!(seed(&directory), 1);
        // Between the renames.
        keeper.keep(&going_on(2)).unwrap();
        std::fs::rename(at(SO_FAR), at(OLD)).unwrap();
        torn(NEW);
        assert_eq!(seed(&directory), 2);
        // While the final files were being written.
        std::fs::write(at("evidence.json"), "{").unwrap();
        assert_eq!(seed(&directory), 2);
        // Whatever it was, the next run puts it right.
        let keeper = Keeper::begin(directory.path()).unwrap();
        assert!(names(directory.path()).is_empty());
        keeper.keep(&going_on(3)).unwrap();
        assert_eq!(seed(&directory), 3);
    }

    #[test]
    fn it_never_passes_for_the_evidence_of_a_run_that_ended() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::begin(directory.path()).unwrap();
        keeper.keep(&testing::good()).unwrap();
        let loaded = load(directory.path()).unwrap();
        assert_eq!(
            (loaded.outcome.kind, loaded.outcome.text.as_str()),
            (OutcomeKind::Unfinished, NOT_ENDED)
        );
    }
    #[test]
    fn no_expectation_makes_it_pass() {
        let verdict = |evidence: &Evidence| {
            crate::verdict::Judged::new(evidence.clone())
                .unwrap()
                .judgement
                .verdict
        };
        let mut evidence = testing::good();
        evidence.scenario_text += "[expect]\noutcome = \"any\"\n";
        assert_eq!(verdict(&evidence), Verdict::Pass);
        assert_eq!(verdict(&marked(evidence)), Verdict::Error);
    }
}
