//! `baton boot`: boots a kernel with its serial console on this terminal, and says how it ended.

pub(super) mod machine;
mod status;
pub(super) mod terminal;

pub(super) use status::status;

use super::outputs::Outputs;
use super::{Execution, Exit, backend_of, complain};
use crate::report::{BootFacts, BootReport, write_json};
use clap::Args;
use harness::boot::{Ended, Limits, drive};
use harness::conductor::chain;
use harness::scenario::{Bytes, Span};
use machine::{Booted, Guest};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use terminal::{Keys, RawTerminal, Screen};
use vmm::machine::{MAX_VCPUS, Machine};
use vmm::processors::Backend;

/// Silence after which a guest counts as hung once standard input has ended.
const PATIENCE: Span = Span(60_000_000_000);

pub(super) const EXIT_HELP: &str = "Exit status: 0 the guest switched the machine off, or it was ended by Ctrl-A x; \
2 bad usage (nothing was started), 3 the machine could not be run, 4 reset, 5 panic, 6 hang, 7 timeout, \
8 triple fault, 9 an instruction that softcpu does not know.";

#[derive(Debug, Args)]
pub(super) struct BootArgs {
    /// The kernel: a version, a series such as 7.3, the path of a bzImage, or that of a folder that one was built in.
    #[arg(long, value_name = "VERSION|PATH", default_value = harness::kernel::DEFAULT_VERSION)]
    kernel: String,
    /// A kernel that the guest finds at /next/kernel, to kexec into it; without --initramfs it is the same kernel
    /// again.
    #[arg(long, value_name = "VERSION|PATH")]
    next_kernel: Option<String>,
    /// An initramfs of your own; without it a small shell is /init.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Added to the kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    append: String,
    #[command(flatten)]
    execution: Execution,
    /// Guest RAM.
    #[arg(long, value_name = "SIZE", default_value = "512 MiB")]
    ram: Bytes,
    /// Virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u8,
    /// Seed of every random choice.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Guest time, such as 30s, after which the run ends.
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// Time of this host after which the run ends. On soft, whether it does is the only thing that depends on the host.
    #[arg(long, value_name = "TIME")]
    host_timeout: Option<Span>,
    /// Guest time without console output after which the guest counts as hung; without it 60s once standard input has
    /// ended, and no limit before.
    #[arg(long, value_name = "TIME")]
    progress: Option<Span>,
    /// Write a JSON report; - is standard output, and the console goes to standard error then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep console.txt and boot.json in DIR.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the console to FILE too, as it comes.
    #[arg(long, value_name = "FILE")]
    serial: Option<PathBuf>,
}

/// Boots a kernel with its console on this terminal.
pub(super) fn boot(args: &BootArgs) -> ExitCode {
    match try_boot(args) {
        Ok(status) => ExitCode::from(status),
        Err(failed) => failed.into(),
    }
}

fn try_boot(args: &BootArgs) -> Result<u8, Exit> {
    let usage = |error: String| {
        complain(error);
        Exit::Usage
    };
    let guest = Guest {
        kernel: args.kernel.clone(),
        next_kernel: args.next_kernel.clone(),
        initramfs: args.initramfs.clone(),
        shell: args.initramfs.is_none(),
        command_line: machine::usual_command_line(args.initramfs.is_none(), &args.append),
        ram_bytes: args.ram.0,
        vcpus: args.vcpus,
        seed: args.seed,
    };
    let outputs = Outputs {
        reports: args.json.as_deref().into_iter().collect(),
        out: args.out.as_deref(),
        snapshots: args.serial.as_deref().into_iter().collect(),
    };
    outputs.check().map_err(usage)?;
    let booted = Booted::read(&guest).map_err(usage)?;
    let backend = backend_of(args.execution.backend, &args.execution)?;
    let written = Outputs {
        // A file of the console is written as it comes, like a report.
        reports: outputs
            .reports
            .iter()
            .chain(&outputs.snapshots)
            .copied()
            .collect(),
        out: outputs.out,
        snapshots: Vec::new(),
    };
    written.confine([])?;
    let mut machine = booted.power_on(backend.as_ref()).map_err(|error| {
        complain(error);
        Exit::Failed
    })?;
    let screen = match args.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => Screen::Error,
        _ => Screen::Output,
    };
    let mut terminal =
        terminal::Terminal::new(screen, args.serial.as_deref(), Keys::of_standard_input()).map_err(usage)?;
    eprintln!(
        "baton: {} from {}; Ctrl-A x ends it",
        booted.kernel.release,
        booted.kernel.path.display()
    );
    let limits = Limits {
        guest_ns: args.timeout.map(|time| time.0),
        silence_ns: args.progress.map(|time| time.0),
        silence_after_input_ns: Some(args.progress.unwrap_or(PATIENCE).0),
        host: args.host_timeout.map(|time| Duration::from_nanos(time.0)),
    };
    let raw = RawTerminal::enter();
    let ended = drive(&mut machine, &limits, &mut terminal, backend.is_repeatable());
    drop(raw);
    eprintln!("\nbaton: {ended}");
    let status = status(ended.end);
    let mut written = terminal.finish();
    if args.json.is_some() || args.out.is_some() {
        let report = report(&guest, &booted, backend.as_ref(), &ended, &mut machine)?;
        let kept = args.out.as_ref().map(|out| out.join("boot.json"));
        for file in args.json.iter().chain(&kept) {
            written = written.and(write_json(&report, file).map_err(|error| named(file, &error)));
        }
    }
    if let Some(file) = args.out.as_ref().map(|out| out.join("console.txt")) {
        let text = machine.console().text();
        written = written.and(std::fs::write(&file, text).map_err(|error| named(&file, &error)));
    }
    written.map_err(|error| {
        complain(error);
        Exit::Failed
    })?;
    Ok(status)
}

fn report(
    guest: &Guest,
    booted: &Booted,
    backend: &dyn Backend,
    ended: &Ended,
    machine: &mut Machine,
) -> Result<BootReport, Exit> {
    let facts = BootFacts {
        backend: backend.name(),
        seed: guest.seed,
        ram_bytes: guest.ram_bytes,
        vcpus: guest.vcpus,
        command_line: &guest.command_line,
        kernel: &booted.kernel,
        // A guest with an initramfs of its own may have loaded another one.
        next_kernel: booted.next_kernel.as_ref().filter(|_| guest.shell),
    };
    let hash = backend.is_repeatable().then(|| machine.state_hash()).transpose();
    let hash = hash.map_err(|error| {
        complain(chain(&error));
        Exit::Failed
    })?;
    let printed = machine.console().total();
    Ok(BootReport::new(&facts, ended, status(ended.end), printed, hash))
}

fn named(file: &Path, error: &std::io::Error) -> String {
    format!("{}: cannot be written: {error}", file.display())
}
