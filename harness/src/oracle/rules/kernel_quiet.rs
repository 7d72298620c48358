//! `kernel-quiet`: no kernel complains about itself, in its console output or in its log.

use crate::evidence::{Evidence, Phase};
use crate::kernel_log::{Code, Complaint, Complaints, of_generation, with_symbols};
use crate::oracle::content::Context;
use crate::oracle::finding::{Finding, Findings, Writer};
use crate::oracle::injected::acted_before;
use crate::oracle::{LookedAt, RuleName, RuleResult};
use std::collections::BTreeSet;

const RULE: RuleName = RuleName::KernelQuiet;

/// Checks the rule.
pub(in crate::oracle) fn check(context: &Context<'_>) -> RuleResult {
    let (evidence, mut findings) = (context.evidence, Findings::default());
    let (mut count, mut allowed, mut blind) = (0u64, 0u64, Vec::new());
    let mut met = BTreeSet::new();
    for generation in evidence.first_generation()..=evidence.outcome.generation {
        let log = of_generation(evidence, generation);
        count = count.saturating_add(log.lines);
        blind.extend(not_seen(evidence, generation, &log));
        for complaint in &log.kept {
            let told = Told::new(evidence, generation, complaint);
            let all = context.allowed.iter();
            let patterns: Vec<&String> = all.filter(|pattern| told.matches(pattern)).collect();
            if patterns.is_empty() {
                findings.add(|| told.finding());
            } else {
                allowed += 1;
            }
            met.extend(patterns);
        }
        findings.total = findings.total.saturating_add(log.more);
    }
    let unmet = context.allowed.iter().filter(|pattern| !met.contains(pattern));
    let unmet: Vec<String> = unmet.map(|pattern| format!("\"{pattern}\"")).collect();
    let mut note = vec!["consoles and kernel logs".to_owned()];
    if allowed > 0 {
        note.push(format!("{allowed} complaints allowed"));
    }
    if !unmet.is_empty() {
        note.push(format!("allowed but never seen: {}", unmet.join(", ")));
    }
    RuleResult {
        rule: RULE,
        looked_at: LookedAt {
            count,
            unit: "log lines",
            note: note.join("; "),
        },
        findings,
        blind,
    }
}

/// What could not be seen of a generation's log. Console and kernel log make up for each other's gaps.
fn not_seen(evidence: &Evidence, generation: u32, log: &Complaints) -> Option<String> {
    let read = evidence
        .kernel_logs
        .iter()
        .find(|log| log.generation == generation);
    if log.lines == 0 {
        return Some(format!("generation {generation} has printed and logged nothing"));
    }
    let (_, console) = evidence.console_of(generation);
    let printed = !console.trim().is_empty();
    let lost = evidence.console_lost(generation);
    let console_is_whole = printed && lost == 0 && !log.messages_dropped;
    let log_is_whole = read.is_some_and(|log| log.lost == 0);
    if console_is_whole || log_is_whole {
        return None;
    }
    let records = read.map_or("no record of its log was read".into(), |log| {
        format!("{} records of its log are missing", log.lost)
    });
    Some(format!(
        "generation {generation}: {lost} bytes of its console were not kept, and {records}"
    ))
}

/// A complaint as it is told, with the names of the addresses in it.
struct Told<'a> {
    generation: u32,
    complaint: &'a Complaint,
    phase: Option<Phase>,
    explained_by: Vec<u32>,
    headline: String,
    lines: Vec<String>,
    code: Option<String>,
}

impl<'a> Told<'a> {
    fn new(evidence: &Evidence, generation: u32, complaint: &'a Complaint) -> Self {
        let symbol = |address| evidence.log_symbol(generation, address).map(str::to_owned);
        let code = complaint.code.as_ref().map(|code| match code {
            Code::Address(address) => symbol(*address).unwrap_or_else(|| code.to_string()),
            Code::Symbol(name) => name.clone(),
        });
        let phase = complaint.at.and_then(|at| evidence.phase_printed(at));
        Self {
            generation,
            complaint,
            phase,
            explained_by: acted_before(evidence, generation, phase),
            headline: with_symbols(&complaint.headline, symbol),
            lines: complaint
                .lines
                .iter()
                .map(|line| with_symbols(line, symbol))
                .collect(),
            code,
        }
    }

    /// Whether one of its lines, or the code that it names, contains `pattern`.
    fn matches(&self, pattern: &str) -> bool {
        let texts = self.lines.iter().chain(&self.code).chain([&self.headline]);
        texts.into_iter().any(|text| text.contains(pattern))
    }

    fn finding(&self) -> Finding {
        let kind = self.complaint.kind.name();
        let code = self
            .code
            .as_ref()
            .map_or(String::new(), |code| format!(" at {code}"));
        let phase = self.phase.map_or(String::new(), |phase| format!(" in {phase}"));
        let time = self.complaint.begin_us.map_or(String::new(), |us| {
            format!(", at {}.{:06} s of its log", us / 1_000_000, us % 1_000_000)
        });
        Finding {
            rule: RULE,
            page: None,
            address: None,
            owner: match &self.code {
                Some(code) => format!("kernel of generation {}, {code}", self.generation),
                None => format!("kernel of generation {}", self.generation),
            },
            expected: "no complaint".into(),
            actual: self.lines.join("\n"),
            last_writer: Writer::Nobody,
            text: format!(
                "{kind}{code}, from the kernel of generation {}{phase}{time}: {}",
                self.generation, self.headline
            ),
            question: None,
            explained_by: self.explained_by.clone(),
        }
    }
}
