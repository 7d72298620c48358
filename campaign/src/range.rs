//! Lists of values in a campaign file: `"1..=100"`, `"0..1000 step 10"`, or a list.

use serde::{Deserialize, Deserializer, de};

/// Most values that one range may have.
pub const MAX_VALUES: u64 = 10_000_000;

/// Whole numbers from `first` to `last`, `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u64,
    last: u64,
    step: u64,
}

impl Range {
    /// The values, in ascending order.
    pub fn values(self) -> impl Iterator<Item = u64> {
        (0..self.count()).map(move |index| self.first + index * self.step)
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u64 {
        ((self.last - self.first) / self.step).saturating_add(1)
    }
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "range \"{text}\": expected \"FIRST..=LAST\" or \"FIRST..END\", then perhaps \"step N\", \
                 in whole numbers"
            )
        };
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        let (range, step) = match text.split_once("step") {
            Some((range, step)) => (range, number(step)?),
            None => (text, 1),
        };
        let (first, last) = range.split_once("..").ok_or_else(wrong)?;
        let first = number(first)?;
        let last = match last.trim().strip_prefix('=') {
            Some(last) => number(last)?,
            None => number(last)?
                .checked_sub(1)
                .ok_or_else(|| format!("range \"{text}\" has no values"))?,
        };
        if last < first || step == 0 {
            return Err(format!("range \"{text}\" has no values"));
        }
        let range = Self { first, last, step };
        if range.count() > MAX_VALUES {
            return Err(format!("range \"{text}\" has more than {MAX_VALUES} values"));
        }
        Ok(range)
    }
}

/// The seeds of a campaign: a range, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seeds {
    /// A range.
    Range(Range),
    /// Each of them.
    List(Vec<u64>),
}

impl Seeds {
    /// The seeds, in order.
    #[must_use]
    pub fn values(&self) -> Vec<u64> {
        match self {
            Self::Range(range) => range.values().collect(),
            Self::List(list) => list.clone(),
        }
    }
}

/// The values that a variant's placeholder takes: a range, or a list of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// A range of numbers.
    Range(Range),
    /// Each of them.
    List(Vec<String>),
}

impl Values {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Range(range) => range.count(),
            Self::List(list) => list.len() as u64,
        }
    }

    /// The values as text, in order.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Range(range) => range.values().map(|value| value.to_string()).collect(),
            Self::List(list) => list.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a range such as \"1..=100\" or a list")]
enum Written<T> {
    Text(String),
    List(Vec<T>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Seeds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Text(text) => text.parse().map(Self::Range).map_err(de::Error::custom),
            Written::List(list) => Ok(Self::List(list)),
        }
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = |scalar: Scalar| match scalar {
            Scalar::Number(number) => number.to_string(),
            Scalar::Text(text) => text,
        };
        match Written::<Scalar>::deserialize(deserializer)? {
            Written::Text(text) => text.parse().map(Self::Range).map_err(de::Error::custom),
            Written::List(list) => Ok(Self::List(list.into_iter().map(text).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(text: &str) -> Result<Vec<u64>, String> {
        text.parse().map(|range: Range| range.values().collect())
    }

    #[test]
    fn ranges_and_their_ends() {
        assert_eq!(values("1..=3"), Ok(vec![1, 2, 3]));
        assert_eq!(values("1..3"), Ok(vec![1, 2]));
        assert_eq!(values("0..10 step 4"), Ok(vec![0, 4, 8]));
        assert_eq!(values("0..=8 step 4"), Ok(vec![0, 4, 8]));
        assert_eq!(
            values("18446744073709551615..=18446744073709551615"),
            Ok(vec![u64::MAX])
        );
        for bad in [
            "",
            "1",
            "1..1",
            "0..0",
            "2..=1",
            "1..=2 step 0",
            "a..b",
            "-1..2",
            "1..=",
            "0..=18446744073709551615",
        ] {
            assert!(values(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_range_or_an_error(text in ".{0,40}") {
            if let Ok(range) = text.parse::<Range>() {
                prop_assert!(range.count() >= 1 && range.count() <= MAX_VALUES);
            }
        }
    }
}
