//! Takes all free memory, so that the kernel uses every page that it believes to be free.

use crate::crew;
use crate::failure::{Failure, Named};
use crate::files;
use crate::sys::Mapping;
use alloc::format;
use alloc::vec::Vec;
use guest_agent::meminfo::{self, Zone};
use guest_agent::pattern::PAGE_BYTES;
use guest_agent::protocol::Reply;
use rustix::io::Errno;

/// Bytes in a page, as a `u64`.
const PAGE: u64 = PAGE_BYTES as u64;
/// Pages left free for the kernel and this program beside the zones' watermarks: so many, and so many per processor,
/// because a processor moves up to 189 pages to its list when it needs one ([`SHORT_LISTS`] has taken effect).
const RESERVE: (u64, u64) = (768, 256);
/// With fewer pages free beside the watermarks nothing more is taken, not even from a processor's list: it may have
/// pages of a kind that a process is not given, and then others are moved to it.
const LEAST: u64 = 512;
/// Most passes over one processor's list.
const PASSES: usize = 16;
/// vm.percpu_pagelist_high_fraction: the share of a zone that its per-CPU lists may have. By default the kernel lets
/// them grow to an eighth of the zone, which would then be out of reach for every other processor.
const SHARE: &str = "/proc/sys/vm/percpu_pagelist_high_fraction";
/// So small a share that the lists are as short as the kernel allows: four times their batch of at most 63 pages
/// (zone_highsize in mm/page_alloc.c).
const SHORT_LISTS: &[u8] = b"1000000";
/// The default.
const GROWING_LISTS: &[u8] = b"0";

/// Memory that was taken.
pub struct Pressure {
    /// As large as the machine's memory; only its first pages exist.
    mapping: Mapping,
    /// How many do.
    taken: u64,
    /// The per-CPU lists have been emptied, or the kernel refused a page.
    ended: bool,
}

impl Pressure {
    /// Takes nothing yet.
    pub fn new() -> Result<Self, Failure> {
        let bytes = files::meminfo()?.total_pages.saturating_mul(PAGE);
        let mapping = Mapping::empty(bytes).named(|| format!("mmap({bytes} bytes)"))?;
        if files::exists(SHARE) {
            files::write(SHARE, SHORT_LISTS)?;
        }
        Ok(Self {
            mapping,
            taken: 0,
            ended: false,
        })
    }

    /// Takes up to `most` pages. At the end it takes what is in the processors' own lists.
    pub fn take(&mut self, most: u64) -> Result<Reply, Failure> {
        let before = self.taken;
        let spare = spare(&zones()?)?;
        if !self.ended && spare > 0 {
            self.populate(spare.min(most))?;
        } else if !self.ended {
            for processor in crew::processors()? {
                self.empty_list(processor)?;
            }
            self.ended = true;
        }
        let zones = zones()?;
        Ok(Reply::Taken {
            now_pages: self.taken - before,
            all_pages: self.taken,
            free_pages: zones.iter().fold(0, |sum, zone| sum.saturating_add(zone.free)),
            per_cpu_pages: meminfo::per_cpu_pages(&zones),
        })
    }

    /// Takes the next pages, divided among the processors so that each uses its own list.
    fn populate(&mut self, pages: u64) -> Result<(), Failure> {
        let end = self.taken.saturating_add(pages).min(self.mapping.bytes() / PAGE);
        let mapping = &self.mapping;
        let parts = crew::share(self.taken..end, |part| {
            populated(mapping.populate(part.start * PAGE, (part.end - part.start) * PAGE))
        })?;
        self.ended |= end == self.taken || parts.contains(&false);
        self.taken = end;
        Ok(())
    }

    /// Takes as many pages as the list of `processor` has. The processor takes them from there first.
    fn empty_list(&mut self, processor: usize) -> Result<(), Failure> {
        let mut before = u64::MAX;
        for _ in 0..PASSES {
            let zones = zones()?;
            let listed = meminfo::pages_of_processor(&zones, processor);
            // What is left is not for processes, or has just been moved there from the free lists.
            if listed >= before {
                break;
            }
            before = listed;
            let end = (self.taken + listed).min(self.mapping.bytes() / PAGE);
            if end == self.taken || meminfo::spare_pages(&zones) < LEAST {
                break;
            }
            let (at, bytes) = (self.taken * PAGE, (end - self.taken) * PAGE);
            let mapping = &self.mapping;
            let all = crew::on(processor, || populated(mapping.populate(at, bytes)))?;
            self.taken = end;
            if !all {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        // What cannot be put back only makes the kernel slower.
        if files::exists(SHARE) {
            let _ = files::write(SHARE, GROWING_LISTS);
        }
    }
}

/// Whether all pages were there to be had.
fn populated(result: rustix::io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NOMEM | Errno::FAULT) => Ok(false),
        Err(error) => Err(error).named(|| "madvise(MADV_POPULATE_WRITE)"),
    }
}

fn zones() -> Result<Vec<Zone>, Failure> {
    Ok(meminfo::zones(&files::read_text("/proc/zoneinfo")?))
}

/// Pages that can be taken with the whole reserve left.
fn spare(zones: &[Zone]) -> Result<u64, Failure> {
    Ok(meminfo::spare_pages(zones).saturating_sub(reserve()?))
}

fn reserve() -> Result<u64, Failure> {
    Ok(RESERVE.0 + RESERVE.1 * crew::processors()?.len() as u64)
}
