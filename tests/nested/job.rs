//! What is run: a list of items, the same on emulated SVM and on a machine's own KVM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Arguments;
use crate::worker::tests_of;

/// Where things lie on the host that the job runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// `baton`, with the agent where it finds it.
    pub baton: PathBuf,
    /// How much device time is slowed on KVM; `None` lets baton measure it.
    pub slowdown: Option<u32>,
    /// What takes longer than this hangs, by the host's clock.
    pub patience: Duration,
    /// In this order.
    pub items: Vec<Item>,
}

/// One thing to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Item {
    /// Unique.
    pub name: String,
    /// Processors on which an emulated host runs it.
    pub processors: u32,
    /// How.
    pub what: What,
}

/// How an item is run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum What {
    /// `baton doctor`.
    Doctor,
    /// `baton run`.
    Scenario {
        /// The scenario's text.
        text: String,
        /// Folder of the program that it runs in its guests, the same on every host.
        payload: Option<PathBuf>,
    },
    /// A program made by `cargo test`.
    Tests {
        /// It.
        program: PathBuf,
        /// Run this test alone, or all.
        only: Option<String>,
    },
}

/// A folder of scenarios below tests/scenarios.
const FOLDERS: [&str; 3] = ["", "faults", "more"];
/// Scenarios of other folders.
const FURTHER: [&str; 2] = ["steps/life.toml", "payload/luo-kexec-simple.toml"];
/// The scenario of `more` that is run with another number of vCPUs, too.
const SEVERAL: &str = "smp-memfd-under-dma";
/// The item of all tests with tiny guests.
const TINY_GUESTS: &str = "tiny-guests";
/// What takes longest is begun first, so that hosts that run items between them end at about the same time.
const LONGEST: [&str; 3] = [TINY_GUESTS, "all-memory", "chain-of-three"];
/// See [`Job::patience`]: the longest items take less than a minute.
const PATIENCE: Duration = Duration::from_secs(300);
/// The only test of its program that needs KVM.
const KILLED: &str = "a_run_killed_on_kvm_leaves_no_process_and_evidence_so_far";

impl Job {
    /// The items for a host with this number of processors.
    pub fn on(&self, processors: u32) -> Self {
        let mut job = self.clone();
        job.items.retain(|item| item.processors == processors);
        job
    }

    /// The same with an item for each test of a program, so that each has its own time and its own patience.
    pub fn test_by_test(self) -> Result<Self, String> {
        let mut items = Vec::new();
        for item in &self.items {
            let What::Tests { program, only: None } = &item.what else {
                items.push(item.clone());
                continue;
            };
            items.extend(tests_of(&self, program)?.into_iter().map(|test| Item {
                name: format!("{} {test}", item.name),
                processors: item.processors,
                what: What::Tests {
                    program: program.clone(),
                    only: Some(test),
                },
            }));
        }
        Ok(Self { items, ..self })
    }

    /// Everything.
    pub fn new(arguments: &Arguments) -> Result<Self, String> {
        let absolute =
            |path: &Path| std::fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()));
        let item = |name: &str, what| Item {
            name: name.to_owned(),
            processors: if name.starts_with(SEVERAL) { 2 } else { 1 },
            what,
        };
        let mut items = vec![item("doctor", What::Doctor)];
        let mut files = Vec::new();
        for folder in FOLDERS {
            files.extend(scenario_files(&tests::scenarios().join(folder))?);
        }
        files.extend(FURTHER.map(|file| tests::scenarios().join(file)));
        for file in files {
            let text =
                std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let name = file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let (text, payload) = with_payload(text, &file)?;
            if name == SEVERAL {
                let text = with_vcpus(&text, 4)?;
                let payload = payload.clone();
                items.push(item(&format!("{name}-4-vcpus"), What::Scenario { text, payload }));
            }
            items.push(item(&name, What::Scenario { text, payload }));
        }
        items.push(item(
            TINY_GUESTS,
            What::Tests {
                program: absolute(&arguments.guests)?,
                only: arguments.test.clone(),
            },
        ));
        items.push(item(
            "killed-runs",
            What::Tests {
                program: absolute(&arguments.killed)?,
                only: Some(KILLED.to_owned()),
            },
        ));
        items.sort_by_key(|item| {
            LONGEST
                .iter()
                .position(|name| *name == item.name)
                .unwrap_or(LONGEST.len())
        });
        Ok(Self {
            baton: absolute(&arguments.baton)?,
            slowdown: None,
            patience: PATIENCE,
            items,
        })
    }
}

fn scenario_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no scenario", folder.display()));
    }
    Ok(files)
}

/// The scenario of this file with the folder of its payload by its absolute path, and that folder, if it has one.
fn with_payload(text: String, file: &Path) -> Result<(String, Option<PathBuf>), String> {
    let named = text.lines().find_map(|line| {
        let value = line.strip_prefix("initramfs = \"")?;
        value.strip_suffix('"').map(str::to_owned)
    });
    let Some(named) = named else {
        return Ok((text, None));
    };
    let folder = file.parent().unwrap_or(file).join(&named);
    let folder = std::fs::canonicalize(&folder)
        .map_err(|error| format!("{}: {error}; run `make selftests`", folder.display()))?;
    let line = |path: &dyn std::fmt::Display| format!("initramfs = \"{path}\"");
    let text = text.replace(&line(&named), &line(&folder.display()));
    Ok((text, Some(folder)))
}

/// The scenario with this number of vCPUs instead of two.
fn with_vcpus(text: &str, count: u32) -> Result<String, String> {
    let changed = text.replace("\nvcpus = 2\n", &format!("\nvcpus = {count}\n"));
    if changed == text {
        return Err(format!("{SEVERAL}.toml: expected a line \"vcpus = 2\""));
    }
    Ok(changed)
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn the_number_of_vcpus_is_changed_or_missed() {
        assert_eq!(with_vcpus("a = 1\nvcpus = 2\n", 4).unwrap(), "a = 1\nvcpus = 4\n");
        assert!(with_vcpus("a = 1\n", 4).is_err());
    }

    #[test]
    fn each_test_of_a_program_is_an_item_if_that_is_wanted() {
        let item = |name: &str, what| Item {
            name: name.into(),
            processors: 1,
            what,
        };
        let program = std::env::current_exe().unwrap();
        let own = What::Tests { program, only: None };
        let job = Job {
            baton: "baton".into(),
            slowdown: None,
            patience: PATIENCE,
            items: vec![item("own", own), item("doctor", What::Doctor)],
        };
        let job = job.test_by_test().unwrap();
        let this = "job::checks::each_test_of_a_program_is_an_item_if_that_is_wanted";
        let found = job.items.iter().find(|item| item.name == format!("own {this}"));
        let only = |item: &Item| match &item.what {
            What::Tests { only, .. } => only.clone(),
            _ => None,
        };
        assert_eq!(found.and_then(only).as_deref(), Some(this));
        assert_eq!(job.items.last().map(|item| item.name.as_str()), Some("doctor"));
    }

    #[test]
    fn a_payload_is_named_by_its_absolute_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        let plain = "[payload]\nrun = [\"/init\"]\n".to_owned();
        assert_eq!(with_payload(plain.clone(), &file).unwrap(), (plain, None));
        let text = "[payload]\ninitramfs = \"./p\"\nrun = [\"./p\"]\n";
        let missing = with_payload(text.into(), &file).unwrap_err();
        assert!(missing.contains("make selftests"), "{missing}");
        let payload = std::fs::canonicalize(folder.path()).unwrap().join("p");
        std::fs::create_dir(&payload).unwrap();
        let (text, found) = with_payload(text.into(), &file).unwrap();
        assert_eq!(found.as_deref(), Some(payload.as_path()));
        let expected = format!(
            "[payload]\ninitramfs = \"{}\"\nrun = [\"./p\"]\n",
            payload.display()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn folders_and_items_named_here_are_there() {
        for folder in FOLDERS {
            let files = scenario_files(&tests::scenarios().join(folder)).unwrap();
            assert!(!files.is_empty(), "{folder}");
        }
        let known = |name: &&str| {
            FOLDERS.iter().any(|folder| {
                tests::scenarios()
                    .join(folder)
                    .join(format!("{name}.toml"))
                    .is_file()
            })
        };
        assert!(LONGEST.iter().all(|name| *name == TINY_GUESTS || known(name)));
        assert!(FURTHER.iter().all(|file| tests::scenarios().join(file).is_file()));
    }
}
