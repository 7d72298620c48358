//! Results of a sweep: one line of JSON each, and the table that is computed from lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kho_core::fields::Kind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::class::Class;
use crate::json_lines::{self, LinesError};

/// The result of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Release of the new kernel.
    pub kernel: String,
    /// Scenario name.
    pub scenario: String,
    /// Seed of the run.
    pub seed: u64,
    /// The field.
    pub path: String,
    /// What the field means.
    pub kind: Kind,
    /// Name of the value.
    pub value: String,
    /// The value, as `--only` takes it.
    pub set: String,
    /// The value that the old kernel wrote.
    pub was: String,
    /// What the new kernel made of it.
    pub class: Class,
    /// Whether the kernel complained of itself, whatever else it did.
    pub warned: bool,
    /// The first thing that shows the class.
    pub what: String,
    /// Command line that runs this case again.
    pub reproduce: String,
}

impl Line {
    /// What tells a case from all others of a sweep.
    pub fn key(&self) -> Key {
        (self.kernel.clone(), self.path.clone(), self.set.clone())
    }
}

/// Kernel, field and value of a case.
pub type Key = (String, String, String);

/// Lines of a file. A last line that is not whole, because its writer was killed, is left out.
pub fn read<L: DeserializeOwned>(path: &Path) -> Result<Vec<L>, LinesError> {
    let mut lines = Vec::new();
    json_lines::read(path, &mut |line| {
        lines.push(line);
        Ok::<(), LinesError>(())
    })?;
    Ok(lines)
}

/// The part of a handover that a field belongs to, for tables.
pub fn part(path: &str) -> &str {
    let end = path.find(['/', ':', '[']).unwrap_or(path.len());
    &path[..end]
}

/// The number of cases of each class, by kernel and part of the handover, as a table in Markdown.
pub fn table(lines: &[Line]) -> String {
    let kernels: BTreeSet<&str> = lines.iter().map(|line| line.kernel.as_str()).collect();
    let used = |class: &Class| lines.iter().any(|line| line.class == *class);
    let used: Vec<(Class, &str)> = Class::ALL
        .into_iter()
        .filter(used)
        .map(|class| (class, class.name()))
        .collect();
    let mut out = String::new();
    for kernel in kernels {
        let mut counts: BTreeMap<&str, BTreeMap<Class, usize>> = BTreeMap::new();
        for line in lines.iter().filter(|line| line.kernel == kernel) {
            for row in [part(&line.path), "~all"] {
                *counts.entry(row).or_default().entry(line.class).or_default() += 1;
            }
        }
        let name = |row| if row == "~all" { "**all**" } else { row };
        let rows = counts
            .into_iter()
            .map(|(row, counts)| (name(row).to_owned(), counts));
        out.push_str(&counts_table(kernel, &used, rows));
    }
    out
}

/// Numbers of cases as a table in Markdown: a row for each of `rows`, a column for each of `used`, with its name.
pub(super) fn counts_table<K: Ord>(
    title: &str,
    used: &[(K, &str)],
    rows: impl Iterator<Item = (String, BTreeMap<K, usize>)>,
) -> String {
    let names: Vec<&str> = used.iter().map(|(_, name)| *name).collect();
    let mut out = format!("| {title} | cases | {} |\n", names.join(" | "));
    // Writing to a string cannot fail.
    let _ = writeln!(out, "| --- |{}", " ---: |".repeat(used.len() + 1));
    for (name, counts) in rows {
        let cell = |(key, _): &(K, &str)| counts.get(key).map_or("-".into(), usize::to_string);
        let cells: Vec<String> = used.iter().map(cell).collect();
        let total: usize = counts.values().sum();
        let _ = writeln!(out, "| {name} | {total} | {} |", cells.join(" | "));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, class: Class) -> Line {
        Line {
            kernel: "7.3.4".into(),
            scenario: "s".into(),
            seed: 1,
            path: path.into(),
            kind: Kind::Number,
            value: "zero".into(),
            set: "0x0".into(),
            was: "0x1".into(),
            class,
            warned: false,
            what: "w".into(),
            reproduce: "r".into(),
        }
    }

    #[test]
    fn a_line_that_is_cut_is_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let whole = serde_json::to_string(&line("luo/a", Class::Panic)).unwrap();
        std::fs::write(file.path(), format!("{whole}\n{}", &whole[..20])).unwrap();
        assert_eq!(read::<Line>(file.path()).unwrap(), [line("luo/a", Class::Panic)]);
        std::fs::write(file.path(), "{}\n").unwrap();
        assert!(
            read::<Line>(file.path()).is_err(),
            "a whole line that is none is an error"
        );
    }

    #[test]
    fn the_table_counts_classes_by_part() {
        let lines = [
            line("luo/session[vm]/count", Class::Panic),
            line("luo/compatible", Class::Refused),
            line("fdt:magic", Class::Refused),
        ];
        let table = table(&lines);
        assert!(table.contains("| 7.3.4 | cases | refused | panic |"), "{table}");
        assert!(table.contains("| luo | 2 | 1 | 1 |"), "{table}");
        assert!(table.contains("| fdt | 1 | 1 | - |"), "{table}");
        assert!(table.contains("| **all** | 3 | 2 | 1 |"), "{table}");
    }
}
