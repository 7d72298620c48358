//! Places on a horizontal axis. Everything is placed in percent of the drawing's width, so that text and lines keep
//! their size whatever the width is.

use maud::{Markup, html};
use std::fmt::Write;

/// Units of a drawing that is stretched to its width.
const UNITS: u64 = 4000;

/// Where `value` lies between `from` and `to`, in percent.
#[allow(clippy::cast_precision_loss)] // a place on a screen
pub(super) fn percent(value: u64, from: u64, to: u64) -> f64 {
    let length = to.saturating_sub(from).max(1) as f64;
    (value.saturating_sub(from) as f64 / length * 100.0).clamp(0.0, 100.0)
}

/// A percentage for an attribute.
pub(super) fn at(percent: f64) -> String {
    format!("{percent:.2}%")
}

/// Stretches a drawing of [`UNITS`] by `height` units over the whole width, between `top` and `top` + `tall` pixels.
pub(super) fn stretched(class: &str, path: &str, height: u64, top: u32, tall: u32) -> Markup {
    html! {
        svg y=(top) height=(tall) width="100%" viewBox={ "0 0 " (UNITS) " " (height) } preserveAspectRatio="none" {
            path class=(class) d=(path) {}
        }
    }
}

/// Path of full-height pieces, each from one share of the width to another (0 to 1).
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)] // shares of UNITS
pub(super) fn pieces(shares: impl Iterator<Item = (f64, f64)>) -> String {
    let unit = |share: f64| (share.clamp(0.0, 1.0) * UNITS as f64).round() as u64;
    let mut path = String::new();
    for (from, to) in shares {
        let (from, to) = (unit(from), unit(to));
        let _ = write!(path, "M{from} 0H{to}V1H{from}z");
    }
    path
}

/// Path of bars, one beside the other, and the largest value.
pub(super) fn bars(values: &[u64]) -> (String, u64) {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let count = values.len().max(1) as u64;
    let mut path = "M0 100".to_owned();
    for (number, value) in (1..).zip(values) {
        let left = u128::from(most - value) * 100;
        // What is there must be seen, however little it is.
        let top = (left / u128::from(most)).min(if *value > 0 { 97 } else { 100 });
        let _ = write!(path, "V{top}H{}", number * UNITS / count);
    }
    path.push_str("V100z");
    (path, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_inside() {
        assert_eq!(at(percent(5, 0, 10)), "50.00%");
        assert_eq!(at(percent(99, 0, 10)), "100.00%");
        assert_eq!(at(percent(0, 5, 5)), "0.00%");
    }

    #[test]
    fn the_least_value_is_seen() {
        assert_eq!(
            bars(&[0, 1, 1000]),
            ("M0 100V100H1333V97H2666V0H4000V100z".into(), 1000)
        );
        assert_eq!(bars(&[]).1, 1);
        assert_eq!(
            pieces([(0.0, 0.5), (0.5, 2.0)].into_iter()),
            "M0 0H2000V1H0zM2000 0H4000V1H2000z"
        );
    }
}
