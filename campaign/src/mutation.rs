//! What came of each injection, compared with the same run without injections. This judges the oracle: an injection
//! that changed what a user sees, and that no rule caught, is a gap in the rules.

use guest_agent::pattern::Pattern;
use harness::evidence::{Evidence, InjectionEvidence, ObjectCapture, PageContent};
use harness::oracle::{RuleName, RuleResult};
use harness::verdict::Judged;
use serde::{Deserialize, Serialize};

use crate::result::without_numbers;

/// What came of an injection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// The deed, by its keys in the scenario: `dma.drop`.
    pub deed: String,
    /// What came of it.
    pub fate: Fate,
    /// Rules with findings that it explains, or that have findings only with the injections of its run.
    pub caught_by: Vec<RuleName>,
    /// What differs although nothing noticed it, in one sentence; empty for other fates.
    pub differs: String,
}

/// What came of an injection. The first that applies counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It never fired.
    NotFired,
    /// A rule caught it.
    Caught,
    /// No rule did, but the run ended otherwise.
    EndedOtherwise,
    /// Nothing noticed it, and what a user sees differs.
    NotNoticed,
    /// Nothing that a user sees differs.
    NoEffect,
    /// Nothing says of it, but another injection of the run was caught, and what differs may be that one's.
    CannotBeTold,
}

impl Fate {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::NotFired,
        Self::Caught,
        Self::EndedOtherwise,
        Self::NotNoticed,
        Self::NoEffect,
        Self::CannotBeTold,
    ];

    /// The name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFired => "not-fired",
            Self::Caught => "caught",
            Self::EndedOtherwise => "ended-otherwise",
            Self::NotNoticed => "not-noticed",
            Self::NoEffect => "no-effect",
            Self::CannotBeTold => "cannot-be-told",
        }
    }
}

/// What came of each injection of a run, given the same run without injections.
#[must_use]
pub fn mutations(plain: &Judged, injected: &Judged) -> Vec<Mutation> {
    let deeds = deeds(&injected.evidence.scenario_text);
    let ended = |judged: &Judged| {
        let outcome = &judged.evidence.outcome;
        (outcome.kind, outcome.generation, outcome.phase)
    };
    let ended_otherwise = ended(plain) != ended(injected);
    let caught: Vec<Vec<RuleName>> = (0..)
        .zip(&injected.evidence.injections)
        .map(|(number, _)| caught_by(plain, injected, number))
        .collect();
    let any_caught = caught.iter().any(|rules| !rules.is_empty());
    let all = injected.evidence.injections.iter().zip(&caught);
    let in_question = all
        .clone()
        .any(|(injection, rules)| injection.fired > 0 && rules.is_empty());
    let differs = in_question
        .then(|| difference(&plain.evidence, &injected.evidence))
        .flatten();
    let one = |(number, (injection, caught_by)): (usize, (&InjectionEvidence, &Vec<RuleName>))| {
        let fate = match () {
            () if injection.fired == 0 => Fate::NotFired,
            () if !caught_by.is_empty() => Fate::Caught,
            () if any_caught && (ended_otherwise || differs.is_some()) => Fate::CannotBeTold,
            () if ended_otherwise => Fate::EndedOtherwise,
            () if differs.is_some() => Fate::NotNoticed,
            () => Fate::NoEffect,
        };
        let deed = deeds.get(number).cloned();
        Mutation {
            deed: deed.unwrap_or_else(|| "unknown".into()),
            fate,
            caught_by: caught_by.clone(),
            differs: differs
                .clone()
                .filter(|_| fate == Fate::NotNoticed)
                .unwrap_or_default(),
        }
    };
    all.enumerate().map(one).collect()
}

/// The rules that caught injection `number`.
fn caught_by(plain: &Judged, injected: &Judged, number: u32) -> Vec<RuleName> {
    let held_before = |rule| {
        plain
            .results
            .iter()
            .all(|result| result.rule != rule || result.findings.total == 0)
    };
    let caught = |result: &&RuleResult| {
        let kept = &result.findings.kept;
        let explained = kept.iter().any(|finding| finding.explained_by.contains(&number));
        let unexplained = kept.iter().any(|finding| finding.explained_by.is_empty());
        explained || unexplained && held_before(result.rule)
    };
    let rules = injected.results.iter().filter(caught);
    rules.map(|result| result.rule).collect()
}

/// The deeds of a scenario's injections, by their keys: `dma.drop`, `memory.flip`, `blob.set`.
fn deeds(text: &str) -> Vec<String> {
    let table: toml::Table = text.parse().unwrap_or_default();
    let injections = table.get("inject").and_then(toml::Value::as_array);
    let deed = |injection: &toml::Value| {
        let (family, fault) = injection.get("what")?.as_table()?.iter().next()?;
        // A deed is a word, or a table with its parameters; some have the place that they act on beside it.
        let word = fault.as_str();
        let mut keys = fault.as_table().into_iter().flat_map(|fault| fault.keys());
        let name = word.or_else(|| keys.find(|key| *key != "field").map(String::as_str));
        Some(match name {
            Some(name) => format!("{family}.{name}"),
            None => family.clone(),
        })
    };
    let deed = |injection| deed(injection).unwrap_or_else(|| "unknown".into());
    injections.into_iter().flatten().map(deed).collect()
}

/// The first thing in which two runs differ that a user of the guest would see: what was retrieved, what was handed
/// over, what preserved memory holds, what the kernels said.
fn difference(plain: &Evidence, injected: &Evidence) -> Option<String> {
    retrievals(plain, injected)
        .or_else(|| memory(plain, injected))
        .or_else(|| handovers(plain, injected))
        .or_else(|| console(plain, injected))
}

fn retrievals(plain: &Evidence, injected: &Evidence) -> Option<String> {
    let of = |evidence: &Evidence| {
        let all = evidence.retrievals.iter();
        let one = |retrieval: &harness::evidence::Retrieval| {
            let failed = retrieval.failure.is_some();
            (retrieval.generation, retrieval.what.clone(), failed)
        };
        all.map(one).collect::<Vec<_>>()
    };
    let (plain, injected) = (of(plain), of(injected));
    let at = first_unequal(&plain, &injected)?;
    let (generation, what, _) = injected.get(at).or(plain.get(at))?;
    Some(format!(
        "the retrieval of {what} in generation {generation} ends otherwise"
    ))
}

fn handovers(plain: &Evidence, injected: &Evidence) -> Option<String> {
    let pairs = plain.blobs.iter().zip(&injected.blobs);
    for (plain, injected) in pairs {
        let generation = plain.generation;
        if plain.kho != injected.kho {
            return Some(format!(
                "the KHO setup_data that generation {generation} hands over differs"
            ));
        }
        let mut pages = plain.pages.iter();
        let differs = pages.find(|(frame, page)| injected.pages.get(frame) != Some(page));
        if let Some((frame, _)) = differs {
            return Some(format!(
                "page {frame:#x} of the handover of generation {generation} differs"
            ));
        }
    }
    None
}

fn memory(plain: &Evidence, injected: &Evidence) -> Option<String> {
    let mut both = plain
        .captures
        .checkpoints
        .iter()
        .zip(&injected.captures.checkpoints);
    both.find_map(|(ours, theirs)| {
        let mut objects = ours.objects.iter().zip(&theirs.objects);
        let (object, index) = objects.find_map(|(ours, theirs)| {
            let object = plain.object(ours.object)?;
            let index = first_page((plain, ours), (injected, theirs), object.pattern_seed)?;
            Some((object, index))
        })?;
        let (name, generation) = (&object.name, theirs.at.generation);
        Some(format!(
            "page {index} of {name} differs in generation {generation}"
        ))
    })
}

/// The first page in which two captures of an object differ, each with the evidence that it is of.
fn first_page(
    ours: (&Evidence, &ObjectCapture),
    theirs: (&Evidence, &ObjectCapture),
    seed: u64,
) -> Option<usize> {
    let pattern = Pattern::new(seed);
    let page = |(evidence, capture): (&Evidence, &ObjectCapture), index: usize| {
        let content = *capture.pages.get(index)?;
        evidence.captures.bytes(&pattern, index as u64, content)
    };
    let is_pattern = |(_, capture): (&Evidence, &ObjectCapture), index: usize| {
        capture.pages.get(index) == Some(&PageContent::Pattern)
    };
    let pages = ours.1.pages.len().max(theirs.1.pages.len());
    (0..pages).find(|index| {
        let alike = is_pattern(ours, *index) && is_pattern(theirs, *index);
        !alike && page(ours, *index) != page(theirs, *index)
    })
}

fn console(plain: &Evidence, injected: &Evidence) -> Option<String> {
    let (mut ours, mut theirs) = (plain.console.lines(), injected.console.lines());
    loop {
        let (one, other) = (ours.next(), theirs.next());
        if one.is_none() && other.is_none() {
            return None;
        }
        if one.map(without_numbers) != other.map(without_numbers) {
            let said = other.unwrap_or("nothing more");
            return Some(format!("the console has {:?}", said.trim()));
        }
    }
}

/// The first place at which two lists differ.
fn first_unequal<T: PartialEq>(ours: &[T], theirs: &[T]) -> Option<usize> {
    let both = ours.len().max(theirs.len());
    (0..both).find(|at| ours.get(*at) != theirs.get(*at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::evidence::{OutcomeKind, Phase};
    use harness::testing;

    fn injected(change: impl FnOnce(&mut Evidence)) -> Mutation {
        let mut evidence = testing::good();
        evidence.injections = vec![testing::fired(1, Phase::BootNew, 1_500_000)];
        change(&mut evidence);
        let plain = Judged::new(testing::good()).unwrap();
        mutations(&plain, &Judged::new(evidence).unwrap()).remove(0)
    }

    #[test]
    fn a_fate_is_what_came_of_it() {
        assert_eq!(injected(|_| {}).fate, Fate::NoEffect);
        assert_eq!(
            injected(|evidence| evidence.injections[0].fired = 0).fate,
            Fate::NotFired
        );
        let caught = injected(|evidence| testing::change_page(evidence, 1, 15, |page| page[100] ^= 0xff));
        assert_eq!(
            (caught.fate, &caught.caught_by[..]),
            (Fate::Caught, &[RuleName::PreservedContent][..])
        );
        let ended = injected(|evidence| evidence.outcome.kind = OutcomeKind::GuestPanic);
        assert_eq!(ended.fate, Fate::EndedOtherwise);
        let unnoticed = injected(|evidence| evidence.console.push_str("hello from nowhere\n"));
        assert_eq!(unnoticed.fate, Fate::NotNoticed);
        assert_eq!(unnoticed.differs, "the console has \"hello from nowhere\"");
    }

    #[test]
    fn what_differs_is_not_put_to_an_injection_beside_one_that_was_caught() {
        let mut evidence = testing::good();
        testing::change_page(&mut evidence, 1, 15, |page| page[100] ^= 0xff);
        let mut judged = Judged::new(evidence).unwrap();
        let fired = testing::fired(1, Phase::BootNew, 1_500_000);
        judged.evidence.injections = vec![fired.clone(), fired];
        for result in &mut judged.results {
            for finding in &mut result.findings.kept {
                finding.explained_by = vec![1];
            }
        }
        let plain = Judged::new(testing::good()).unwrap();
        let fates: Vec<Fate> = mutations(&plain, &judged)
            .iter()
            .map(|mutation| mutation.fate)
            .collect();
        assert_eq!(fates, [Fate::CannotBeTold, Fate::Caught]);
    }

    #[test]
    fn a_page_that_differs_is_named() {
        let plain = testing::good();
        let mut other = plain.clone();
        testing::change_page(&mut other, 1, 15, |page| page[100] ^= 0xff);
        let said = difference(&plain, &other).unwrap();
        assert!(said.starts_with("page 15 of "), "{said}");
        assert_eq!(difference(&plain, &plain), None);
    }

    #[test]
    fn deeds_are_named_by_their_keys() {
        let text = "[[inject]]\nwhat.dma = \"drop\"\n[[inject]]\nwhat.dma.flip.bit = 3\n\
                    [[inject]]\nwhat.blob = { field = \"x\", set = 1 }\n[[inject]]\nwhat = 5\n";
        assert_eq!(deeds(text), ["dma.drop", "dma.flip", "blob.set", "unknown"]);
        assert!(deeds("= nonsense").is_empty());
    }
}
