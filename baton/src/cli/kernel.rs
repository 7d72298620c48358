//! `baton kernel`: guest kernels in the cache.

use super::{Exit, complain, print};
use clap::{Args, Subcommand};
use harness::kernel::{KernelImage, build_script, cached};
use std::process::Command;

#[derive(Debug, Args)]
pub(super) struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    /// List the versions that are known or built.
    List {
        /// Ask the archive too: the newest version of each series there.
        #[arg(long)]
        archive: bool,
    },
    /// Build kernels from the distribution's source, unless they are built; print their folders.
    Build {
        /// A version such as 7.3.4, a series such as 7.3, or either with a variant such as 7.3.4+checks.
        #[arg(required = true, value_name = "VERSION")]
        versions: Vec<String>,
    },
    /// Print the path of a kernel's bzImage.
    Path {
        /// A version or series that is built, or a folder that a kernel was built in.
        #[arg(value_name = "VERSION|PATH")]
        kernel: String,
    },
}

/// Carries out the command.
pub(super) fn kernel(args: &KernelArgs) -> Exit {
    let done = match &args.command {
        KernelCommand::List { archive: false } => list(),
        KernelCommand::List { archive: true } => script(&["--list"]),
        KernelCommand::Build { versions } => versions.iter().try_for_each(|version| script(&["--", version])),
        KernelCommand::Path { kernel } => path(kernel),
    };
    done.map_or_else(|failed| failed, |()| Exit::Met)
}

fn list() -> Result<(), Exit> {
    let line = |(version, folder): (String, Option<std::path::PathBuf>)| match folder {
        Some(folder) => format!("{version:<14} {}\n", folder.display()),
        None => format!("{version:<14} not built\n"),
    };
    print(&cached().into_iter().map(line).collect::<String>())
}

fn path(name: &str) -> Result<(), Exit> {
    let kernel = KernelImage::resolve(name).map_err(|error| {
        complain(error);
        Exit::Failed
    })?;
    print(&kernel.path.display().to_string())
}

/// Runs the script that builds kernels, with its output on this program's.
fn script(arguments: &[&str]) -> Result<(), Exit> {
    let failed = |error: std::io::Error| {
        complain(format!("the script that builds kernels: {error}"));
        Exit::Failed
    };
    let script = build_script().map_err(failed)?;
    let status = Command::new(script).args(arguments).status().map_err(failed)?;
    match status.code() {
        Some(0) => Ok(()),
        // The script has said why.
        Some(2) => Err(Exit::Usage),
        _ => Err(Exit::Failed),
    }
}
