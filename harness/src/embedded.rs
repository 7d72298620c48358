//! What is in the program itself, so that it works away from its source tree: the agent, if the build had it, and the
//! scripts that build guest kernels, with the list of known ones.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

mod files {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// The agent's program, if the build had it.
pub(crate) fn agent() -> Option<&'static [u8]> {
    files::AGENT
}

/// The text of `images/kernels.toml`.
pub(crate) fn kernel_list() -> &'static str {
    let mut scripts = files::SCRIPTS.iter();
    let list = scripts.find(|(name, ..)| *name == "kernels.toml");
    list.and_then(|(_, content, _)| std::str::from_utf8(content).ok())
        .unwrap_or_default()
}

/// Writes the scripts to a folder of their own in `cache`, unless they are there, and returns it. The folder's name
/// holds a digest of them, so programs of several versions do not disturb each other.
pub(crate) fn scripts_in(cache: &Path) -> Result<PathBuf, Error> {
    let mut hash = Xxh3::new();
    for (name, content, _) in files::SCRIPTS {
        hash.update(name.as_bytes());
        hash.update(content);
    }
    let folder = cache.join(format!("scripts-{:016x}", hash.digest()));
    if folder.is_dir() {
        return Ok(folder);
    }
    std::fs::create_dir_all(cache)?;
    let made = tempfile::Builder::new().prefix(".scripts-").tempdir_in(cache)?;
    for (name, content, program) in files::SCRIPTS {
        let path = made.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content)?;
        let mode = if *program { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    std::fs::set_permissions(made.path(), std::fs::Permissions::from_mode(0o755))?;
    match std::fs::rename(made.path(), &folder) {
        // Another program was faster.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
            ) => {}
        result => result?,
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_written_once_and_are_those_of_the_source_tree() {
        let cache = tempfile::tempdir().unwrap();
        let folder = scripts_in(&cache.path().join("new")).unwrap();
        assert_eq!(scripts_in(&cache.path().join("new")).unwrap(), folder);
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
        for name in [
            "build",
            "setup",
            "kernels.toml",
            "kernel.config",
            "lib/fetch.sh",
            "variants/checks.config",
        ] {
            assert_eq!(
                std::fs::read(folder.join(name)).unwrap(),
                std::fs::read(images.join(name)).unwrap(),
                "{name}"
            );
        }
        let mode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("build"), mode("kernels.toml"), mode("lib/fetch.sh")),
            (0o755, 0o644, 0o644)
        );
        assert_eq!(
            std::fs::read_dir(cache.path().join("new")).unwrap().count(),
            1,
            "nothing is left behind"
        );
        assert!(kernel_list().contains("version = \"7.3.4\""));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(scripts_in(&file.path().join("cache")).is_err());
    }
}
