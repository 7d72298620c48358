//! Where names of addresses come from: the symbol file beside the kernel, if it is that kernel's.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::{Finished, ready, run_text, scenarios, small, variant};

/// The folder of the cached kernel.
fn cached() -> PathBuf {
    harness::kernel::kernel_directory(harness::kernel::DEFAULT_VERSION).unwrap()
}

/// Runs a scenario with a copy of the kernel in a folder, beside which lies this file.
fn beside(kernel: &Path, scenario: &str, name: &str, symbols: &[u8]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("bzImage");
    std::fs::copy(kernel.join("bzImage"), &image).unwrap();
    std::fs::write(folder.path().join(name), symbols).unwrap();
    run_text(scenario, &["--kernel", image.to_str().unwrap()])
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Of each generation's kernel: the offset of its symbols, and why they were refused.
fn fits(run: &Finished) -> Vec<(&Value, &str)> {
    let kernels = run.scenario()["kernels"].as_array().unwrap();
    kernels
        .iter()
        .map(|kernel| {
            (
                &kernel["symbol_offset"],
                kernel["symbols_refused"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

/// Symbols of the kernels' instructions that wrote what findings are about.
fn authors(run: &Finished) -> Vec<&str> {
    let findings = run.scenario()["findings"].as_array().unwrap();
    let writers = findings.iter().map(|finding| &finding["last_writer"]);
    let cpus = writers.filter(|writer| writer["who"] == "cpu" && writer["cpl"] == 0);
    cpus.map(|writer| writer["symbol"].as_str().unwrap()).collect()
}

/// A scenario in which kernels write to pages that findings are about.
fn with_authors() -> String {
    std::fs::read_to_string(scenarios().join("unpreserved-target.toml")).unwrap()
}

/// Every kernel instruction that a finding names must be shown with a symbol.
fn assert_named(run: &Finished) {
    let names = authors(run);
    assert!(
        !names.is_empty() && names.iter().all(|name| name.contains("+0x")),
        "{names:?}\n{}",
        run.text
    );
}

/// Each generation's symbol file must be refused, the text must say so, and no finding may have a name from it.
fn assert_refused_aloud(run: &Finished) {
    let fits = fits(run);
    assert!(!fits.is_empty(), "{}", run.text);
    for (offset, refused) in fits {
        assert!(
            offset.is_null() && refused.contains("System.map does not fit"),
            "{}",
            run.text
        );
    }
    assert!(
        run.text.contains("addresses are shown without symbols"),
        "{}",
        run.text
    );
    let names = authors(run);
    assert!(
        !names.is_empty() && names.iter().all(|name| name.starts_with("0x")),
        "{names:?}\n{}",
        run.text
    );
}

/// A System.map in which all functions behind `do_exit` lie 64 bytes higher: that of another build with the same banner
/// at the same address.
fn of_another_build(map: &str) -> String {
    let mut moved = false;
    let line = |line: &str| {
        let (address, rest) = line.split_once(' ').unwrap();
        moved |= rest.ends_with(" do_exit");
        if moved && rest.starts_with(['t', 'T']) {
            let address = u64::from_str_radix(address, 16).unwrap() + 64;
            format!("{address:016x} {rest}\n")
        } else {
            format!("{line}\n")
        }
    };
    map.lines().map(line).collect()
}

#[test]
fn authors_have_names_and_none_from_the_symbols_of_another_kernel() {
    if !ready("symbols") {
        return;
    }
    let scenario = with_authors();
    let map = String::from_utf8(read(&cached().join("System.map"))).unwrap();
    let run = beside(&cached(), &scenario, "System.map", map.as_bytes());
    assert_eq!(
        fits(&run),
        [(&Value::from(0), ""), (&Value::from(0), "")],
        "{}",
        run.text
    );
    assert_named(&run);

    let run = beside(
        &cached(),
        &scenario,
        "System.map",
        of_another_build(&map).as_bytes(),
    );
    assert_refused_aloud(&run);
}

#[test]
fn with_kaslr_authors_have_names_in_each_generation_and_none_from_the_symbols_of_another_kernel() {
    let Some(kernel) = variant("symbols with KASLR", "7.3.4+kaslr") else {
        return;
    };
    let scenario = with_authors();
    let map = String::from_utf8(read(&kernel.join("System.map"))).unwrap();
    let run = beside(&kernel, &scenario, "System.map", map.as_bytes());
    let offsets: Vec<_> = fits(&run).iter().map(|(offset, _)| offset.as_u64()).collect();
    assert!(
        matches!(offsets[..], [Some(old), Some(new)] if old != new),
        "two offsets that differ are expected, not {offsets:?}\n{}",
        run.text
    );
    assert_named(&run);

    // Symbols of another build, at the same addresses, and of another configuration.
    let run = beside(
        &kernel,
        &scenario,
        "System.map",
        of_another_build(&map).as_bytes(),
    );
    assert_refused_aloud(&run);
    let run = beside(
        &kernel,
        &scenario,
        "System.map",
        &read(&cached().join("System.map")),
    );
    assert_refused_aloud(&run);
}

#[test]
fn a_vmlinux_must_have_the_build_id_of_the_kernel_that_runs() {
    if !ready("symbols") {
        return;
    }
    let mut vmlinux = read(&cached().join("vmlinux"));
    let run = beside(&cached(), &small(""), "vmlinux", &vmlinux);
    assert_eq!(
        fits(&run),
        [(&Value::from(0), ""), (&Value::from(0), "")],
        "{}",
        run.text
    );
    let own = run.scenario()["kernels"][0]["build_id"].as_str().unwrap();
    let id: Vec<u8> = (0..own.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&own[at..at + 2], 16).unwrap())
        .collect();
    let at = vmlinux.windows(id.len()).position(|bytes| bytes == id).unwrap();
    vmlinux[at] ^= 1;
    let run = beside(&cached(), &small(""), "vmlinux", &vmlinux);
    for (offset, refused) in fits(&run) {
        assert!(
            offset.is_null() && refused.contains("its build id is"),
            "{}",
            run.text
        );
    }
}
