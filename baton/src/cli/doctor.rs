//! `baton doctor`: what this host offers.

use super::Exit;
use harness::backend::Found;
use harness::conductor::chain;
use harness::scenario::Bytes;
use vmm::confine::{ConfineError, Confinement, TCP_SINCE, offered};

/// Available memory below which a run of the default size may fail, in bytes.
const WANTED_MEMORY: u64 = 768 << 20;

/// Prints backends, kernels, agent, memory and processors. `Failed` if the default kernel or the agent is missing.
pub(super) fn doctor() -> Exit {
    let mut usable = true;
    let found = Found::look();
    match vmm::soft::Translation::possible() {
        Ok(()) => println!("backend soft: available, translates guest code to host code"),
        Err(error) => println!("backend soft: available, interprets guest code: executable memory: {error}"),
    }
    println!(
        "backend kvm:  {}; using {} for --backend auto",
        crate::report::kvm(&found),
        found.best_name()
    );
    println!("{}", confinement(offered()));
    let built: Vec<_> = harness::kernel::cached();
    let default = harness::kernel::DEFAULT_VERSION;
    for (version, directory) in &built {
        match directory {
            Some(directory) => println!("kernel {version}: built, in {}", directory.display()),
            None => println!("kernel {version}: not built (baton kernel build {version})"),
        }
    }
    if harness::kernel::KernelImage::resolve(default).is_err() {
        println!("kernel {default}, the default one, is missing: run `baton kernel build {default}`");
        usable = false;
    }
    match (harness::agent::load(), harness::agent::locate()) {
        (Ok(agent), Some(source)) => println!("agent: {} bytes, {source}", agent.len()),
        (Ok(agent), None) => println!("agent: {} bytes", agent.len()),
        (Err(error), _) => {
            println!("agent: {error}");
            usable = false;
        }
    }
    match available_memory() {
        Some(bytes) if bytes < WANTED_MEMORY => {
            println!(
                "memory: {} available, {} wanted",
                Bytes(bytes),
                Bytes(WANTED_MEMORY)
            );
        }
        Some(bytes) => println!("memory: {} available", Bytes(bytes)),
        None => println!("memory: unknown, /proc/meminfo cannot be read"),
    }
    println!(
        "processors: {}",
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    if usable { Exit::Met } else { Exit::Failed }
}

/// One line on what keeps a guest that breaks out of baton from this host's files.
fn confinement(found: Result<Confinement, ConfineError>) -> String {
    let lacking = "a guest that breaks out of baton reaches whatever baton's user may reach";
    match found {
        Ok(Confinement::Confines { abi }) => {
            let tcp = if abi >= TCP_SINCE {
                ""
            } else {
                " (TCP not: that takes Linux 6.7)"
            };
            format!("landlock: ABI {abi}, confines baton to its outputs while guests run{tcp}")
        }
        Ok(Confinement::SwitchedOff) => {
            format!("landlock: in this kernel, and switched off (boot it with lsm=landlock,...): {lacking}")
        }
        Ok(Confinement::Missing) => format!("landlock: not in this kernel (Linux 5.13 has it): {lacking}"),
        Err(error) => format!("landlock: {}: no guest can be run", chain(&error)),
    }
}

/// MemAvailable of /proc/meminfo, in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_landlock_is_told_with_what_it_means() {
        let old = confinement(Ok(Confinement::Confines { abi: TCP_SINCE - 1 }));
        let new = confinement(Ok(Confinement::Confines { abi: TCP_SINCE }));
        assert!(
            old.contains("ABI 3, confines") && old.contains("TCP not"),
            "{old}"
        );
        assert!(new.contains("ABI 4, confines") && !new.contains("TCP"), "{new}");
        let off = confinement(Ok(Confinement::SwitchedOff));
        let missing = confinement(Ok(Confinement::Missing));
        assert!(off.contains("lsm=landlock"), "{off}");
        assert!(missing.contains("not in this kernel"), "{missing}");
        for without in [off, missing] {
            assert!(
                !without.contains("confines") && without.contains("may reach"),
                "{without}"
            );
        }
    }
}
