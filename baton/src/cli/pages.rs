//! Man pages and shell completions, made from the command line's own description.

use super::{Cli, Exit, complain};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Error;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Folder of the pages: baton.1, and one for each command.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions for a shell.
pub(super) fn completions(args: &CompletionsArgs) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "baton", &mut text);
    super::print(&String::from_utf8_lossy(&text)).map_or_else(|failed| failed, |()| Exit::Met)
}

/// Writes the man pages.
pub(super) fn man(args: &ManArgs) -> Exit {
    match write_pages(&args.folder) {
        Ok(()) => Exit::Met,
        Err(error) => {
            complain(format!("{}: cannot be written: {error}", args.folder.display()));
            Exit::Failed
        }
    }
}

fn write_pages(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_and_hidden_ones_have_none() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(folder.path()).unwrap();
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let page = folder.path().join(format!("baton-{}.1", command.get_name()));
            assert!(page.is_file(), "{}", page.display());
        }
        let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(page("baton-boot.1").contains("9 an instruction that softcpu does not know"));
        assert!(page("baton-boot.1").contains("next\\-kernel"));
        assert!(page("baton.1").contains("baton\\-run(1)"));
        assert!(!folder.path().join("baton-campaign-worker.1").exists());
    }

    #[test]
    fn each_shell_is_told_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "baton", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.contains("next-kernel") && text.contains("compare"),
                "{shell}"
            );
        }
    }
}
