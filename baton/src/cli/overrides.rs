//! What a command line changes in scenarios.

use clap::Args;
use harness::plan::Overrides;
use harness::scenario::{Bytes, Span};

/// See [`Overrides`].
#[derive(Debug, Args)]
pub(super) struct OverrideArgs {
    /// First kernel, and every later one unless the scenario or --next-kernel names it: a version, a series such as
    /// 7.3, the path of a bzImage, or that of a folder that a kernel was built in.
    #[arg(long, value_name = "VERSION|PATH")]
    kernel: Option<String>,
    /// Every later kernel.
    #[arg(long, value_name = "VERSION|PATH")]
    next_kernel: Option<String>,
    /// Seed of every random choice.
    #[arg(long)]
    seed: Option<u64>,
    /// Guest time without progress after which the guest counts as hung, such as 5s; five times as much while a kernel
    /// boots.
    #[arg(long, value_name = "TIME")]
    progress: Option<Span>,
    /// Guest RAM, such as 1G.
    #[arg(long, value_name = "SIZE")]
    ram: Option<Bytes>,
    /// Virtual processors.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Added to the command line of every kernel, after what the scenario adds.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
}

impl OverrideArgs {
    /// What is given.
    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            kernel: self.kernel.clone(),
            next_kernel: self.next_kernel.clone(),
            seed: self.seed,
            progress: self.progress,
            survey: false,
            ram: self.ram,
            vcpus: self.vcpus,
            append: self.append.clone(),
        }
    }
}
