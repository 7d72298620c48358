//! The JSON report of `baton compare`; docs/compare.md describes it.

use harness::compare::Comparison;
use serde::Serialize;
use std::path::Path;

/// Version of the report, which counts up when a field goes or changes its meaning.
const VERSION: u32 = 1;

/// Report of one comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CompareReport {
    /// Always `baton-compare`.
    pub schema: &'static str,
    /// Version of the report.
    pub version: u32,
    /// Version of the program that compared.
    pub baton: &'static str,
    /// The two directories, as they were given.
    pub directories: [String; 2],
    /// What it came to.
    pub comparison: Comparison,
}

impl CompareReport {
    /// The report of comparing these directories.
    pub fn new(directories: [&Path; 2], comparison: Comparison) -> Self {
        Self {
            schema: "baton-compare",
            version: VERSION,
            baton: env!("CARGO_PKG_VERSION"),
            directories: directories.map(|path| path.display().to_string()),
            comparison,
        }
    }
}
