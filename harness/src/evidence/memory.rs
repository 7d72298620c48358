//! Evidence of who has a page: the kernel's word on it, and what the kernel does when all memory is wanted.

use guest_agent::kpageflags;
use guest_agent::protocol::{FlagRun, PageRun};
use serde::{Deserialize, Serialize};

/// A point of each later generation at which its memory is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryPoint {
    /// Before anything of the session was retrieved.
    BeforeRetrieval,
    /// After the retrieval, before the session is finished.
    Retrieved,
    /// After the session was finished, while objects are held.
    Held,
    /// After objects were closed.
    AfterClose,
}

/// Free memory as the agent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Kernel generation.
    pub generation: u32,
    /// When.
    pub at: MemoryPoint,
    /// MemTotal in pages.
    pub total_pages: u64,
    /// MemFree and the pages in per-CPU lists, in pages.
    pub free_pages: u64,
    /// Pages that the agent's objects hold at that time.
    pub held_pages: u64,
}

/// What a kernel said of the pages of an object (/proc/kpageflags).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFlagsRecord {
    /// Kernel generation.
    pub generation: u32,
    /// When.
    pub at: MemoryPoint,
    /// Whose pages.
    pub object: u32,
    /// Guest time of the last answer.
    pub time_ns: u64,
    /// Flags of the object's pages in file order, as [`guest_agent::kpageflags`] explains them. Fewer than the object
    /// has pages if the kernel does not say.
    pub flags: Vec<FlagRun>,
}

impl PageFlagsRecord {
    /// Whether it has the flags of exactly that many pages.
    pub fn covers(&self, pages: usize) -> bool {
        kpageflags::page_count(&self.flags) == pages as u64
    }

    /// The flags of each page, in file order.
    pub fn each(&self) -> impl Iterator<Item = u64> {
        let runs = self.flags.iter();
        runs.flat_map(|run| (0..run.count).map(|_| run.flags))
    }
}

/// All free memory was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureRecord {
    /// Kernel generation.
    pub generation: u32,
    /// When.
    pub at: MemoryPoint,
    /// Guest time of the first request.
    pub begin_ns: u64,
    /// Guest time of the answer that nothing was left; `None` if it did not come to that.
    pub end_ns: Option<u64>,
    /// Pages taken.
    pub taken_pages: u64,
    /// Pages then left on the free lists: the kernel's reserves.
    pub free_pages: u64,
    /// Pages then left in per-CPU lists.
    pub per_cpu_pages: u64,
}

/// Pages of a closed object that a CPU wrote to once the agent was told to close it, in that generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reused {
    /// Which object.
    pub object: u32,
    /// Kernel generation that closed it.
    pub generation: u32,
    /// Guest time at which the agent was told.
    pub since_ns: u64,
    /// Whether every write since then is on record.
    pub complete: bool,
    /// The pages, ascending.
    pub pages: Vec<PageRun>,
}

impl Reused {
    /// Whether a page is one of them.
    pub fn contains(&self, frame: u64) -> bool {
        let after = self.pages.partition_point(|run| run.first <= frame);
        let run = after.checked_sub(1).and_then(|at| self.pages.get(at));
        run.is_some_and(|run| frame - run.first < run.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_runs_are_found() {
        let run = |first, count| PageRun { first, count };
        let reused = Reused {
            object: 1,
            generation: 1,
            since_ns: 0,
            complete: true,
            pages: vec![run(3, 2), run(9, 1)],
        };
        let found: Vec<u64> = (0..12).filter(|frame| reused.contains(*frame)).collect();
        assert_eq!(found, [3, 4, 9]);
    }

    #[test]
    fn flags_cover_as_many_pages_as_they_say() {
        let record = |counts: &[u64]| PageFlagsRecord {
            generation: 1,
            at: MemoryPoint::Held,
            object: 1,
            time_ns: 0,
            flags: counts
                .iter()
                .map(|count| FlagRun {
                    flags: 0,
                    count: *count,
                })
                .collect(),
        };
        assert!(record(&[]).covers(0) && record(&[2, 3]).covers(5));
        assert!(!record(&[]).covers(1) && !record(&[u64::MAX, u64::MAX]).covers(3));
    }
}
