//! A record to be compared, and the first difference of two sequences of records.

use super::{At, Part, RecordDifference, Told};
use std::collections::VecDeque;

/// Number of equal records that are reported before the first difference.
const BEFORE: usize = 3;

/// A record of either run. Two records are equal if their values are.
pub(super) trait Item: PartialEq {
    /// Time and place in the run.
    fn at(&self) -> At;
    /// Subject, verb and value.
    fn words(&self) -> (String, &'static str, String);
    /// Both values in another form, if that makes the difference clearer.
    fn side_by_side(&self, _: &Self) -> Option<[String; 2]> {
        None
    }
    /// Function in which it happened.
    fn function(&self) -> Option<String> {
        None
    }
}

fn told(item: &impl Item) -> Told {
    let (subject, verb, value) = item.words();
    let at = item.at();
    Told {
        at,
        subject,
        verb,
        value,
    }
}

/// The first record in which two sequences differ.
pub(super) fn diverge<T: Item>(
    part: Part,
    first: impl IntoIterator<Item = T>,
    second: impl IntoIterator<Item = T>,
) -> Option<RecordDifference> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut before = VecDeque::with_capacity(BEFORE);
    for index in 0.. {
        let (one, other) = match (first.next(), second.next()) {
            (None, None) => return None,
            (Some(one), Some(other)) if one == other => {
                if before.len() == BEFORE {
                    before.pop_front();
                }
                before.push_back(one);
                continue;
            }
            differ => differ,
        };
        let before = before.iter().map(told).collect();
        return Some(difference(part, index, one, other, before));
    }
    None
}

fn difference<T: Item>(
    part: Part,
    index: u64,
    one: Option<T>,
    other: Option<T>,
    before: Vec<Told>,
) -> RecordDifference {
    let mut sides = [&one, &other].map(|item| item.as_ref().map(told));
    if let (Some(one), Some(other)) = (&one, &other)
        && let Some(values) = one.side_by_side(other)
    {
        for (side, value) in sides.iter_mut().zip(values) {
            side.iter_mut().for_each(|told| told.value.clone_from(&value));
        }
    }
    // The runs part at the earlier of the two records. A record without a time has no place in that order.
    let earlier = [&one, &other]
        .into_iter()
        .flatten()
        .min_by_key(|item| item.at().time_ns.unwrap_or(u64::MAX));
    let (at, function) = earlier
        .map(|item| (item.at(), item.function()))
        .unwrap_or_default();
    let [first, second] = sides;
    RecordDifference {
        part,
        index,
        at,
        function,
        first,
        second,
        before,
        trace_ends_ns: None,
    }
}
