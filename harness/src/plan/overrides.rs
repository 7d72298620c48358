//! What the command line changes in a scenario: kernels, machine, seed and patience.

use super::{PlanError, Unplanned};
use crate::scenario::{Bytes, Limits, Scenario, Span};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// How many times longer than [`Plan::progress_ns`] a booting kernel may be silent, unless the scenario says. A kernel
/// of 10 MB is silent for 3 billion instructions while it decompresses itself with XZ.
///
/// [`Plan::progress_ns`]: super::Plan::progress_ns
const BOOT_PATIENCE: u64 = 5;

/// What the command line may override.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// `--kernel`.
    pub kernel: Option<String>,
    /// `--next-kernel`.
    pub next_kernel: Option<String>,
    /// `--seed`.
    pub seed: Option<u64>,
    /// `--progress`.
    pub progress: Option<Span>,
    /// The run is one of a matrix of kernels. Then the next kernel comes through the mailbox, so that runs with one
    /// first kernel are one run until it is loaded. What the first kernel refuses to preserve is left out.
    pub survey: bool,
    /// `--ram`.
    pub ram: Option<Bytes>,
    /// `--vcpus`.
    pub vcpus: Option<u32>,
    /// `--append`: added to the command line of every kernel.
    pub append: Option<String>,
}

/// The name of a kernel, with its place in the scenario's text if that names it.
pub(super) type Named = (String, Option<Range<usize>>);

impl Overrides {
    /// The command-line arguments of these overrides, without the seed.
    pub fn arguments(&self) -> Vec<String> {
        let progress = self.progress.map(|progress| progress.to_string());
        let ram = self.ram.map(|ram| ram.to_string());
        let vcpus = self.vcpus.map(|vcpus| vcpus.to_string());
        let pairs = [
            ("--kernel", &self.kernel),
            ("--next-kernel", &self.next_kernel),
            ("--progress", &progress),
            ("--ram", &ram),
            ("--vcpus", &vcpus),
            ("--append", &self.append),
        ];
        let given = pairs
            .into_iter()
            .filter_map(|(name, value)| Some([name.to_owned(), value.clone()?]));
        given.flatten().collect()
    }

    /// Names of the first kernel and of every later one.
    pub(super) fn kernels(&self, scenario: &Scenario, file: &str) -> [Named; 2] {
        let kernel = &scenario.kernel;
        let default = (crate::kernel::DEFAULT_VERSION.to_owned(), None);
        let (old, old_span) = choose(&self.kernel, &kernel.old).unwrap_or(default);
        // `--kernel` alone replaces both kernels, unless the scenario names a different new one.
        let same = || (old.clone(), old_span.clone());
        let (new, new_span) = choose(&self.next_kernel, &kernel.new).unwrap_or_else(same);
        // A path in a scenario is relative to the scenario.
        let placed = |(name, span): Named| match span {
            Some(_) => (crate::kernel::beside(&name, Path::new(file)), span),
            None => (name, None),
        };
        [placed((old, old_span)), placed((new, new_span))]
    }

    /// The scenario with the machine that the command line asks for, checked again; `None` if it asks for none.
    pub(super) fn with_machine(&self, scenario: &Scenario) -> Result<Option<Scenario>, PlanError> {
        let (ram, vcpus) = (self.ram, self.vcpus);
        if ram.is_none() && vcpus.is_none() {
            return Ok(None);
        }
        let changed = scenario.with_machine(ram, vcpus);
        changed.map(Some).map_err(|reason| {
            let machine = Self {
                ram,
                vcpus,
                ..Self::default()
            };
            PlanError {
                span: None,
                source: Unplanned::Overridden {
                    options: machine.arguments().join(" "),
                    reason,
                },
            }
        })
    }

    /// Guest time without progress that is allowed, and that while a kernel boots, in nanoseconds.
    pub(super) fn patience(&self, limits: &Limits) -> (u64, u64) {
        let progress = self.progress.unwrap_or(limits.progress).0;
        let usual = progress.saturating_mul(BOOT_PATIENCE);
        let boot = match (self.progress, limits.boot) {
            (None, Some(boot)) => boot.0,
            (Some(_), Some(boot)) => boot.0.max(usual),
            (_, None) => usual,
        };
        (progress, boot)
    }

    /// Whether runs with these overrides may begin equally. Those of a matrix differ in the later kernels alone.
    pub(super) fn begins_as(&self, other: &Self) -> bool {
        let Self {
            kernel,
            next_kernel,
            seed,
            progress,
            survey,
            ram,
            vcpus,
            append,
        } = self;
        *kernel == other.kernel
            && *seed == other.seed
            && *progress == other.progress
            && *survey == other.survey
            && (ram, vcpus, append) == (&other.ram, &other.vcpus, &other.append)
            && (*survey || *next_kernel == other.next_kernel)
    }
}

/// The name of a kernel, from the command line or the scenario, with its place in the scenario's text.
fn choose(given: &Option<String>, named: &Option<toml::Spanned<String>>) -> Option<Named> {
    let named = || {
        named
            .as_ref()
            .map(|named| (named.get_ref().clone(), Some(named.span())))
    };
    given.clone().map(|given| (given, None)).or_else(named)
}
