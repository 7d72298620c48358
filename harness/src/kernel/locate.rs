//! Finds built kernels.
//!
//! `images/build` keeps each kernel in a cache directory whose name holds the version and a key of how it was built.
//! Only that script can compute the key, so this module asks it. If it cannot be run, the newest directory of the
//! version is taken.

use super::KernelError;
use crate::embedded;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a kernel's build leaves the bzImage, below the folder that it was built in; a folder of the cache has it at
/// its root.
const IMAGES: [&str; 3] = ["arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage", "bzImage"];

/// The bzImage that `name` stands for.
pub(super) fn locate(name: &str) -> Result<PathBuf, KernelError> {
    if is_version(name) {
        let directory = kernel_directory(name);
        let missing = || KernelError::NotBuilt {
            version: name.into(),
            directory: directory.clone().unwrap_or_else(|| cache_root().join("kernels")),
        };
        let image = directory.as_ref().map(|directory| directory.join("bzImage"));
        let known = known_versions();
        return match image.filter(|image| image.is_file()) {
            Some(image) => Ok(image),
            None if known.iter().any(|version| is_of(version, base(name))) => Err(missing()),
            None => Err(KernelError::Unknown {
                name: name.into(),
                known: known.join(", "),
            }),
        };
    }
    let path = PathBuf::from(name);
    let unreadable = |path: PathBuf, reason: String| KernelError::Unreadable { path, reason };
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => Ok(path),
        Ok(found) if found.is_dir() => {
            let mut images = IMAGES.iter().map(|image| path.join(image));
            images.find(|image| image.is_file()).ok_or_else(|| {
                let reason = format!("a directory without {} and {}", IMAGES[0], IMAGES[2]);
                unreadable(path.clone(), reason)
            })
        }
        Ok(_) => Err(unreadable(path, "not a file".into())),
        Err(_) if !name.contains('/') => Err(KernelError::Unknown {
            name: name.into(),
            known: known_versions().join(", "),
        }),
        Err(error) => Err(unreadable(path, error.to_string())),
    }
}

/// The name of a kernel in a scenario: a relative path is relative to the scenario's file.
pub(crate) fn beside(name: &str, scenario: &Path) -> String {
    if is_version(name) {
        return name.to_owned();
    }
    let folder = scenario.parent().unwrap_or(Path::new(""));
    folder.join(name).to_string_lossy().into_owned()
}

/// Whether a version is `wanted`, or of the series `wanted`.
fn is_of(version: &str, wanted: &str) -> bool {
    version
        .strip_prefix(wanted)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The version in a kernel's name, which is that alone or `VERSION+VARIANT`.
fn base(name: &str) -> &str {
    name.split_once('+').map_or(name, |(version, _)| version)
}

/// Whether `name` has the form of a kernel version: numbers with dots between them, perhaps with a variant.
fn is_version(name: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    let variant = name.split_once('+').is_none_or(|(_, variant)| word(variant));
    variant && name.contains('.') && base(name).split('.').all(number)
}

/// The directory of everything that is kept between runs.
fn cache_root() -> PathBuf {
    let given = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    given("BATON_CACHE").unwrap_or_else(|| {
        let home = || given("HOME").unwrap_or_default().join(".cache");
        given("XDG_CACHE_HOME").unwrap_or_else(home).join("baton")
    })
}

/// The directory of kernel `version` or of the newest of a series, which may not exist yet; `None` if it cannot be
/// determined.
pub fn kernel_directory(version: &str) -> Option<PathBuf> {
    asked(version).or_else(|| newest(version))
}

/// The script that builds kernels: that of the source tree if this program is in it or run from it, or else the one in
/// this program, which is written to the cache.
pub fn build_script() -> std::io::Result<PathBuf> {
    let folder = match images_directory() {
        Some(folder) => folder,
        None => embedded::scripts_in(&cache_root())?,
    };
    Ok(folder.join("build"))
}

/// What it says with `--print-dir`.
fn asked(version: &str) -> Option<PathBuf> {
    let output = Command::new(build_script().ok()?)
        .args(["--print-dir", version])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim_end();
    (output.status.success() && !line.is_empty()).then(|| PathBuf::from(line))
}

/// Versions that have a kernel in this folder, newest first.
fn built_versions(kernels: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(kernels).into_iter().flatten().flatten();
    let version = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (version, _key) = name.rsplit_once('-')?;
        (is_version(version) && entry.path().join("bzImage").is_file()).then(|| version.to_owned())
    };
    let mut versions: Vec<String> = entries.filter_map(version).collect();
    let numbers = |version: &str| {
        base(version)
            .split('.')
            .map(|part| part.parse().unwrap_or(u64::MAX))
            .collect::<Vec<u64>>()
    };
    versions.sort_by_key(|version| std::cmp::Reverse(numbers(version)));
    versions.dedup();
    versions
}

/// The directory in the cache of the version, or of the newest of the series; of several builds the youngest.
fn newest(version: &str) -> Option<PathBuf> {
    let kernels = cache_root().join("kernels");
    let variant = |name: &str| name.split_once('+').map(|(_, variant)| variant.to_owned());
    let wanted = built_versions(&kernels)
        .into_iter()
        .find(|built| is_of(base(built), base(version)) && variant(built) == variant(version))?;
    let prefix = format!("{wanted}-");
    let entries = std::fs::read_dir(kernels).ok()?.flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let built = ours.filter(|entry| entry.path().join("bzImage").is_file());
    built
        .max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())
        .map(|entry| entry.path())
}

/// The `images` folder of the source tree that this program was built in, or is run from.
fn images_directory() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    let mut above = program
        .ancestors()
        .skip(1)
        .chain(here.ancestors())
        .map(|directory| directory.join("images"));
    above.find(|images| images.join("build").is_file() && images.join("kernels.toml").is_file())
}

/// Versions in `images/kernels.toml`.
fn known_versions() -> Vec<String> {
    let text =
        images_directory().and_then(|images| std::fs::read_to_string(images.join("kernels.toml")).ok());
    let text = text.unwrap_or_else(|| embedded::kernel_list().to_owned());
    let table: Option<toml::Table> = text.parse().ok();
    let kernels = table
        .as_ref()
        .and_then(|table| table.get("kernel"))
        .and_then(toml::Value::as_array);
    let version = |kernel: &toml::Value| Some(kernel.get("version")?.as_str()?.to_owned());
    kernels.into_iter().flatten().filter_map(version).collect()
}

/// Versions that are known or built, each with where it is built: those of the list in its order, then others that are
/// built, newest first.
pub fn cached() -> Vec<(String, Option<PathBuf>)> {
    let built =
        |version: &String| kernel_directory(version).filter(|directory| directory.join("bzImage").is_file());
    let mut versions = known_versions();
    for version in built_versions(&cache_root().join("kernels")) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    versions
        .into_iter()
        .map(|version| {
            let at = built(&version);
            (version, at)
        })
        .collect()
}

/// The symbols of a bzImage, System.map or else vmlinux: beside it, or at the root of the kernel tree that it was built
/// in. An installed `vmlinuz-RELEASE` has `System.map-RELEASE` beside it, or a vmlinux where debug packages put it.
pub(super) fn symbol_file(image: &Path) -> Option<PathBuf> {
    // A relative path may not show the tree, and the build leaves links to its image.
    let real = std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned());
    let files = |directory: &Path| ["System.map", "vmlinux"].map(|name| directory.join(name));
    let of = |image: &Path| {
        let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let beside = image.with_file_name(format!("System.map-{release}"));
        let debug = PathBuf::from(format!("/usr/lib/debug/boot/vmlinux-{release}"));
        Some([beside, debug])
    };
    let places = [image.parent(), real.parent(), real.ancestors().nth(4)];
    let installed = of(image).into_iter().chain(of(&real)).flatten();
    let built = places.into_iter().flatten().flat_map(files);
    installed.chain(built).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_kernels_are_found_without_a_list_of_known_ones() {
        let kernels = tempfile::tempdir().unwrap();
        for name in ["6.9.1-aa", "7.3.4-bb", "7.3.4-cc", "6.19.11-dd", "logs", "x-ee"] {
            std::fs::create_dir(kernels.path().join(name)).unwrap();
            std::fs::write(kernels.path().join(name).join("bzImage"), b"").unwrap();
        }
        std::fs::create_dir(kernels.path().join("7.2.1-ff")).unwrap();
        assert_eq!(built_versions(kernels.path()), ["7.3.4", "6.19.11", "6.9.1"]);
        assert!(built_versions(&kernels.path().join("none")).is_empty());
    }

    #[test]
    fn a_vmlinux_stands_in_for_a_system_map() {
        let tree = tempfile::tempdir().unwrap();
        let boot = tree.path().join("arch/x86/boot");
        std::fs::create_dir_all(&boot).unwrap();
        let image = boot.join("bzImage");
        assert_eq!(symbol_file(&image), None);
        for file in [
            tree.path().join("vmlinux"),
            tree.path().join("System.map"),
            boot.join("vmlinux"),
        ] {
            std::fs::write(&file, b"").unwrap();
            assert_eq!(symbol_file(&image), Some(file));
        }
    }

    #[test]
    fn an_installed_kernel_has_its_symbols_beside_it() {
        let boot = tempfile::tempdir().unwrap();
        let image = boot.path().join("vmlinuz-6.1.0-1");
        std::fs::write(&image, b"").unwrap();
        std::fs::write(boot.path().join("System.map-6.1.0-2"), b"").unwrap();
        assert_eq!(symbol_file(&image), None, "another kernel's");
        let map = boot.path().join("System.map-6.1.0-1");
        std::fs::write(&map, b"").unwrap();
        assert_eq!(symbol_file(&image), Some(map.clone()));
        let link = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&image, link.path().join("vmlinuz")).unwrap();
        let found = symbol_file(&link.path().join("vmlinuz")).unwrap();
        assert_eq!(found.canonicalize().unwrap(), map.canonicalize().unwrap());
    }

    #[test]
    fn a_folder_stands_for_the_image_that_was_built_in_it() {
        let tree = tempfile::tempdir().unwrap();
        let name = tree.path().to_str().unwrap();
        let error = locate(name).unwrap_err().to_string();
        assert!(
            error.contains("without arch/x86/boot/bzImage and bzImage"),
            "{error}"
        );
        for image in ["bzImage", "arch/x86/boot/bzImage"] {
            let image = tree.path().join(image);
            std::fs::create_dir_all(image.parent().unwrap()).unwrap();
            std::fs::write(&image, b"").unwrap();
            assert_eq!(locate(name), Ok(image));
        }
    }

    #[test]
    fn a_path_in_a_scenario_is_relative_to_it_and_a_version_is_none() {
        let of = |name| beside(name, Path::new("tests/s.toml"));
        assert_eq!(
            (of("7.3.4"), of("7.3+checks")),
            ("7.3.4".into(), "7.3+checks".into())
        );
        assert_eq!(
            (of("bzImage"), of("../k/bzImage")),
            ("tests/bzImage".into(), "tests/../k/bzImage".into())
        );
        assert_eq!(of("/boot/vmlinuz"), "/boot/vmlinuz");
        assert_eq!(beside("k/bzImage", Path::new("s.toml")), "k/bzImage");
    }

    #[test]
    fn a_version_belongs_to_its_series_alone() {
        assert!(is_of("7.3.4", "7.3") && is_of("7.3.4", "7.3.4") && is_of("7.3", "7.3"));
        assert!(!is_of("7.30.4", "7.3") && !is_of("7.3.4", "7.3.40") && !is_of("7.3.4", "3.4"));
    }

    #[test]
    fn versions_and_paths_are_told_apart() {
        assert!(is_version("7.3.4") && is_version("6.19.11") && is_version("7.3.4+checks"));
        for path in [
            "bzImage",
            "7",
            "7.3.4/bzImage",
            "./7.3.4",
            "7..4",
            "7.3.x",
            "7.3.4+",
            "7.3.4+a/b",
            "+checks",
            "",
        ] {
            assert!(!is_version(path), "{path}");
        }
    }
}
