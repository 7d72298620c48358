//! Divides work on pages among all processors of the guest.

use crate::failure::{Failure, Named};
use alloc::vec::Vec;
use core::ops::Range;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Below this number of pages, starting threads costs more than it saves.
const WORTHWHILE_PAGES: u64 = 64;

/// The processors that this process may run on, which are the online ones.
pub fn processors() -> Result<Vec<usize>, Failure> {
    let allowed = sched_getaffinity(None).named(|| "sched_getaffinity")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

/// A run of pages for one processor, and the result of its work.
struct Share<R> {
    pages: Range<u64>,
    processor: usize,
    result: Option<Result<R, Failure>>,
}

/// Calls `work` on the `pages`: all of them on this thread if they are few, otherwise in parts, each on a thread that
/// is bound to a processor. Returns the results of the parts in order.
pub fn share<R: Send>(
    pages: Range<u64>,
    work: impl Fn(Range<u64>) -> Result<R, Failure> + Sync,
) -> Result<Vec<R>, Failure> {
    let processors = processors()?;
    let count = processors.len() as u64;
    if count < 2 || pages.end - pages.start < WORTHWHILE_PAGES {
        return Ok(Vec::from([work(pages)?]));
    }
    let part = (pages.end - pages.start).div_ceil(count);
    let mut shares: Vec<Share<R>> = (0..count)
        .zip(processors)
        .map(|(number, processor)| Share {
            pages: (pages.start + number * part).min(pages.end)
                ..(pages.start + (number + 1) * part).min(pages.end),
            processor,
            result: None,
        })
        .collect();
    let before = sched_getaffinity(None).named(|| "sched_getaffinity")?;
    run(&mut shares, &|_, share: &mut Share<R>| {
        share.result = Some(bind(share.processor).and_then(|()| work(share.pages.clone())));
    });
    sched_setaffinity(None, &before).named(|| "sched_setaffinity")?;
    shares
        .into_iter()
        .map(|share| {
            share
                .result
                .unwrap_or_else(|| Err(Failure::refused("share of pages", "not done")))
        })
        .collect()
}

/// Starts and ends a thread on each processor, so that kernel and agent allocate what they cache for threads before
/// memory is measured.
pub fn warm_up() -> Result<(), Failure> {
    share(0..WORTHWHILE_PAGES, |_| Ok(())).map(drop)
}

/// Calls `work` on `processor`.
pub fn on<R>(processor: usize, work: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    let before = sched_getaffinity(None).named(|| "sched_getaffinity")?;
    let result = bind(processor).and_then(|()| work());
    sched_setaffinity(None, &before).named(|| "sched_setaffinity")?;
    result
}

fn bind(processor: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).named(|| "sched_setaffinity")
}

#[cfg(panic = "abort")]
use crate::sys::team::run;

/// An ordinary program's allocator uses thread-local storage, which these threads lack.
#[cfg(not(panic = "abort"))]
fn run<T: Send>(shares: &mut [T], work: &(dyn Fn(usize, &mut T) + Sync)) {
    std::thread::scope(|scope| {
        for (index, share) in shares.iter_mut().enumerate() {
            scope.spawn(move || work(index, share));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_pages_once_and_in_order() {
        for pages in [0..1, 0..64, 5..1000, 0..8192, 7..7] {
            let parts = share(pages.clone(), Ok).unwrap();
            let mut next = pages.start;
            for part in parts {
                assert_eq!(part.start, next);
                next = part.end;
            }
            assert_eq!(next, pages.end);
        }
    }

    #[test]
    fn a_failure_of_any_part_is_the_failure() {
        let failed = share(0..8192, |part| {
            if part.contains(&8191) {
                Err(Failure::refused("last", "fails"))
            } else {
                Ok(())
            }
        });
        assert_eq!(failed.unwrap_err().call, "last");
    }

    #[test]
    fn the_caller_stays_free_to_run_anywhere() {
        let before = processors().unwrap();
        share(0..8192, Ok).unwrap();
        assert_eq!(processors().unwrap(), before);
        assert!(!before.is_empty());
    }
}
