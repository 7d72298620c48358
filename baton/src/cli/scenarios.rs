//! The scenarios that a command line names: files, folders of files, and names of scenarios that baton brings.

use harness::scenario::{Scenario, load, parse};
use std::path::{Path, PathBuf};

/// The scenarios that baton brings, by name: those of tests/scenarios.
const SHIPPED: [(&str, &str); 5] = [
    (
        "bus-master-honoured",
        include_str!("../../../tests/scenarios/bus-master-honoured.toml"),
    ),
    (
        "chain-of-three",
        include_str!("../../../tests/scenarios/chain-of-three.toml"),
    ),
    (
        "memfd-under-dma",
        include_str!("../../../tests/scenarios/memfd-under-dma.toml"),
    ),
    (
        "receiver-kho-off",
        include_str!("../../../tests/scenarios/receiver-kho-off.toml"),
    ),
    (
        "unpreserved-target",
        include_str!("../../../tests/scenarios/unpreserved-target.toml"),
    ),
];

/// Replaces each folder by the scenario files in it, in alphabetical order.
pub(super) fn expand(given: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut all = Vec::new();
    for path in given {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let unreadable = |error: std::io::Error| format!("{}: cannot be read: {error}", path.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            if file.extension().is_some_and(|extension| extension == "toml") && file.is_file() {
                files.push(file);
            }
        }
        if files.is_empty() {
            return Err(format!(
                "{}: a folder without scenario files (*.toml)",
                path.display()
            ));
        }
        files.sort();
        all.extend(files);
    }
    Ok(all)
}

/// Reads a scenario and its text: a file, or one that baton brings.
pub(super) fn read(path: &Path) -> Result<(Scenario, String), String> {
    let name = path.display().to_string();
    if path.exists() {
        if let Some(what) = no_scenario(path) {
            return Err(format!("{name}: {what}, not a scenario; give it with --kernel"));
        }
        return load(path).map_err(|error| error.to_string());
    }
    if let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
        let scenario = parse(&name, text).map_err(|error| error.to_string())?;
        return Ok((scenario, (*text).to_owned()));
    }
    if name.contains(['/', '.']) {
        return load(path).map_err(|error| error.to_string());
    }
    let names = SHIPPED.map(|(name, _)| name).join(", ");
    Err(format!(
        "{name}: neither a file nor a scenario that baton brings ({names})"
    ))
}

/// What the file is, if it is a kernel.
fn no_scenario(path: &Path) -> Option<&'static str> {
    use std::io::Read;
    let mut begin = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(0x206)
        .read_to_end(&mut begin)
        .ok()?;
    if begin.starts_with(b"\x7fELF") {
        return Some("an ELF file");
    }
    (begin.get(0x202..0x206) == Some(b"HdrS")).then_some("a kernel")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios")
    }

    #[test]
    fn each_scenario_at_the_top_is_brought_and_its_name_is_its_file_s() {
        let files = expand(&[shipped_folder()]).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|file| file.file_stem().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, SHIPPED.map(|(name, _)| name));
        for name in names {
            let (scenario, _) = read(Path::new(name)).unwrap();
            assert_eq!(scenario.name.get_ref(), name);
        }
    }

    #[test]
    fn what_is_no_scenario_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = expand(&[folder.path().to_owned()]).unwrap_err();
        assert!(error.contains("without scenario files"), "{error}");
        let said = |path: &Path| read(path).unwrap_err();
        let mut kernel = vec![0; 0x300];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        for (content, expected) in [
            (kernel, "a kernel, not a scenario"),
            (b"\x7fELF".to_vec(), "an ELF file"),
        ] {
            let file = folder.path().join("x");
            std::fs::write(&file, content).unwrap();
            assert!(said(&file).contains(expected), "{}", said(&file));
        }
        assert!(said(Path::new("no-such")).contains("memfd-under-dma"));
        assert!(said(Path::new("no/such.toml")).contains("cannot be read"));
    }
}
