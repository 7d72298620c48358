//! What a worker is told: cells that share a scenario, kernels and seed.

use crate::plan::{CellId, Label};
use harness::kernel::KernelImage;
use harness::plan::{Overrides, Plan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A scenario with kernels and seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Path of the scenario file.
    pub scenario_file: String,
    /// Its text.
    pub text: String,
    /// Every kernel, or the first one; `None` is the scenario's own.
    pub old: Option<String>,
    /// Every later kernel.
    pub new: Option<String>,
    /// Seed.
    pub seed: u64,
}

/// Cells of one base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What they share.
    pub base: Base,
    /// The cells.
    pub cells: Vec<JobCell>,
}

/// A cell of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCell {
    /// Its identity.
    pub id: CellId,
    /// Its name.
    pub label: Label,
    /// TOML that is appended to the scenario.
    pub add: String,
}

impl Base {
    /// The scenario's text with `add` appended.
    #[must_use]
    pub fn with(&self, add: &str) -> String {
        if add.is_empty() {
            self.text.clone()
        } else {
            format!("{}\n{add}", self.text)
        }
    }

    /// What the command line would override for this base.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        Overrides {
            kernel: self.old.clone(),
            next_kernel: self.new.clone(),
            seed: Some(self.seed),
            ..Overrides::default()
        }
    }
}

/// Resolves cells. Reads each kernel once.
pub struct Resolver {
    agent: Vec<u8>,
    agent_id: CellId,
    kernels: BTreeMap<String, KernelImage>,
}

impl Resolver {
    /// A resolver with the agent loaded.
    pub fn new() -> Result<Self, harness::agent::AgentError> {
        let agent = harness::agent::load()?;
        Ok(Self {
            agent_id: CellId::of(&[&agent]),
            agent,
            kernels: BTreeMap::new(),
        })
    }

    /// The agent's program.
    #[must_use]
    pub fn agent(&self) -> &[u8] {
        &self.agent
    }

    /// Resolves a cell of `base` whose scenario has this text. The error is one line.
    pub fn resolve(&mut self, base: &Base, text: &str) -> Result<Plan, String> {
        let scenario =
            harness::scenario::parse(&base.scenario_file, text).map_err(|error| error.to_string())?;
        let mut kernel = |name: &str| match self.kernels.get(name) {
            Some(kernel) => Ok(kernel.clone()),
            None => {
                let kernel = KernelImage::resolve(name)?;
                self.kernels.insert(name.to_owned(), kernel.clone());
                Ok(kernel)
            }
        };
        let overrides = base.overrides();
        harness::plan::plan_with(&scenario, &base.scenario_file, text, &overrides, &mut kernel)
            .map_err(|error| error.to_string())
    }

    /// The identity of a cell of this plan whose scenario has this text: baton, agent, text, seed, kernels
    /// and handover.
    #[must_use]
    pub fn cell(&self, plan: &Plan, text: &str) -> CellId {
        let (old, new) = (plan.kernel(0), plan.kernel(1));
        let handover = plan
            .handover
            .as_ref()
            .map(|handover| handover.hash().to_le_bytes());
        let agent_id = self.agent_id.to_string();
        let mut parts = vec![
            env!("CARGO_PKG_VERSION").as_bytes(),
            agent_id.as_bytes(),
            text.as_bytes(),
        ];
        let (seed, old, new) = (
            plan.seed.to_le_bytes(),
            old.hash.to_le_bytes(),
            new.hash.to_le_bytes(),
        );
        parts.extend([&seed[..], &old, &new]);
        parts.extend(handover.as_ref().map(<[u8; 8]>::as_slice));
        CellId::of(&parts)
    }
}
