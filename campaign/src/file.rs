//! Campaign files. `docs/campaigns.md` describes every key.

use crate::range::{Seeds, Values};
use harness::scenario::{ScenarioError, wrong_at};
use serde::Deserialize;
use std::path::Path;
use toml::Spanned;

/// Maximum size of a campaign file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A campaign file, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Campaign {
    /// Name, in kebab case.
    pub name: Spanned<String>,
    /// One sentence on what it is for.
    #[serde(default)]
    pub description: String,
    /// Scenario files, relative to this file's directory; `*` matches within a name.
    pub scenarios: Spanned<Vec<Spanned<String>>>,
    /// Kernels, by version or path. Without any, each scenario's own.
    #[serde(default)]
    pub kernels: Vec<Spanned<String>>,
    /// Which of the kernels follow which.
    #[serde(default)]
    pub pairs: Pairs,
    /// Seeds. Without any, each scenario's own.
    pub seeds: Option<Spanned<Seeds>>,
    /// What is added to each scenario, one at a time.
    #[serde(default)]
    pub variant: Vec<Variant>,
    /// Whether each scenario is run without any variant too.
    #[serde(default = "yes")]
    pub baseline: bool,
}

/// Which kernels follow which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected \"same\", \"all\", or a list of [old, new]")]
pub enum Pairs {
    /// Each kernel follows itself.
    #[default]
    #[serde(skip)]
    Same,
    /// One of the two words.
    Word(PairWord),
    /// These: old and new.
    Listed(Vec<(String, String)>),
}

/// A word for pairs of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairWord {
    /// Each kernel follows itself.
    Same,
    /// Each kernel follows each.
    All,
}

/// An addition to a scenario, or one for each value of a placeholder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Name; `{n}` in it stands for the value.
    pub name: Spanned<String>,
    /// Values of `{n}`.
    pub n: Option<Values>,
    /// TOML that is appended to the scenario; `{n}` in it stands for the value.
    pub add: Spanned<String>,
}

fn yes() -> bool {
    true
}

/// The placeholder of a variant's value.
const PLACEHOLDER: &str = "{n}";

impl Variant {
    /// Name and addition for each value.
    pub fn each(&self) -> Vec<(String, String)> {
        let (name, add) = (self.name.get_ref(), self.add.get_ref());
        match &self.n {
            None => vec![(name.clone(), add.clone())],
            Some(values) => {
                let put = |value: String| {
                    (
                        name.replace(PLACEHOLDER, &value),
                        add.replace(PLACEHOLDER, &value),
                    )
                };
                values.texts().into_iter().map(put).collect()
            }
        }
    }
}

/// Reads and checks the campaign at `path`. Also returns its text.
pub fn load(path: &Path) -> Result<(Campaign, String), ScenarioError> {
    let file = path.display().to_string();
    let unreadable = |reason: String| ScenarioError::Unreadable {
        file: file.clone(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|error| unreadable(error.to_string()))?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!(
            "{size} bytes, a campaign has at most {MAX_FILE_BYTES}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    Ok((parse(&file, &text)?, text))
}

/// Parses and checks campaign `text`; `file` is for messages.
pub fn parse(file: &str, text: &str) -> Result<Campaign, ScenarioError> {
    let wrong = |span, message| wrong_at(file, text, span, message);
    let campaign: Campaign = toml::from_str(text).map_err(|error| {
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        wrong(error.span().unwrap_or(0..0), message.join("; "))
    })?;
    let name = campaign.name.get_ref();
    let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(kebab) {
        let message = format!("name \"{name}\": expected lower-case letters, digits and hyphens");
        return Err(wrong(campaign.name.span(), message));
    }
    if campaign.scenarios.get_ref().is_empty() {
        return Err(wrong(
            campaign.scenarios.span(),
            "no scenario: expected at least one".into(),
        ));
    }
    for variant in &campaign.variant {
        let has = [&variant.name, &variant.add].map(|text| text.get_ref().contains(PLACEHOLDER));
        let problem = match (&variant.n, has) {
            (None, [false, false]) | (Some(_), [true, true]) => continue,
            (None, _) => "{n} is used, but `n` has no values".to_owned(),
            (Some(_), [false, _]) => "`n` has values, so the name needs {n} to tell them apart".to_owned(),
            (Some(_), _) => "`n` has values, but `add` does not use {n}".to_owned(),
        };
        return Err(wrong(variant.name.span(), problem));
    }
    if let Pairs::Listed(_) = campaign.pairs
        && !campaign.kernels.is_empty()
    {
        return Err(wrong(
            campaign.kernels[0].span(),
            "`pairs` lists the kernels, so `kernels` has to go".into(),
        ));
    }
    if campaign.pairs == Pairs::Word(PairWord::All) && campaign.kernels.len() < 2 {
        return Err(wrong(0..0, "pairs = \"all\" needs at least two kernels".into()));
    }
    if !campaign.baseline && campaign.variant.is_empty() {
        return Err(wrong(
            0..0,
            "baseline = false leaves no cells without a variant".into(),
        ));
    }
    Ok(campaign)
}

impl Campaign {
    /// Old and new kernel of each pair; `None` is the scenario's own.
    pub fn kernel_pairs(&self) -> Vec<(Option<String>, Option<String>)> {
        let names = || self.kernels.iter().map(|kernel| kernel.get_ref().clone());
        match &self.pairs {
            Pairs::Listed(pairs) => pairs
                .iter()
                .map(|(old, new)| (Some(old.clone()), Some(new.clone())))
                .collect(),
            Pairs::Word(PairWord::All) => names()
                .flat_map(|old| names().map(move |new| (Some(old.clone()), Some(new))))
                .collect(),
            Pairs::Same | Pairs::Word(PairWord::Same) if self.kernels.is_empty() => vec![(None, None)],
            Pairs::Same | Pairs::Word(PairWord::Same) => {
                names().map(|name| (Some(name.clone()), Some(name))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"quick\"\nscenarios = [\"*.toml\"]\n";

    fn error(text: &str) -> String {
        parse("c.toml", text).expect_err("must be refused").to_string()
    }

    #[test]
    fn kernels_pair_as_the_file_says() {
        let pairs = |text: &str| {
            let pairs = parse("c.toml", &format!("{GOOD}{text}")).unwrap().kernel_pairs();
            let name = |name: Option<String>| name.unwrap_or_else(|| "own".into());
            let pairs = pairs
                .into_iter()
                .map(|(old, new)| format!("{}-{}", name(old), name(new)));
            pairs.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(pairs(""), "own-own");
        assert_eq!(pairs("kernels = [\"a\", \"b\"]"), "a-a b-b");
        assert_eq!(
            pairs("kernels = [\"a\", \"b\"]\npairs = \"all\""),
            "a-a a-b b-a b-b"
        );
        assert_eq!(pairs("pairs = [[\"a\", \"b\"]]"), "a-b");
    }

    #[test]
    fn a_variant_stands_for_each_of_its_values() {
        let text = format!("{GOOD}[[variant]]\nname = \"w{{n}}\"\nn = \"1..=2\"\nadd = \"x = {{n}}\"\n");
        let campaign = parse("c.toml", &text).unwrap();
        let each = campaign.variant[0].each();
        let expected = [("w1", "x = 1"), ("w2", "x = 2")].map(|(name, add)| (name.into(), add.into()));
        assert_eq!(each, expected);
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_its_place() {
        for (text, said) in [
            ("name = \"A b\"\nscenarios = [\"a\"]", "c.toml:1:8: name \"A b\""),
            ("name = \"a\"\nscenarios = []", "c.toml:2:13: no scenario"),
            (
                "name = \"a\"\nscenarios = [\"a\"]\nseed = 1",
                "c.toml:3:1: unknown field",
            ),
            (
                "name = \"a\"\nscenarios = [\"a\"]\nseeds = \"3..=1\"",
                "c.toml:3:9: range",
            ),
            (
                "name = \"a\"\nscenarios = [\"a\"]\nbaseline = false",
                "leaves no cells",
            ),
            (
                "name = \"a\"\nscenarios = [\"a\"]\npairs = \"all\"",
                "at least two kernels",
            ),
            (
                "name = \"a\"\nscenarios = [\"a\"]\npairs = \"some\"",
                "expected \"same\", \"all\"",
            ),
            (
                "name = \"a\"\nscenarios = [\"a\"]\n[[variant]]\nname = \"v\"\nn = [1]\nadd = \"{n}\"",
                "c.toml:4:8: `n` has values, so the name needs {n}",
            ),
            (
                "name = \"a\"\nscenarios = [\"a\"]\n[[variant]]\nname = \"v{n}\"\nadd = \"\"",
                "`n` has no values",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
