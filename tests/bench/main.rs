//! The benchmark: one live update on baton, and the same on QEMU's TCG, in one run on one machine.
//!
//! | part | what |
//! | --- | --- |
//! | versus | the `memfd-under-dma` cycle, boot to verdict, on baton and on each `qemu-system-x86_64 -accel tcg` |
//! | profile | which parts of baton processor time goes into, by `perf` |
//! | translation | hot loops and a boot, translated and interpreted |
//! | growth | what the next guest processor, GiB of RAM and preserved GiB cost |
//! | backends | port writes, start and device writes on soft and KVM; with `--kvm-cycle` a small live update too |
//! | forks | snapshots and branches of the scenario's guest |
//! | injections | cases of a sweep of the handover, which branch from one run |
//!
//! QEMU has the same kernel, memory, memfd and initramfs.
//! Baton and QEMU are processes of their own, measured from start to exit. They take turns, so that other load affects
//! all alike, and each number is a median. Processor time is shown beside wall time: other load affects it less.
//!
//! QEMU's share of the work is the smaller one: it has no DMA engine, no ledger, no evidence and no oracle. Instead its
//! guest compares the digests of all pages with the pattern's, which in baton the host does; that time is shown apart.
#![forbid(unsafe_code)]

mod arguments;
mod backends;
mod bandwidth;
mod baton;
mod child;
mod cycle;
mod exits;
mod fork;
mod growth;
mod host;
mod phases;
mod profile;
mod qemu;
mod report;
mod samples;
mod start;
mod sweep;
mod table;
mod translation;
mod versus;

use arguments::{Arguments, Part};
use baton::Cycle;
use clap::Parser;
use harness::plan::{Overrides, Plan, plan};
use report::Report;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match bench(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: error: {error}");
            ExitCode::from(3)
        }
    }
}

/// Measures what is requested. Returns whether it is as good as it must be, see [`Report::is_good`].
fn bench(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let agent = harness::agent::load()?;
    let folder = tempfile::tempdir()?;
    let work = folder.path();
    let mut report = Report {
        machine: host::machine(),
        load_average: [host::load_average(); 2],
        ..Report::default()
    };
    if arguments.wants(Part::Versus) {
        compare(arguments, &agent, work, &mut report)?;
    }
    if arguments.wants(Part::Profile) {
        profile(arguments, work, &mut report)?;
    }
    let kernel = arguments.first_kernel();
    if arguments.wants(Part::Translation) {
        let [lean, hashing] = [kernel, arguments.last_kernel()].map(|it| planned(&arguments.scenario, it));
        report.translation = Some(translation::measure(&lean?, &hashing?, &agent, arguments.runs)?);
    }
    if arguments.wants(Part::Growth) {
        let bar = progress(growth::count(), "sizes");
        let tell = |row: &growth::Row| step(&bar, &row.to_string());
        let measured = growth::measure(&arguments.baton, kernel, work, arguments.runs, &tell);
        report.growth = Some(measured?);
        bar.finish_and_clear();
    }
    if arguments.wants(Part::Backends) {
        report.backends = Some(backends::measure(&backends::Settings {
            program: &arguments.baton,
            scenario: &arguments.scenario,
            plan: &planned(&arguments.scenario, kernel)?,
            work,
            runs: arguments.runs,
            kvm_cycle: arguments.kvm_cycle,
        })?);
    }
    if arguments.wants(Part::Forks) {
        let plan = planned(&arguments.scenario, kernel)?;
        report.forks = Some(fork::measure(&plan, &agent, work, arguments.runs)?);
    }
    if arguments.wants(Part::Injections) {
        let plan = resolved(&arguments.receiver, kernel)?;
        report.injections = Some(sweep::measure(&plan, &agent, arguments.injections.into())?);
    }
    report.load_average[1] = host::load_average();
    print!("{report}");
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report.is_good())
}

/// The cycle of each kernel on baton and on each QEMU.
fn compare(
    arguments: &Arguments,
    agent: &[u8],
    work: &Path,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let qemus: Result<Vec<_>, _> = arguments
        .qemu
        .iter()
        .map(|program| qemu::Qemu::find(program))
        .collect();
    let qemus = qemus?;
    let turns = (u64::from(arguments.runs) + 1) * arguments.kernel.len() as u64;
    let bar = progress(turns, "turns");
    for kernel in &arguments.kernel {
        let plan = planned(&arguments.scenario, Some(kernel))?;
        let baton = Cycle::prepare(&arguments.baton, &arguments.scenario, Some(kernel), work);
        let turn = |said: &str| step(&bar, &format!("{kernel}: {said}"));
        report.versus.push(versus::measure(
            &plan,
            &baton,
            &qemus,
            agent,
            work,
            arguments.runs,
            &turn,
        )?);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Where the processor time of each kernel's cycle goes.
fn profile(arguments: &Arguments, work: &Path, report: &mut Report) -> Result<(), String> {
    for kernel in &arguments.kernel {
        let cycle = Cycle::prepare(&arguments.baton, &arguments.scenario, Some(kernel), work);
        match profile::measure(kernel, &cycle, work)? {
            Some(profile) => report.profiles.push(profile),
            None => {
                eprintln!("bench: no profile: there is no perf on this host");
                break;
            }
        }
    }
    Ok(())
}

/// Goes a step ahead and tells what was measured, so that a benchmark that is interrupted was not in vain.
fn step(bar: &indicatif::ProgressBar, said: &str) {
    bar.suspend(|| eprintln!("bench: {said}"));
    bar.inc(1);
}

fn progress(steps: u64, what: &'static str) -> indicatif::ProgressBar {
    indicatif::ProgressBar::new(steps).with_message(what)
}

/// The scenario with everything resolved, if QEMU can do the same.
fn planned(scenario: &Path, kernel: Option<&str>) -> Result<Plan, Box<dyn Error>> {
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
fn resolved(scenario: &Path, kernel: Option<&str>) -> Result<Plan, Box<dyn Error>> {
    let (read, text) = harness::scenario::load(scenario)?;
    let overrides = Overrides {
        kernel: kernel.map(str::to_owned),
        ..Overrides::default()
    };
    Ok(plan(&read, &scenario.display().to_string(), &text, &overrides)?)
}
