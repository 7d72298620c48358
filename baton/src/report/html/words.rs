//! Numbers, times, sizes and verdicts in words and symbols.

use super::matrix::Tone;
use harness::verdict::Verdict;
use maud::{Markup, html};

/// A whole number with commas.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Nanoseconds as milliseconds.
pub(super) fn millis(ns: u64) -> String {
    format!("{}.{:03}\u{a0}ms", count(ns / 1_000_000), ns / 1_000 % 1_000)
}

/// A size in the largest binary unit that leaves at least 1, with at most one decimal.
pub(super) fn size(bytes: u64) -> String {
    let units = [
        (1u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        None => format!("{bytes}\u{a0}bytes"),
        Some((unit, name)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole}\u{a0}{name}"),
                (whole, tenth) => format!("{whole}.{tenth}\u{a0}{name}"),
            }
        }
    }
}

/// A number of things.
pub(super) fn number(value: u64, one: &str, more: &str) -> String {
    format!("{}\u{a0}{}", count(value), if value == 1 { one } else { more })
}

/// A page frame's address.
pub(super) fn address(frame: u64) -> String {
    format!("{:#x}", u128::from(frame) * u128::from(harness::evidence::PAGE))
}

/// The tone of a verdict.
pub(super) fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Pass => Tone::Good,
        Verdict::Fail => Tone::Bad,
        Verdict::Error => Tone::Warn,
    }
}

/// A symbol and a word in the colour of a tone. The symbol is for eyes only: the word says it too.
pub(super) fn word(tone: Tone, text: &str) -> Markup {
    html! {
        span.word.(tone.class()) { span aria-hidden="true" { (tone.symbol()) " " } (text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let counts: Vec<String> = [0, 7, 999, 1000, 1_234_567, u64::MAX].map(count).into();
        assert_eq!(
            counts,
            [
                "0",
                "7",
                "999",
                "1,000",
                "1,234,567",
                "18,446,744,073,709,551,615"
            ]
        );
        assert_eq!(millis(62_677_912), "62.677\u{a0}ms");
        let sizes: Vec<String> = [12, 4096, 67_108_864, 1 << 30, 3 << 29].map(size).into();
        assert_eq!(
            sizes,
            [
                "12\u{a0}bytes",
                "4\u{a0}KiB",
                "64\u{a0}MiB",
                "1\u{a0}GiB",
                "1.5\u{a0}GiB"
            ]
        );
        assert_eq!(
            (number(1, "page", "pages"), number(2, "page", "pages")),
            ("1\u{a0}page".into(), "2\u{a0}pages".into())
        );
        assert_eq!(address(u64::MAX), "0xffffffffffffffff000");
    }
}
