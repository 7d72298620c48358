//! Which parts of baton the processor time of a cycle goes into, as `perf` samples it.
//!
//! Each sample belongs to the function that was running, not to its callers; [`PARTS`] says which functions make a
//! part.

use crate::baton::Cycle;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Samples per second of processor time. Not a round number, so that nothing periodic is in step with it.
const RATE: &str = "997";

/// Parts by what is in the name of the object or of the function; the first that matches counts.
const PARTS: [(&str, &[&str]); 17] = [
    ("host kernel: page faults, files, start", &["[k] "]),
    ("translated code", &["memfd:", "//anon", "[anon]", "perf-"]),
    ("translator", &["softcpu::translate", "softcpu::jit"]),
    ("instruction loop", &["softcpu::exec::run"]),
    ("string instructions", &["softcpu::exec::string"]),
    (
        "SSE and x87",
        &["softcpu::sse", "softcpu::x87", "read128", "write128"],
    ),
    (
        "rare user instructions",
        &[
            "softcpu::exec::misc",
            "softcpu::exec::arith",
            "softcpu::exec::place",
        ],
    ),
    ("system instructions, events", &["softcpu::exec::"]),
    (
        "TLB misses, walks, slow accesses",
        &["softcpu::access", "softcpu::mmu", "softcpu::hooks"],
    ),
    (
        "decode",
        &[
            "softcpu::decode",
            "softcpu::code",
            "iced_x86",
            "softcpu::cpu::Cpu::decode",
        ],
    ),
    ("around the loop", &["softcpu::"]),
    ("oracle", &["harness::oracle"]),
    ("hashes", &["xxh", "sha2", "sha1", "blake", "crc32"]),
    ("conductor, evidence", &["harness::"]),
    ("machine, devices, ledger", &["vmm::"]),
    (
        "copies and fills",
        &["memmove", "memcpy", "memset", "memcmp", "bcmp"],
    ),
    ("allocator", &["malloc", "free", "calloc", "realloc", "alloc::"]),
];
/// What is in none of them.
const REST: &str = "rest";

/// The parts of one cycle.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// Release of the kernel.
    pub kernel: String,
    /// Each part's share of all samples, from 0 to 1, greatest first.
    pub parts: Vec<(&'static str, f64)>,
    /// The functions with the greatest shares.
    pub functions: Vec<(String, f64)>,
}

/// Profiles one run. `Ok(None)` if there is no `perf`.
pub fn measure(kernel: &str, cycle: &Cycle, work: &Path) -> Result<Option<Profile>, String> {
    let found = Command::new("perf")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        return Ok(None);
    }
    let data = work.join("perf.data");
    let mut record = Command::new("perf");
    record
        .args(["record", "-q", "-e", "cpu-clock", "-F", RATE, "-o"])
        .arg(&data)
        .arg("--");
    cycle.run_as(&mut cycle.under(record))?;
    let report = Command::new("perf")
        .args([
            "report",
            "--stdio",
            "--no-children",
            "-g",
            "none",
            "--sort",
            "dso,sym",
        ])
        .args(["-t", "|", "-i"])
        .arg(&data)
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("perf report: {error}"))?;
    let lines = String::from_utf8_lossy(&report.stdout);
    let functions = functions(&lines);
    if functions.is_empty() {
        return Err(format!("perf report: {}, without a function", report.status));
    }
    Ok(Some(of(kernel, functions)))
}

/// The functions and their shares in a report whose fields are separated by `|`.
fn functions(report: &str) -> Vec<(String, f64)> {
    let lines = report.lines().filter(|line| !line.starts_with('#'));
    let fields = lines.filter_map(|line| line.split_once('|'));
    fields
        .filter_map(|(share, name)| {
            let share: f64 = share.trim().trim_end_matches('%').parse().ok()?;
            let words: Vec<&str> = name.split('|').map(str::trim).collect();
            Some((words.join(" "), share / 100.0))
        })
        .collect()
}

fn of(kernel: &str, functions: Vec<(String, f64)>) -> Profile {
    let mut parts: Vec<(&'static str, f64)> = PARTS
        .iter()
        .map(|(name, _)| (*name, 0.0))
        .chain([(REST, 0.0)])
        .collect();
    for (function, share) in &functions {
        let wanted = part(function);
        if let Some((_, sum)) = parts.iter_mut().find(|(name, _)| *name == wanted) {
            *sum += share;
        }
    }
    parts.retain(|(_, share)| *share > 0.0);
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    Profile {
        kernel: kernel.to_owned(),
        parts,
        functions: functions.into_iter().take(20).collect(),
    }
}

/// The part that a function belongs to; `function` is the object's name, where it runs (`[k]`, `[.]`) and its own name.
fn part(function: &str) -> &'static str {
    PARTS
        .iter()
        .find(|(_, words)| words.iter().any(|word| function.contains(word)))
        .map_or(REST, |(name, _)| name)
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Where the processor time of a cycle of Linux {} goes, by perf\n",
            self.kernel
        )?;
        for (name, share) in &self.parts {
            writeln!(f, "  {name:<42}{:>8.1} %", share * 100.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "# Overhead|Shared Object|Symbol\n\
        # ........\n\n\
        \x20   69.00%|baton           |[.] softcpu::exec::run\n\
        \x20    3.00%|libc.so.6       |[.] __memmove_evex_unaligned_erms\n\
        \x20    2.00%|baton           |[.] softcpu::exec::string::execute\n\
        \x20    1.50%|[kernel.kallsyms]|[k] clear_page_erms\n\
        \x20    0.50%|baton           |[.] main\n";

    #[test]
    fn functions_become_parts() {
        let profile = of("7.3.4", functions(REPORT));
        let names: Vec<_> = profile.parts.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "instruction loop",
                "copies and fills",
                "string instructions",
                "host kernel: page faults, files, start",
                "rest"
            ]
        );
        let sum: f64 = profile.parts.iter().map(|(_, share)| share).sum();
        assert!((sum - 0.76).abs() < 1e-9, "{sum}");
        assert!(profile.to_string().contains("instruction loop"));
    }

    #[test]
    fn the_first_part_that_matches_counts() {
        for (function, expected) in [
            ("baton [.] <impl softcpu::core::Core>::read128", "SSE and x87"),
            (
                "baton [.] softcpu::access::<impl softcpu::core::Core>::locate",
                "TLB misses, walks, slow accesses",
            ),
            ("baton [.] softcpu::cpu::Cpu::decode", "decode"),
            ("baton [.] softcpu::cpu::Cpu::run", "around the loop"),
            ("memfd:code [.] 0x00001234", "translated code"),
            (
                "[kernel.kallsyms] [k] do_anonymous_page",
                "host kernel: page faults, files, start",
            ),
            ("ld-linux-x86-64.so.2 [.] _dl_relocate_object", REST),
        ] {
            assert_eq!(part(function), expected, "{function}");
        }
    }
}
