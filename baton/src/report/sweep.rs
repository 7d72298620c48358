//! The report on a sweep as plain data: counts of classes, a grid of fields by values for each kernel and each part of
//! the handover, cases of one kind in groups, and where kernels differ. All of it is computed from lines of results.

use super::{printable, printable_to};
use campaign::result::without_numbers;
use campaign::sweep::{Class, Line, part};
use harness::bend::NAMES;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Most cells of all grids together.
const MAX_CELLS: usize = 30_000;
/// Most groups that are listed for a kernel.
const MAX_GROUPS: usize = 100;
/// Most cases that a group names.
const MAX_NAMED: usize = 8;
/// Most characters of what a group showed.
const MAX_WHAT: usize = 600;
/// Most cases that are listed because kernels differ in them.
const MAX_DIFFERENCES: usize = 300;

/// How many cases have each class.
pub type Counts = BTreeMap<Class, u64>;

/// A sweep's report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Name of the scenario.
    pub scenario: String,
    /// One entry per kernel, in the order in which they were swept.
    pub kernels: Vec<KernelSweep>,
    /// Cases in which kernels differ.
    pub differences: Vec<Difference>,
    /// How many more there are.
    pub differences_left_out: usize,
}

/// What one kernel made of the cases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelSweep {
    /// Its release.
    pub release: String,
    /// Counts over all cases.
    pub counts: Counts,
    /// Counts by part of the handover.
    pub parts: BTreeMap<String, Counts>,
    /// One grid per part of the handover.
    pub grids: Vec<Grid>,
    /// Cells that no grid has, because there are too many.
    pub cells_left_out: usize,
    /// Cases that show what a kernel should not do, the worst first.
    pub groups: Vec<Group>,
    /// How many more groups there are.
    pub groups_left_out: usize,
}

/// Fields by values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// The part of the handover.
    pub part: String,
    /// Names of values.
    pub values: Vec<String>,
    /// Path of each field with a cell per value; `None` where that value is not one for the field.
    pub rows: Vec<(String, Vec<Option<Cell>>)>,
}

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The class.
    pub class: Class,
    /// What was set, and the first thing that shows the class.
    pub what: String,
}

/// Cases of one class with the same sign, but for numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The class.
    pub class: Class,
    /// What the first case showed.
    pub what: String,
    /// How many cases.
    pub count: u64,
    /// The first of them: path, name of the value, what was set, what was there.
    pub cases: Vec<[String; 4]>,
    /// Command line that runs the first case again.
    pub reproduce: String,
}

/// A case in which kernels differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field.
    pub path: String,
    /// Name of the value.
    pub value: String,
    /// The class with each kernel, in the report's order; `None` if that kernel has no such case.
    pub classes: Vec<Option<Class>>,
}

impl SweepReport {
    /// The report on these results.
    pub fn new(lines: &[Line]) -> Self {
        let mut releases: Vec<&str> = Vec::new();
        for line in lines {
            if !releases.contains(&line.kernel.as_str()) {
                releases.push(&line.kernel);
            }
        }
        let mut room = MAX_CELLS;
        let kernels = releases.iter().map(|release| {
            let ours: Vec<&Line> = lines.iter().filter(|line| line.kernel == *release).collect();
            KernelSweep::new(release, &ours, &mut room)
        });
        let kernels = kernels.collect();
        let mut differences = differences(lines, &releases);
        let differences_left_out = differences.len().saturating_sub(MAX_DIFFERENCES);
        differences.truncate(MAX_DIFFERENCES);
        Self {
            scenario: lines
                .first()
                .map_or_else(String::new, |line| line.scenario.clone()),
            kernels,
            differences,
            differences_left_out,
        }
    }
}

impl KernelSweep {
    /// Of one kernel's cases. `room` is how many more cells grids may have.
    fn new(release: &str, lines: &[&Line], room: &mut usize) -> Self {
        let mut kernel = Self {
            release: release.into(),
            ..Self::default()
        };
        let mut by_part: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
        for line in lines {
            let part = part(&line.path);
            *kernel.counts.entry(line.class).or_default() += 1;
            let counts = kernel.parts.entry(part.into()).or_default();
            *counts.entry(line.class).or_default() += 1;
            by_part.entry(part).or_default().push(line);
        }
        for (part, lines) in by_part {
            let shown = lines.len().min(*room);
            *room -= shown;
            kernel.cells_left_out += lines.len() - shown;
            if shown > 0 {
                kernel.grids.push(grid(part, &lines[..shown]));
            }
        }
        kernel.groups = groups(lines);
        kernel.groups_left_out = kernel.groups.len().saturating_sub(MAX_GROUPS);
        kernel.groups.truncate(MAX_GROUPS);
        kernel
    }
}

/// Name of a value's column. Values that were given literally have one each.
fn column(line: &Line) -> String {
    if line.value == "given" {
        printable(&line.set)
    } else {
        printable(&line.value)
    }
}

fn grid(part: &str, lines: &[&Line]) -> Grid {
    let names: BTreeSet<(usize, String)> = lines
        .iter()
        .map(|line| {
            let known = NAMES.iter().position(|name| *name == line.value);
            (known.unwrap_or(NAMES.len()), column(line))
        })
        .collect();
    let values: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
    let mut rows: Vec<(String, Vec<Option<Cell>>)> = Vec::new();
    for line in lines {
        let at = rows.iter().rposition(|(path, _)| *path == line.path);
        let at = at.unwrap_or_else(|| {
            rows.push((line.path.clone(), vec![None; values.len()]));
            rows.len() - 1
        });
        let name = column(line);
        let place = values.iter().position(|value| *value == name);
        if let (Some(place), Some((_, cells))) = (place, rows.get_mut(at)) {
            cells[place] = Some(Cell {
                class: line.class,
                what: printable(&format!(
                    "{} = {} (was {}): {}",
                    line.path, line.set, line.was, line.what
                )),
            });
        }
    }
    Grid {
        part: part.into(),
        values,
        rows,
    }
}

/// The interesting cases, by class and by what they showed.
fn groups(lines: &[&Line]) -> Vec<Group> {
    let mut groups: BTreeMap<(Reverse<Class>, String), Group> = BTreeMap::new();
    let wrong = |line: &&&Line| line.class.is_interesting();
    for line in lines.iter().filter(wrong) {
        let what = without_numbers(&line.what);
        let group = groups
            .entry((Reverse(line.class), what))
            .or_insert_with(|| Group {
                class: line.class,
                what: printable_to(&line.what, MAX_WHAT),
                count: 0,
                cases: Vec::new(),
                reproduce: line.reproduce.clone(),
            });
        group.count += 1;
        if group.cases.len() < MAX_NAMED {
            let case = [&line.path, &line.value, &line.set, &line.was];
            group.cases.push(case.map(|text| printable(text)));
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| (Reverse(group.class), Reverse(group.count)));
    groups
}

/// Cases that several kernels have, and in which they differ.
fn differences(lines: &[Line], releases: &[&str]) -> Vec<Difference> {
    let mut cases: BTreeMap<(&str, String), Vec<Option<Class>>> = BTreeMap::new();
    for line in lines {
        let kernel = releases.iter().position(|release| *release == line.kernel);
        let classes = cases
            .entry((&line.path, column(line)))
            .or_insert_with(|| vec![None; releases.len()]);
        if let Some(class) = kernel.and_then(|kernel| classes.get_mut(kernel)) {
            *class = Some(line.class);
        }
    }
    let differ = |classes: &[Option<Class>]| {
        let known: BTreeSet<Class> = classes.iter().copied().flatten().collect();
        known.len() > 1
    };
    let listed = cases.into_iter().filter(|(_, classes)| differ(classes));
    let difference = |((path, value), classes): ((&str, String), _)| Difference {
        path: path.into(),
        value,
        classes,
    };
    listed.map(difference).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kho_core::fields::Kind;

    /// A line of results.
    pub(in crate::report) fn line(kernel: &str, path: &str, value: &str, class: Class, what: &str) -> Line {
        Line {
            kernel: kernel.into(),
            scenario: "receiver".into(),
            seed: 1,
            path: path.into(),
            kind: Kind::Number,
            value: value.into(),
            set: "0x0".into(),
            was: "0x1".into(),
            class,
            warned: false,
            what: what.into(),
            reproduce: format!("baton sweep blob receiver.toml --only '{path}=0x0'"),
        }
    }

    fn lines() -> Vec<Line> {
        vec![
            line(
                "7.3.4",
                "luo/count",
                "ones",
                Class::Panic,
                "Kernel panic at 0x100",
            ),
            line(
                "7.3.4",
                "luo/count",
                "zero",
                Class::Panic,
                "Kernel panic at 0x200",
            ),
            line("7.3.4", "luo/compatible", "cut", Class::Refused, "refused"),
            line(
                "7.3.4",
                "map/block[3]/order",
                "zero",
                Class::Warning,
                "WARNING: at x",
            ),
            line("7.2.12", "luo/count", "ones", Class::Refused, "refused"),
            line(
                "7.2.12",
                "luo/count",
                "zero",
                Class::Panic,
                "Kernel panic at 0x300",
            ),
        ]
    }

    #[test]
    fn a_grid_has_a_row_per_field_and_a_column_per_value() {
        let report = SweepReport::new(&lines());
        let releases: Vec<&str> = report
            .kernels
            .iter()
            .map(|kernel| kernel.release.as_str())
            .collect();
        assert_eq!(releases, ["7.3.4", "7.2.12"]);
        let [luo, map] = &report.kernels[0].grids[..] else {
            panic!("{report:?}");
        };
        assert_eq!((luo.part.as_str(), map.part.as_str()), ("luo", "map"));
        assert_eq!(luo.values, ["zero", "ones", "cut"]);
        let classes: Vec<Vec<Option<Class>>> = luo
            .rows
            .iter()
            .map(|(_, cells)| {
                cells
                    .iter()
                    .map(|cell| cell.as_ref().map(|cell| cell.class))
                    .collect()
            })
            .collect();
        assert_eq!(
            classes,
            [
                [Some(Class::Panic), Some(Class::Panic), None],
                [None, None, Some(Class::Refused)]
            ]
        );
        assert_eq!(report.kernels[0].counts[&Class::Panic], 2);
        assert_eq!(report.kernels[0].parts["luo"][&Class::Refused], 1);
    }

    #[test]
    fn cases_that_differ_in_numbers_alone_are_one_group_and_the_worst_comes_first() {
        let groups = &SweepReport::new(&lines()).kernels[0].groups;
        let told: Vec<_> = groups
            .iter()
            .map(|group| (group.class, group.count, group.cases.len()))
            .collect();
        assert_eq!(told, [(Class::Panic, 2, 2), (Class::Warning, 1, 1)]);
        assert_eq!(groups[0].what, "Kernel panic at 0x100");
    }

    #[test]
    fn kernels_differ_where_both_have_the_case() {
        let report = SweepReport::new(&lines());
        assert_eq!(
            report.differences,
            [Difference {
                path: "luo/count".into(),
                value: "ones".into(),
                classes: vec![Some(Class::Panic), Some(Class::Refused)],
            }]
        );
    }

    #[test]
    fn however_many_cases_there_are_the_report_stays_small_and_says_what_is_missing() {
        let mut lines = Vec::new();
        for field in 0..MAX_CELLS / 10 + 7 {
            let word: String = field
                .to_string()
                .bytes()
                .map(|digit| char::from(digit + 49))
                .collect();
            for value in &NAMES[..10] {
                let path = format!("map/block[{field}]/order");
                lines.push(line(
                    "7.3.4",
                    &path,
                    value,
                    Class::Panic,
                    &format!("{word} {}", "x".repeat(999)),
                ));
            }
        }
        let report = SweepReport::new(&lines);
        let kernel = &report.kernels[0];
        assert_eq!(kernel.cells_left_out, 70);
        assert_eq!(kernel.counts[&Class::Panic], lines.len() as u64);
        assert_eq!(kernel.groups.len(), MAX_GROUPS);
        assert_eq!(kernel.groups_left_out, MAX_CELLS / 10 + 7 - MAX_GROUPS);
        let longest = kernel.grids[0]
            .rows
            .iter()
            .flat_map(|(_, cells)| cells.iter().flatten());
        assert!(
            longest
                .map(|cell| cell.what.chars().count())
                .all(|length| length <= crate::report::MAX_LINE + 3)
        );
        assert_eq!(SweepReport::new(&[]), SweepReport::default());
    }
}
