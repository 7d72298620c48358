//! Reads /proc/kpageflags.

use crate::failure::Failure;
use crate::files;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use guest_agent::kpageflags::{ENTRY_BYTES, push_flags};
use guest_agent::pagemap;
use guest_agent::protocol::{FlagRun, PageRun};
use rustix::fs::OFlags;

const FILE: &str = "/proc/kpageflags";
/// Most pages in one request, so that the reply fits the window.
const MAX_PAGES: u64 = 8192;

/// The flags of page frames, in order; empty if the kernel does not have the file (CONFIG_PROC_PAGE_MONITOR).
pub fn read(frames: &[PageRun]) -> Result<Vec<FlagRun>, Failure> {
    let pages = pagemap::page_count(frames);
    if pages > MAX_PAGES {
        return Err(Failure::refused(
            FILE,
            format!("{pages} pages: at most {MAX_PAGES}"),
        ));
    }
    if !files::exists(FILE) {
        return Ok(Vec::new());
    }
    let file = files::open(FILE, OFlags::RDONLY)?;
    let mut flags = Vec::new();
    for run in frames {
        // Beyond the last page that the kernel knows, the file ends: such pages have no flags.
        let mut bytes = vec![0; usize::try_from(run.count).unwrap_or(0) * ENTRY_BYTES];
        let Some(offset) = run.first.checked_mul(ENTRY_BYTES as u64) else {
            return Err(Failure::refused(FILE, format!("no page frame {:#x}", run.first)));
        };
        files::read_at(&file, FILE, &mut bytes, offset)?;
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        words.for_each(|word| push_flags(&mut flags, word));
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_pages_are_refused() {
        let run = |first, count| PageRun { first, count };
        for runs in [
            vec![run(0, u64::MAX), run(0, u64::MAX)],
            vec![run(1, 8000), run(1, 193)],
        ] {
            assert!(read(&runs).is_err());
        }
    }
}
