//! One live update without a host, so that other VMMs can run the same cycle.
//!
//! `baton.standalone baton.memfd=SIZE` on the kernel command line: the first kernel creates a session and a memfd,
//! fills and preserves it, and kexecs into /next/kernel with the same command line plus `baton.second`. The second
//! kernel retrieves the memfd, compares the digest of every page with the pattern's, and finishes the session. Each
//! kernel prints one line: `baton standalone: `, the result, and the time-stamp counter's ticks per step and since
//! reset. Then the machine powers off.

use crate::failure::{Failure, Named};
use crate::luo::Luo;
use crate::memory::Objects;
use crate::sys::Mapping;
use crate::{console, kexec, sys};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use guest_agent::command_line::{Parameters, SECOND};
use guest_agent::pattern::{PAGE_BYTES, Pattern};
use guest_agent::protocol::{ObjectId, Side};

/// Name of the session.
const SESSION: &str = "baton";
/// Token of the memfd in it.
const TOKEN: u64 = 1;
/// The memfd.
const MEMFD: ObjectId = 1;
/// Seed of its pattern.
const SEED: u64 = 1;
/// Pages to digest at a time, as the host does.
const STEP: usize = 8192;
/// Size of the memfd in bytes if the command line does not say.
const DEFAULT_BYTES: u64 = 64 << 20;

/// Does this kernel's half; returns when the machine should power off.
pub fn run(parameters: &Parameters, command_line: &str) {
    let mut steps = Steps::default();
    let outcome = if parameters.second {
        second(&mut steps).map(|pages| format!("ok, {pages} pages intact"))
    } else {
        let bytes = parameters.memfd_bytes.unwrap_or(DEFAULT_BYTES);
        Err(first(&mut steps, bytes, command_line))
    };
    match outcome {
        Ok(text) => report(&text, &steps),
        Err(failure) => report(&format!("failed: {failure}"), &steps),
    }
}

/// Prints one line.
fn report(text: &str, steps: &Steps) {
    console::line(&format!(
        "baton standalone: {text}{}; since reset {}",
        steps.0,
        sys::ticks()
    ));
}

/// The old kernel's half; returns only if something failed.
fn first(steps: &mut Steps, bytes: u64, command_line: &str) -> Failure {
    let mut luo = Luo::default();
    let mut objects = Objects::default();
    let prepared = (|| {
        steps.time("create-session", || luo.create_session(SESSION))?;
        steps.time("create-memfd", || {
            objects.create_memfd(MEMFD, bytes, 0)?;
            objects.fill(MEMFD, 0, objects.page_count(MEMFD)?, SEED)
        })?;
        steps.time("preserve", || {
            luo.preserve(SESSION, Side::Outgoing, objects.memfd(MEMFD)?, TOKEN)
        })?;
        steps.time("load-kexec", || kexec::load(&format!("{command_line} {SECOND}")))
    })();
    if let Err(failure) = prepared {
        return failure;
    }
    report(&format!("{bytes} bytes preserved, kexec follows"), steps);
    kexec::jump()
}

/// The new kernel's half. Returns the number of pages, all of which have their pattern.
fn second(steps: &mut Steps) -> Result<u64, Failure> {
    let mut luo = Luo::default();
    let mut objects = Objects::default();
    steps.time("retrieve-session", || luo.retrieve_session(SESSION))?;
    steps.time("retrieve-memfd", || {
        objects.adopt_memfd(MEMFD, luo.retrieve_fd(SESSION, Side::Incoming, TOKEN)?)
    })?;
    let pages = objects.page_count(MEMFD)?;
    let digests = steps.time("digest", || {
        let mut digests = Vec::new();
        for first in (0..pages).step_by(STEP) {
            digests.extend(objects.digest(MEMFD, first, (pages - first).min(STEP as u64))?);
        }
        Ok(digests)
    })?;
    steps.time("compare", || {
        let pattern = Pattern::new(SEED);
        let scratch = Mapping::locked(PAGE_BYTES as u64).named(|| "mmap(one page)")?;
        for (page, digest) in (0..).zip(digests) {
            scratch.fill_page(0, pattern.window(page), pattern.mark(page));
            let expected = scratch.page_digest(0);
            if digest != expected {
                let detail =
                    format!("page {page} of {pages} has digest {digest:#018x}, not {expected:#018x}");
                return Err(Failure::refused("compare", detail));
            }
        }
        Ok(())
    })?;
    steps.time("finish-session", || luo.finish_session(SESSION, Side::Incoming))?;
    Ok(pages)
}

/// The ticks of each step, as text to append to the line.
#[derive(Default)]
struct Steps(String);

impl Steps {
    /// Runs a step and notes its name and ticks.
    fn time<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let begin = sys::ticks();
        let result = step();
        let ticks = sys::ticks().wrapping_sub(begin);
        // Writing to a String cannot fail.
        let _ = write!(self.0, "; {name} {ticks}");
        result
    }
}
