//! Provokes complaints of the kernel through LKDTM.

use crate::failure::Failure;
use crate::files;
use crate::sys::child::{Child, Ended};
use alloc::format;
use guest_agent::protocol::Provocation;
use rustix::fs::OFlags;
use rustix::thread::Timespec;

/// The file of LKDTM that takes the name of a crash type.
const DIRECT: &str = "/sys/kernel/debug/provoke-crash/DIRECT";
/// How often the process is looked after.
const NAP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// Lets a process of its own provoke it, and waits for the end of that process, but not for ever. That the kernel kills
/// it is success.
pub fn provoke(what: Provocation) -> Result<(), Failure> {
    let file = files::open(DIRECT, OFlags::WRONLY)?;
    let mut child = Child::writing(&file, what.name())?;
    for _ in 0..naps(what) {
        match child.ended() {
            None => {
                let _ = rustix::thread::nanosleep(&NAP);
            }
            Some(Ended::Wrote | Ended::Killed) => return Ok(()),
            Some(Ended::Refused(errno)) => {
                return Err(Failure::of(format!("write({DIRECT}, {})", what.name()), errno));
            }
        }
    }
    Ok(())
}

/// How many times the process is looked after: a second, or as long as the kernel takes to see that a task hangs
/// (CONFIG_DEFAULT_HUNG_TASK_TIMEOUT=1; it looks once in that time).
fn naps(what: Provocation) -> u32 {
    if what == Provocation::HungTask { 4000 } else { 1000 }
}
