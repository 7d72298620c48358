//! The verifier checks whether the new kernel can take a handover over without losing anything.
//!
//! [`Rule`] lists its rules. The reader has checked some of them already, because it cannot follow a record that
//! breaks them; its findings are part of the verdict. This module checks the others on the decoded handover. The bits
//! of the map and the number of records bound its time, [`Findings::LIMIT`] its memory.

mod blocks;
mod content;
mod owned;
mod scratch;

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::finding::{Finding, Findings, Rule, Severity};
use crate::map::merge;
use crate::memory::{PhysicalMemory, Region};
use crate::model::Handover;

/// The verdict on a handover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What is wrong, the reader's findings first.
    pub findings: Findings,
    judged: BTreeMap<Rule, u64>,
}

impl Verdict {
    /// Whether nothing is wrong that is worse than a note.
    pub fn is_sound(&self) -> bool {
        self.findings
            .worst()
            .is_none_or(|worst| worst < Severity::Warning)
    }

    /// How many items (blocks, records, files) a rule was applied to; 0 if it had nothing to check. Rules that the
    /// reader checks on every record are not counted.
    pub fn judged(&self, rule: Rule) -> u64 {
        self.judged.get(&rule).copied().unwrap_or(0)
    }
}

/// Verifies a handover against the memory it was read from.
pub fn verify(handover: &Handover, memory: &dyn PhysicalMemory) -> Verdict {
    let mut verifier = Verifier {
        handover,
        ram: memory.ranges(),
        scratch: merge(
            handover
                .scratch
                .iter()
                .map(|area| area.region)
                .filter(|region| region.size != 0),
        ),
        verdict: Verdict {
            findings: handover.findings.clone(),
            judged: BTreeMap::new(),
        },
    };
    scratch::areas(&mut verifier);
    blocks::windows(&mut verifier);
    blocks::blocks(&mut verifier);
    owned::records(&mut verifier);
    owned::data(&mut verifier);
    owned::shared(&mut verifier);
    owned::nobody(&mut verifier);
    content::versions(&mut verifier);
    content::names(&mut verifier);
    content::files(&mut verifier);
    content::metadata(&mut verifier);
    verifier.verdict
}

struct Verifier<'h> {
    handover: &'h Handover,
    ram: Vec<Region>,
    /// Ascending and merged, because a hostile array has thousands of areas, and every block is compared with them.
    scratch: Vec<Region>,
    verdict: Verdict,
}

impl Verifier<'_> {
    fn judge(&mut self, rule: Rule) {
        let count = self.verdict.judged.entry(rule).or_insert(0);
        *count = count.saturating_add(1);
    }

    fn finding(
        &mut self,
        rule: Rule,
        at: u64,
        what: impl ToString,
        expected: impl ToString,
        found: impl ToString,
    ) {
        self.verdict.findings.push_with(rule, || Finding {
            rule,
            at,
            what: what.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    fn is_ram(&self, region: &Region) -> bool {
        self.ram.iter().any(|ram| ram.covers(region))
    }

    /// A scratch area that overlaps the region.
    fn scratch_under(&self, region: &Region) -> Option<Region> {
        let next = self
            .scratch
            .partition_point(|scratch| scratch.end() <= region.start);
        self.scratch
            .get(next)
            .copied()
            .filter(|scratch| scratch.overlaps(region))
    }

    /// The first address in the region that the map does not preserve.
    fn first_gap(&self, region: Region) -> Option<u64> {
        let mut at = region.start;
        while at < region.end() {
            match self.handover.map.block_containing(at) {
                Some(block) => at = block.region().end(),
                None => return Some(at),
            }
        }
        // A region that runs past the last address cannot be preserved to its end.
        region
            .start
            .checked_add(region.size)
            .is_none()
            .then_some(region.start)
    }
}

#[cfg(test)]
mod tests;
