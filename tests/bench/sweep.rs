//! What an injection costs: some cases of a sweep of the handover, spread evenly over all of it.

use crate::samples::Spread;
use campaign::sweep::{Case, Cost, Sweep};
use harness::plan::Plan;
use serde::Serialize;
use std::fmt;
use vmm::soft::Soft;

/// Target: fewest injections per hour of processor time.
const GOAL_PER_HOUR: f64 = 10_000.0;

/// What cases of a sweep cost, in processor time.
#[derive(Debug, Serialize)]
pub struct Injections {
    /// Cases that the whole sweep has.
    pub cases: usize,
    /// Cases that were measured.
    pub measured: usize,
    /// Of them those that took at most 1.2 times the time of their instructions and 5 ms.
    pub small: usize,
    /// Cases per hour of processor time.
    pub per_hour: f64,
    /// Time of a case divided by the time of its instructions alone.
    pub ratio: Option<Spread>,
    /// Time of a case beside that of its instructions, in milliseconds.
    pub beside_ms: Option<Spread>,
    /// Instructions of a case, in millions.
    pub million_instructions: Option<Spread>,
    /// How fast they were executed, in MIPS.
    pub mips: Option<Spread>,
}

/// Runs `count` cases of the sweep of a scenario.
pub fn measure(plan: &Plan, agent: &[u8], count: usize) -> Result<Injections, String> {
    let sweep = Sweep::new(plan, agent, "", Soft::default()).map_err(|error| error.to_string())?;
    let all = sweep.cases(&[]).map_err(|error| error.to_string())?;
    let mut costs = Vec::new();
    for case in spread(&all, count) {
        let ran = sweep.run(case).map_err(|error| error.to_string())?;
        costs.push(ran.cost);
    }
    Ok(of(&costs, all.len()))
}

/// So many cases at equal distances.
fn spread(cases: &[Case], count: usize) -> impl Iterator<Item = &Case> {
    let step = cases.len().div_ceil(count.max(1)).max(1);
    cases.iter().step_by(step)
}

#[allow(clippy::cast_precision_loss)] // for people
fn of(costs: &[Cost], cases: usize) -> Injections {
    let each = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value));
    let whole: f64 = costs.iter().map(|cost| cost.whole.as_secs_f64()).sum();
    Injections {
        cases,
        measured: costs.len(),
        small: costs.iter().filter(|cost| cost.is_small()).count(),
        per_hour: costs.len() as f64 * 3600.0 / whole.max(1e-9),
        ratio: each(|cost| cost.whole.as_secs_f64() / cost.running.as_secs_f64().max(1e-9)),
        beside_ms: each(|cost| cost.whole.saturating_sub(cost.running).as_secs_f64() * 1e3),
        million_instructions: each(|cost| cost.instructions as f64 / 1e6),
        mips: each(|cost| cost.instructions as f64 / 1e6 / cost.running.as_secs_f64().max(1e-9)),
    }
}

impl Injections {
    /// Whether an hour of processor time has as many as it has to.
    pub fn is_fast(&self) -> bool {
        self.per_hour >= GOAL_PER_HOUR
    }

    /// The table. `qemu` is the processor time of a whole cycle on QEMU in seconds, if that was measured.
    pub fn table(&self, qemu: Option<f64>) -> Table<'_> {
        Table { of: self, qemu }
    }
}

/// For people.
pub struct Table<'a> {
    of: &'a Injections,
    qemu: Option<f64>,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Injections {
            cases,
            measured,
            small,
            per_hour,
            ratio,
            beside_ms,
            million_instructions,
            mips,
        } = self.of;
        writeln!(
            f,
            "Injections into a handover: {measured} of {cases} cases of a sweep, in processor time; median, (least to greatest)\n"
        )?;
        let cell = |spread: &Option<Spread>, digits: usize| {
            spread.map_or_else(String::new, |spread| {
                format!(
                    "{:.digits$} ({:.digits$} to {:.digits$})",
                    spread.median, spread.least, spread.greatest
                )
            })
        };
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<46}{value:>30}");
        row("injections per core-hour", format!("{per_hour:.0}"))?;
        if let Some(seconds) = self.qemu {
            row(
                "  on QEMU, a whole cycle each *",
                format!("{:.0}", 3600.0 / seconds),
            )?;
        }
        row(
            "million instructions after the branch",
            cell(million_instructions, 1),
        )?;
        row("  MIPS", cell(mips, 0))?;
        row("time, by that of the instructions alone", cell(ratio, 2))?;
        row("time beside that of the instructions, ms", cell(beside_ms, 1))?;
        if self.qemu.is_some() {
            writeln!(f, "\n  * of the scenario above, without evidence and rules")?;
        }
        let reached = |reached: bool| if reached { "reached" } else { "missed " };
        writeln!(
            f,
            "\n  {}  at least {GOAL_PER_HOUR} injections per core-hour",
            reached(self.of.is_fast())
        )?;
        writeln!(
            f,
            "  {}  at most 1.2 times the instructions' time and 5 ms ({small} of {measured})",
            reached(small == measured)
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::time::Duration;

    /// Two cases, which take so many milliseconds beside the 100 of their instructions.
    pub fn injections(beside: u64) -> Injections {
        let cost = Cost {
            instructions: 5_000_000,
            running: Duration::from_millis(100),
            whole: Duration::from_millis(100 + beside),
        };
        of(&[cost, cost], 1800)
    }

    #[test]
    fn the_table_says_what_an_injection_costs_here_and_on_qemu() {
        let text = injections(25).table(Some(7.2)).to_string();
        for part in [
            "2 of 1800 cases",
            " 28800\n",
            " 500\n",
            "1.25 (1.25 to 1.25)",
            "50 (50 to 50)",
            "reached  at least 10000",
            "reached  at most 1.2 times",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let text = injections(300).table(None).to_string();
        for part in ["missed   at least 10000", "missed   at most 1.2 times"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("QEMU"));
    }
}
