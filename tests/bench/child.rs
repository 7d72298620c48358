//! Runs a process from start to exit, and measures it.

use crate::samples::Sample;
use std::process::Command;
use std::time::{Duration, Instant};
use wait4::Wait4;

/// A cycle takes seconds, or minutes if kernels check themselves; one that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(900);
/// Interval of polling for the exit. On average it adds half of itself to wall time, for baton and QEMU alike.
const POLL: Duration = Duration::from_millis(2);

/// Runs a command that must succeed, and soon.
pub fn run(command: &mut Command) -> Result<Sample, String> {
    run_for(command, PATIENCE)
}

/// Runs a command that must succeed, and within `patience`.
pub fn run_for(command: &mut Command, patience: Duration) -> Result<Sample, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let begin = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    let used = loop {
        match child.try_wait4().map_err(|error| format!("{name}: {error}"))? {
            Some(used) => break used,
            None if begin.elapsed() > patience => {
                // The process may just have exited. Then there is nothing to kill, and the result is the same error.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{name}: not done after {} s", patience.as_secs()));
            }
            None => std::thread::sleep(POLL),
        }
    };
    let wall = begin.elapsed();
    if !used.status.success() {
        return Err(format!("{name}: {}", used.status));
    }
    Ok(Sample {
        wall_s: wall.as_secs_f64(),
        cpu_s: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
        peak_rss_bytes: used.rusage.maxrss,
        ..Sample::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_time_and_memory() {
        let sample = run(Command::new("sleep").arg("0.05")).unwrap();
        assert!(
            sample.wall_s >= 0.05 && sample.peak_rss_bytes > 4096,
            "{sample:?}"
        );
    }

    #[test]
    fn patience_ends() {
        let error = run_for(Command::new("sleep").arg("60"), Duration::from_millis(20)).unwrap_err();
        assert!(error.contains("not done after"), "{error}");
    }

    #[test]
    fn failure_and_absence_are_errors() {
        assert!(
            run(&mut Command::new("false"))
                .unwrap_err()
                .starts_with("false: exit status: 1")
        );
        assert!(
            run(&mut Command::new("/nonexistent/program"))
                .unwrap_err()
                .starts_with("/nonexistent/program: ")
        );
    }
}
