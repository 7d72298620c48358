//! `[expect]`: the expected outcome of the run, and the expected result of each rule.

use super::Criteria;
use crate::evidence::OutcomeKind;
use crate::oracle::RuleName;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// The expected result of a run. By default the outcome is `completed` and every rule holds. If the scenario expects
/// the run to break off, rules that it does not name may have any result, because it is unknown how much they get to
/// check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// How the run must end; `None` for any way that [`Expect::is_met_by`] allows.
    pub outcome: Option<OutcomeKind>,
    /// Expected results of the rules that the file names.
    pub rules: BTreeMap<RuleName, Expected>,
    /// What the findings of rules that must be violated are like, where the file says so.
    pub findings: BTreeMap<RuleName, Criteria>,
    /// Complaints of kernels that `kernel-quiet` lets pass: those with a line that contains one of these texts.
    pub allowed_complaints: Vec<String>,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            outcome: Some(OutcomeKind::Completed),
            rules: BTreeMap::new(),
            findings: BTreeMap::new(),
            allowed_complaints: Vec::new(),
        }
    }
}

impl Expect {
    /// Whether a run may end in this way. A failed set-up, a full ledger and a failed machine must be expected by name.
    /// A guest that runs into what is no instruction has ended in one of the ways that `any` is for, because its code
    /// may have been overwritten.
    pub fn is_met_by(&self, kind: OutcomeKind) -> bool {
        let in_the_guest = kind == OutcomeKind::UnknownInstruction || !kind.is_unjudgeable();
        self.outcome.map_or(in_the_guest, |expected| expected == kind)
    }

    /// Whether findings are to be reckoned with: a rule must be violated, or the run breaks off.
    pub fn awaits_findings(&self) -> bool {
        !self.goes_to_its_end() || self.rules.values().any(|rule| *rule == Expected::Violated)
    }

    fn goes_to_its_end(&self) -> bool {
        matches!(
            self.outcome,
            Some(OutcomeKind::Completed | OutcomeKind::SessionLost)
        )
    }

    /// Expected result of `rule`.
    pub fn of(&self, rule: RuleName) -> Expected {
        let usual = if self.goes_to_its_end() {
            Expected::Holds
        } else {
            Expected::Any
        };
        self.rules.get(&rule).copied().unwrap_or(usual)
    }
}

/// What a rule must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Something was looked at and nothing found.
    Holds,
    /// At least one finding.
    Violated,
    /// Nothing to look at.
    Unjudged,
    /// Anything.
    Any,
}

impl Expected {
    const ALL: [(&'static str, Self); 4] = [
        ("holds", Self::Holds),
        ("violated", Self::Violated),
        ("unjudged", Self::Unjudged),
        ("any", Self::Any),
    ];

    /// The word in scenario files and reports.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, value)| *value == self)
            .map_or("", |(name, _)| name)
    }
}

/// A value of [`Expect`]: one of the words in `allowed`.
struct Word<'a, T>(&'a [(&'static str, T)]);

impl<'de, T: Copy> de::DeserializeSeed<'de> for Word<'_, T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T: Copy> Visitor<'_> for Word<'_, T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        write!(f, "one of {}", names.join(", "))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let found = self.0.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// Value of a rule's key: a word, or the criteria of its findings.
enum Value {
    Word(Expected),
    Findings(Criteria),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Word(&Expected::ALL).expecting(f)?;
                f.write_str(", or a table of criteria for its findings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                let found = Expected::ALL.iter().find(|(name, _)| *name == text);
                found
                    .map(|(_, word)| Value::Word(*word))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
                Criteria::deserialize(de::value::MapAccessDeserializer::new(map)).map(Value::Findings)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A key of the table.
#[derive(Clone, Copy)]
enum Key {
    Outcome,
    AllowedComplaints,
    Rule(RuleName),
}

/// Fewest characters of an allowed complaint. A shorter text would allow nearly everything.
const MIN_ALLOWED: usize = 4;

/// The texts, unless one is so short that it would allow nearly everything.
fn specific<E: de::Error>(texts: Vec<String>) -> Result<Vec<String>, E> {
    match texts
        .iter()
        .find(|text| text.trim().chars().count() < MIN_ALLOWED)
    {
        None => Ok(texts),
        Some(short) => Err(E::custom(format!(
            "found the allowed complaint \"{short}\", expected {MIN_ALLOWED} characters or more of a line"
        ))),
    }
}

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Expect;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of expectations")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Expect, A::Error> {
                let mut outcomes = vec![("any", None)];
                outcomes.extend(OutcomeKind::ALL.iter().map(|kind| (kind.name(), Some(*kind))));
                let mut keys = vec![
                    ("outcome", Key::Outcome),
                    ("allowed-complaints", Key::AllowedComplaints),
                ];
                keys.extend(RuleName::ALL.iter().map(|rule| (rule.name(), Key::Rule(*rule))));
                let mut expect = Expect::default();
                while let Some(key) = map.next_key_seed(Word(&keys))? {
                    match key {
                        Key::Outcome => expect.outcome = map.next_value_seed(Word(&outcomes))?,
                        Key::AllowedComplaints => {
                            expect.allowed_complaints = map.next_value().and_then(specific)?;
                        }
                        Key::Rule(rule) => {
                            match map.next_value()? {
                                Value::Word(expected) => expect.rules.insert(rule, expected),
                                Value::Findings(criteria) => {
                                    expect.findings.insert(rule, criteria);
                                    expect.rules.insert(rule, Expected::Violated)
                                }
                            };
                        }
                    }
                }
                Ok(expect)
            }
        }
        deserializer.deserialize_map(Table)
    }
}
