//! The `baton` command: arguments, exit statuses, and one module per subcommand.

mod blob;
mod boot;
mod campaign;
mod compare;
mod doctor;
mod judge;
mod kernel;
mod matrix;
mod outputs;
mod overrides;
mod pages;
mod place;
mod plan;
mod qemu;
mod resume;
mod run;
mod scenarios;
mod sweep;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use vmm::soft::{Soft, Translation};

/// Exit statuses, from best to worst; a command that runs several scenarios returns the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Every scenario met its expectations.
    Met = 0,
    /// At least one scenario did not meet its expectations, or `blob` found errors or differences.
    Unmet = 1,
    /// Bad usage or a bad scenario; nothing was started.
    Usage = 2,
    /// Something could not be run or judged.
    Failed = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Proves what a Linux live update preserves, from outside the guest.
#[derive(Debug, Parser)]
#[command(name = "baton", version, about, after_help = EXIT_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_HELP: &str = "Exit status: 0 every scenario met its expectations, 1 one did not, 2 bad usage or scenario \
(nothing was started), 3 something could not be run or judged.";

const COMPARE_EXIT_HELP: &str =
    "Exit status: 0 the runs are equal, 1 they differ, 2 bad usage, 3 they cannot be compared.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios and judge what they leave.
    Run(RunArgs),
    /// Continue a run from a snapshot that `run --snapshot` wrote, and report on all of it.
    Resume(ResumeArgs),
    /// Judge evidence that `run --out` kept, without booting anything.
    Judge(JudgeArgs),
    /// Say where two runs part, from evidence that `run --out` kept of both.
    #[command(after_help = COMPARE_EXIT_HELP)]
    Compare(CompareArgs),
    /// Run many cells: scenarios by kernels by variants by seeds.
    Campaign(campaign::CampaignArgs),
    /// Run a scenario with every pair of kernels, and say what each pair keeps, refuses or loses.
    Matrix(matrix::MatrixArgs),
    /// Boot a kernel with its serial console on this terminal, and say how it ended.
    #[command(after_help = boot::EXIT_HELP)]
    Boot(boot::BootArgs),
    /// Boot a kernel as QEMU would, from the options of QEMU that test scripts for kernels use.
    #[command(after_help = qemu::HELP, disable_help_flag = true)]
    Qemu(qemu::QemuArgs),
    /// Show what a scenario does, step by step, without running it. Its kernels need not be built.
    Plan(plan::PlanArgs),
    /// Look at the handover in an image of RAM, or build one.
    Blob(blob::BlobArgs),
    /// Put one kind of fault at every place, and class what becomes of it.
    Sweep(sweep::SweepArgs),
    /// List, build and find guest kernels.
    Kernel(kernel::KernelArgs),
    /// Say what this host offers.
    Doctor,
    /// Print completions for a shell.
    Completions(pages::CompletionsArgs),
    /// Write man pages to a folder.
    #[command(hide = true)]
    Man(pages::ManArgs),
}

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendChoice {
    /// The best that this host offers.
    Auto,
    /// The software processor.
    Soft,
    /// The host's processor, by KVM.
    Kvm,
}

impl From<BackendChoice> for harness::backend::Choice {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Auto => Self::Auto,
            BackendChoice::Soft => Self::Soft,
            BackendChoice::Kvm => Self::Kvm,
        }
    }
}

/// How guest code is executed.
#[derive(Debug, Args)]
struct Execution {
    /// What executes guest code.
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendChoice,
    /// Slow device time by this factor on KVM, from 1 (real time) to 1000; without it, by as much as guest code is slow
    /// on this host.
    #[arg(long, value_name = "FACTOR", value_parser = clap::value_parser!(u32).range(1..=1000))]
    slowdown: Option<u32>,
    #[command(flatten)]
    soft: SoftArgs,
}

/// How softcpu executes guest code.
#[derive(Debug, Clone, Copy, Args)]
struct SoftArgs {
    /// Whether softcpu translates guest code that runs often to host code. Nothing but speed depends on it.
    #[arg(
        long,
        value_enum,
        default_value = "on",
        value_name = "on|off",
        hide_possible_values = true
    )]
    translate: Switch,
}

impl SoftArgs {
    fn translation(self) -> Translation {
        match self.translate {
            Switch::On => Translation::default(),
            Switch::Off => Translation::Off,
        }
    }

    /// The option that says the same.
    fn option(self) -> String {
        let value = match self.translate {
            Switch::On => "on",
            Switch::Off => "off",
        };
        format!("--translate={value}")
    }

    /// The backend. Says so on standard error if the host does not allow what was asked for.
    fn backend(self) -> Soft {
        let translation = self.translation();
        let soft = Soft { translation };
        tell_if_interpreted(soft);
        soft
    }
}

/// Says so if the host does not allow translation that was asked for.
fn tell_if_interpreted(soft: Soft) {
    if soft.translation != Translation::Off
        && let Err(error) = Translation::possible()
    {
        eprintln!("baton: guest code is interpreted, not translated: executable memory: {error}");
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Scenario files, folders of them, or names of scenarios that baton brings, such as memfd-under-dma.
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
    #[command(flatten)]
    execution: Execution,
    #[command(flatten)]
    overrides: overrides::OverrideArgs,
    /// Show the guest's console on standard error, as it comes.
    #[arg(long)]
    console: bool,
    #[command(flatten)]
    reports: outputs::ReportFiles,
    /// Keep the evidence: in DIR for one scenario, in DIR/NAME for several.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write a snapshot to FILE when the run comes to PLACE, and go on. PLACE is the beginning of a phase (armed, or
    /// 1:restore with a generation), entry (the new kernel's first instruction), or a number of instructions. May be
    /// given several times. Only soft can do this, so auto means soft here.
    #[arg(long, value_name = "PLACE=FILE")]
    snapshot: Vec<place::SnapshotArg>,
}

#[derive(Debug, Args)]
struct ResumeArgs {
    /// File that `run --snapshot` wrote.
    file: PathBuf,
    #[command(flatten)]
    reports: outputs::ReportFiles,
    /// Keep the evidence in DIR.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write further snapshots, as `run --snapshot` does.
    #[arg(long, value_name = "PLACE=FILE")]
    snapshot: Vec<place::SnapshotArg>,
    #[command(flatten)]
    soft: SoftArgs,
}

#[derive(Debug, Args)]
struct JudgeArgs {
    /// Directory that `run --out` made.
    directory: PathBuf,
    #[command(flatten)]
    reports: outputs::ReportFiles,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Evidence of the first run: a directory that `run --out` made.
    #[arg(value_name = "DIR")]
    first: PathBuf,
    /// Evidence of the second run.
    #[arg(value_name = "DIR")]
    second: PathBuf,
    /// Write a JSON report; - is standard output, and nothing else is printed there then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Parses the command line, runs its command and returns the exit status. Wrong arguments end the process with status
/// 2.
pub fn main() -> ExitCode {
    if let Some(options) = qemu::called_as_qemu(std::env::args_os()) {
        return qemu::qemu(&options);
    }
    let exit = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Resume(args) => resume::resume(&args),
        Command::Judge(args) => judge::judge(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Campaign(args) => campaign::campaign(&args),
        Command::Matrix(args) => matrix::matrix(&args),
        Command::Boot(args) => return boot::boot(&args),
        Command::Qemu(args) => return qemu::qemu(&args.options),
        Command::Plan(args) => plan::plan(&args),
        Command::Blob(args) => blob::blob(&args),
        Command::Sweep(args) => sweep::sweep(&args),
        Command::Kernel(args) => kernel::kernel(&args),
        Command::Doctor => doctor::doctor(),
        Command::Completions(args) => pages::completions(&args),
        Command::Man(args) => pages::man(&args),
    };
    exit.into()
}

/// Prints an error on standard error, on one line that begins with `baton: error:`.
fn complain(error: impl std::fmt::Display) {
    eprintln!("baton: error: {error}");
}

/// How many processors this host lets this program use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Prints to standard output. A closed pipe is not an error: the reader needs no more.
fn print(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(format!("standard output: {error}"));
            Err(Exit::Failed)
        }
        _ => Ok(()),
    }
}

/// Opens the backend `choice`. With `auto`, standard error says what was chosen and why.
fn backend_of(
    choice: BackendChoice,
    execution: &Execution,
) -> Result<Box<dyn vmm::processors::Backend>, Exit> {
    if execution.slowdown.is_some() && choice == BackendChoice::Soft {
        complain("--slowdown is for KVM: on softcpu device time is counted in instructions");
        return Err(Exit::Usage);
    }
    let translation = execution.soft.translation();
    open_backend(choice, Soft { translation }, execution.slowdown)
}

/// The same, of which `soft` is the software processor.
fn open_backend(
    choice: BackendChoice,
    soft: Soft,
    slowdown: Option<u32>,
) -> Result<Box<dyn vmm::processors::Backend>, Exit> {
    let say = |found: &harness::backend::Found| {
        eprintln!(
            "baton: backend {}: {}",
            found.best_name(),
            crate::report::kvm(found)
        );
    };
    let backend = harness::backend::choose(choice.into(), soft, slowdown, &say).map_err(|error| {
        complain(error);
        Exit::Failed
    })?;
    if backend.name() == Soft::NAME {
        tell_if_interpreted(soft);
    }
    Ok(backend)
}

/// Exit status for a verdict.
fn exit_of(verdict: harness::verdict::Verdict) -> Exit {
    match verdict {
        harness::verdict::Verdict::Pass => Exit::Met,
        harness::verdict::Verdict::Fail => Exit::Unmet,
        harness::verdict::Verdict::Error => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["baton", "run"]).is_err());
        assert!(Cli::try_parse_from(["baton", "boot", "--ram", "64 MEGS"]).is_err());
        assert!(Cli::try_parse_from(["baton", "run", "a.toml", "--seed", "7", "--backend", "soft"]).is_ok());
        assert!(Cli::try_parse_from(["baton", "run", "a.toml", "--progress", "5s"]).is_ok());
        assert!(Cli::try_parse_from(["baton", "run", "a.toml", "--progress", "5"]).is_err());
    }
}
