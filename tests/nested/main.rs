//! The KVM backend on a KVM that behaves like hardware: `make test-kvm-svm`, `make test-kvm-vmx`.
//!
//! ```text
//!  job       what is run: doctor, scenarios, test programs
//!  worker    runs it, item by item, and answers each with a line of JSON
//!  compare   judges the answers: against softcpu's reports, and with the number of tests that must have run
//!  ------ a host with emulated SVM or VMX
//!  host      an emulator with a Debian kernel in it   qemu: SVM with nested paging   bochs: VMX with EPT
//!  archive   the initramfs of that kernel: this program, baton, guest kernels, scenarios, test programs
//!  init      this program as process 1 in there: mounts, modules, and then the worker
//! ```
//!
//! With `--here` the worker runs on this machine's own KVM instead.

mod archive;
mod bochs;
mod compare;
mod host;
mod init;
mod job;
mod qemu;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use compare::{Judge, Round};
use host::{Ended, Host};
use job::Job;

/// Runs the KVM backend on emulated virtualisation hardware and compares it with softcpu.
#[derive(Debug, Parser)]
struct Arguments {
    /// What images/kvm-host fetched; without it, --here.
    #[arg(long, value_name = "DIR", required_unless_present = "here")]
    host: Option<PathBuf>,
    /// Use this machine's own KVM.
    #[arg(long, conflicts_with = "host")]
    here: bool,
    /// The baton to test.
    #[arg(long, value_name = "FILE")]
    baton: PathBuf,
    /// A test program of which all tests are run.
    #[arg(long, value_name = "FILE")]
    guests: PathBuf,
    /// A test program of which the test of runs that are killed on KVM is run.
    #[arg(long, value_name = "FILE")]
    killed: PathBuf,
    /// Run only items whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// How often everything is run.
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    rounds: u32,
}

fn main() -> ExitCode {
    if init::is_wanted() {
        init::main();
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nested: error: {error}");
            ExitCode::from(3)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    let begin = Instant::now();
    let host = arguments.host.as_deref().map(Host::at).transpose()?;
    let mut job = Job::new(arguments)?;
    if let Some(host) = &host {
        job.items.retain(|item| host.runs(&item.name));
    }
    job.items.retain(|item| item.name.contains(&arguments.only));
    if job.items.is_empty() {
        return Err(format!("no item's name contains \"{}\"", arguments.only));
    }
    let judge = Judge::start(&job, &arguments.baton);
    let mut good = true;
    for _ in 0..arguments.rounds {
        let mut round = judge.round(host.as_ref().map_or("here", Host::place));
        match &host {
            Some(host) => {
                for processors in [1, 2] {
                    on_host(host, processors, &job, &mut round)?;
                }
            }
            None => worker::run(&job, &mut |answer| round.answer(answer)),
        }
        good &= round.end();
    }
    println!(
        "{} after {} s",
        if good { "passed" } else { "FAILED" },
        begin.elapsed().as_secs()
    );
    Ok(good)
}

/// Runs the items for this number of processors on a host. One that hangs is booted anew, once, for what is left.
fn on_host(host: &Host, processors: u32, job: &Job, round: &mut Round<'_>) -> Result<(), String> {
    for _ in 0..2 {
        let mut part = job.on(processors);
        part.items.retain(|item| !round.has(&item.name));
        if part.items.is_empty() {
            break;
        }
        if host.run(processors, &part, &mut |line| round.line(line))? == Ended::SwitchedOff {
            break;
        }
    }
    Ok(())
}
