//! The smallest scenario that fails in the same way: injections are left out, made fewer and their windows narrowed, as
//! long as the failure keeps its signature.

use harness::scenario::Span;
use harness::trunk::Trunk;
use toml_edit::{DocumentMut, Item, Table, Value};
use vmm::soft::Soft;

use crate::job::Resolver;
use crate::plan::{CampaignPlan, Cell};
use crate::result::CellResult;
use crate::worker::branch;

/// Most runs of one search.
const MAX_RUNS: u32 = 200;

/// A scenario that fails as another one does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minimal {
    /// Text of the scenario.
    pub text: String,
    /// Injections that are left.
    pub injections: usize,
    /// Injections that there were.
    pub of: usize,
    /// Runs that it took.
    pub runs: u32,
}

/// Looks for the smallest scenario that fails as a cell does. `failure` is the cell's result. Returns `None` if the
/// cell has no injections.
pub fn minimise(
    plan: &CampaignPlan,
    cell: &Cell,
    failure: &CellResult,
    soft: Soft,
) -> Result<Option<Minimal>, String> {
    let mut resolver = Resolver::new().map_err(|error| error.to_string())?;
    let (base, _) = &plan.bases[cell.base];
    let mut trunk: Option<Trunk> = None;
    let known = (failure.status, failure.signature());
    let fails = |text: &str| {
        // A candidate that is no scenario any more does not fail in the same way.
        let Ok(plan) = resolver.resolve(base, text) else {
            return false;
        };
        let label = failure.label.clone();
        branch(&mut trunk, &plan, resolver.agent(), soft).is_ok_and(|(judged, _)| {
            let result = CellResult::of(failure.cell, label, &judged, None, 0);
            (result.status, result.signature()) == known
        })
    };
    smallest(&base.with(plan.addition(cell)), fails)
}

/// The search. `fails` says whether a scenario fails in the same way.
fn smallest(text: &str, fails: impl FnMut(&str) -> bool) -> Result<Option<Minimal>, String> {
    let document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.to_string())?;
    let of = count(&document);
    if of == 0 {
        return Ok(None);
    }
    let mut search = Search {
        document,
        fails,
        runs: 0,
    };
    search.drop_each();
    for number in 0..count(&search.document) {
        search.fewer_times(number);
        for key in ["within", "after"] {
            search.shorter(number, key);
        }
    }
    Ok(Some(Minimal {
        injections: count(&search.document),
        of,
        runs: search.runs,
        text: search.document.to_string(),
    }))
}

/// A search for the smallest scenario that still fails.
struct Search<F> {
    /// The smallest so far.
    document: DocumentMut,
    fails: F,
    runs: u32,
}

fn count(document: &DocumentMut) -> usize {
    let tables = document.get("inject").and_then(Item::as_array_of_tables);
    tables.map_or(0, toml_edit::ArrayOfTables::len)
}

impl<F: FnMut(&str) -> bool> Search<F> {
    /// Tries a change of the document, and keeps it if it still fails.
    fn try_with(&mut self, change: impl FnOnce(&mut DocumentMut) -> Option<()>) -> bool {
        let mut candidate = self.document.clone();
        if self.runs >= MAX_RUNS || change(&mut candidate).is_none() {
            return false;
        }
        self.runs += 1;
        let kept = (self.fails)(&candidate.to_string());
        if kept {
            self.document = candidate;
        }
        kept
    }

    /// Leaves out one injection after the other, until none can be left out.
    fn drop_each(&mut self) {
        let mut number = 0;
        let mut since = 0;
        while count(&self.document) > 1 && since < count(&self.document) {
            let at = number % count(&self.document);
            let dropped = self.try_with(|document| {
                let tables = document.get_mut("inject")?.as_array_of_tables_mut()?;
                tables.remove(at);
                Some(())
            });
            if dropped {
                (number, since) = (at, 0);
            } else {
                (number, since) = (at + 1, since + 1);
            }
        }
    }

    /// Lowers `count` of an injection.
    fn fewer_times(&mut self, number: usize) {
        let now = |document: &DocumentMut| {
            let count = table(document, number)?.get("count")?.as_integer()?;
            (count > 1).then_some(count)
        };
        let Some(mut high) = now(&self.document) else {
            return;
        };
        let set = |count: i64| {
            move |document: &mut DocumentMut| {
                let table = table_mut(document, number)?;
                if count == 1 {
                    // A distance is of no use to what happens once, and some triggers refuse it.
                    table.remove("count");
                    table.remove("every");
                } else {
                    *table.get_mut("count")? = Item::Value(count.into());
                }
                Some(())
            }
        };
        // The count that is needed lies above `low`, and `high` is enough.
        let mut low = 0;
        while low + 1 < high {
            let middle = if low == 0 { 1 } else { low.midpoint(high) };
            if self.try_with(set(middle)) {
                high = middle;
            } else if self.runs >= MAX_RUNS {
                return;
            } else {
                low = middle;
            }
        }
    }

    /// Halves a time or number of the trigger of an injection for as long as that changes nothing.
    fn shorter(&mut self, number: usize, key: &str) {
        loop {
            let halved = self.try_with(|document| {
                let when = table_mut(document, number)?.get_mut("when")?;
                let value = when.get_mut(key)?.as_value_mut()?;
                *value = half(value)?;
                Some(())
            });
            if !halved {
                return;
            }
        }
    }
}

/// Half of a time or number; `None` if that is nothing.
fn half(value: &Value) -> Option<Value> {
    match value {
        Value::Integer(number) => Some(number.value() / 2).filter(|half| *half > 0).map(Value::from),
        Value::String(text) => {
            let span: Span = text.value().parse().ok()?;
            let half = Span(span.0 / 2);
            (half.0 > 0).then(|| Value::from(half.to_string()))
        }
        _ => None,
    }
}

fn table(document: &DocumentMut, number: usize) -> Option<&Table> {
    document.get("inject")?.as_array_of_tables()?.get(number)
}

fn table_mut(document: &mut DocumentMut, number: usize) -> Option<&mut Table> {
    document
        .get_mut("inject")?
        .as_array_of_tables_mut()?
        .get_mut(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = r#"name = "x" # a name
[[inject]]
when.phase = "armed"
what.dma = "drop"
count = 100
every = 2
[[inject]]
when = { phase = "armed", after = "8 ms" }
what.dma = "reorder"
[[inject]]
when.at = "jump"
what.memory.flip.at = 1
[expect]
"#;

    fn found(fails: impl FnMut(&str) -> bool) -> Minimal {
        smallest(THREE, fails).unwrap().unwrap()
    }

    #[test]
    fn what_is_not_needed_goes_and_the_rest_stays_as_written() {
        let minimal = found(|text| text.contains("jump"));
        assert_eq!((minimal.injections, minimal.of), (1, 3));
        assert_eq!(
            minimal.text,
            "name = \"x\" # a name\n[[inject]]\nwhen.at = \"jump\"\nwhat.memory.flip.at = 1\n[expect]\n"
        );
        let both = found(|text| text.contains("jump") && text.contains("drop"));
        assert_eq!(both.injections, 2);
        assert!(!both.text.contains("count"), "{}", both.text);
    }

    #[test]
    fn counts_and_times_are_made_as_small_as_they_may_be() {
        let times = |text: &str| {
            let document: DocumentMut = text.parse().unwrap();
            table(&document, 0)?
                .get("count")
                .map_or(Some(1), Item::as_integer)
        };
        let minimal = found(|text| text.contains("drop") && times(text) >= Some(13));
        assert!(minimal.text.contains("count = 13\n"), "{}", minimal.text);
        let late = found(|text| text.contains("reorder") && !text.contains("\"500 us\""));
        assert!(late.text.contains("after = \"1 ms\""), "{}", late.text);
    }

    #[test]
    fn a_search_ends_and_one_without_injections_does_not_begin() {
        let minimal = found(|_| true);
        assert!(minimal.runs <= MAX_RUNS);
        let unchanged = found(|_| false);
        assert_eq!((unchanged.text.as_str(), unchanged.injections), (THREE, 3));
        assert_eq!(smallest("name = \"x\"", |_| true), Ok(None));
        assert!(smallest("= x", |_| true).is_err());
    }
}
