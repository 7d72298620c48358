//! Evidence of what the kernels said: their console output, and names for the addresses in their complaints.

use super::Run;
use crate::evidence::{ConsolePart, Evidence, LogSymbol};
use crate::kernel_log;
use std::collections::BTreeSet;

impl Run {
    /// The console output by phase, and the names of addresses in what the kernels complained of.
    pub(super) fn take_console(&self, evidence: &mut Evidence) {
        let (console, phases) = (self.machine.console(), self.machine.phases());
        let ends = phases.iter().skip(1).map(|phase| phase.printed).chain([u64::MAX]);
        for (phase, end) in phases.iter().zip(ends) {
            let (text, lost) = console.between(phase.printed, end);
            evidence.console_parts.push(ConsolePart {
                generation: phase.stamp.generation.into(),
                phase: phase.stamp.phase,
                begin: evidence.console.len() as u64,
                lost,
            });
            evidence.console.push_str(&String::from_utf8_lossy(&text));
        }
        for generation in 0..=evidence.outcome.generation {
            let found = kernel_log::of_generation(evidence, generation);
            let addresses: BTreeSet<u64> = found.kept.iter().flat_map(|one| one.addresses()).collect();
            let symbols = addresses.into_iter().filter_map(|address| {
                Some(LogSymbol {
                    generation,
                    address,
                    symbol: self.symbol(generation, address, 0)?,
                })
            });
            evidence.log_symbols.extend(symbols);
        }
    }
}
