//! What came of a cell: one line of JSON.

use crate::mutation::{Mutation, mutations};
use crate::plan::{CellId, Label};
use harness::evidence::Phase;
use harness::oracle::{Finding, RuleName, RuleResult, Writer};
use harness::verdict::{Judged, Verdict};
use serde::{Deserialize, Serialize};

/// Most symptoms, and most reasons, that a result keeps.
const MAX_KEPT: usize = 16;
/// Most characters of a text in a result.
const MAX_TEXT: usize = 400;

/// A cell's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Every expectation was met.
    Pass,
    /// At least one was not.
    Fail,
    /// It could not be run or judged.
    Error,
    /// The worker process died, or gave no result in time.
    Died,
}

impl Status {
    /// All, from best to worst.
    pub const ALL: [Self; 4] = [Self::Pass, Self::Fail, Self::Error, Self::Died];

    /// The name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Error => "error",
            Self::Died => "died",
        }
    }
}

impl From<Verdict> for Status {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Fail => Self::Fail,
            Verdict::Error => Self::Error,
        }
    }
}

/// By what a failure is known: failures with equal signatures are one group.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// The rule that is violated, a line of the kernel's without its numbers, or how the run ended.
    pub what: String,
    /// Symbol of the last writer, or what else wrote last; empty if nothing did.
    pub writer: String,
    /// Whose page it is; empty if it is about no page.
    pub owner: String,
    /// Kernel generation and phase: `1:restore`; empty if it is not known.
    pub phase: String,
}

impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        let rest = [("by", &self.writer), ("in", &self.owner), ("at", &self.phase)];
        for (word, text) in rest.into_iter().filter(|(_, text)| !text.is_empty()) {
            write!(f, " {word} {text}")?;
        }
        Ok(())
    }
}

/// Findings of one signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symptom {
    /// By what they are known.
    #[serde(flatten)]
    pub signature: Signature,
    /// How many there are.
    pub count: u64,
    /// The first, in one sentence.
    pub text: String,
}

/// What came of a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell's identity.
    pub cell: CellId,
    /// Its name.
    #[serde(flatten)]
    pub label: Label,
    /// Its verdict.
    pub status: Status,
    /// Why it is not a pass, one sentence each.
    pub reasons: Vec<String>,
    /// How the run ended: a kind of outcome, or `died`.
    pub outcome: String,
    /// Signatures of what is not as expected, the most telling first.
    pub symptoms: Vec<Symptom>,
    /// What came of each injection, compared with the run without injections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mutations: Vec<Mutation>,
    /// Hash of the machine's state at the end.
    pub state_hash: String,
    /// Digest of the device's writes.
    pub ledger_digest: String,
    /// Guest time of the run, in nanoseconds.
    pub guest_ns: u64,
    /// Instructions of the run.
    pub instructions: u64,
    /// Host time that the cell took, in microseconds. It is not part of what two results of a cell must have in common.
    pub wall_us: u64,
}

impl CellResult {
    /// The result of a cell that was judged. If it has injections, `plain` is the run without them.
    #[must_use]
    pub fn of(cell: CellId, label: Label, judged: &Judged, plain: Option<&Judged>, wall_us: u64) -> Self {
        let (evidence, judgement) = (&judged.evidence, &judged.judgement);
        let phases = evidence.phases.iter();
        Self {
            cell,
            label,
            status: judgement.verdict.into(),
            reasons: judgement
                .reasons
                .iter()
                .take(MAX_KEPT)
                .map(|text| cut(text))
                .collect(),
            outcome: evidence.outcome.kind.name().into(),
            symptoms: symptoms(judged),
            mutations: plain.map_or_else(Vec::new, |plain| mutations(plain, judged)),
            state_hash: evidence.state_hash.clone(),
            ledger_digest: evidence.ledger_digest(),
            guest_ns: phases.clone().map(|phase| phase.guest_ns).sum(),
            instructions: phases.filter_map(|phase| phase.instructions).sum(),
            wall_us,
        }
    }

    /// The result of a cell that could not be run, or whose worker died.
    #[must_use]
    pub fn without_run(cell: CellId, label: Label, status: Status, reason: &str) -> Self {
        let reason = cut(reason);
        let signature = Signature {
            what: without_numbers(reason.lines().next().unwrap_or_default()),
            ..Signature::default()
        };
        Self {
            cell,
            label,
            status,
            outcome: status.name().into(),
            symptoms: vec![Symptom {
                signature,
                count: 1,
                text: reason.clone(),
            }],
            mutations: Vec::new(),
            reasons: vec![reason],
            state_hash: String::new(),
            ledger_digest: String::new(),
            guest_ns: 0,
            instructions: 0,
            wall_us: 0,
        }
    }

    /// Whether it is the same result, whatever host time it took.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.without_time() == other.without_time()
    }

    /// The result as if it had taken no host time: what two results of a cell must have in common.
    #[must_use]
    pub fn without_time(&self) -> Self {
        Self {
            wall_us: 0,
            ..self.clone()
        }
    }

    /// What was not as expected, in one sentence; empty for a pass.
    #[must_use]
    pub fn text(&self) -> &str {
        let symptom = self.symptoms.first().map(|symptom| &symptom.text);
        let symptom = symptom.filter(|text| !text.is_empty());
        symptom.or(self.reasons.first()).map_or("", String::as_str)
    }

    /// The signature by which a failure is grouped; `None` for a pass.
    #[must_use]
    pub fn signature(&self) -> Option<Signature> {
        if self.status == Status::Pass {
            return None;
        }
        let first = self.symptoms.first().map(|symptom| symptom.signature.clone());
        let reason = || Signature {
            what: without_numbers(self.reasons.first().map_or("", String::as_str)),
            ..Signature::default()
        };
        Some(first.unwrap_or_else(reason))
    }
}

/// What is not as expected: how the run ended, then the findings of rules whose expectation is not met.
fn symptoms(judged: &Judged) -> Vec<Symptom> {
    let (evidence, judgement) = (&judged.evidence, &judged.judgement);
    let mut all: Vec<Symptom> = Vec::new();
    if !judgement.as_expected {
        let outcome = &evidence.outcome;
        all.push(Symptom {
            signature: Signature {
                what: format!("run ended as {}", outcome.kind.name()),
                phase: place(outcome.generation, outcome.phase),
                ..Signature::default()
            },
            count: 1,
            text: cut(&harness::cause::cause(evidence).unwrap_or_else(|| outcome.text.clone())),
        });
    }
    let rules = judged.results.iter().zip(&judgement.rules);
    // A complaint of the kernel says more of the cause than what follows from it.
    let mut unmet: Vec<&RuleResult> = rules
        .filter(|(_, rule)| !rule.2)
        .map(|(result, _)| result)
        .collect();
    unmet.sort_by_key(|result| result.rule != RuleName::KernelQuiet);
    for result in unmet {
        if result.findings.kept.is_empty() {
            all.push(no_finding(result));
        }
        for finding in &result.findings.kept {
            add(&mut all, finding);
        }
    }
    all.truncate(MAX_KEPT);
    all
}

fn no_finding(result: &RuleResult) -> Symptom {
    let said = if result.judged() {
        "holds, which was not expected"
    } else {
        "cannot be judged"
    };
    Symptom {
        signature: Signature {
            what: format!("{} {said}", result.rule.name()),
            ..Signature::default()
        },
        count: 1,
        text: cut(&result.unjudged().unwrap_or_default()),
    }
}

fn add(all: &mut Vec<Symptom>, finding: &Finding) {
    let signature = signature(finding);
    match all.iter_mut().find(|symptom| symptom.signature == signature) {
        Some(symptom) => symptom.count += 1,
        None => all.push(Symptom {
            signature,
            count: 1,
            text: cut(&finding.text),
        }),
    }
}

/// By what a finding is known.
fn signature(finding: &Finding) -> Signature {
    let (writer, phase) = match &finding.last_writer {
        Writer::Device {
            generation, phase, ..
        } => ("device".to_owned(), place(*generation, *phase)),
        Writer::Cpu {
            generation,
            symbol,
            phase,
            cpl,
            ..
        } => {
            // The offset in the function differs from build to build.
            let symbol = symbol.split('+').next().unwrap_or(symbol);
            let who = if *cpl == 0 { symbol } else { "user space" };
            (who.to_owned(), place(*generation, *phase))
        }
        Writer::CpuPage {
            generation, phase, ..
        } => ("CPU".to_owned(), place(*generation, *phase)),
        // Its number is that of a place in the file.
        Writer::Injected {
            generation, phase, ..
        } => ("an injection".to_owned(), place(*generation, *phase)),
        Writer::Unknown { .. } => ("unknown".to_owned(), String::new()),
        Writer::Nobody => (String::new(), String::new()),
    };
    let what = match finding.rule {
        RuleName::KernelQuiet => without_numbers(&finding.text),
        rule => rule.name().to_owned(),
    };
    Signature {
        what: cut(&what),
        writer,
        owner: without_numbers(&finding.owner),
        phase,
    }
}

fn place(generation: u32, phase: Phase) -> String {
    format!("{generation}:{}", phase.name())
}

/// A text with `N` for each number: addresses, process identities and times differ from run to run.
#[must_use]
pub fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        let digits = word.strip_prefix("0x").unwrap_or(&word);
        let hexadecimal = digits.len() >= 8 || word.len() > digits.len();
        let number = |c: char| c.is_ascii_digit() || hexadecimal && c.is_ascii_hexdigit();
        if digits.contains(|c: char| c.is_ascii_digit()) && digits.chars().all(number) {
            out.push('N');
        } else {
            out.push_str(&word);
        }
        word.clear();
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

/// The beginning of a text.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing;
    use proptest::prelude::*;

    fn label() -> Label {
        Label {
            scenario: "s".into(),
            kernels: "a -> b".into(),
            seed: 1,
            variant: String::new(),
        }
    }

    fn result(change: impl FnOnce(&mut harness::evidence::Evidence)) -> CellResult {
        let mut evidence = testing::good();
        change(&mut evidence);
        CellResult::of(CellId::of(&[]), label(), &Judged::new(evidence).unwrap(), None, 7)
    }

    #[test]
    fn a_pass_has_no_signature_and_a_failure_that_of_its_first_finding() {
        let pass = result(|_| {});
        assert_eq!((pass.status, pass.signature()), (Status::Pass, None));
        let fail = result(|evidence| testing::change_page(evidence, 1, 15, |page| page[100] ^= 0xff));
        assert_eq!(fail.status, Status::Fail);
        let signature = fail.signature().unwrap();
        assert_eq!(signature.what, "preserved-content");
        assert!(!signature.owner.is_empty(), "{signature:?}");
    }

    #[test]
    fn a_line_is_the_result_and_host_time_is_no_difference() {
        let fail = result(|evidence| testing::change_page(evidence, 1, 15, |page| page[100] ^= 0xff));
        let line = serde_json::to_string(&fail).unwrap();
        assert!(!line.contains('\n'));
        let mut again: CellResult = serde_json::from_str(&line).unwrap();
        assert_eq!(again, fail);
        again.wall_us += 1;
        assert!(again.is_same_as(&fail));
        again.state_hash.push('0');
        assert!(!again.is_same_as(&fail));
    }

    #[test]
    fn numbers_make_no_groups_and_names_stay() {
        for (text, expected) in [
            (
                "BUG: KASAN: use-after-free in luo_session_create+0x1f/0x90",
                "BUG: KASAN: use-after-free in luo_session_create+N/N",
            ),
            (
                "WARNING: CPU: 3 PID: 217 at mm/page_alloc.c:1234",
                "WARNING: CPU: N PID: N at mm/page_alloc.c:N",
            ),
            (
                "RIP ffffffff81000107 r12 x86_64 memfd_luo",
                "RIP N r12 x86_64 memfd_luo",
            ),
            ("", ""),
        ] {
            assert_eq!(without_numbers(text), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_cut_and_normalised(text in ".{0,600}") {
            let _ = without_numbers(&text);
            prop_assert!(cut(&text).chars().count() <= MAX_TEXT + 3);
        }
    }
}
