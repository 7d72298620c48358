//! The benchmark: one live update on baton, and the same on QEMU's TCG, in one run on one machine.
//!
//! | number | from |
//! | --- | --- |
//! | (a) softcpu's speed on a kernel boot, in million instructions per second | the phases of baton's report |
//! | (b) wall time of the whole `memfd-under-dma` cycle: boot, live update, evidence, verdict | the `baton` process |
//! | (c) wall time of the same cycle on `qemu-system-x86_64 -accel tcg`: same kernel, memory, memfd and initramfs | the QEMU process |
//!
//! Both are separate processes, measured from start to exit. They alternate, so that other load affects both alike,
//! and each number is a median. Processor time is shown beside wall time, because other load affects it less.
//!
//! QEMU's share of the work is the smaller one: it has no DMA engine, no ledger, no evidence and no oracle. Instead its
//! guest compares the digests of all pages with the pattern's, which in baton the host does; that time is shown apart.
//!
//! Then come figures of the backends, each beside its peer in the same run: port writes per second on soft and KVM, the
//! time from `baton run` to the first guest instruction, device writes against memcpy, and, with `--kvm-cycle`, a small
//! live update on both, phase by phase. Then come snapshots and branches of the scenario's guest, and
//! last what an injection costs: cases of a sweep of the handover, which branch from one run.
#![forbid(unsafe_code)]

mod backends;
mod bandwidth;
mod baton;
mod child;
mod cycle;
mod exits;
mod fork;
mod host;
mod qemu;
mod report;
mod samples;
mod start;
mod sweep;
mod table;

use backends::{Backends, Settings};
use clap::Parser;
use harness::plan::{Overrides, Plan, plan};
use report::Report;
use samples::Sample;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compares one live update on baton with the same on QEMU's TCG.
#[derive(Debug, Parser)]
struct Arguments {
    /// The baton program.
    #[arg(long, default_value = "target/release/baton")]
    baton: PathBuf,
    /// The QEMU program.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// The scenario, with one memfd and one kexec.
    #[arg(long, default_value = "tests/scenarios/memfd-under-dma.toml")]
    scenario: PathBuf,
    /// Kernel version or bzImage, for both.
    #[arg(long)]
    kernel: Option<String>,
    /// Measured runs of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Also run a small live update on KVM, if there is one. Takes minutes if KVM emulates guest kernels.
    #[arg(long)]
    kvm_cycle: bool,
    /// Measure the backends only, without QEMU.
    #[arg(long)]
    backends_only: bool,
    /// Measure snapshots and branches only, without QEMU.
    #[arg(long, conflicts_with = "backends_only")]
    forks_only: bool,
    /// Measure injections only, without QEMU.
    #[arg(long, conflicts_with_all = ["backends_only", "forks_only"])]
    injections_only: bool,
    /// The scenario whose handover is swept.
    #[arg(long, default_value = "tests/scenarios/sweeps/receiver.toml")]
    receiver: PathBuf,
    /// Measured injections.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    injections: u16,
    /// Write every sample to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.backends_only {
        backends_only(&arguments)
    } else if arguments.forks_only {
        forks_only(&arguments)
    } else if arguments.injections_only {
        injections_only(&arguments)
    } else {
        bench(&arguments)
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: error: {error}");
            ExitCode::from(3)
        }
    }
}

/// Measures the backends only. Returns whether everything requested could be measured.
fn backends_only(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let plan = planned(&arguments.scenario, arguments.kernel.clone())?;
    let work = tempfile::tempdir()?;
    let backends = measured(arguments, &plan, work.path())?;
    print!("{backends}");
    keep(arguments, &(serde_json::to_string_pretty(&backends)? + "\n"))?;
    Ok(backends.cycle_error.is_none())
}

/// Measures snapshots and branches only. Returns whether branches are fast enough.
fn forks_only(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let plan = planned(&arguments.scenario, arguments.kernel.clone())?;
    let work = tempfile::tempdir()?;
    let forks = fork::measure(&plan, &harness::agent::load()?, work.path(), arguments.runs)?;
    print!("{forks}");
    keep(arguments, &(serde_json::to_string_pretty(&forks)? + "\n"))?;
    Ok(forks.is_fast())
}

/// Measures injections only. Returns whether they are fast enough.
fn injections_only(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let injections = injections(arguments, &harness::agent::load()?)?;
    print!("{}", injections.table(None));
    keep(arguments, &(serde_json::to_string_pretty(&injections)? + "\n"))?;
    Ok(injections.is_fast())
}

fn injections(arguments: &Arguments, agent: &[u8]) -> Result<sweep::Injections, Box<dyn Error>> {
    let plan = resolved(&arguments.receiver, arguments.kernel.clone())?;
    Ok(sweep::measure(&plan, agent, arguments.injections.into())?)
}

fn measured(arguments: &Arguments, plan: &Plan, work: &Path) -> Result<Backends, String> {
    backends::measure(&Settings {
        program: &arguments.baton,
        scenario: &arguments.scenario,
        plan,
        work,
        runs: arguments.runs,
        kvm_cycle: arguments.kvm_cycle,
    })
}

fn keep(arguments: &Arguments, json: &str) -> Result<(), String> {
    let Some(path) = &arguments.json else {
        return Ok(());
    };
    std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))
}

/// Measures everything. Returns whether baton stayed within its memory limit, branches and injections are fast enough,
/// and everything could be measured.
fn bench(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let plan = planned(&arguments.scenario, arguments.kernel.clone())?;
    let agent = harness::agent::load()?;
    let work = tempfile::tempdir()?;
    let guest = qemu::Guest::prepare(&arguments.qemu, &plan, &agent, work.path())?;
    let baton = baton::Cycle::prepare(&arguments.baton, arguments, work.path());

    let load_before = host::load_average();
    // Discard the first run of each, which warms the page cache.
    let mut samples: (Vec<Sample>, Vec<Sample>) = Default::default();
    let progress = indicatif::ProgressBar::new(u64::from(arguments.runs) + 1).with_message("runs of each");
    for run in 0..=arguments.runs {
        // Each goes first every other time.
        let (on_baton, on_qemu) = if run % 2 == 0 {
            let first = baton.run()?;
            (first, guest.run()?)
        } else {
            let first = guest.run()?;
            (baton.run()?, first)
        };
        if run > 0 {
            samples.0.push(on_baton);
            samples.1.push(on_qemu);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let backends = measured(arguments, &plan, work.path())?;
    let forks = fork::measure(&plan, &agent, work.path(), arguments.runs)?;
    let report = Report {
        machine: host::machine(),
        load_average: [load_before, host::load_average()],
        qemu_version: guest.version().to_owned(),
        scenario: plan.name.clone(),
        kernel: plan.old_kernel.release.clone(),
        ram_bytes: plan.ram_bytes,
        memfd_bytes: plan.objects.iter().map(|object| object.bytes).sum(),
        baton: samples.0,
        qemu: samples.1,
        backends,
        forks,
        injections: injections(arguments, &agent)?,
    };
    print!("{report}");
    keep(arguments, &report.json()?)?;
    Ok(report.memory_is_bounded()
        && report.forks.is_fast()
        && report.injections.is_fast()
        && report.backends.cycle_error.is_none())
}

/// The scenario with everything resolved, if QEMU can do the same.
fn planned(scenario: &Path, kernel: Option<String>) -> Result<Plan, Box<dyn Error>> {
    let plan = resolved(scenario, kernel)?;
    if plan.kexecs != 1 || plan.objects.len() != 1 || plan.kernel(0).hash != plan.kernel(1).hash {
        return Err(format!(
            "{}: only one memfd and one kexec into the same kernel can be compared; found {} and {}",
            scenario.display(),
            plan.objects.len(),
            plan.kexecs
        )
        .into());
    }
    Ok(plan)
}

/// The scenario with everything resolved.
fn resolved(scenario: &Path, kernel: Option<String>) -> Result<Plan, Box<dyn Error>> {
    let (read, text) = harness::scenario::load(scenario)?;
    let overrides = Overrides {
        kernel,
        ..Overrides::default()
    };
    Ok(plan(&read, &scenario.display().to_string(), &text, &overrides)?)
}
