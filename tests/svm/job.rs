//! What is run: a list of items, the same on emulated SVM and on a machine's own KVM.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Arguments;

/// Where things lie on the host that the job runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// `baton`, with the agent where it finds it.
    pub baton: PathBuf,
    /// In this order.
    pub items: Vec<Item>,
}

/// One thing to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Item {
    /// Unique.
    pub name: String,
    /// Processors that an emulated host has for it.
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
/// The scenario of `more` that is run with another number of vCPUs, too.
const SEVERAL: &str = "smp-memfd-under-dma";
/// The only test of its program that needs KVM.
const KILLED: &str = "a_run_killed_on_kvm_leaves_no_process_and_evidence_so_far";

impl Job {
    /// The items for a host with this number of processors.
    pub fn on(&self, processors: u32) -> Self {
        let items = self.items.iter().filter(|item| item.processors == processors);
        Self {
            baton: self.baton.clone(),
            items: items.cloned().collect(),
        }
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
        for folder in FOLDERS {
            for file in scenario_files(&tests::scenarios().join(folder))? {
                let text =
                    std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
                let name = file
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                if name == SEVERAL {
                    items.push(item(
                        &format!("{name}-4-vcpus"),
                        What::Scenario {
                            text: with_vcpus(&text, 4)?,
                        },
                    ));
                }
                items.push(item(&name, What::Scenario { text }));
            }
        }
        items.push(item(
            "tiny-guests",
            What::Tests {
                program: absolute(&arguments.guests)?,
                only: None,
            },
        ));
        items.push(item(
            "killed-runs",
            What::Tests {
                program: absolute(&arguments.killed)?,
                only: Some(KILLED.to_owned()),
            },
        ));
        Ok(Self {
            baton: absolute(&arguments.baton)?,
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
    fn every_folder_has_scenarios() {
        for folder in FOLDERS {
            let files = scenario_files(&tests::scenarios().join(folder)).unwrap();
            assert!(!files.is_empty(), "{folder}");
        }
    }
}
