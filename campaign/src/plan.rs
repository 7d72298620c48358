//! A campaign's plan: its cells, each with an identity that is made of what the cell runs.

use crate::file::Campaign;
use crate::job::{Base, Resolver};
use harness::plan::Plan;
use harness::scenario::{ScenarioError, wrong_at};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Most cells of a plan.
pub const MAX_CELLS: u64 = 10_000_000;

/// Identity of a cell: a hash of everything that the run is a function of. Cells of equal identity have equal results.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(u128);

impl CellId {
    /// The identity of these parts, in order.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.digest128())
    }

    /// Which of `of` buckets it falls into, from 0.
    #[must_use]
    pub fn bucket(self, of: u64) -> u64 {
        // A remainder by a u64 fits a u64.
        u64::try_from(self.0 % u128::from(of)).unwrap_or(0)
    }
}

impl std::fmt::Display for CellId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for CellId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for CellId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        id.map(Self)
            .ok_or_else(|| format!("\"{text}\": expected 32 hexadecimal digits"))
    }
}

impl Serialize for CellId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CellId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What people call a cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Label {
    /// Scenario name.
    pub scenario: String,
    /// Releases of old and new kernel: `7.3.4 -> 7.2.12`.
    pub kernels: String,
    /// Seed.
    pub seed: u64,
    /// Variant's name; empty for the scenario as it is.
    pub variant: String,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, seed {}", self.scenario, self.kernels, self.seed)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, ", {}", self.variant)
        }
    }
}

impl Label {
    /// The name of a cell of this plan, without a variant.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let new = plan.kernel(plan.kexecs);
        let old = match &plan.handover {
            Some(handover) => handover.abi.name(),
            None => &plan.kernel(0).release,
        };
        Self {
            scenario: plan.name.clone(),
            kernels: format!("{old} -> {}", new.release),
            seed: plan.seed,
            variant: String::new(),
        }
    }
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Its identity.
    pub id: CellId,
    /// Index in [`CampaignPlan::bases`].
    pub base: usize,
    /// Index in [`CampaignPlan::variants`]; `None` for the scenario as it is.
    pub variant: Option<usize>,
}

/// What a plan adds to a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// The variant's name.
    pub name: String,
    /// TOML that is appended.
    pub add: String,
}

/// All cells of a campaign.
#[derive(Debug, Clone)]
pub struct CampaignPlan {
    /// Name of the campaign.
    pub name: String,
    /// The file, as given.
    pub file: PathBuf,
    /// Scenarios with kernels and seeds; cells of one base differ only in their variant.
    pub bases: Vec<(Base, Label)>,
    /// Variants.
    pub variants: Vec<Addition>,
    /// The cells: base by base, variants in the file's order.
    pub cells: Vec<Cell>,
}

/// Why a campaign has no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The campaign or a scenario is wrong.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// A kernel of a scenario was not found.
    #[error("{scenario}: {reason}")]
    Kernel {
        /// The scenario's file.
        scenario: String,
        /// Why.
        reason: String,
    },
    /// A variant does not fit a scenario.
    #[error("variant {variant} does not fit {scenario}: {reason}")]
    Variant {
        /// The variant's name.
        variant: String,
        /// The scenario's file.
        scenario: String,
        /// Why, with line and column in the scenario and what is added to it.
        reason: String,
    },
    /// The agent was not found.
    #[error(transparent)]
    Agent(#[from] harness::agent::AgentError),
}

/// Expands a campaign into its cells.
pub fn plan(campaign: &Campaign, file: &Path, text: &str) -> Result<CampaignPlan, PlanError> {
    let wrong = |span, message| {
        let file = file.display().to_string();
        PlanError::from(wrong_at(&file, text, span, message))
    };
    let scenarios = scenario_files(campaign, file, &wrong)?;
    let variants: Vec<Addition> = campaign
        .variant
        .iter()
        .flat_map(|variant| variant.each())
        .map(|(name, add)| Addition { name, add })
        .collect();
    let (pairs, seeds) = (campaign.kernel_pairs(), campaign.seeds.as_ref());
    let seeds: Vec<Option<u64>> = match seeds {
        Some(seeds) => seeds.get_ref().values().into_iter().map(Some).collect(),
        None => vec![None],
    };
    let own = usize::from(campaign.baseline);
    let cells = [scenarios.len(), pairs.len(), seeds.len(), variants.len() + own]
        .into_iter()
        .fold(1u64, |all, count| all.saturating_mul(count as u64));
    if cells > MAX_CELLS {
        let message = format!("{cells} cells: a campaign has at most {MAX_CELLS}");
        return Err(wrong(campaign.name.span(), message));
    }
    let mut plan = CampaignPlan {
        name: campaign.name.get_ref().clone(),
        file: file.to_path_buf(),
        bases: Vec::new(),
        variants,
        cells: Vec::new(),
    };
    let mut resolver = Resolver::new()?;
    let mut met = BTreeSet::new();
    for scenario_file in &scenarios {
        let (scenario, scenario_text) = harness::scenario::load(scenario_file)?;
        for (old, new) in &pairs {
            for seed in &seeds {
                let base = Base {
                    scenario_file: scenario_file.display().to_string(),
                    text: scenario_text.clone(),
                    old: old.clone(),
                    new: new.clone(),
                    seed: seed.unwrap_or(scenario.seed),
                };
                add_cells(&mut plan, base, campaign.baseline, &mut resolver, &mut met)?;
            }
        }
    }
    Ok(plan)
}

/// Adds the cells of a base: its variants, and the base by itself if it is wanted.
fn add_cells(
    plan: &mut CampaignPlan,
    base: Base,
    baseline: bool,
    resolver: &mut Resolver,
    met: &mut BTreeSet<CellId>,
) -> Result<(), PlanError> {
    let index = plan.bases.len();
    let own = baseline.then_some(None);
    let variants = (0..plan.variants.len()).map(Some);
    let mut label = None;
    for variant in own.into_iter().chain(variants) {
        let addition = variant.and_then(|variant| plan.variants.get(variant));
        let text = base.with(addition.map_or("", |addition| &addition.add));
        let resolved = resolver.resolve(&base, &text).map_err(|reason| match addition {
            Some(addition) => PlanError::Variant {
                variant: addition.name.clone(),
                scenario: base.scenario_file.clone(),
                reason,
            },
            None => PlanError::Kernel {
                scenario: base.scenario_file.clone(),
                reason,
            },
        })?;
        label.get_or_insert_with(|| Label::of(&resolved));
        let id = resolver.cell(&resolved, &text);
        // Equal cells have equal results, so the second would show nothing. Files and variants are named twice by
        // overlapping patterns and values.
        if met.insert(id) {
            plan.cells.push(Cell {
                id,
                base: index,
                variant,
            });
        }
    }
    if let Some(label) = label {
        plan.bases.push((base, label));
    }
    Ok(())
}

/// The scenario files that a campaign's patterns match: each once, in order.
fn scenario_files(
    campaign: &Campaign,
    file: &Path,
    wrong: &dyn Fn(std::ops::Range<usize>, String) -> PlanError,
) -> Result<Vec<PathBuf>, PlanError> {
    let directory = file.parent().unwrap_or(Path::new(""));
    let mut files: Vec<PathBuf> = Vec::new();
    for pattern in campaign.scenarios.get_ref() {
        let name = pattern.get_ref();
        let path = directory.join(name);
        let found: Vec<PathBuf> = if name.contains('*') {
            let paths = path
                .to_str()
                .ok_or_else(|| wrong(pattern.span(), format!("\"{name}\": the path is not UTF-8")))?;
            let paths = glob::glob(paths)
                .map_err(|error| wrong(pattern.span(), format!("pattern \"{name}\": {error}")))?;
            paths.filter_map(Result::ok).collect()
        } else {
            vec![path]
        };
        if found.is_empty() {
            let message = format!("pattern \"{name}\" matches no file in {}", shown(directory));
            return Err(wrong(pattern.span(), message));
        }
        for path in found {
            if !files.contains(&path) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn shown(directory: &Path) -> String {
    if directory.as_os_str().is_empty() {
        "the current directory".into()
    } else {
        directory.display().to_string()
    }
}

impl CampaignPlan {
    /// Identity of the plan: that of the set of its cells.
    #[must_use]
    pub fn id(&self) -> CellId {
        let mut cells: Vec<CellId> = self.cells.iter().map(|cell| cell.id).collect();
        cells.sort_unstable();
        let texts: Vec<String> = cells.iter().map(CellId::to_string).collect();
        CellId::of(&[texts.concat().as_bytes()])
    }

    /// A cell's name for people.
    #[must_use]
    pub fn label(&self, cell: &Cell) -> Label {
        let variant = cell.variant.map(|variant| self.variants[variant].name.clone());
        Label {
            variant: variant.unwrap_or_default(),
            ..self.bases[cell.base].1.clone()
        }
    }

    /// What a cell adds to its scenario.
    #[must_use]
    pub fn addition(&self, cell: &Cell) -> &str {
        cell.variant.map_or("", |variant| &self.variants[variant].add)
    }

    /// The cells whose identity begins with `prefix`.
    pub fn cells_by_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Cell> {
        let begins = move |cell: &&Cell| cell.id.to_string().starts_with(prefix);
        self.cells.iter().filter(begins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_of_parts_and_not_of_their_concatenation() {
        assert_ne!(CellId::of(&[b"ab", b"c"]), CellId::of(&[b"a", b"bc"]));
        let id = CellId::of(&[b"ab"]);
        assert_eq!(id.to_string().parse::<CellId>(), Ok(id));
        for bad in ["", "12", "+1234567890123456789012345678901", "zz"] {
            assert!(bad.parse::<CellId>().is_err(), "{bad}");
        }
    }
}
