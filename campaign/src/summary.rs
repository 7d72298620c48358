//! What a campaign came to, computed from its results one by one.

use crate::mutation::{Fate, Mutation};
use crate::plan::{CellId, Label};
use crate::result::{CellResult, Signature, Status};
use harness::oracle::RuleName;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Most groups that are kept apart; failures of further signatures are counted together.
const MAX_GROUPS: usize = 1000;

/// Most cells of a [`Table`]; results of further ones are counted together.
const MAX_TABLE: usize = 10_000;

/// How many results have each status.
pub type Counts = BTreeMap<Status, u64>;

/// Results by the name of a row and by kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Counts by row and kernels, such as `("small", "7.3.4 -> 7.2.12")`.
    pub cells: BTreeMap<(String, String), Counts>,
    /// Results that are in no cell, because there are too many.
    pub left_out: u64,
}

impl Table {
    fn add(&mut self, row: &str, kernels: &str, status: Status) {
        let place = (row.to_owned(), kernels.to_owned());
        if self.cells.len() >= MAX_TABLE && !self.cells.contains_key(&place) {
            self.left_out += 1;
            return;
        }
        *self.cells.entry(place).or_default().entry(status).or_default() += 1;
    }
}

/// Counts, and failures by signature.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    counts: Counts,
    /// Results by scenario and kernels.
    pub by_scenario: Table,
    /// Results by variant and kernels; the variant of a scenario as it is has no name.
    pub by_variant: Table,
    groups: BTreeMap<Signature, Group>,
    /// Failures that are in no group, because there are too many.
    pub ungrouped: u64,
    scores: BTreeMap<String, Score>,
    /// Guest instructions of all cells.
    pub instructions: u64,
    /// Host time of all cells together, in microseconds.
    pub cell_us: u64,
}

/// Failures of one signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// Their worst status.
    pub status: Status,
    /// The shortest of them in guest time, and of equals the first by name.
    pub smallest: CellResult,
    /// Names of the scenarios in which it was seen, at most [`MAX_SCENARIOS`].
    pub scenarios: Vec<String>,
}

/// What came of all injections with one deed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// How many fired.
    pub fired: u64,
    /// How many of them a rule caught.
    pub caught: u64,
    /// How many only ended the run otherwise.
    pub ended_otherwise: u64,
    /// How many changed what a user sees, and nothing noticed it.
    pub not_noticed: u64,
    /// How many changed nothing that a user sees.
    pub no_effect: u64,
    /// How many came with another injection that was caught, so that nothing can be said of them.
    pub cannot_be_told: u64,
    /// How many each rule caught.
    pub by_rule: BTreeMap<RuleName, u64>,
    /// Of those that were not noticed the first cells by name, at most [`MAX_GAPS`].
    pub gaps: Vec<Gap>,
}

/// An injection that was not noticed although it changed what a user sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Gap {
    /// The cell's name.
    #[serde(flatten)]
    pub label: Label,
    /// Its identity.
    pub cell: CellId,
    /// What differs from the run without injections, in one sentence.
    pub differs: String,
}

/// Most gaps that a score names.
pub const MAX_GAPS: usize = 8;

impl Score {
    fn add(&mut self, result: &CellResult, mutation: &Mutation) {
        if mutation.fate == Fate::NotFired {
            return;
        }
        self.fired += 1;
        match mutation.fate {
            Fate::NotFired => {}
            Fate::Caught => self.caught += 1,
            Fate::EndedOtherwise => self.ended_otherwise += 1,
            Fate::NotNoticed => self.not_noticed += 1,
            Fate::NoEffect => self.no_effect += 1,
            Fate::CannotBeTold => self.cannot_be_told += 1,
        }
        for rule in &mutation.caught_by {
            *self.by_rule.entry(*rule).or_default() += 1;
        }
        if mutation.fate == Fate::NotNoticed {
            let gap = Gap {
                label: result.label.clone(),
                cell: result.cell,
                differs: mutation.differs.clone(),
            };
            if let Err(at) = self.gaps.binary_search(&gap) {
                self.gaps.insert(at, gap);
                self.gaps.truncate(MAX_GAPS);
            }
        }
    }

    /// Those that changed something which a user sees.
    #[must_use]
    pub fn mattered(&self) -> u64 {
        self.fired - self.no_effect - self.cannot_be_told
    }

    /// Those of them that were noticed.
    #[must_use]
    pub fn noticed(&self) -> u64 {
        self.caught + self.ended_otherwise
    }
}

/// Most scenarios that a group names.
pub const MAX_SCENARIOS: usize = 8;

impl Summary {
    /// Adds a result.
    pub fn add(&mut self, result: &CellResult) {
        *self.counts.entry(result.status).or_default() += 1;
        self.instructions = self.instructions.saturating_add(result.instructions);
        self.cell_us = self.cell_us.saturating_add(result.wall_us);
        for mutation in &result.mutations {
            let score = self.scores.entry(mutation.deed.clone()).or_default();
            score.add(result, mutation);
        }
        let label = &result.label;
        self.by_scenario
            .add(&label.scenario, &label.kernels, result.status);
        self.by_variant.add(&label.variant, &label.kernels, result.status);
        let Some(signature) = result.signature() else {
            return;
        };
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&signature) {
            self.ungrouped += 1;
            return;
        }
        let group = self.groups.entry(signature).or_insert_with(|| Group {
            count: 0,
            status: result.status,
            smallest: result.clone(),
            scenarios: Vec::new(),
        });
        group.count += 1;
        group.status = group.status.max(result.status);
        let size = |result: &CellResult| (result.guest_ns, result.label.clone(), result.cell);
        if size(result) < size(&group.smallest) {
            group.smallest = result.clone();
        }
        let scenario = &result.label.scenario;
        if let Err(at) = group.scenarios.binary_search(scenario)
            && group.scenarios.len() < MAX_SCENARIOS
        {
            group.scenarios.insert(at, scenario.clone());
        }
    }

    /// How many results have this status.
    #[must_use]
    pub fn count(&self, status: Status) -> u64 {
        self.counts.get(&status).copied().unwrap_or(0)
    }

    /// What came of injections, by deed.
    #[must_use]
    pub fn scores(&self) -> &BTreeMap<String, Score> {
        &self.scores
    }

    /// How many results there are.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How many are not a pass.
    #[must_use]
    pub fn failing(&self) -> u64 {
        self.done() - self.count(Status::Pass)
    }

    /// Groups, the worst first: by status, then by how many.
    #[must_use]
    pub fn ranked(&self) -> Vec<(&Signature, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, group)| (Reverse(group.status), Reverse(group.count)));
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(name: &str, what: &str, guest_ns: u64, status: Status) -> CellResult {
        let label = Label {
            scenario: name.into(),
            kernels: String::new(),
            seed: 1,
            variant: String::new(),
        };
        CellResult {
            guest_ns,
            ..CellResult::without_run(CellId::of(&[name.as_bytes()]), label, status, what)
        }
    }

    #[test]
    fn failures_are_grouped_by_what_they_show() {
        let mut summary = Summary::default();
        for (name, what, guest, status) in [
            ("a", "slow by 10", 30, Status::Error),
            ("b", "slow by 20", 20, Status::Error),
            ("c", "gone", 10, Status::Died),
            ("d", "slow by 30", 40, Status::Error),
        ] {
            summary.add(&failure(name, what, guest, status));
        }
        assert_eq!(
            (summary.done(), summary.failing(), summary.count(Status::Died)),
            (4, 4, 1)
        );
        let ranked = summary.ranked();
        assert_eq!(ranked.len(), 2);
        assert_eq!((ranked[0].0.what.as_str(), ranked[0].1.count), ("gone", 1));
        let slow = ranked[1].1;
        assert_eq!((ranked[1].0.what.as_str(), slow.count), ("slow by N", 3));
        assert_eq!(slow.smallest.label.scenario, "b");
        assert_eq!(slow.scenarios, ["a", "b", "d"]);
    }

    #[test]
    fn injections_are_scored_by_deed_and_gaps_are_named() {
        let mutation = |fate, caught_by: &[RuleName]| Mutation {
            deed: "dma.drop".into(),
            fate,
            caught_by: caught_by.to_vec(),
            differs: String::new(),
        };
        let mut summary = Summary::default();
        for (name, fate, rules) in [
            ("b", Fate::NotNoticed, &[][..]),
            ("a", Fate::NotNoticed, &[]),
            ("c", Fate::Caught, &[RuleName::PreservedContent]),
            ("d", Fate::NoEffect, &[]),
            ("e", Fate::NotFired, &[]),
            ("f", Fate::CannotBeTold, &[]),
        ] {
            let mut result = failure(name, "x", 1, Status::Fail);
            result.mutations = vec![mutation(fate, rules)];
            summary.add(&result);
        }
        let score = &summary.scores()["dma.drop"];
        assert_eq!((score.fired, score.mattered(), score.noticed()), (5, 3, 1));
        assert_eq!(score.by_rule[&RuleName::PreservedContent], 1);
        let gaps: Vec<&str> = score.gaps.iter().map(|gap| gap.label.scenario.as_str()).collect();
        assert_eq!(gaps, ["a", "b"]);
    }

    #[test]
    fn results_are_counted_by_scenario_and_by_variant_with_each_pair_of_kernels() {
        let mut summary = Summary::default();
        for (scenario, kernels, variant, status) in [
            ("a", "1 -> 1", "", Status::Pass),
            ("a", "1 -> 1", "late", Status::Fail),
            ("a", "1 -> 2", "late", Status::Pass),
            ("b", "1 -> 1", "late", Status::Fail),
        ] {
            let mut result = failure(scenario, "x", 1, status);
            (result.label.kernels, result.label.variant) = (kernels.into(), variant.into());
            summary.add(&result);
        }
        let of = |table: &Table, row: &str, kernels: &str, status| {
            let counts = table.cells.get(&(row.into(), kernels.into()));
            counts.and_then(|counts| counts.get(&status)).copied()
        };
        let (scenarios, variants) = (&summary.by_scenario, &summary.by_variant);
        assert_eq!((scenarios.cells.len(), variants.cells.len()), (3, 3));
        assert_eq!(of(scenarios, "a", "1 -> 1", Status::Pass), Some(1));
        assert_eq!(of(scenarios, "a", "1 -> 1", Status::Fail), Some(1));
        assert_eq!(of(scenarios, "b", "1 -> 2", Status::Pass), None);
        assert_eq!(of(variants, "late", "1 -> 1", Status::Fail), Some(2));
        assert_eq!(of(variants, "", "1 -> 1", Status::Pass), Some(1));
    }

    #[test]
    fn a_table_takes_bounded_memory() {
        let mut table = Table::default();
        for row in 0..MAX_TABLE + 3 {
            table.add(&row.to_string(), "", Status::Pass);
        }
        table.add("0", "", Status::Fail);
        assert_eq!((table.cells.len(), table.left_out), (MAX_TABLE, 3));
        assert_eq!(table.cells[&("0".to_owned(), String::new())].len(), 2);
    }

    #[test]
    fn the_order_of_results_makes_no_difference() {
        let mut results: Vec<CellResult> = (0..20)
            .map(|index: u64| failure(&index.to_string(), "x", index % 3, Status::Fail))
            .collect();
        let sum = |results: &[CellResult]| {
            let mut summary = Summary::default();
            results.iter().for_each(|result| summary.add(result));
            summary
                .ranked()
                .into_iter()
                .map(|(_, group)| group.smallest.clone())
                .collect::<Vec<_>>()
        };
        let forward = sum(&results);
        results.reverse();
        assert_eq!(sum(&results), forward);
    }

    #[test]
    fn signatures_without_end_take_bounded_memory() {
        let mut summary = Summary::default();
        for index in 0..MAX_GROUPS + 5 {
            let name: String = index
                .to_string()
                .bytes()
                .map(|digit| char::from(digit + 49))
                .collect();
            summary.add(&failure(&name, &name, 1, Status::Fail));
        }
        assert_eq!((summary.ranked().len(), summary.ungrouped), (MAX_GROUPS, 5));
    }
}
