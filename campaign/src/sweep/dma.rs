//! A fault in one device write, at one moment of a live update after the other.
//!
//! A case branches from the last of several snapshots of the unchanged run before its moment. An injection without a
//! phase is armed when it is added, so that the branch does what the run from power-on would do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use harness::conductor::{Progress, Run, Until, WarmRuns, chain};
use harness::evidence::{Evidence, Phase};
use harness::oracle::RuleName;
use harness::plan::{InjectionPlan, Plan};
use harness::snapshot::RunSnapshot;
use harness::verdict::{Judged, Verdict};
use serde::{Deserialize, Serialize};
use vmm::injection::{Act, Change, Deed, Delay, Filter, Injection, Occurrence, Repeat, Trigger, WriteKind};
use vmm::soft::Soft;

use super::lines::counts_table;
use super::{BaseError, CaseError};
use crate::mutation::{Fate, mutations};

/// Most snapshots that cases branch from.
const MAX_FORKS: u64 = 32;

/// What happens to a device write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DmaDeed {
    /// The next block is not made.
    Drop,
    /// One block more is written at once, if the ring has room.
    Extra,
}

impl DmaDeed {
    /// All.
    pub const ALL: [Self; 2] = [Self::Drop, Self::Extra];

    /// The name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Extra => "extra",
        }
    }

    fn deed(self) -> Deed {
        match self {
            Self::Drop => Deed::Filter(Filter {
                of: WriteKind::Block,
                change: Change::Drop,
            }),
            Self::Extra => Deed::Act(Act::Burst { blocks: 1 }),
        }
    }
}

impl fmt::Display for DmaDeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A deed at a moment. As text `DEED@NANOSECONDS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmaCase {
    /// What.
    pub deed: DmaDeed,
    /// Guest time in nanoseconds.
    pub moment: u64,
}

impl fmt::Display for DmaCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.deed, self.moment)
    }
}

impl std::str::FromStr for DmaCase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (deed, moment) = text.split_once('@').unwrap_or((text, ""));
        let deed = DmaDeed::ALL.into_iter().find(|known| known.name() == deed);
        let moment = Some(moment).filter(|moment| moment.bytes().all(|byte| byte.is_ascii_digit()));
        deed.zip(moment.and_then(|moment| moment.parse().ok()))
            .map(|(deed, moment)| Self { deed, moment })
            .ok_or_else(|| {
                format!("\"{text}\": expected drop@NANOSECONDS or extra@NANOSECONDS of guest time")
            })
    }
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaLine {
    /// Release of the new kernel.
    pub kernel: String,
    /// Scenario name.
    pub scenario: String,
    /// Seed of the run.
    pub seed: u64,
    /// What was done.
    pub deed: DmaDeed,
    /// When: guest time in nanoseconds.
    pub moment_ns: u64,
    /// Kernel generation and phase then: `1:restore`.
    pub phase: String,
    /// What came of it.
    pub fate: Fate,
    /// Rules that caught it.
    pub caught_by: Vec<RuleName>,
    /// What shows the fate, in one sentence; empty if nothing differs.
    pub what: String,
    /// Command line that runs this case again.
    pub reproduce: String,
}

impl DmaLine {
    /// What tells a case from all others of a sweep.
    #[must_use]
    pub fn key(&self) -> (String, DmaCase) {
        let case = DmaCase {
            deed: self.deed,
            moment: self.moment_ns,
        };
        (self.kernel.clone(), case)
    }
}

/// A sweep over moments.
#[derive(Debug)]
pub struct DmaSweep {
    plan: Plan,
    plain: Judged,
    /// In order; the first is at the beginning of `armed`.
    forks: Vec<RunSnapshot>,
    /// End of the last `restore`, in nanoseconds of guest time.
    end: u64,
    /// Command line up to `--only`.
    command: String,
    /// Code that the cases leave for each other.
    warm: WarmRuns,
}

impl DmaSweep {
    /// Makes the unchanged run of `plan`. `command` is what a reproducing command line begins with.
    pub fn new(plan: &Plan, agent: &[u8], command: &str, soft: Soft) -> Result<Self, BaseError> {
        if plan.dma.is_none() {
            return Err(BaseError::NoDevice);
        }
        let mut run = Run::new(plan, agent, &soft, &[])?;
        let armed = Until::Phase(vmm::phase::Stamp {
            generation: 0,
            phase: Phase::Armed,
        });
        if run.proceed(&[armed], &()) == Progress::Ended {
            return Err(BaseError::NoEntry(run.finish(&()).outcome.text));
        }
        let first = run.snapshot()?;
        run.proceed(&[], &());
        let plain = Judged::new(run.finish(&()))?;
        if plain.judgement.verdict != Verdict::Pass {
            return Err(BaseError::Unmet(plain.judgement.reasons.join("; ")));
        }
        let end = end_of_restore(&plain.evidence).unwrap_or(first.time());
        let mut sweep = Self {
            plan: plan.clone(),
            plain,
            forks: vec![first],
            end,
            command: command.into(),
            warm: WarmRuns::default(),
        };
        sweep.hold()?;
        Ok(sweep)
    }

    /// Makes the run once more, and takes snapshots on the way.
    fn hold(&mut self) -> Result<(), BaseError> {
        let mut run = Run::from_snapshot(&self.forks[0], &[])?;
        for moment in moments(self.forks[0].time(), self.end, MAX_FORKS).skip(1) {
            if run.proceed(&[Until::Time(moment)], &()) == Progress::Ended {
                break;
            }
            self.forks.push(run.snapshot()?);
        }
        Ok(())
    }

    /// Release of the kernel that is tested.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.plan.kernel(1).release
    }

    /// How many snapshots there are to branch from.
    #[must_use]
    pub fn snapshots(&self) -> usize {
        self.forks.len()
    }

    /// Each deed at `count` moments, at equal distances.
    #[must_use]
    pub fn cases(&self, count: u64) -> Vec<DmaCase> {
        let at = |moment| DmaDeed::ALL.map(|deed| DmaCase { deed, moment });
        moments(self.forks[0].time(), self.end, count)
            .flat_map(at)
            .collect()
    }

    /// Runs a case to its end and compares it with the unchanged run.
    pub fn run(&self, case: DmaCase, hashed: bool) -> Result<(DmaLine, Judged), CaseError> {
        let failed = |reason: String| CaseError {
            path: case.to_string(),
            reason,
        };
        let fork = self.forks.iter().rfind(|fork| fork.time() <= case.moment);
        let fork = fork.ok_or_else(|| failed("the moment is before the phase armed".into()))?;
        let mut run = Run::from_snapshot(fork, &[]).map_err(|error| failed(chain(&error)))?;
        let injected = run.inject(&[injection(case, fork.time())]);
        injected.map_err(|error| failed(chain(&error)))?;
        run.warm_up(&self.warm);
        run.proceed(&[], &());
        run.leave_code(&self.warm);
        let evidence = if hashed {
            run.finish(&())
        } else {
            run.finish_unhashed(&())
        };
        let judged = Judged::new(evidence).map_err(|error| failed(error.to_string()))?;
        Ok((self.line(case, &judged), judged))
    }

    fn line(&self, case: DmaCase, judged: &Judged) -> DmaLine {
        let mutation = mutations(&self.plain, judged).pop();
        let (fate, caught_by, differs) = mutation
            .map_or((Fate::NotFired, Vec::new(), String::new()), |mutation| {
                (mutation.fate, mutation.caught_by, mutation.differs)
            });
        let finding = || {
            let mut results = judged.results.iter();
            let result = results.find(|result| caught_by.contains(&result.rule))?;
            Some(result.findings.kept.first()?.text.clone())
        };
        let what = match fate {
            Fate::Caught => finding().unwrap_or_default(),
            Fate::EndedOtherwise => judged.evidence.outcome.text.clone(),
            _ => differs,
        };
        let mut phases = self.plain.evidence.phases.iter().rev();
        let phase = phases.find(|phase| phase.begin_ns <= case.moment);
        DmaLine {
            kernel: self.kernel().into(),
            scenario: self.plan.name.clone(),
            seed: self.plan.seed,
            deed: case.deed,
            moment_ns: case.moment,
            phase: phase.map_or_else(String::new, |phase| {
                format!("{}:{}", phase.generation, phase.phase)
            }),
            fate,
            caught_by,
            what,
            reproduce: format!("{} --only {case}", self.command),
        }
    }
}

/// The injection of a case in a run that stands at `now`.
fn injection(case: DmaCase, now: u64) -> InjectionPlan {
    InjectionPlan {
        words: format!("at {} ns: {}", case.moment, case.deed),
        injection: Injection {
            trigger: Trigger {
                since: None,
                on: Occurrence::Begin,
                nth: 1,
                delay: Delay::Time(case.moment.saturating_sub(now)),
            },
            deed: case.deed.deed(),
            repeat: Repeat::ONCE,
        },
        ask: None,
    }
}

/// `count` moments from `begin` on and before `end`, at equal distances.
fn moments(begin: u64, end: u64, count: u64) -> impl Iterator<Item = u64> {
    let span = u128::from(end.saturating_sub(begin));
    (0..count).map(move |index| {
        let offset = span * u128::from(index) / u128::from(count.max(1));
        begin.saturating_add(u64::try_from(offset).unwrap_or(u64::MAX))
    })
}

fn end_of_restore(evidence: &Evidence) -> Option<u64> {
    let mut phases = evidence.phases.iter().rev();
    let last = phases.find(|phase| phase.phase == Phase::Restore)?;
    Some(last.begin_ns.saturating_add(last.guest_ns))
}

/// The number of cases of each fate, by kernel, deed and phase, as a table in Markdown.
#[must_use]
pub fn dma_table(lines: &[DmaLine]) -> String {
    let kernels: BTreeSet<&str> = lines.iter().map(|line| line.kernel.as_str()).collect();
    let used = |fate: &Fate| lines.iter().any(|line| line.fate == *fate);
    let used: Vec<(Fate, &str)> = Fate::ALL
        .into_iter()
        .filter(used)
        .map(|fate| (fate, fate.name()))
        .collect();
    let mut out = String::new();
    for kernel in kernels {
        let mut counts: BTreeMap<(DmaDeed, &str), BTreeMap<Fate, usize>> = BTreeMap::new();
        for line in lines.iter().filter(|line| line.kernel == kernel) {
            let row = counts.entry((line.deed, &line.phase)).or_default();
            *row.entry(line.fate).or_default() += 1;
        }
        let rows = counts
            .into_iter()
            .map(|((deed, phase), counts)| (format!("{deed} in {phase}"), counts));
        out.push_str(&counts_table(kernel, &used, rows));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_in_the_span_and_at_equal_distances() {
        assert_eq!(moments(100, 200, 4).collect::<Vec<_>>(), [100, 125, 150, 175]);
        assert_eq!(moments(100, 100, 2).collect::<Vec<_>>(), [100, 100]);
        assert_eq!(moments(0, u64::MAX, 3).last(), Some(u64::MAX / 3 * 2));
        assert_eq!(moments(5, 1, 1).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_case_is_read_as_it_is_written() {
        for deed in DmaDeed::ALL {
            let case = DmaCase { deed, moment: 123 };
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        for bad in [
            "",
            "drop",
            "drop@",
            "drop@+1",
            "drop@-1",
            "fly@1",
            "drop@99999999999999999999",
        ] {
            assert!(bad.parse::<DmaCase>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_counts_fates_by_deed_and_phase() {
        let line = |deed, phase: &str, fate| DmaLine {
            kernel: "7.3.4".into(),
            scenario: "s".into(),
            seed: 1,
            deed,
            moment_ns: 1,
            phase: phase.into(),
            fate,
            caught_by: Vec::new(),
            what: String::new(),
            reproduce: String::new(),
        };
        let lines = [
            line(DmaDeed::Drop, "0:armed", Fate::Caught),
            line(DmaDeed::Drop, "0:armed", Fate::NoEffect),
            line(DmaDeed::Extra, "1:restore", Fate::NoEffect),
        ];
        assert_eq!(
            dma_table(&lines),
            "| 7.3.4 | cases | caught | no-effect |\n| --- | ---: | ---: | ---: |\n\
             | drop in 0:armed | 2 | 1 | 1 |\n| extra in 1:restore | 1 | - | 1 |\n\n"
        );
    }
}
