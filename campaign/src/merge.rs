//! Puts the results of several machines together.

use crate::plan::{CellId, Label};
use crate::result::CellResult;
use crate::store::{Header, Listed, Store, StoreError, read_cells, read_header, read_results};
use crate::summary::Summary;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Results of one plan, put together.
#[derive(Debug)]
pub struct Merged {
    /// The plan.
    pub header: Header,
    /// What the results come to; a cell that was run twice counts once.
    pub summary: Summary,
    /// How many results were of a cell that another result is of too. They were equal.
    pub repeated: u64,
    /// Cells without a result.
    pub missing: Vec<(CellId, Label)>,
}

/// Puts the results in `directories` together, and into `out` if it is given. They must be of one plan, and two results
/// of one cell must be equal.
pub fn merge(directories: &[PathBuf], out: Option<&Path>) -> Result<Merged, StoreError> {
    let Some(first) = directories.first() else {
        return Err(StoreError::Nothing(PathBuf::new()));
    };
    let (header, mut missing) = (read_header(first)?, read_cells(first)?);
    let cells = missing.clone();
    let mut store = out
        .map(|out| {
            let header = Header {
                partition: "merged".into(),
                ..header.clone()
            };
            let listed = cells.iter().map(|(cell, label)| Listed {
                cell: *cell,
                label: label.clone(),
            });
            Store::open_with(out, &header, listed, &mut |_| {}).map(|store| (out, store))
        })
        .transpose()?;
    // Results that a merged directory holds already are read as those of any other.
    let mut met = BTreeMap::new();
    let (mut summary, mut repeated) = (Summary::default(), 0);
    let mut there = Vec::new();
    if let Some((out, _)) = &store {
        there.push((out.to_path_buf(), true));
    }
    there.extend(directories.iter().map(|directory| (directory.clone(), false)));
    for (directory, is_out) in &there {
        let found = read_header(directory)?;
        if found.plan != header.plan {
            return Err(StoreError::OtherPlan {
                path: directory.clone(),
                found: found.plan,
                name: found.name,
                expected: header.plan,
            });
        }
        read_results(directory, &mut |result| {
            if !cells.contains_key(&result.cell) {
                return Err(StoreError::Stranger {
                    path: directory.clone(),
                    cell: result.cell,
                });
            }
            let same = fingerprint(&result);
            match met.insert(result.cell, same) {
                None => {
                    missing.remove(&result.cell);
                    summary.add(&result);
                    if let (Some((_, store)), false) = (&mut store, is_out) {
                        store.append(&result)?;
                    }
                }
                Some(before) if before == same => repeated += 1,
                Some(_) => return Err(unequal(&there, result)),
            }
            Ok(())
        })?;
    }
    Ok(Merged {
        header,
        summary,
        repeated,
        missing: missing.into_iter().collect(),
    })
}

/// Hash of what two results of a cell must have in common.
fn fingerprint(result: &CellResult) -> CellId {
    CellId::of(&[&serde_json::to_vec(&result.without_time()).unwrap_or_default()])
}

/// The error of two results of one cell, with the one that was read before.
fn unequal(directories: &[(PathBuf, bool)], second: CellResult) -> StoreError {
    let mut first = None;
    for (directory, _) in directories {
        // They have been read once.
        let _ = read_results(directory, &mut |result| {
            if first.is_none() && result.cell == second.cell {
                first = Some(result);
            }
            Ok(())
        });
    }
    StoreError::Unequal {
        first: Box::new(first.unwrap_or_else(|| second.clone())),
        second: Box::new(second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Status;
    use crate::store::VERSION;

    fn label(name: &str) -> Label {
        Label {
            scenario: name.into(),
            kernels: String::new(),
            seed: 1,
            variant: String::new(),
        }
    }

    fn cell(name: &str) -> CellId {
        CellId::of(&[name.as_bytes()])
    }

    fn result(name: &str, wall_us: u64) -> CellResult {
        CellResult {
            wall_us,
            ..CellResult::without_run(cell(name), label(name), Status::Error, "reason")
        }
    }

    /// A directory of the plan `plan` of the cells a, b and c, with these results.
    fn directory(folder: &Path, plan: &str, results: &[CellResult]) -> PathBuf {
        let header = Header {
            schema: "baton-campaign".into(),
            version: VERSION,
            baton: "1".into(),
            name: "n".into(),
            plan: cell(plan),
            cells: 3,
            partition: "slice:1/2".into(),
        };
        let listed = ["a", "b", "c"].map(|name| Listed {
            cell: cell(name),
            label: label(name),
        });
        let mut store = Store::open_with(folder, &header, listed.into_iter(), &mut |_| {}).unwrap();
        results.iter().for_each(|result| store.append(result).unwrap());
        folder.to_path_buf()
    }

    #[test]
    fn parts_make_a_whole_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let one = directory(&at("1"), "p", &[result("a", 1), result("b", 1)]);
        let two = directory(&at("2"), "p", &[result("b", 2)]);
        let merged = merge(&[one.clone(), two.clone()], None).unwrap();
        assert_eq!((merged.summary.done(), merged.repeated), (2, 1));
        assert_eq!(merged.missing, [(cell("c"), label("c"))]);

        let three = directory(&at("3"), "p", &[result("c", 3)]);
        let out = at("all");
        for _ in 0..2 {
            let merged = merge(&[one.clone(), two.clone(), three.clone()], Some(&out)).unwrap();
            assert_eq!((merged.summary.done(), merged.missing.len()), (3, 0));
        }
        let again = merge(&[out], None).unwrap();
        assert_eq!(
            (again.summary.done(), again.repeated, again.missing.len()),
            (3, 0, 0)
        );
    }

    #[test]
    fn other_plans_strangers_and_unequal_results_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let one = directory(&at("1"), "p", &[result("a", 1)]);
        let other = directory(&at("2"), "q", &[]);
        assert!(matches!(
            merge(&[one.clone(), other], None),
            Err(StoreError::OtherPlan { .. })
        ));
        let stranger = directory(&at("3"), "p", &[result("x", 1)]);
        assert!(matches!(
            merge(&[one.clone(), stranger], None),
            Err(StoreError::Stranger { .. })
        ));
        let unequal = CellResult {
            state_hash: "12".into(),
            ..result("a", 1)
        };
        let unequal = directory(&at("4"), "p", &[unequal]);
        let error = merge(&[one, unequal], None).unwrap_err().to_string();
        assert!(
            error.contains("two different results") && error.contains("state 12"),
            "{error}"
        );
    }
}
