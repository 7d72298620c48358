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

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use clap::Parser;

use compare::{Judge, Round};
use host::Host;
use job::Job;

/// Most hosts at the same time: each has 3 GiB of memory, and more would end no sooner than the longest items.
const MOST_HOSTS: usize = 2;

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
    /// Of the tiny guests' tests, run the one of this name alone.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
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
        job.slowdown = host.slowdown();
        job.patience *= host.slower();
        if host.slower() > 1 {
            job = job.test_by_test()?;
        }
    }
    job.items.retain(|item| item.name.contains(&arguments.only));
    if let Some(host) = &host {
        job.items.retain(|item| host.runs(item));
    }
    if job.items.is_empty() {
        return Err(format!("no item's name contains \"{}\"", arguments.only));
    }
    let judge = Judge::start(&job);
    let mut good = true;
    for _ in 0..arguments.rounds {
        let mut round = judge.round(host.as_ref().map_or("here", Host::place));
        match &host {
            Some(host) => {
                for processors in [1, 2] {
                    on_hosts(host, processors, &job, &mut round)?;
                }
            }
            None => {
                let mut places = 0..job.items.len();
                worker::run(&job, &mut || places.next(), &mut |answer| round.answer(answer));
            }
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

/// Runs the items for this number of processors on hosts. What has no answer then, because a host hung or ended, is
/// run on another, once.
fn on_hosts(host: &Host, processors: u32, job: &Job, round: &mut Round<'_>) -> Result<(), String> {
    for most in [MOST_HOSTS, 1] {
        let mut part = job.on(processors);
        part.items.retain(|item| !round.has(&item.name));
        if part.items.is_empty() {
            break;
        }
        let room = thread::available_parallelism().map_or(1, NonZero::get);
        let hosts = (room / processors as usize).min(part.items.len()).clamp(1, most);
        side_by_side(host, hosts, processors, &part, round)?;
    }
    Ok(())
}

/// Runs the items on this number of hosts at the same time, each of which takes the next one when it is done with one.
fn side_by_side(
    host: &Host,
    hosts: usize,
    processors: u32,
    job: &Job,
    round: &mut Round<'_>,
) -> Result<(), String> {
    let places = Mutex::new(0..job.items.len());
    let initramfs = host.initramfs(job)?;
    let initramfs = initramfs.as_slice();
    thread::scope(|scope| {
        let (lines, received) = channel();
        let running: Vec<_> = (0..hosts)
            .map(|_| {
                let lines = lines.clone();
                // Nobody receives any more if the round has failed.
                let mut each = move |line: &str| drop(lines.send(line.to_owned()));
                let mut next = || places.lock().unwrap_or_else(PoisonError::into_inner).next();
                scope.spawn(move || host.run(processors, initramfs, &mut next, &mut each))
            })
            .collect();
        drop(lines);
        received.iter().for_each(|line| round.line(&line));
        for host in running {
            host.join().map_err(|_| "a host's thread panicked")??;
        }
        Ok(())
    })
}
