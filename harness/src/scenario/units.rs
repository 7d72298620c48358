//! Quantities with units, as a scenario file writes them: `"64 MiB"`, `"100 MB/s"`, `"20 ms"`.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;

/// A number of bytes, written `"64 MiB"` (B, KiB, MiB, GiB; kB, MB, GB for powers of 1000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Memory that a workload uses: a size, or `"all"` that is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// That much.
    Size(Bytes),
    /// All free memory of the kernel.
    All,
}

/// Bytes per second of guest time, written `"100 MB/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A span of guest time in nanoseconds, written `"20 ms"` (ns, us, ms, s).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

/// A unit's name, and its size in base units.
type Unit = (&'static str, u64);

const SIZES: &[Unit] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
];

const RATES: &[Unit] = &[
    ("B/s", 1),
    ("KiB/s", 1 << 10),
    ("MiB/s", 1 << 20),
    ("GiB/s", 1 << 30),
    ("kB/s", 1_000),
    ("MB/s", 1_000_000),
    ("GB/s", 1_000_000_000),
];

const SPANS: &[Unit] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

/// Splits `text` into a whole number and one of `units`, and multiplies.
fn parse(text: &str, what: &str, example: &str, units: &[Unit]) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = (&text[..digits], text[digits..].trim_start_matches(' '));
    let names = || units.iter().map(|u| u.0).collect::<Vec<_>>().join(", ");
    let wanted = || {
        format!(
            "expected {what} such as \"{example}\" (a whole number and one of {})",
            names()
        )
    };
    let Ok(number) = number.parse::<u64>() else {
        return Err(format!("found \"{text}\", {}", wanted()));
    };
    let Some((_, factor)) = units.iter().find(|u| u.0 == unit) else {
        return Err(format!("found \"{text}\" with unit \"{unit}\", {}", wanted()));
    };
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("found \"{text}\", which does not fit 64 bits"))
}

impl std::str::FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, "a size", "64 MiB", SIZES).map(Self)
    }
}

impl std::str::FromStr for Workload {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse()
            .map(Self::Size)
            .map_err(|error| format!("{error}, or \"all\""))
    }
}

impl std::str::FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, "a rate", "100 MB/s", RATES).map(Self)
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, "a time", "20 ms", SPANS).map(Self)
    }
}

/// Deserialises a type that parses from a string, and passes its error message on.
struct Quantity<T>(&'static str, std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = String>> Visitor<'_> for Quantity<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! quantity {
    ($type:ty, $expecting:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Quantity::<$type>($expecting, std::marker::PhantomData))
            }
        }
    };
}

quantity!(Bytes, "a size as a string, such as \"64 MiB\"");
quantity!(Workload, "a size as a string, such as \"64 MiB\", or \"all\"");
quantity!(Rate, "a rate as a string, such as \"100 MB/s\"");
quantity!(Span, "a time as a string, such as \"20 ms\"");

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: &&Unit| self.0 >= unit.1 && self.0.is_multiple_of(unit.1);
        let (name, factor) = SIZES[..4].iter().rev().find(fits).unwrap_or(&("B", 1));
        write!(f, "{} {name}", self.0 / factor)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: &&Unit| self.0 >= unit.1 && self.0.is_multiple_of(unit.1);
        let (name, factor) = SPANS.iter().rev().find(fits).unwrap_or(&("ns", 1));
        write!(f, "{} {name}", self.0 / factor)
    }
}

impl serde::Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl serde::Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_parse() {
        assert_eq!("64 MiB".parse(), Ok(Bytes(64 << 20)));
        assert_eq!("4096B".parse(), Ok(Bytes(4096)));
        assert_eq!(
            ["1G", "512M", "4 K"].map(str::parse),
            [1 << 30, 512 << 20, 4096].map(|bytes| Ok(Bytes(bytes)))
        );
        assert!("1G/s".parse::<Rate>().is_err() && "1g".parse::<Bytes>().is_err());
        assert_eq!("100 MB/s".parse(), Ok(Rate(100_000_000)));
        assert_eq!("20 ms".parse(), Ok(Span(20_000_000)));
    }

    #[test]
    fn a_bad_size_says_what_was_found_and_what_is_allowed() {
        let error = "64 MEGS".parse::<Bytes>().unwrap_err();
        assert!(error.contains("64 MEGS") && error.contains("MiB"), "{error}");
        assert!("MiB".parse::<Bytes>().is_err());
        assert!("-1 MiB".parse::<Bytes>().is_err());
        assert!(
            "99999999999999 GiB"
                .parse::<Bytes>()
                .unwrap_err()
                .contains("64 bits")
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(bytes in any::<u64>()) {
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
            prop_assert_eq!(Span(bytes).to_string().parse(), Ok(Span(bytes)));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (text.parse::<Bytes>(), text.parse::<Rate>(), text.parse::<Span>());
        }
    }
}
