//! /proc/meminfo and /proc/zoneinfo.

/// Memory of the machine in pages of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meminfo {
    /// MemTotal: what the page allocator manages.
    pub total_pages: u64,
    /// MemFree: pages on the free lists, without those in per-CPU lists.
    pub free_pages: u64,
}

/// Reads MemTotal and MemFree; `None` if either line is missing or is not `NAME: NUMBER kB`.
pub fn parse(text: &str) -> Option<Meminfo> {
    Some(Meminfo {
        total_pages: pages(text, "MemTotal")?,
        free_pages: pages(text, "MemFree")?,
    })
}

/// Pages in all per-CPU lists: the `count:` lines of /proc/zoneinfo. They are free too but not in MemFree, and after
/// a large release they are many.
pub fn per_cpu_pages(zoneinfo: &str) -> u64 {
    let counts = zoneinfo
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// CmaFree, the part of MemFree that only movable pages may use; 0 if there is no such line (without CONFIG_CMA). The
/// scratch area of KHO is such memory.
pub fn cma_free_pages(text: &str) -> u64 {
    pages(text, "CmaFree").unwrap_or(0)
}

/// The value of line `name`, from kB to pages.
fn pages(text: &str, name: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kilobytes / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let text = "MemTotal:         507904 kB\nMemFree:          401236 kB\nMemAvailable:     392100 kB\n";
        assert_eq!(
            parse(text),
            Some(Meminfo {
                total_pages: 126_976,
                free_pages: 100_309
            })
        );
    }

    #[test]
    fn scratch_is_told_apart() {
        let text = "MemTotal: 507904 kB\nMemFree: 401236 kB\nCmaTotal: 102752 kB\nCmaFree:  102604 kB\n";
        assert_eq!(cma_free_pages(text), 25_651);
        assert_eq!(cma_free_pages("MemFree: 401236 kB\n"), 0);
    }

    #[test]
    fn sums_what_the_processors_hold() {
        let text = "Node 0, zone    DMA32\n  pages free     96\n  pagesets\n    cpu: 0\n              count:    391\n              \
                    high:     400\nNode 0, zone   Normal\n    cpu: 0\n              count: 9\n";
        assert_eq!(per_cpu_pages(text), 400);
        assert_eq!(per_cpu_pages("count: x\ncount"), 0);
    }

    #[test]
    fn refuses_what_is_not_meminfo() {
        for text in [
            "",
            "MemTotal: 4 kB",
            "MemTotal: 4 kB\nMemFree: 4",
            "MemTotal: 4 kB\nMemFree: x kB",
            "MemFreeish: 4 kB",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text: std::string::String) {
            parse(&text);
            per_cpu_pages(&text);
            cma_free_pages(&text);
        }
    }
}
