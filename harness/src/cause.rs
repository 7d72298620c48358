//! Why a run ended as it did, in words, from its evidence.
//!
//! [`cause`] names a cause only if the evidence shows it: the kernel's release, the parameters that it knows and those
//! that it was given, the call that failed, what was handed over, and the kernel's own words. Otherwise it says
//! nothing.

mod handover;

pub(crate) use handover::is_refusal;

use crate::evidence::{AgentFailure, Evidence, KernelEvidence, OutcomeKind};

/// Subsystems whose console lines [`kernel_lines`] keeps: how the word before the first colon begins, in lower case.
/// (kernel/liveupdate/ and kernel/kexec*.c set these prefixes.)
const SUBSYSTEMS: [&str; 5] = ["kho", "luo", "memfd_luo", "liveupdate", "kexec"];
/// First release with Kexec HandOver.
const FIRST_WITH_KHO: (u32, u32) = (6, 16);
/// First release with the Live Update Orchestrator.
const FIRST_WITH_LUO: (u32, u32) = (6, 19);
/// errno of kexec_file_load if no free memory is large enough (kernel/kexec_file.c, `kexec_locate_mem_hole`). With KHO
/// it looks only in scratch.
const EADDRNOTAVAIL: i32 = 99;
/// errno of a system call that the kernel was built without.
const ENOSYS: i32 = 38;

/// The cause of the run's end, in one sentence; `None` if the run was completed or the evidence does not show the
/// cause.
pub fn cause(evidence: &Evidence) -> Option<String> {
    let outcome = &evidence.outcome;
    let kernel = evidence.kernels.get(outcome.generation as usize)?;
    match outcome.kind {
        OutcomeKind::Completed | OutcomeKind::Unfinished => None,
        OutcomeKind::SetupFailed | OutcomeKind::AgentFailed | OutcomeKind::SessionLost => {
            no_pci(evidence, kernel)
                .or_else(|| kexec_load(evidence, kernel))
                .or_else(|| no_live_update(evidence, kernel))
                .or_else(|| handover::not_taken(evidence, kernel))
        }
        _ => handover::above_memory(evidence, kernel),
    }
}

/// The lines of KHO, LUO and kexec on the console, in order.
pub fn kernel_lines(console: &str) -> impl Iterator<Item = &str> {
    console.lines().map(str::trim_end).filter(|line| {
        let (word, rest) = message(line).split_once(':').unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let word = word.to_ascii_lowercase();
        !rest.is_empty()
            && word.chars().all(plain)
            && SUBSYSTEMS.iter().any(|subsystem| word.starts_with(subsystem))
    })
}

/// Whether a line of the kernel's log is of a subsystem of live update.
pub(crate) fn is_of_live_update(line: &str) -> bool {
    kernel_lines(line).next().is_some()
}

/// A line of the kernel's log without its time.
pub(crate) fn message(line: &str) -> &str {
    let after = |rest: &'_ str| -> Option<usize> { rest.find("] ").map(|at| at + 2) };
    match line.strip_prefix('[') {
        Some(rest) => after(rest).map_or(line, |at| &rest[at..]),
        None => line,
    }
}

/// The agent found no way to the host.
fn no_pci(evidence: &Evidence, kernel: &KernelEvidence) -> Option<String> {
    let unreached = kernel.hello.is_none() && evidence.outcome.text.contains("no mailbox");
    if !unreached {
        return None;
    }
    Some(match value(&kernel.command_line, "pci") {
        Some("off") => "pci=off is on the kernel's command line, so the agent cannot be reached".into(),
        _ => format!(
            "Linux {} shows the agent no PCI device of this machine (CONFIG_PCI, CONFIG_SYSFS), so the agent cannot be \
             reached",
            kernel.release()
        ),
    })
}

/// The next kernel could not be loaded.
fn kexec_load(evidence: &Evidence, kernel: &KernelEvidence) -> Option<String> {
    let failure = last_failure(evidence)?;
    if !failure.call.starts_with("kexec_file_load") {
        return None;
    }
    let line = &kernel.command_line;
    match failure.errno {
        EADDRNOTAVAIL => Some(match value(line, "kho_scratch") {
            Some(size) => format!("scratch is too small for this image (kho_scratch={size})"),
            None => "scratch is too small for this image: set its size with kho_scratch=".into(),
        }),
        ENOSYS => Some(format!(
            "Linux {} was built without CONFIG_KEXEC_FILE",
            kernel.release()
        )),
        _ => None,
    }
}

/// The kernel has no /dev/liveupdate.
fn no_live_update(evidence: &Evidence, kernel: &KernelEvidence) -> Option<String> {
    let hello = kernel.hello.as_ref().filter(|hello| !hello.liveupdate)?;
    let (release, line) = (&hello.release, &hello.command_line);
    let version = version(release);
    let lacks = |name: &str| hello.unknown_parameters.iter().any(|unknown| unknown == name);
    let older_than = |first: (u32, u32)| version.is_some_and(|version| version < first);
    let off = |name: &str| matches!(value(line, name), Some("off" | "0" | "n" | "N"));
    if older_than(FIRST_WITH_KHO) {
        return Some(format!(
            "Linux {release} has no Kexec HandOver (6.16 and later, CONFIG_KEXEC_HANDOVER)"
        ));
    }
    if lacks("kho") {
        return Some(format!("Linux {release} was built without CONFIG_KEXEC_HANDOVER"));
    }
    if older_than(FIRST_WITH_LUO) {
        return Some(format!(
            "Linux {release} has no Live Update Orchestrator (6.19 and later, CONFIG_LIVEUPDATE)"
        ));
    }
    if lacks("liveupdate") {
        return Some(format!("Linux {release} was built without CONFIG_LIVEUPDATE"));
    }
    for name in ["kho", "liveupdate"] {
        if off(name) {
            let value = value(line, name).unwrap_or_default();
            return Some(format!("{name}={value} is on the kernel's command line"));
        }
    }
    let scratch = kernel_lines(&evidence.console).filter(|line| {
        let line = message(line).to_ascii_lowercase();
        line.contains("scratch") && line.contains("fail")
    });
    let said = scratch.last()?;
    Some(format!("scratch could not be reserved: {}", message(said)))
}

/// The failure that the run ended with, or the first one of what was lost.
fn last_failure(evidence: &Evidence) -> Option<&AgentFailure> {
    let mut failures = evidence.failures.iter().rev();
    failures.find(|failure| failure.generation == evidence.outcome.generation)
}

/// Value of the last parameter `name` on a command line.
fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace().rev();
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Major and minor version of a release such as `6.18.15` or `7.3.4-1-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
