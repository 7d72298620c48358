//! Puts into the program what it needs away from its source tree: the scripts that build guest kernels, and the agent,
//! if `BATON_EMBED_AGENT` names its program.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// What of `images/` builds a guest kernel.
const SCRIPTS: [&str; 6] = [
    "build",
    "setup",
    "kernel.config",
    "kernels.toml",
    "lib",
    "variants",
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../images");
    let mut files = Vec::new();
    for name in SCRIPTS {
        println!("cargo:rerun-if-changed={}", root.join(name).display());
        add(&root, Path::new(name), &mut files);
    }
    let mut code = String::from("/// Files below images/: path, content, and whether it is a program.\n");
    code += "pub(super) const SCRIPTS: &[(&str, &[u8], bool)] = &[\n";
    for file in files {
        let (path, program) = (
            root.join(&file),
            file.parent() == Some(Path::new("")) && file.extension().is_none(),
        );
        let path = fs::canonicalize(&path).unwrap_or(path);
        let _ = writeln!(
            code,
            "({:?}, include_bytes!({:?}), {program}),",
            file.display().to_string(),
            path
        );
    }
    code += "];\n";
    println!("cargo:rerun-if-env-changed=BATON_EMBED_AGENT");
    let agent = env::var_os("BATON_EMBED_AGENT").map(PathBuf::from);
    let agent = agent.inspect(|path| println!("cargo:rerun-if-changed={}", path.display()));
    let agent = agent.filter(|path| path.is_file());
    let agent = agent.map_or("None".into(), |path| format!("Some(include_bytes!({path:?}))"));
    let _ = writeln!(
        code,
        "/// The agent's program.\npub(super) const AGENT: Option<&[u8]> = {agent};"
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("embedded.rs"), code).expect("OUT_DIR can be written");
}

/// Adds a file, or all files of a folder in order.
fn add(root: &Path, name: &Path, files: &mut Vec<PathBuf>) {
    let path = root.join(name);
    if path.is_dir() {
        let entries = fs::read_dir(&path).expect("a folder can be listed");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("a folder can be listed").file_name())
            .collect();
        names.sort();
        names.iter().for_each(|inner| add(root, &name.join(inner), files));
    } else {
        files.push(name.to_owned());
    }
}
